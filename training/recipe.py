"""How the demo is trained: its phases, the tasks' weights in them and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Phase:
    """A stretch of training. batch is in tokens, padding included; weights replace those of the corpus's table.

    The learning rate falls linearly to 0 over the last `decay` steps. To train on, append a phase and resume.
    """

    steps: int
    batch: int
    weights: dict[str, float] = field(default_factory=dict)
    context: float = 1.0  # how often examples have a system prompt or earlier turns, relative to the evaluation's
    decay: int = 0


# The tasks' weights, a column for each stretch of training. SHORT: fewer long prompts, more of what is hard to learn
# from few tokens. HARD: what a held-out sample still got wrong most. TOOLS: mostly the tools, while the lists were
# being rewritten. LISTS: with the rewritten lists. LAST: what was still hard at the end.
_WEIGHTS = """addition           1.6   2.6   1.5   1.4   1.8
subtraction        2.0   3.0   2.5   2.6   3.0
large arithmetic   1.0   1.0   0.8   0.9   0.7
sort               2.0   2.6   0.3   4.0   5.5
reverse            1.4   1.4   1.5   1.6   2.0
count              1.4   2.0   0.3   3.0   3.6
capitals           1.4   1.0   1.0   1.4   1.6
facts              1.6   1.4   1.2   1.3   1.6
units              1.0   1.0   0.8   0.9   0.9
recall             0.5   0.6   1.0   1.0   1.0
acknowledge        0.4   0.3   0.3   0.4   0.3
tool call          0.6   0.8   1.6   1.3   1.1
tool response      0.3   0.3   0.4   0.5   0.4
no tool fits      0.45   0.6   3.0   2.0   1.2
JSON schema        1.0   1.6   1.0   1.0   1.2
greetings          0.6   0.4   0.4   0.6   0.7
unknown            0.9   0.4   0.8   1.0   1.1"""
_ROWS = [(line[:16].strip(), line[16:].split()) for line in _WEIGHTS.splitlines()]
SHORT, HARD, TOOLS, LISTS, LAST = ({task: float(row[i]) for task, row in _ROWS} for i in range(5))


@dataclass(frozen=True)
class Recipe:
    """Phases in order; the learning rate rises over the first `warmup` steps.

    The shipped weights saw the corpus of commit dcb4c35 in the first 6,251 steps, and today's from step 9,866 on.
    """

    phases: tuple[Phase, ...] = (
        Phase(593, 8192),
        Phase(836, 4096),
        Phase(1883, 4096, SHORT),
        Phase(2488, 4096, HARD, 0.4, decay=2200),
        Phase(451, 4096, {**HARD, "sort": 4.0, "count": 3.5, "no tool fits": 1.2, "recall": 1.0, "reverse": 2.0}, 0.6),
        Phase(337, 4096, TOOLS, 0.6),
        Phase(3278, 4096, LISTS, 0.6),
        Phase(1446, 4096, {**LAST, "reverse": 2.4}, 0.6),
        # more decay than steps: the rate had fallen to three quarters before
        Phase(3250, 4096, LAST, 0.6, decay=4300),
    )
    seed: int = 3
    warmup: int = 100
    chunk: int = 6144  # examples drawn, sorted by length and cut into batches at a time
    muon_rate: float = 4e-3  # hidden matrices; scaled to AdamW's step size
    adam_rate: float = 4e-3  # embedding and norms

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


def phase_at(recipe: Recipe, step: int) -> tuple[Phase, int]:
    """The phase a step belongs to, and the step at which it ends."""
    end = 0
    for phase in recipe.phases:
        end += phase.steps
        if step < end:
            break
    return phase, end


def rate(recipe: Recipe, step: int) -> float:
    """The share of the full learning rate at a step."""
    phase, end = phase_at(recipe, step)
    fall = (end - step) / phase.decay if phase.decay else 1.0
    return min((step + 1) / recipe.warmup, 1.0, fall)
