"""Converts a checkpoint: plans, writes tensor by tensor, compares with the source, and renames the finished folder."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..compare.divergence import Divergence, compare, sequences_for
from ..errors import CheckpointError, UsageError, VerificationError
from ..files.checkpoint import Checkpoint, Stamp
from ..files.hub import check_text, resolve
from ..files.members import CARRIED, CONFIG, INDEX, members
from ..progress import BYTES, Progress, Stage, silent
from ..report import replace_file
from .adapted import folders_of, records_of, with_adapters
from .certificate import Certificate
from .groups import groups
from .places import check_apart, check_free
from .plan import SHARD_BYTES, Options, Plan, default_layout, make_plan
from .quantize import NONE
from .records import decode
from .shards import FileRecord, SourceDigests, TensorRecord, write_shard
from .staging import Staging, staging

TokenIds = tuple[list[list[int]], str | None]


@dataclass(frozen=True)
class _Finished:
    """The journal's record of a finished file."""

    file: FileRecord
    tensors: tuple[TensorRecord, ...]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    layout: str | None = None,
    quantize: str | None = None,
    bits: float | None = None,
    adapters: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    divergence: bool = True,
    text: str | Path | None = None,
    max_kl: float | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Certificate:
    """Write the checkpoint `source` (any SOURCE) to the folder `out`, with a certificate of what was done.

    layout: native has fused qkv and gate_up, for this package; hf has the names of Hugging Face, for transformers and
    mlx-lm. The default is native, and with `quantize` hf, so that mlx-lm can read the result. Native to hf restores the
    tensors of the source bit for bit.
    dtype: bf16, fp16 or fp32 casts tensors that are not packed; by default every tensor keeps its own.
    quantize: packs every matrix: affine4, affine8g32, mxfp4, ..., or mixed with a budget of `bits` per weight; none
    unpacks.
    adapters: each FOLDER|HUBID[=SCALE], of PEFT or mlx-lm; they are merged into the weights in float32, before anything
    else is done. The certificate compares with the merged weights.
    shard_bytes: the most bytes of tensors in a file; a single larger tensor has a file of its own.
    divergence: compare the logits of source and result on fixed token ids and on a `text` file (default: built in).
    max_kl: if the mean KL divergence is above this, `out` is not written.
    overwrite: replace `out`; the old folder stays until the new one is complete.

    `out` appears whole or not at all. If the call fails or is killed, repeat it to resume.

    Raises UsageError, SourceError, ConfigError, CheckpointError, OutputError, or VerificationError past `max_kl`.
    """
    options = Options(dtype, layout or default_layout(quantize), quantize, bits, shard_bytes, tuple(adapters))
    if max_kl is not None and not (divergence and max_kl >= 0):
        raise UsageError(f"max_kl is {max_kl:g}, which needs the divergence to be measured and is 0 or more")
    checkpoint, out = _places(source, out, overwrite, options)
    before = checkpoint.stamps()
    plan = make_plan(checkpoint, options, progress)
    chosen = Path(text).expanduser() if text is not None else None
    sequences = sequences_for(checkpoint, chosen) if divergence else None
    with staging(out, _settings(plan, before), overwrite) as stage, _steady(checkpoint, before, stage):
        with SourceDigests(checkpoint.files) as digests:
            files, tensors = _write_tensors(plan, stage, progress)
            files |= _write_rest(plan, stage.folder)
            measured = _measure(plan, stage.folder, sequences, progress)
            source_files = digests.result()
        _check_gate(measured, max_kl, stage)
        certificate = _certify(plan, str(source), str(out), files, tensors, source_files, measured)
        certificate.write(stage.folder)
    return certificate


def dry_plan(
    source: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    quantize: str | None = None,
    adapters: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = silent,
    **choices: Any,
) -> Plan:
    """What `convert` would do with the same arguments, after the same checks; writes nothing."""
    chosen = layout or default_layout(quantize)
    options = Options(layout=chosen, quantize=quantize, adapters=tuple(adapters), **choices)
    checkpoint, _ = _places(source, out, overwrite, options)
    return make_plan(checkpoint, options, progress)


def _places(source: str | Path, out: str | Path, overwrite: bool, options: Options) -> tuple[Checkpoint, Path]:
    """The source, with adapters if there are any, and the folder of the result, which must be free.

    That is checked before anything is downloaded.
    """
    check_text(str(out))
    out = Path(out).expanduser()
    check_free(out, overwrite)
    folder = resolve(source)
    check_apart(folder, out)
    checkpoint = with_adapters(Checkpoint(folder), options.adapters, options.quantize)
    for used in folders_of(checkpoint):
        check_apart(used, out)
    return checkpoint, out


