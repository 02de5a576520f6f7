"""Checks a converted folder: the digest of every byte, then the logits, then the layers against transformers."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isclose
from pathlib import Path
from typing import Any

from ..compare.bounds import KL_NOISE, KL_SHARE, PERPLEXITY_SHARE, TOP1_SHARE
from ..compare.divergence import Divergence, compare, sequences_for
from ..errors import UsageError, VerificationError
from ..files.adapted import AdaptedCheckpoint, files_of
from ..files.adapters import open_adapter
from ..files.checkpoint import Checkpoint
from ..files.dtypes import NAMES
from ..files.hub import resolve
from ..files.members import members
from ..files.reading import exists, short, some
from ..progress import BYTES, Progress, Stage, silent
from ..table import GOOD, Line, Part
from .certificate import FILE, Certificate, divergence_figures
from .parity import StateDifference, check_transformers, compare_with_transformers
from .remeasure import check_errors
from .shards import FileRecord, sha256
from .summary import divergence_table


@dataclass(frozen=True)
class Verification:
    """What was checked and is right."""

    folder: str
    files: int
    tensors: int
    source: str | None
    errors: int  # of tensors, measured again
    divergence: Divergence | None
    transformers: tuple[StateDifference, ...]

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        divergence = divergence_figures(self.divergence) if self.divergence else None
        return {**asdict(self), "divergence": divergence}


def report(verification: Verification) -> list[Part]:
    """What was checked, for a terminal."""
    done = f"{verification.folder}: {verification.files} files with {verification.tensors} tensors are as certified"
    parts: list[Part] = [Line(done, GOOD)]
    if verification.errors:
        parts.append(Line(f"the errors of {verification.errors} tensors, measured again, are as certified"))
    if verification.divergence:
        parts += ["", divergence_table(verification.divergence)]
    for state in verification.transformers:
        told = f"{state.place}: {state.relative:.3g} from transformers (relative norm, bound {state.bound:g})"
        parts.append(Line(told))
    return parts


def verify(
    folder: str | Path,
    source: str | Path | None = None,
    *,
    adapters: Sequence[str] = (),
    transformers: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check a folder that `convert` wrote against its certificate, and against its source if that is given.

    It first checks the digests of all files. Then it measures the error of every tensor and expert and the divergence
    from the source, and compares them with the certificate's; without a source, it compares the result's own figures
    with the recorded ones. `adapters` are those that were merged into the source, each FOLDER|HUBID[=SCALE].
    `transformers` compares every layer with transformers, which needs torch and transformers. Raises VerificationError
    that names the first wrong tensor, file, figure or layer, and UsageError if a package is missing.
    """
    if transformers:
        check_transformers()
    result = Checkpoint(resolve(folder, "the folder that `convert` wrote"))
    certificate = Certificate.read(result.folder)
    _check_files(result, certificate, progress)
    original = _original(source, certificate, adapters)
    if original is not None:
        _check_source(original, certificate, progress)
    errors = check_errors(result, original, certificate, progress) if original is not None else 0
    measured = _check_divergence(result, original, certificate, progress)
    states = tuple(compare_with_transformers(result, original, progress)) if transformers else ()
    return Verification(
        folder=str(folder),
        files=len(certificate.files),
        tensors=len(certificate.tensors),
        source=str(source) if source is not None else None,
        errors=errors,
        divergence=measured,
        transformers=states,
    )


def _original(source: str | Path | None, certificate: Certificate, adapters: Sequence[str]) -> Checkpoint | None:
    """The source with the adapters that were merged into it, which must be those of the certificate."""
    if source is None:
        if adapters:
            raise UsageError("adapters are merged into the source again to compare; give it with --source")
        return None
    base = Checkpoint(resolve(source))
    opened = [open_adapter(adapter, base.config) for adapter in adapters]
    records = certificate.adapters
    if [adapter.strength for adapter in opened] != [record.scale for record in records]:
        wanted = " ".join(f"--adapter {shlex.quote(record.asked)}" for record in records)
        how = f"with {len(records)} adapters; give {wanted}" if records else "without an adapter; leave --adapter out"
        raise VerificationError(f"the folder was made {how}")
    for adapter, record in zip(opened, records, strict=True):
        for path in files_of(adapter):
            if damage := _damage(path, record.files[path.name]):
                raise VerificationError(f"{short(path)} {damage}; it is not the adapter that was merged")
    return AdaptedCheckpoint(base, opened) if opened else base


def _check_files(result: Checkpoint, certificate: Certificate, progress: Progress) -> None:
    folder = result.folder
    stage = Stage("hashing", sum(record.bytes for record in certificate.files.values()), BYTES)
    for name, record in certificate.files.items():
        _check_inside(folder, name)
        if damage := _damage(folder / name, record):
            inside = _damaged_part(folder, name, certificate) if name.endswith(".safetensors") else ""
            raise VerificationError(
                f"{inside}{short(folder / name)} {damage}; restore it from a copy, or convert again"
            )
        progress(stage, record.bytes)
    present = {*members(folder), *(path.name for path in folder.glob("*.safetensors"))}
    if extra := sorted(present - certificate.files.keys()):
        raise VerificationError(
            f"{folder / extra[0]} is not in {FILE}, but it changes what the model computes or says; "
            "remove it, or convert again from a source that has it"
        )
    _check_tensors(result, certificate)
    result.check_repeated_head()


