"""`verify SOURCE --adapter`: checks adapters on their base, which need not be a conversion.

Their files are complete and finite, and the model that applies them beside its weights computes what one does that has
them merged into its weights.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compare.steps import uses_peft
from ..errors import UsageError, VerificationError
from ..files.adapters import Adapter, open_adapter
from ..files.checkpoint import Checkpoint
from ..files.hub import resolve
from ..files.reading import short
from ..files.values import floats_of
from ..progress import Progress, Stage, silent
from ..table import GOOD, Line, Part
from .certificate import FILE, Certificate
from .parity import StateDifference, check_transformers, compare_with_merged, compare_with_transformers

MERGED, TRANSFORMERS, PEFT = (
    "the model with the merged weights",
    "transformers with the merged weights",
    "transformers with PEFT",
)


@dataclass(frozen=True)
class AdapterCheck:
    """What was checked of one adapter and is right."""

    source: str
    kind: str  # in words
    tensors: int
    parts: int  # of the model, that it changes


@dataclass(frozen=True)
class AdapterVerification:
    base: str
    adapters: tuple[AdapterCheck, ...]
    against: str
    states: tuple[StateDifference, ...]

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def report(self) -> list[Part]:
        """What was checked, for a terminal."""
        parts: list[Part] = [
            Line(f"{a.source}: {a.kind}; its {a.tensors} tensors are finite and fit {a.parts} matrices", GOOD)
            for a in self.adapters
        ]
        for state in self.states:
            parts.append(
                f"{state.place}: {state.relative:.3g} from {self.against} (relative norm, bound {state.bound:g})"
            )
        return parts


def verify_adapters(
    source: str | Path, adapters: Sequence[str], *, transformers: bool = False, progress: Progress = silent
) -> AdapterVerification:
    """Check adapters, each FOLDER|HUBID[=SCALE], on the model `source` (any SOURCE), in float32.

    `transformers` compares with transformers, where PEFT applies its own adapters if it is installed. Raises
    VerificationError that names the first wrong tensor or layer, and UsageError if a package is missing.
    """
    if transformers:
        check_transformers()
    base = Checkpoint(resolve(source))
    if FILE in base and Certificate.read(base.folder).adapters:
        raise UsageError("adapters are merged into this folder already; give it with --source, to check that they are")
    opened = [open_adapter(adapter, base.config) for adapter in adapters]
    checks = tuple(_check(adapter, progress) for adapter in opened)
    if transformers:
        against = PEFT if uses_peft(base, opened) else TRANSFORMERS
        states = compare_with_transformers(base, progress=progress, adapters=opened)
    else:
        against, states = MERGED, compare_with_merged(base, opened, progress)
    return AdapterVerification(str(source), checks, against, tuple(states))


def _check(adapter: Adapter, progress: Progress) -> AdapterCheck:
    tensors = {tensor.name: tensor for tensor in adapter.tensors()}
    stage = Stage(f"reading {short(adapter.source)}", len(tensors), "tensors")
    for tensor in tensors.values():
        if wrong := int(np.count_nonzero(~np.isfinite(floats_of(tensor)))):
            raise VerificationError(
                f"{short(tensor.name)} in {short(adapter.source)} has {wrong} values that are NaN or infinite; the "
                "training failed, or the file is damaged: take an earlier checkpoint or another copy"
            )
        progress(stage, 1)
    parts = len(adapter.low_rank.keys() | adapter.whole.keys())
    return AdapterCheck(adapter.asked, adapter.config.in_words, len(tensors), parts)
