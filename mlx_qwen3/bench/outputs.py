"""Do two contestants say the same? No speed is shown of one that does not."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .process import Worker
from .report import Outputs

COMPARED = 32  # tokens
# Relative norm of the difference of two models' logits that rounding explains, by the coarser dtype of the two.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def compare(
    ours: Worker, theirs: Worker, ids: list[int], our_tokens: list[int], their_tokens: list[int], dtypes: set[str]
) -> Outputs:
    """Equal, or apart by no more than rounding.

    Two dtypes choose differently where the best two logits nearly tie, and then go different ways for good. So from
    there on the contestant's own tokens are fed to both models, and every one of them has to be among the best of
    ours, as far as the two models' logits differ; and these may differ by the rounding of the dtype.
    """
    compared = min(COMPARED, len(our_tokens), len(their_tokens))
    ours_first, theirs_first = our_tokens[:compared], their_tokens[:compared]
    if ours_first == theirs_first:
        return Outputs(len(ids), compared, True)
    allowed = max(ROUNDING[dtype] for dtype in dtypes)
    sequence = ids + theirs_first[:-1]
    a, b = (_logits(worker, sequence, compared) for worker in (ours, theirs))
    return judge(len(ids), ours_first, theirs_first, a, b, allowed)


def judge(
    prompt: int, our_tokens: list[int], their_tokens: list[int], a: np.ndarray, b: np.ndarray, allowed: float
) -> Outputs:
    """`a` and `b` are our logits and theirs, (tokens, vocabulary), in the context of their tokens."""
    difference = np.abs(a - b)
    largest = difference.max(-1)
    relative = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1)
    gap = a.max(-1) - np.take_along_axis(a, np.array(their_tokens)[:, None], -1)[:, 0]
    at = next(i for i, (x, y) in enumerate(zip(our_tokens, their_tokens, strict=True)) if x != y)
    # Both logits of a pair can be off by the largest difference. NaN is in no bound.
    agree = bool(np.all(relative <= allowed) and np.all(gap <= 2 * largest))
    return Outputs(
        prompt_tokens=prompt,
        compared=len(our_tokens),
        agree=agree,
        position=at,
        ours=our_tokens[at],
        theirs=their_tokens[at],
        gap=float(gap[at]),
        relative=float(relative[at]),
        largest=float(largest[at]),
        worst_relative=float(relative.max()),
        allowed=allowed,
    )


def sentence(name: str, found: Outputs) -> str:
    """The finding in words."""
    where = f"{name}, {found.prompt_tokens} prompt tokens: "
    if found.position is None:
        return where + f"the first {found.compared} greedy tokens are equal"
    verdict = "rounding, so it counts" if found.agree else "not rounding, so no speed is shown"
    return where + (
        f"parts at token {found.position + 1} of {found.compared}, {found.ours} here and {found.theirs} there, whose "
        f"logits lie {found.gap:.3g} apart here; the two models' logits differ by {found.largest:.3g} at most and "
        f"{found.relative:.2g} in relative norm (at worst {found.worst_relative:.2g}, allowed {found.allowed:g}): "
        f"{verdict}"
    )


def _logits(worker: Worker, ids: list[int], last: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits.npy"
        worker.ask("logits", ids=ids, last=last, file=str(file))
        return np.load(file)
