"""Adapters that are merged into the source of a conversion."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files.adapted import AdaptedCheckpoint, files_of
from ..files.adapters import check_beside, open_adapter
from ..files.checkpoint import Checkpoint
from .certificate import AdapterRecord
from .quantize import NONE
from .shards import FileRecord, sha256


def with_adapters(base: Checkpoint, adapters: Sequence[str], quantize: str | None = None) -> Checkpoint:
    """The source of a conversion: the base, or if there are adapters, the base with them.

    `adapters` are each FOLDER|HUBID[=SCALE]. Raises SourceError, ConfigError or CheckpointError for an adapter that
    does not fit, and UsageError if the base is packed and `quantize` does not unpack it.
    """
    opened = [open_adapter(adapter, base.config) for adapter in adapters]
    check_beside(base.folder, opened)
    if not opened:
        return base
    packed = next((part for part in base.parts.values() if part.quantization), None)
    if packed and quantize != NONE:
        raise UsageError(
            f"{packed.name} of the source is packed, and an adapter cannot be merged into packed weights; start from "
            f"the original checkpoint, or unpack this one with --quantize {NONE}, and pack the result in a second step"
        )
    return AdaptedCheckpoint(base, opened)


def records_of(source: Checkpoint, rounding: str) -> tuple[AdapterRecord, ...]:
    """The adapters of a source, for the certificate."""
    adapters = source.adapters if isinstance(source, AdaptedCheckpoint) else ()
    return tuple(
        AdapterRecord(a.source, a.strength, a.config.in_words, {p.name: _digest(p) for p in files_of(a)}, rounding)
        for a in adapters
    )


def folders_of(source: Checkpoint) -> list[Path]:
    """The folders of its adapters."""
    return [adapter.file.path.parent for adapter in source.adapters] if isinstance(source, AdaptedCheckpoint) else []


def _digest(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, sha256(path))