@contextmanager
def _steady(checkpoint: Checkpoint, before: Mapping[str, Stamp], stage: Staging) -> Iterator[None]:
    """Raises CheckpointError if the source changes inside the block. What was made of it is useless then."""
    try:
        yield
    except BaseException:
        if checkpoint.changed(before):
            stage.discard()
        raise
    if changed := checkpoint.changed(before):
        stage.discard()
        raise CheckpointError(
            f"{checkpoint.folder / changed} changed while it was converted, so OUT was not written; run it again"
        )


def _settings(plan: Plan, files: Mapping[str, Stamp]) -> dict[str, Any]:
    """What must be the same to resume a conversion: the source, the options, and the tensors to write."""
    tensors = hashlib.sha256(json.dumps(plan.summary()["tensors"]).encode()).hexdigest()
    return {
        "source": str(plan.source.folder.resolve()),
        **asdict(plan.options),
        **{f"source file {name}": stamp.lasting() for name, stamp in files.items()},
        "the tensors to write": tensors,
        "version": version("mlx-qwen3"),
    }


def _write_tensors(plan: Plan, stage: Staging, progress: Progress) -> tuple[dict[str, FileRecord], list[TensorRecord]]:
    """Write every shard that an earlier run has not finished."""
    files: dict[str, FileRecord] = {}
    tensors: list[TensorRecord] = []
    writing = Stage("writing", plan.bytes, BYTES)
    format_name = "mlx" if plan.options.layout == "native" else "pt"
    for shard in plan.shards:
        if finished := _finished(stage, shard.file):
            files[shard.file] = finished.file
            tensors += finished.tensors
            progress(writing, shard.nbytes)
            continue
        file, records = write_shard(stage.folder, shard, format_name, progress, writing)
        stage.finish(shard.file, asdict(_Finished(file, tuple(records))))
        files[shard.file] = file
        tensors += records
    return files, tensors


def _finished(stage: Staging, file: str) -> _Finished | None:
    """The journal's record of a file. None if it is unreadable: the file is then written again."""
    with suppress(ValueError):
        return decode(_Finished, stage.finished(file))
    return None


def _write_rest(plan: Plan, folder: Path) -> dict[str, FileRecord]:
    """Write config.json, the index if there are several shards, and the files that are carried over."""
    contents = {CONFIG: _json(plan.config_json)}
    if len(plan.shards) > 1:
        places = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        contents[INDEX] = _json({"metadata": {"total_size": plan.bytes}, "weight_map": places})
    names = members(plan.source.folder, CARRIED)
    return {
        name: _write(folder / name, contents.get(name) or plan.source.content(name)) for name in [*contents, *names]
    }


def _write(path: Path, content: bytes) -> FileRecord:
    path.parent.mkdir(exist_ok=True)
    replace_file(path, content)
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _measure(plan: Plan, result: Path, sequences: TokenIds | None, progress: Progress) -> Divergence | None:
    if sequences is None:
        return None
    ids, text = sequences
    return compare(plan.source, Checkpoint(result), ids, text, progress)


def _certify(
    plan: Plan,
    source: str,
    out: str,
    files: Mapping[str, FileRecord],
    tensors: Sequence[TensorRecord],
    source_files: Mapping[str, FileRecord],
    divergence: Divergence | None,
) -> Certificate:
    return Certificate(
        source=source,
        out=out,
        layout=plan.options.layout,
        dtype=plan.dtype,
        quantize=plan.options.quantize,
        bits_per_weight=plan.bits_per_weight,
        source_bytes=plan.source_bytes,
        bytes=plan.bytes,
        source_files=source_files,
        files=files,
        tensors=tuple(tensors),
        groups=groups(tensors, plan.config),
        dropped=plan.dropped,
        adapters=records_of(plan.source, _rounding(plan)),
        divergence=divergence,
        versions={"mlx-qwen3": version("mlx-qwen3"), "mlx": version("mlx")},
    )


def _rounding(plan: Plan) -> str:
    """How merged weights become those of the result, for the certificate."""
    if plan.options.quantize not in (None, NONE):
        return f"packed as {plan.options.quantize} after the sum; the errors are measured against the sum in float32"
    if plan.dtype == "float32":
        return "none: the sum is kept in float32"
    return f"once, after the sum, to {plan.dtype}; the errors are measured against the sum in float32"


def _check_gate(divergence: Divergence | None, max_kl: float | None, stage: Staging) -> None:
    if divergence is None:
        return
    if not math.isfinite(divergence.kl_mean + divergence.logits_max):
        stage.discard()
        raise VerificationError("source or result computes logits that are not finite; OUT was not written")
    if max_kl is not None and divergence.kl_mean > max_kl:
        stage.refuse()
        raise VerificationError(
            f"the mean KL divergence from the source is {divergence.kl_mean:.4g}, past the {max_kl:g} allowed; "
            "OUT was not written; use more bits per weight, or a larger --max-kl"
        )


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
