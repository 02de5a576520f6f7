"""What a conversion did, as `certificate.json` in the result and as a table: digests, every tensor, the divergence."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..compare.divergence import Divergence
from ..errors import VerificationError
from ..files.reading import read_json
from ..report import Table, replace_file
from .shards import FileRecord, TensorRecord
from .tally import TensorError

FILE = "certificate.json"
FORMAT = 1


@dataclass(frozen=True)
class Certificate:
    """A conversion, accounted for. Sizes in bytes; files by name; tensors in the order of the result's files."""

    source: str
    out: str
    layout: str
    dtype: str
    quantize: str | None  # as it was asked for
    bits_per_weight: float  # over all tensors; packed weights count as what they stand for
    source_bytes: int
    bytes: int  # of all tensors
    source_files: Mapping[str, FileRecord]
    files: Mapping[str, FileRecord]
    tensors: tuple[TensorRecord, ...]
    dropped: Mapping[str, str]  # tensors of the source that the result does without -> why
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
        """Raises VerificationError where the folder has none, or one that was changed."""
        path = folder / FILE
        if not path.exists():
            raise VerificationError(f"{folder} has no {FILE}; convert it with mlx-qwen3 to get one")
        try:
            content = read_json(path)
            found = content.pop("sha256", None)
        except Exception as error:
            raise VerificationError(f"{path} is damaged ({error}); restore it or convert again") from None
        if content.get("format") != FORMAT:
            raise VerificationError(f"{path} has format {content.get('format')!r}; this version reads {FORMAT}")
        if (digest := _digest(content)) != found:
            raise VerificationError(f"{path} is damaged: its sha256 is {digest}, it says {found}; restore it")
        return cls._parse(content)

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> "Certificate":
        del content["format"]
        for key in ("source_files", "files"):
            content[key] = {name: FileRecord(**record) for name, record in content[key].items()}
        content["tensors"] = tuple(tensor_record(record) for record in content["tensors"])
        if divergence := content["divergence"]:
            del divergence["perplexity_ratio"]
            divergence["sequences"] = tuple(tuple(ids) for ids in divergence["sequences"])
            divergence["top1"] = tuple(divergence["top1"])
            content["divergence"] = Divergence(**divergence)
        return cls(**content)


def tensor_record(stored: dict[str, Any]) -> TensorRecord:
    """A record back from JSON."""
    error = TensorError(**stored["error"]) if stored["error"] else None
    lists = {key: tuple(stored[key]) for key in ("sources", "shape")}
    return TensorRecord(**{**stored, **lists, "error": error})


def table(certificate: Certificate) -> str:
    """The certificate for a terminal: one line for every tensor, then the files, then the divergence."""
    columns = ("tensor", "from", "shape", "dtype", "made", "max error", "relative", "worst row")
    rows = [
        (record.name, _sources(record), str(list(record.shape)), record.dtype, _made(record), *_errors(record))
        for record in certificate.tensors
    ]
    lines = [Table("", columns, rows, "lllllrrl").text()]
    lines += [f"left out: {name} ({why})" for name, why in certificate.dropped.items()]
    for title, files in (("source", certificate.source_files), ("result", certificate.files)):
        lines += [f"{title}  sha256 {file.sha256}  {file.bytes:>14,} bytes  {name}" for name, file in files.items()]
    lines += divergence_lines(certificate.divergence)
    size = f"{certificate.bytes / 1e9:.3f} GB in {len(certificate.tensors)} tensors"
    what = f"{certificate.layout}, {certificate.dtype}, {certificate.bits_per_weight:.3f} bits per weight"
    return "\n".join([*lines, f"{certificate.source} -> {certificate.out}: {what}, {size}"])


def divergence_lines(divergence: Divergence | None) -> list[str]:
    if divergence is None:
        return ["divergence: not measured"]
    figures = divergence_figures(divergence)
    tokens = figures.pop("tokens")
    text = (
        f"fixed ids and the {divergence.text} text"
        if divergence.text
        else "fixed ids; no tokenizer.json that fits, so no text"
    )
    title = f"divergence from the source in float32, {tokens} tokens: {text}"
    rows = [(_LABELS[key], _number(value)) for key, value in figures.items() if key in _LABELS]
    return [Table(title, ("figure", "value"), rows, "ll").text()]


_LABELS = {
    "logits_max": "largest difference of a logit",
    "logits_relative": "relative norm of the differences",
    "kl_mean": "KL divergence, mean (nats)",
    "kl_p99": "KL divergence, 99th percentile",
    "top1_agreement": "same first choice",
    "source_perplexity": "perplexity of the source",
    "perplexity": "perplexity of the result",
    "perplexity_ratio": "ratio of the perplexities",
}


def divergence_figures(divergence: Divergence) -> dict[str, Any]:
    content = asdict(divergence) | {"perplexity_ratio": divergence.perplexity_ratio}
    tokens = sum(len(ids) for ids in content.pop("sequences"))
    del content["top1"]
    return {"tokens": tokens, **content}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _sources(record: TensorRecord) -> str:
    """q_proj | k_proj | v_proj of a layer, with what they share written once."""
    first, *others = record.sources
    common = first.rsplit(".", 2)[0] + "."
    return " | ".join([first, *(name.removeprefix(common) for name in others)])


def _made(record: TensorRecord) -> str:
    return f"{record.made} ({record.note})" if record.note else record.made


def _errors(record: TensorRecord) -> tuple[str, str, str]:
    if record.error is None:  # the bytes are the source's, or this is not a weight
        return ("-", "-", "-") if record.name.endswith(("scales", "biases")) else ("0", "0", "-")
    error = record.error
    return f"{error.max:.3g}", f"{error.relative:.3g}", f"{error.worst_row}: {error.worst_row_relative:.3g}"


def _digests(files: Mapping[str, FileRecord]) -> dict[str, str]:
    return {name: record.sha256 for name, record in files.items()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
