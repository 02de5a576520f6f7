"""`verify --source`: the error of every tensor and expert in a certificate, measured again from the files."""

from collections.abc import Iterator, Mapping, Sequence
from math import isclose

from ..compare.bounds import ERROR_SHARE
from ..errors import VerificationError
from ..files.checkpoint import Checkpoint
from ..files.headers import StoredTensor
from ..files.layout import Part
from ..files.quantization import Quantization
from ..files.values import Floats, read_rows
from ..progress import BYTES, Progress, Stage
from .certificate import FILE, Certificate
from .quantize import BLOCK_VALUES
from .shards import TensorRecord
from .tally import Tally, TensorError

Place = tuple[str, str]  # a part, and one of its leaves


def check_errors(result: Checkpoint, source: Checkpoint, certificate: Certificate, progress: Progress) -> int:
    """The number of tensors that were measured. Raises VerificationError that names the first with another error."""
    places = _places(result.parts)
    wanted = [record for record in certificate.tensors if record.error and record.name in places]
    stage = Stage("measuring errors", sum(record.bytes for record in wanted), BYTES)
    for record in wanted:
        tally = Tally(record.name, record.shape)
        for name, leaf in places[record.name]:
            for before, after in _blocks(source.parts[name], result.parts[name], leaf):
                tally.add(before, after.copy())
        _compare(record, tally.error)
        progress(stage, record.bytes)
    return len(wanted)


def _places(parts: Mapping[str, Part]) -> dict[str, list[Place]]:
    """The parts whose rows each tensor of the files holds, in the order of its rows."""
    found: dict[str, list[tuple[int, Place]]] = {}
    for part in parts.values():
        for leaf, tensor in part.leaves.items():
            found.setdefault(tensor.name, []).append((tensor.start, (part.name, leaf)))
    return {name: [place for _, place in sorted(places)] for name, places in found.items()}


def _blocks(before: Part, after: Part, leaf: str) -> Iterator[tuple[Floats, Floats]]:
    """(source, result) of the same rows, float32 (rows, columns); for a weight the values that it stands for."""
    pair = [_values(part, leaf) for part in (before, after)]
    shape = pair[1][0]["weight"].shape
    rows, step = shape[0], max(1, BLOCK_VALUES // max(shape[-1], 1)) if len(shape) > 1 else shape[0]
    for first in range(0, rows, step):
        count = min(step, rows - first)
        a, b = (read_rows(*part, first, count) for part in pair)
        yield a.reshape(len(a) if a.ndim > 1 else 1, -1), b.reshape(len(b) if b.ndim > 1 else 1, -1)


def _values(part: Part, leaf: str) -> tuple[Mapping[str, StoredTensor], Quantization | None]:
    return (part.leaves, part.quantization) if leaf == "weight" else ({"weight": part.leaves[leaf]}, None)


def _compare(record: TensorRecord, now: TensorError) -> None:
    then = record.error
    assert then is not None
    if then.experts and len(then.experts) != len(now.experts):
        raise VerificationError(f"{record.name} has {len(now.experts)} experts, {FILE} says {len(then.experts)}")
    experts = zip(now.experts, then.experts, strict=False)  # the first certificates have no errors of experts
    pairs: Sequence[tuple[str, float, float]] = [
        ("largest difference", now.max, then.max),
        ("relative error", now.relative, then.relative),
        ("error of the worst row", now.worst_row_relative, then.worst_row_relative),
        *((f"error of expert {e}", *both) for e, both in enumerate(experts)),
    ]
    for what, value, expected in pairs:
        if not isclose(value, expected, rel_tol=ERROR_SHARE.limit, abs_tol=0):
            raise VerificationError(
                f"{record.name}: the {what} is {value:.6g}, {FILE} says {expected:.6g}; convert again"
            )
