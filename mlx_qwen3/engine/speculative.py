"""Speculative decoding: one pass of the model checks several guesses of the next tokens.

A guess, or draft, counts only if the model chooses the same token, drawn with the random key of its position. So every
token of the reply is the same as without drafts. A draft x is accepted with probability p(x); no exact rule accepts
more.

k drafted tokens of one pass over k + 1 tokens: the last known token and the drafts
"""

import re
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .. import blas
from ..errors import UsageError
from ..files.config import Qwen3Config
from ..model import kernels
from ..model.qwen3 import Qwen3
from .runner import decode_step, prefill
from .sampler import Sampler

LONGEST = 7  # drafts in one pass; Metal's attention for few queries takes up to 8 tokens
NGRAMS = (4, 3, 2)  # lengths that lookup compares, the longest and surest first

# The cost of a pass over 1 to 8 tokens, in passes over one token. It is a table and is not measured while running:
# drafts change the last bits of the logits, so in bf16 the reply of a seed would depend on the clock. Measurements:
# dev/LOG.md.
ROW_BY_ROW = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
COST_CPU = (1.0, 1.12, 1.17, 1.19, 1.2, 1.22, 1.24, 1.28)  # Qwen3-0.6B, float32, MKL
COST_GPU = (1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)  # bf16 on an M3 Ultra: ml-explore/mlx#4265
COST_GPU_PACKED = (1.0, 1.11, 1.31, 1.45, 1.7, 1.98, 2.2, 2.45)  # 4 bits on an M4 Pro: ml-explore/mlx#3839
COST_GPU_PACKED_OLD = (1.0, 1.83, 2.5, 3.26, 3.9, 4.6, 5.28, 6.12)  # before the M3, and its kernels: mlx#4265, #3764


def pass_costs(model: Qwen3) -> tuple[float, ...]:
    """The table for a model on the default device. Tokens that choose other experts read other weights."""
    table, share, moe = _pass_costs(model), model.expert_share, model.config.moe
    if not moe:
        return table
    chance = 1 - moe.num_experts_per_tok / moe.num_experts  # that one token leaves out an expert
    read = [(1 - chance**tokens) / (1 - chance) for tokens in range(1, len(table) + 1)]  # by random choices, of one's
    return tuple(cost + share * max(0.0, own - cost) for cost, own in zip(table, read, strict=True))


def _pass_costs(model: Qwen3) -> tuple[float, ...]:
    packed = any(isinstance(module, nn.QuantizedLinear) for module in model.modules())
    if not kernels.on_gpu():
        return ROW_BY_ROW if packed or (model.norm.weight.dtype == mx.float32 and blas.lacking()) else COST_CPU
    generation = re.search(r"g(\d\d)\w$", str(mx.device_info().get("architecture", "")))
    if packed and generation and int(generation[1]) < 15:
        return COST_GPU_PACKED_OLD
    return COST_GPU_PACKED if packed else COST_GPU


class Pace:
    """Decides how many tokens to draft, by how often recent drafts were right.

    If each of k drafts is right with probability p, a pass makes 1 + p + ... + p^k tokens. The best k makes the most
    tokens for its cost. If no k beats plain decoding, drafting pauses, each time for longer.
    """

    PAUSE = 16, 256  # tokens: the first pause and the longest
    FADE = 0.8  # how much the past counts after each pass: about the last five passes count

    def __init__(self, costs: Sequence[float], draft_cost: float = 0.0):
        """`draft_cost` is the cost of making one draft, in the unit of `costs`."""
        self._costs = [cost + k * draft_cost for k, cost in enumerate(costs)]
        self._pause = self.PAUSE[0]
        self._waiting = 0
        self._try()

    def _try(self) -> None:
        self._right, self._judged = 1.5, 2.0

    def length(self) -> int:
        """How many tokens to draft now; 0 while drafting saves no time."""
        if self._waiting:
            return 0
        p = self._right / self._judged
        speeds = [sum(p**i for i in range(k + 1)) / cost for k, cost in enumerate(self._costs)]
        return max(range(len(speeds)), key=speeds.__getitem__)

    def record(self, drafted: int, accepted: int) -> None:
        """Record that the first `accepted` of `drafted` tokens were right. Those after a wrong one do not count."""
        self._right = self.FADE * self._right + accepted
        self._judged = self.FADE * self._judged + min(accepted + 1, drafted)
        if self.length():
            self._pause = self.PAUSE[0] if accepted else self._pause
        else:
            self._waiting = self._pause
            self._pause = min(2 * self._pause, self.PAUSE[1])
            self._try()

    def tick(self) -> None:
        """Another token is known."""
        self._waiting = max(0, self._waiting - 1)


class Drafter:
    """Guesses the next tokens of one reply, and counts how often it was right."""

    def __init__(self, prompt: Sequence[int], pace: Pace):
        self.drafted = self.accepted = 0
        self._text = list(prompt)
        self._prompt = len(prompt)
        self._pace = pace

    def add(self, token: int) -> None:
        """The reply's next token is known."""
        self._text.append(token)
        self._pace.tick()

    def expects(self) -> bool:
        """Whether to draft when the token that is being computed is known. If so, no step is built before that."""
        return self._pace.length() > 0

    def propose(self, room: int, sampler: Sampler) -> list[int]:
        """Up to `room` drafts of the tokens after the known ones. `sampler` is the one of the reply."""
        raise NotImplementedError

    def checked(self, drafted: int, accepted: int) -> None:
        """Of the last `drafted` drafts the first `accepted` were right; the tokens of their pass were added before."""
        self.drafted += drafted
        self.accepted += accepted
        self._pace.record(drafted, accepted)


