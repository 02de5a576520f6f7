"""Do two contestants say the same? No speed is shown of one that does not."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..compare.bounds import OUTPUTS
from .process import Worker
from .report import Outputs, Parting

COMPARED = 32  # tokens


def compare(
    ours: Worker, theirs: Worker, ids: list[int], our_tokens: list[int], their_tokens: list[int], dtypes: set[str]
) -> Outputs:
    """The first tokens of both, and both models' logits where the contestant chose each of its own.

    The tokens alone do not tell: models with random tied weights all repeat the last token of the prompt. And two
    dtypes may choose differently where the best two logits nearly tie, and then go different ways for good. So the
    logits are compared in the contestant's context: they may differ by the rounding of the coarser dtype, and each of
    its tokens has to be the best of ours, as far as the logits differ.
    """
    compared = min(COMPARED, len(our_tokens), len(their_tokens))
    our_first, their_first = our_tokens[:compared], their_tokens[:compared]
    sequence = ids + their_first[:-1]
    a, b = (_logits(worker, sequence, compared) for worker in (ours, theirs))
    return judge(len(ids), our_first, their_first, a, b, max(OUTPUTS[dtype].limit for dtype in dtypes))


def judge(
    prompt: int, our_tokens: list[int], their_tokens: list[int], a: np.ndarray, b: np.ndarray, allowed: float
) -> Outputs:
    """`a` and `b` are our logits and theirs, (tokens, vocabulary), in the context of their tokens."""
    largest = np.abs(a - b).max(-1)
    relative = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1)
    gap = a.max(-1) - np.take_along_axis(a, np.array(their_tokens)[:, None], -1)[:, 0]
    # Both logits of a pair can be off by the largest difference. NaN is in no bound.
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
    """The finding in words."""
    tokens, parting = f"the first {found.compared} greedy tokens", found.parting
    said = [f"{name}, {found.prompt_tokens} prompt tokens: "]
    if parting is None:
        said.append(f"{tokens} are equal")
    else:
        said.append(
            f"{tokens} part at token {parting.position + 1}, {parting.ours} here and {parting.theirs} there, whose "
            f"logits lie {parting.gap:.3g} apart here, where the two models' differ by {parting.largest:.3g} at most "
            f"and {parting.relative:.2g} in relative norm"
        )
    said.append(f"; relative norm of the difference of the logits at most {found.relative:.2g}")
    verdict = "rounding" if found.agree else "not rounding, so no speed is shown"
    return "".join(said) + f" (allowed {found.allowed:g}): {verdict}"


def _logits(worker: Worker, ids: list[int], last: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits.npy"
        worker.ask("logits", ids=ids, last=last, file=str(file))
        return np.load(file)
