"""The record of a conversion: digests, every tensor, the divergence; as `certificate.json`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..compare.divergence import Divergence
from ..errors import CheckpointError, VerificationError
from ..files.adapter_config import MEMBERS as ADAPTER_MEMBERS
from ..files.members import MEMBERS, is_member
from ..files.reading import exists, read_json, short
from ..report import replace_file
from .groups import Group
from .records import decode
from .shards import FileRecord, TensorRecord

FILE = "certificate.json"
FORMAT = 2
FORMATS = (1, FORMAT)  # that can be read


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter that was merged into the weights of the source."""

    source: str  # as it was asked for
    scale: float  # which its own scale was multiplied by
    kind: str  # what it is, in words
    files: Mapping[str, FileRecord]
    rounding: str  # how the merged values became those of the result

    @property
    def asked(self) -> str:
        """As a command names it."""
        return self.source if self.scale == 1 else f"{self.source}={self.scale!r}"


@dataclass(frozen=True)
class Certificate:
    """The record of a conversion. Sizes in bytes, files by name, tensors in the order of the result's files."""

    source: str
    out: str
    layout: str
    dtype: str
    quantize: str | None  # as it was asked for
    bits_per_weight: float  # over all tensors; packed weights are counted as unpacked ones
    source_bytes: int
    bytes: int  # of all tensors
    source_files: Mapping[str, FileRecord]
    files: Mapping[str, FileRecord]
    tensors: tuple[TensorRecord, ...]
    groups: Mapping[str, Group]  # attention, routers, experts, ...
    dropped: Mapping[str, str]  # tensors of the source that are left out of the result -> why
    adapters: tuple[AdapterRecord, ...]  # in the order in which they were merged
    divergence: Divergence | None
    versions: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """The certificate without its lists, for `--json`."""
        return asdict(self) | {
            "tensors": len(self.tensors),
            "files": _digests(self.files),
            "source_files": _digests(self.source_files),
            "divergence": divergence_figures(self.divergence) if self.divergence else None,
        }

    def write(self, folder: Path) -> None:
        """certificate.json, with the sha256 of its own content as the last key."""
        content = {"format": FORMAT, **asdict(self)}
        if self.divergence:
            content["divergence"]["perplexity_ratio"] = self.divergence.perplexity_ratio
        content = json.loads(json.dumps(content))
        text = json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False)
        replace_file(folder / FILE, f"{text}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> "Certificate":
        """Raises VerificationError if the folder has none, or one that is damaged or that this version cannot read."""
        path = folder / FILE
        if not exists(path):
            raise VerificationError(f"{folder} has no {FILE}; convert it with mlx-qwen3 to get one")
        try:
            content = read_json(path)
        except CheckpointError as error:
            raise VerificationError(f"{path} is damaged ({error}); restore it or convert again") from None
        found = content.pop("sha256", None)
        if content.get("format") not in FORMATS:
            version = short(repr(content.get("format")))
            raise VerificationError(f"{path} has format {version}; this version reads 1 and {FORMAT}")
        if (digest := _digest(content)) != found:
            raise VerificationError(
                f"{path} is damaged: its sha256 is {digest}, it says {short(found)}; restore it or convert again"
            )
        try:
            certificate = decode(cls, _current(content))
            _check_names(certificate)
        except ValueError as error:
            raise VerificationError(f"{path} cannot be read: {error}; convert again") from None
        return certificate


def _current(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a certificate of any format, as `Certificate` has them."""
    del content["format"]
    if "behaviour" in content:  # its name in format 1
        content["divergence"] = content.pop("behaviour")
    if isinstance(divergence := content.get("divergence"), dict):
        divergence.pop("perplexity_ratio", None)  # follows from the others
    content.setdefault("groups", {})  # the first certificates had neither these nor the errors of experts
    content.setdefault("adapters", [])
    tensors = content.get("tensors")
    for record in tensors if isinstance(tensors, list) else ():
        if isinstance(record, dict) and isinstance(error := record.get("error"), dict):
            error.setdefault("experts", [])
    return content


def _check_names(certificate: Certificate) -> None:
    """Raises ValueError for a name that is not that of a checkpoint's file: it could lead out of the folder."""
    of_adapters = [name for adapter in certificate.adapters for name in adapter.files]
    if strange := [name for name in of_adapters if name not in ADAPTER_MEMBERS]:
        raise ValueError(f"it names the file {short(repr(strange[0]))}, which does not belong to an adapter")
    for name in (*certificate.files, *certificate.source_files):
        if not is_member(name, (*MEMBERS, "*.safetensors")):
            raise ValueError(f"it names the file {short(repr(name))}, which does not belong to a checkpoint")
    for record in certificate.tensors:
        if record.file not in certificate.files:
            raise ValueError(f"{short(record.name)} is in the file {short(repr(record.file))}, which it does not list")


def divergence_figures(divergence: Divergence) -> dict[str, Any]:
    content = asdict(divergence) | {"perplexity_ratio": divergence.perplexity_ratio}
    tokens = sum(len(ids) for ids in content.pop("sequences"))
    del content["top1"]
    return {"tokens": tokens, **content}


def _digests(files: Mapping[str, FileRecord]) -> dict[str, str]:
    return {name: record.sha256 for name, record in files.items()}


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(
        text.encode("utf-8", "surrogatepass")
    ).hexdigest()  # a lone surrogate must not be an error here
