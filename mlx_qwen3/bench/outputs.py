"""Compares the outputs of two contestants. If they disagree, no speed is shown."""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import interrupt
from ..compare.bounds import OUTPUTS
from .process import Worker
from .report import Outputs, Parting, Rows, in_words

COMPARED = 32  # tokens


def compare(
    ours: Worker, theirs: Worker, ids: list[int], our_tokens: list[int], their_tokens: list[int], dtypes: set[str]
) -> Outputs:
    """Compare the first tokens of both, and both models' logits at the positions where the contestant chose its tokens.

    To compare tokens is not enough. Models with random tied weights all repeat the last token of the prompt. And if the
    best two logits nearly tie, two dtypes may choose different tokens; from there on the replies differ. So the logits
    are compared too, in the contestant's context. They may differ by the rounding of the less precise dtype. Each of
    the contestant's tokens must be the best one of our logits, within the difference of the two models' logits.
    """
    compared = min(COMPARED, len(our_tokens), len(their_tokens))
    our_first, their_first = our_tokens[:compared], their_tokens[:compared]
    sequence = ids + their_first[:-1]
    a, b = (_logits(worker, sequence, compared) for worker in (ours, theirs))
    return judge(len(ids), our_first, their_first, a, b, max(OUTPUTS[dtype].limit for dtype in dtypes))


def judge(
    prompt: int, our_tokens: list[int], their_tokens: list[int], a: np.ndarray, b: np.ndarray, allowed: float
) -> Outputs:
    """`a` and `b` are our logits and theirs, (tokens, vocabulary), both in the context of their tokens."""
    largest = np.abs(a - b).max(-1)
    relative = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1)
    gap = a.max(-1) - np.take_along_axis(a, np.array(their_tokens)[:, None], -1)[:, 0]
    # Both logits of a pair can be off by the largest difference. A NaN is outside every bound.
    agree = bool(np.all(relative <= allowed) and np.all(gap <= 2 * largest))
    worst = float(relative.max())
    pairs = enumerate(zip(our_tokens, their_tokens, strict=True))
    at = next((i for i, (x, y) in pairs if x != y), None)
    if at is None:
        return Outputs(prompt, len(our_tokens), agree, worst, allowed)
    return Outputs(
        prompt,
        len(our_tokens),
        agree,
        worst,
        allowed,
        Parting(at, our_tokens[at], their_tokens[at], float(gap[at]), float(largest[at]), float(relative[at])),
    )


def sentence(name: str, found: Outputs) -> str:
    """The result in words."""
    tokens, parting = f"the first {found.compared} greedy tokens", found.parting
    rows = f"{in_words(Rows(found.rows))} at once, the worst: " if found.rows else ""
    said = [f"{name}, {found.prompt_tokens} prompt tokens: {rows}"]
    if parting is None:
        said.append(f"{tokens} are equal")
    else:
        said.append(
            f"{tokens} differ from token {parting.position + 1} on: {parting.ours} here and {parting.theirs} there. "
            f"Their logits here lie {parting.gap:.3g} apart; the two models' logits at that position differ by "
            f"{parting.largest:.3g} at most, and by {parting.relative:.2g} in relative norm"
        )
    said.append(f"; relative norm of the difference of the logits at most {found.relative:.2g}")
    verdict = "rounding" if found.agree else "not rounding, so no speed is shown"
    return "".join(said) + f" (allowed {found.allowed:g}): {verdict}"


def _logits(worker: Worker, ids: list[int], last: int) -> Any:
    with (
        tempfile.TemporaryDirectory() as folder,
        interrupt.cleaning(partial(shutil.rmtree, folder, ignore_errors=True)),
    ):
        file = Path(folder) / "logits.npy"
        worker.ask("logits", ids=ids, last=last, file=str(file))
        return np.load(file)