def _check_inside(folder: Path, name: str) -> None:
    """Raises VerificationError for a link out of the folder, except links of the Hub's cache to its folder `blobs`."""
    place, home = (folder / name).resolve(), folder.resolve()
    cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if not any(place.is_relative_to(root) for root in (home, *cache)):
        raise VerificationError(
            f"{short(folder / name)} is a link to {short(place)}, outside the folder; put the file itself there"
        )


def _damage(path: Path, record: FileRecord) -> str:
    """What is wrong with a file, or an empty text."""
    if not exists(path) or not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != record.bytes:
        return f"has {size:,} bytes, the certificate says {record.bytes:,}"
    if (digest := sha256(path)) != record.sha256:
        return f"has sha256 {digest}, the certificate says {short(record.sha256)}"
    return ""


def _damaged_part(folder: Path, name: str, certificate: Certificate) -> str:
    """The tensors of a damaged file that have changed, or its header."""
    if not exists(path := folder / name) or not path.is_file():
        return ""
    inside = [record for record in certificate.tensors if record.file == name]
    damaged = [record.name for record in inside if sha256(path, record.start, record.bytes) != record.sha256]
    if not damaged:
        return "the header is damaged: "
    return f"{some(damaged)} damaged: "


def _check_tensors(result: Checkpoint, certificate: Certificate) -> None:
    """The headers and the certificate list the same tensors: the certificate may be that of another folder."""
    stored = {name: (NAMES[t.dtype], t.shape) for name, t in result.tensors.items()}
    listed = {record.name: (record.dtype, record.shape) for record in certificate.tensors}
    if different := sorted(name for name in stored.keys() | listed.keys() if stored.get(name) != listed.get(name)):
        name = different[0]
        raise VerificationError(
            f"{short(name)} is {stored.get(name)} in {result.folder}, but {short(listed.get(name))} in {FILE}; "
            "restore the folder from a copy, or convert again"
        )


def _check_source(source: Checkpoint, certificate: Certificate, progress: Progress) -> None:
    stage = Stage("hashing the source", sum(record.bytes for record in certificate.source_files.values()), BYTES)
    for name, record in certificate.source_files.items():
        if damage := _damage(source.folder / name, record):
            raise VerificationError(f"{short(source.folder / name)} {damage}; it is not the source that was converted")
        progress(stage, record.bytes)
    source.check_repeated_head()


def _check_divergence(
    result: Checkpoint, source: Checkpoint | None, certificate: Certificate, progress: Progress
) -> Divergence | None:
    """Measure the divergence of the certificate again. If it has none, measure it only if a source is given."""
    recorded = certificate.divergence
    if recorded is None and source is None:
        return None
    if recorded is None:
        sequences, text = sequences_for(result, None)
    else:
        _check_sequences(recorded, result)
        sequences, text = [list(ids) for ids in recorded.sequences], recorded.text
    measured = compare(source or result, result, sequences, text, progress)
    if recorded is not None:
        _same_divergence(measured, recorded, against_source=source is not None)
    return measured if source is not None else None


def _check_sequences(recorded: Divergence, result: Checkpoint) -> None:
    size, context = result.config.vocab_size, result.config.context_length
    lengths = [len(ids) for ids in recorded.sequences]
    if not lengths or not all(0 < length <= context for length in lengths) or len(recorded.top1) != sum(lengths):
        raise VerificationError(f"{FILE} has a divergence without the tokens that it was measured on; convert again")
    if outside := [token for ids in recorded.sequences for token in ids if token >= size]:
        raise VerificationError(f"{FILE} has the token {outside[0]}, but vocab_size is {size}; convert again")


def _same_divergence(now: Divergence, then: Divergence, against_source: bool) -> None:
    same_choice = sum(a == b for a, b in zip(now.top1, then.top1, strict=True)) / len(then.top1)
    checks: list[tuple[str, float | None, float | None, float]] = [
        ("perplexity", now.perplexity, then.perplexity, abs(then.perplexity or 0) * PERPLEXITY_SHARE.limit),
        ("share of first choices that equal the recorded ones", same_choice, 1.0, TOP1_SHARE.limit),
    ]
    if against_source:
        checks += [
            ("mean KL divergence", now.kl_mean, then.kl_mean, KL_NOISE.limit + KL_SHARE.limit * abs(then.kl_mean)),
            ("share of equal first choices", now.top1_agreement, then.top1_agreement, TOP1_SHARE.limit),
        ]
    for name, value, expected, bound in checks:
        if value is not None and expected is not None and not isclose(value, expected, rel_tol=0, abs_tol=bound):
            raise VerificationError(
                f"the {name} is {value:.6g}, the certificate says {expected:.6g} (bound {bound:.2g}); "
                "the files have not changed, so this machine or version computes other values"
            )
