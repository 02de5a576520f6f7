"""Checkpoint in, checkpoint out: names and shapes remapped, bytes moved and not computed where the dtype stays."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .checkpoint import FLOATS, INDEX, NAMES, StoredTensor, join, read_tensors
from .config import FORMAT, Quantization, Qwen3Config, read_json
from .errors import OutputError, UsageError
from .hub import resolve
from .weights import Part, cast, checkpoint_dtype, native_modules, parse_dtype, read_parts

LAYOUTS = ("native", "hf")
SHARD_BYTES = 5 * 10**9
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Certificate:
    """What a conversion did."""

    source: str
    out: str
    layout: str
    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: stored rows, one run after another, kept or cast to `dtype`."""

    name: str
    runs: tuple[StoredTensor, ...]
    dtype: mx.Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.runs[0].shape
        return (sum(run.shape[0] for run in self.runs), *first[1:])

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes // run.dtype.size * self.dtype.size for run in self.runs)

    def chunks(self) -> Iterator[bytes]:
        for run in self.runs:
            for chunk in run.chunks():
                yield chunk if run.dtype == self.dtype else _cast_bytes(chunk, run, self.dtype)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    layout: str = "native",
    shard_bytes: int = SHARD_BYTES,
) -> Certificate:
    """Write the checkpoint `source` (any SOURCE) to the new folder `out`.

    `layout` native: fused qkv and gate_up, for this package; hf: the names of Hugging Face, for transformers and
    mlx-lm. `dtype` (bf16, fp16, fp32) casts what is not packed; by default every tensor keeps its own, and native
    to hf gives back the tensors of the source bit for bit. Files hold at most `shard_bytes` of tensors, or one
    tensor. `out` appears whole or not at all.
    Raises UsageError, SourceError, ConfigError, CheckpointError or OutputError.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout is {layout!r}; expected {' or '.join(LAYOUTS)}")
    target = parse_dtype(dtype)
    folder, out = resolve(source), Path(out).expanduser()
    raw = read_json(folder / "config.json")
    config = Qwen3Config.from_hf(raw)
    parts = read_parts(folder, config)
    repeats_head = _repeats_head(folder, raw, config)
    tensors = _native(parts, config, target) if layout == "native" else _hf(parts, target, repeats_head)
    result_dtype = target or checkpoint_dtype(parts)
    with _new_folder(out) as staging:
        size = _write_shards(staging, tensors, shard_bytes, "mlx" if layout == "native" else "pt")
        _write_json(staging / "config.json", _config(raw, layout, result_dtype, parts, repeats_head))
        for name in CARRIED:
            if (folder / name).exists():
                shutil.copyfile(folder / name, staging / name)
    return Certificate(str(source), str(out), layout, _dtype_name(result_dtype), len(tensors), size)


def _native(parts: Mapping[str, Part], config: Qwen3Config, dtype: mx.Dtype | None) -> list[OutputTensor]:
    modules = native_modules(parts, config, dtype)
    return [_output(name, runs, dtype) for module in modules for name, runs in module.tensors()]


def _hf(parts: Mapping[str, Part], dtype: mx.Dtype | None, repeats_head: bool) -> list[OutputTensor]:
    named = [(f"model.{name}" if name != "lm_head" else name, part) for name, part in parts.items()]
    if repeats_head:
        named.append(("lm_head", parts["embed_tokens"]))
    return [_output(f"{name}.{leaf}", (run,), dtype) for name, part in named for leaf, run in part.leaves.items()]


def _output(name: str, runs: tuple[StoredTensor, ...], dtype: mx.Dtype | None) -> OutputTensor:
    return OutputTensor(name, join(runs), dtype if dtype and runs[0].dtype in FLOATS else runs[0].dtype)


def _repeats_head(folder: Path, raw: Mapping[str, Any], config: Qwen3Config) -> bool:
    """Whether the original checkpoint repeats the tied embedding as lm_head; the native layout only notes it."""
    noted = (raw.get("mlx_qwen3") or {}).get("repeats_lm_head", False)
    return config.tie_word_embeddings and (noted or any(name.startswith("lm_head.") for name in read_tensors(folder)))


def _cast_bytes(chunk: bytes, tensor: StoredTensor, dtype: mx.Dtype) -> bytes:
    carrier = {4: np.uint32, 2: np.uint16}
    source = mx.array(np.frombuffer(chunk, carrier[tensor.dtype.size])).view(tensor.dtype)
    result = cast(source, dtype, tensor.name)
    return np.array(result.view(mx.uint32 if dtype.size == 4 else mx.uint16)).tobytes()


def _write_shards(folder: Path, tensors: list[OutputTensor], limit: int, format_name: str) -> int:
    """One file, or numbered files of at most `limit` bytes with an index; returns the bytes of all tensors."""
    shards: list[list[OutputTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    total = sum(tensor.nbytes for tensor in tensors)
    for name, shard in zip(names, shards, strict=True):
        _write_safetensors(folder / name, shard, format_name)
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return total


def _write_safetensors(path: Path, tensors: list[OutputTensor], format_name: str) -> None:
    """https://huggingface.co/docs/safetensors: header length, JSON header, bytes. Streamed, as the library cannot."""
    header: dict[str, Any] = {"__metadata__": {"format": format_name}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start on a multiple of 8, as the library writes them
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for chunk in tensor.chunks():
                file.write(chunk)


def _config(
    raw: Mapping[str, Any], layout: str, dtype: mx.Dtype, parts: Mapping[str, Part], repeats_head: bool
) -> dict[str, Any]:
    """config.json of the result: the source's keys, with dtype and quantization where this layout has them."""
    ours = ("mlx_qwen3", "quantization", "quantization_config")
    config = {key: value for key, value in raw.items() if key not in ours}
    config["dtype" if "dtype" in config else "torch_dtype"] = _dtype_name(dtype)
    if layout == "native":
        note = {"format": FORMAT, "layout": layout, "dtype": _dtype_name(dtype), "quantization": _packings(parts, "")}
        return config | {"mlx_qwen3": note | ({"repeats_lm_head": True} if repeats_head else {})}
    if packings := _packings(parts, "model."):
        config |= {"quantization": packings, "quantization_config": packings}  # mlx-lm writes both
    return config


def _packings(parts: Mapping[str, Part], prefix: str) -> dict[str, Any] | None:
    """The commonest packing as the default, and each module that differs by its name: the form of mlx-lm."""
    packed = {part.name: part.quantization for part in parts.values() if part.quantization}
    if not packed:
        return None
    kinds: list[Quantization] = list(packed.values())
    default = max(kinds, key=kinds.count)
    others = {name: asdict(packing) for name, packing in packed.items() if packing != default}
    return asdict(default) | {name if name == "lm_head" else prefix + name: value for name, value in others.items()}


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A staging folder beside `out` that becomes it at the end, or is removed where anything fails."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already; give another place or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be written ({error.strerror}); give another place") from None
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        staging.rename(out)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error.strerror or error}); nothing was left behind") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    """The process's file mode mask, which mkdtemp passes over."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
