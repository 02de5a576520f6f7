"""Two checkpoints side by side: what both compute in float32 for the same tokens, and how far they are apart.

Neither a model nor its logits need to fit in memory: layers are read one at a time (streamed.py), and the output matrix
in blocks of rows.

T tokens of all sequences together, V vocabulary
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, UsageError
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.values import Floats
from ..progress import Progress, Stage, silent
from ..text.tokenizer import Tokenizer
from .streamed import Streamed

FIXED_IDS = 64
WINDOW = 512  # tokens of a text in one sequence
TEXT_TOKENS = 4096  # of a text are compared, so that a file of any size takes a bounded time
LONGEST_TOKEN = 32  # characters of the text to read for each
BUILT_IN = "built-in"  # the name of TEXT in a Divergence
HEAD_VALUES = 1 << 21  # number of logits of one model that are in memory at a time
TEXT = """\
The lighthouse keeper wrote one line each evening, whether or not a ship had passed. "Wind from the west, glass falling,
lamp lit at six." After thirty years the lines filled nine books, and when the lamp was at last given a motor, a student
of the weather came to read them. She found that the keeper had never once written how he felt, and yet she knew: in the
winters the letters leaned, and in the spring they stood up straight again.

To find the sum of the first n odd numbers, draw them as corners of a square: 1, then 3 around it, then 5 around both.
Every new corner makes the square one wider, so the sum is n * n. For n = 12 it is 144.

def mean(values):
    if not values:
        raise ValueError("mean of nothing")
    return sum(values) / len(values)