class Lookup(Drafter):
    """Finds the last few tokens earlier in the prompt or the reply, and drafts what followed them there."""

    def __init__(self, prompt: Sequence[int], pace: Pace):
        super().__init__([], pace)
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest place in the text
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        for n in NGRAMS:
            if len(self._text) >= n:
                self._next[tuple(self._text[-n:])] = len(self._text)
        super().add(token)

    def expects(self) -> bool:
        return super().expects() and self._found() is not None

    def propose(self, room: int, sampler: Sampler) -> list[int]:
        k, start = min(self._pace.length(), room), self._found()
        if start is None:
            return []
        period = len(self._text) - start  # at the end of the text, start again: the text may repeat itself
        drafts = [self._text[start + i % period] for i in range(k)]
        # A padding row of the embedding may stand in a prompt, and is never chosen.
        return drafts[: next((i for i, token in enumerate(drafts) if token >= sampler.vocabulary), k)]

    def _found(self) -> int | None:
        return next((self._next[gram] for n in NGRAMS if (gram := tuple(self._text[-n:])) in self._next), None)


class DraftModel(Drafter):
    """Drafts the tokens of a smaller model with the same tokenizer, drawn with the same keys."""

    def __init__(self, model: Qwen3, prompt: Sequence[int], pace: Pace):
        super().__init__(prompt, pace)
        self._model, self._step = model, decode_step(model)
        self._cache = model.make_cache()
        self._readable = max(prompt) < model.config.vocab_size

    def add(self, token: int) -> None:
        super().add(token)
        # The rows after the tokenizer's ids are padding, and one model may have more of them than the other.
        self._readable = self._readable and token < self._model.config.vocab_size

    def propose(self, room: int, sampler: Sampler) -> list[int]:
        text = self._text
        k = min(self._pace.length(), room, self._model.config.context_length - len(text) + 1)
        if k < 1 or not self._readable:
            return []
        sampler, position = sampler.fork(self._model.config.vocab_size, "the draft model"), len(text) - self._prompt
        unread = mx.array([text[self._cache.end :]])  # tokens that this model has not read yet
        coming = sampler.next(prefill(self._model, unread, self._cache), position)
        drafts: list[int] = []
        while True:
            last = len(drafts) == k - 1
            following = None if last else sampler.next(self._step(coming, self._cache), position + 1)
            drafts.extend(sampler.known(coming, position))
            if following is None:
                return drafts
            mx.async_eval(following)  # not before the step is done: see batch.py
            coming = following
            position += 1

    def checked(self, drafted: int, accepted: int) -> None:
        super().checked(drafted, accepted)
        self._cache.trim(max(0, drafted - 1 - accepted))  # the last draft was never fed


def make_drafter(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    draft: Qwen3 | None = None,
    lookup: bool | None = None,
    vocabulary: int | None = None,
) -> Drafter | None:
    """The drafter of a reply: the model `draft` if it is given, else lookup.

    `lookup`: None drafts while that is faster, True always, False never. `vocabulary` is the number of ids of the
    tokenizer, by default the rows of the smaller embedding. Raises UsageError for a draft model that lacks some of
    them, and for drafts of more than one prompt.
    """
    if lookup not in (None, True, False):
        raise UsageError(f"lookup is {lookup!r}; expected True, False or None")
    if len(prompts) > 1 and (draft is not None or lookup):
        asked = "a draft model was given" if draft is not None else "lookup is on"
        raise UsageError(f"{asked} for {len(prompts)} prompts, but drafts are made for a single one; leave it out")
    if draft is not None:
        check_vocabulary(draft.config, vocabulary or 0)
        return DraftModel(draft, prompts[0], Pace(pass_costs(model), draft.step_bytes / model.step_bytes))
    costs = (1.0,) * (LONGEST + 1) if lookup else pass_costs(model)
    if len(prompts) > 1 or lookup is False or costs == ROW_BY_ROW:
        return None
    return Lookup(prompts[0], Pace(costs))


def why_no_drafts(model: Qwen3, draft: Qwen3) -> str | None:
    """Why no guess of the model `draft` saves time; None if some do."""
    costs, share = pass_costs(model), draft.step_bytes / model.step_bytes
    if Pace(costs, share).length():
        return None
    if costs == ROW_BY_ROW:
        return "here a pass over several tokens takes as long as several passes, so they would save no time"
    return f"a guess would cost {share:.0%} of the model's own token, too much to save time; give a smaller draft model"


def check_vocabulary(draft: Qwen3Config, vocabulary: int) -> None:
    """Raises UsageError for a draft model without an embedding for each of the tokenizer's ids.

    The rows after those are padding: how many there are does not matter.
    """
    if draft.vocab_size < vocabulary:
        raise UsageError(
            f"the draft model has a vocabulary of {draft.vocab_size}, the tokenizer {vocabulary} ids; "
            "give a smaller model of the same family"
        )