水往低处流，人往高处走。Le train de sept heures est parti à l'heure. Der Kaffee ist kalt, aber das Gespräch war gut.
"""


@dataclass(frozen=True)
class Divergence:
    """How far a result is from its source, over every position of every sequence. Logits in float32, KL in nats."""

    sequences: tuple[tuple[int, ...], ...]  # token ids: the fixed ones, then the text in windows
    text: str | None  # where it came from; None if the checkpoint has no tokenizer
    logits_max: float  # largest absolute difference
    logits_relative: float  # norm of the difference over the norm of the source's logits
    kl_mean: float  # KL(source || result)
    kl_p99: float
    top1_agreement: float  # share of positions
    source_perplexity: float | None
    perplexity: float | None
    top1: tuple[int, ...]  # of the result, so that it can be checked without the source

    @property
    def perplexity_ratio(self) -> float | None:
        return self.perplexity / self.source_perplexity if self.perplexity and self.source_perplexity else None


def sequences_for(checkpoint: Checkpoint, text: Path | None) -> tuple[list[list[int]], str | None]:
    """(sequences of token ids to compare two checkpoints on, where their text comes from).

    The first sequence is fixed and needs no tokenizer. The others are a text, which needs one: the built-in text or a
    UTF-8 file. The built-in text is left out if no tokenizer fits. Raises UsageError or CheckpointError for a file that
    cannot be used.
    """
    config = checkpoint.config
    try:
        ids = _encode(checkpoint, TEXT if text is None else _read_text(text))
    except CheckpointError as error:
        if text is not None:
            raise UsageError(f"--text {text} needs the tokenizer, but {error}") from None
        return [fixed_ids(config)], None
    if len(ids) < 2:
        raise UsageError(f"--text {text} has {len(ids)} tokens; a perplexity needs 2")
    window = min(WINDOW, config.context_length)
    windows = [ids[first : first + window] for first in range(0, len(ids), window)]
    return [fixed_ids(config), *windows], BUILT_IN if text is None else str(text)


def _encode(checkpoint: Checkpoint, text: str) -> list[int]:
    ids, size = Tokenizer(checkpoint).encode(text)[:TEXT_TOKENS], checkpoint.config.vocab_size
    if beyond := [token for token in ids if token >= size]:
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'} gives the id {beyond[0]}, but vocab_size is {size}; "
            "config.json and tokenizer are of different models"
        )
    return ids


def fixed_ids(config: Qwen3Config) -> list[int]:
    """Token ids that are spread over the vocabulary, the same for every checkpoint of its size."""
    return [(7 + 2654435761 * index) % config.vocab_size for index in range(min(FIXED_IDS, config.context_length))]


def compare(
    source: Checkpoint,
    result: Checkpoint,
    sequences: Sequence[Sequence[int]],
    text: str | None,
    progress: Progress = silent,
) -> Divergence:
    """Compare the logits of `result` and `source` for `sequences`. The two are read one after the other."""
    models = Streamed(source), Streamed(result)
    stage = Stage("comparing", _steps(result.config, sum(len(ids) for ids in sequences)), "steps")
    hidden = [model.hidden(sequences, lambda: progress(stage, 1)) for model in models]
    sums = _Sums(np.concatenate([[*ids[1:], -1] for ids in sequences]))
    vocabulary = models[0].config.vocab_size
    step = head_rows(len(hidden[0]), vocabulary)
    for first in range(0, vocabulary, step):
        count = min(step, vocabulary - first)
        logits = [states @ model.head(first, count).T for states, model in zip(hidden, models, strict=True)]
        sums.add(first, *logits)
        progress(stage, 1)
    return sums.divergence(sequences, text)


def head_rows(tokens: int, vocabulary: int) -> int:
    """Rows of the output matrix to multiply at a time."""
    return min(vocabulary, max(256, HEAD_VALUES // tokens))


def _steps(config: Qwen3Config, tokens: int) -> int:
    """How many steps `compare` reports: each layer of both models, and each block of rows of the output matrices."""
    return 2 * config.num_hidden_layers + -(-config.vocab_size // head_rows(tokens, config.vocab_size))


class _Sums:
    """The sums over two sets of logits, which come in blocks of the vocabulary."""

    def __init__(self, targets: np.ndarray):
        self._targets = targets  # (T,) the next token, -1 at the end of a sequence
        T = len(targets)
        self._top = np.full((2, T), -np.inf)
        self._top1 = np.zeros((2, T), np.int64)
        self._total = np.zeros((2, T))  # sum of exp(logit - top)
        self._weighted = np.zeros(T)  # sum of exp(source - top) * (source - result)
        self._target = np.zeros((2, T))
        self._largest = 0.0
        self._squares = np.zeros(2)  # of the difference, of the source

    def add(self, first: int, source: Floats, result: Floats) -> None:
        """Logits (T, count) of the tokens from `first`."""
        difference = source.astype(np.float64) - result
        self._largest = max(self._largest, float(np.abs(difference).max()))
        self._squares += np.square(difference).sum(), np.square(source, dtype=np.float64).sum()
        for side, logits in enumerate((source, result)):
            best = logits.argmax(-1)
            value = np.take_along_axis(logits, best[:, None], -1)[:, 0].astype(np.float64)
            higher = value > self._top[side]
            self._top1[side] = np.where(higher, first + best, self._top1[side])
            top = np.maximum(value, self._top[side])
            shrink = np.exp(self._top[side] - top)
            weights = np.exp(logits - top[:, None])
            self._total[side] = self._total[side] * shrink + weights.sum(-1)
            if side == 0:
                self._weighted = self._weighted * shrink + np.einsum("tv,tv->t", weights, difference)
            self._top[side] = top
            inside = np.flatnonzero((self._targets >= first) & (self._targets < first + logits.shape[1]))
            self._target[side, inside] = logits[inside, self._targets[inside] - first]

    def divergence(self, sequences: Sequence[Sequence[int]], text: str | None) -> Divergence:
        log_total = self._top + np.log(self._total)
        divergence = np.maximum(self._weighted / self._total[0] - (log_total[0] - log_total[1]), 0)
        scored = self._targets >= 0
        scored[: len(sequences[0])] = False  # the fixed ids are not text
        surprise = (log_total - self._target)[:, scored]
        source, result = (math.exp(min(side.mean(), 700)) for side in surprise) if scored.any() else (None, None)
        return Divergence(
            sequences=tuple(tuple(ids) for ids in sequences),
            text=text,
            logits_max=self._largest,
            logits_relative=math.sqrt(self._squares[0] / self._squares[1]),
            kl_mean=float(divergence.mean()),
            kl_p99=float(np.quantile(divergence, 0.99)),
            top1_agreement=float((self._top1[0] == self._top1[1]).mean()),
            source_perplexity=source,
            perplexity=result,
            top1=tuple(self._top1[1].tolist()),
        )


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(TEXT_TOKENS * LONGEST_TOKEN)
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"--text {path} cannot be read ({error.strerror})") from None
