"""Checkpoints as FP8, AWQ, GPTQ and compressed-tensors programs write them, and the values that they stand for.

Codes, zero points and scales are random, and are packed here as each format defines it, value by value. The expected
weight is (code - zero) * scale in float32, where it is exact. Nothing is taken from the package.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from checkpoints import TINY, random_weights, shapes

# Sizes that groups of 32 divide; one row length that only 32 divides
SIZES = {
    "hidden_size": 128,
    "head_dim": 32,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
BLOCKS: dict[Any, tuple[int, int]] = {"scalar": (0, 0), "tensor": (0, 0), "channel": (1, 0)}  # 0 is all
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # column of each nibble of a word, from the lowest


@dataclass
class Release:
    """A folder, and the float32 weight of every module as config.json and the format define it."""

    folder: Path
    weights: dict[str, np.ndarray]


def packed(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 (rows, columns / N): code i of a word lies at its bits [i * bits, (i + 1) * bits)."""
    count = 32 // bits
    padding = -codes.shape[1] % count
    wide = np.pad(codes, ((0, 0), (0, padding))).astype(np.uint64).reshape(len(codes), -1, count)
    words = np.zeros(wide.shape[:2], np.uint64)
    for place in range(count):
        words |= wide[:, :, order[place] if order else place] << np.uint64(place * bits)
    return words.astype(np.uint32).view(np.int32)


def write_gptq(
    folder: Path,
    bits: int = 4,
    group_size: int = 32,
    sym: bool = False,
    version: str | None = "gptq",
    order: str | None = "trivial",
    head: bool = False,
    **config: Any,
) -> Release:
    """head: whether lm_head is packed too.

    order: of the groups: trivial, shuffled (act-order), blocks of 32 that are shuffled, or None for no g_idx.
    """
    rng = np.random.default_rng(bits + group_size)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": sym}
    settings |= {"desc_act": order in ("shuffled", "blocks"), **({"checkpoint_format": version} if version else {})}

    def module(rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray]:
        groups_of, codes, zeros, scales, weight = _integers(rng, rows, columns, bits, group_size, sym, order)
        stored = zeros if version == "gptq_v2" else (zeros - 1) % 2**bits
        tensors = {
            "qweight": np.ascontiguousarray(packed(codes, bits).T),
            "qzeros": packed(np.ascontiguousarray(stored.T), bits),
            "scales": scales.T.astype(np.float16),
            "bias": np.zeros(rows, np.float16),
        }
        return tensors | ({"g_idx": groups_of.astype(np.int32)} if order else {}), weight

    return _write(folder, settings | ({"lm_head": True} if head else {}), module, config)


def write_awq(folder: Path, group_size: int = 32, **config: Any) -> Release:
    rng = np.random.default_rng(group_size)
    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}

    def module(rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray]:
        _, codes, zeros, scales, weight = _integers(rng, rows, columns, 4, group_size, False)
        return {
            "qweight": packed(np.ascontiguousarray(codes.T), 4, AWQ_ORDER),
            "qzeros": packed(np.ascontiguousarray(zeros.T), 4, AWQ_ORDER),
            "scales": scales.T.astype(np.float16),
        }, weight

    return _write(folder, settings, module, config)


def write_compressed(
    folder: Path, bits: int = 4, group_size: int = 32, symmetric: bool = True, order: str | None = None, **config: Any
) -> Release:
    rng = np.random.default_rng(bits + group_size)
    strategy = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "actorder": None, **strategy}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }

    def module(rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray]:
        made = _integers(rng, rows, columns, bits, group_size, symmetric, order, mx.bfloat16)
        groups_of, codes, zeros, scales, weight = made
        # The format subtracts half of the range from codes and zeros, and adds it to both when it packs them.
        tensors: dict[str, Any] = {
            "weight_packed": packed(codes, bits),
            "weight_scale": mx.array(scales).astype(mx.bfloat16),
            "weight_shape": np.array([rows, columns], np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = np.ascontiguousarray(packed(np.ascontiguousarray(zeros.T), bits).T)
        return tensors | ({"weight_g_idx": groups_of.astype(np.int32)} if order else {}), weight

    return _write(folder, settings, module, config)


def write_fp8(
    folder: Path,
    block: tuple[int, int] | str = (128, 128),
    scale_dtype: mx.Dtype = mx.bfloat16,
    skip: tuple[str, ...] = (),
    scheme: str = "dynamic",
    compressed: bool = False,
    **config: Any,
) -> Release:
    """block: rows and columns, "scalar", "tensor" or "channel"; skip: parts of names of modules that stay in bf16.

    compressed: as compressed-tensors writes it.
    """
    rng = np.random.default_rng(0 if isinstance(block, str) else block[0])
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": scheme,
        "weight_block_size": None if isinstance(block, str) else list(block),
        "modules_to_not_convert": ["lm_head", *skip],
    }
    if compressed:
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": block}
        inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
        settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head", *skip]}
        settings |= {"quantization_status": "compressed", "config_groups": {"group_0": group}}
    table = e4m3()
    numbers = np.flatnonzero(~np.isnan(table))

    def module(rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray]:
        codes = numbers[rng.integers(0, len(numbers), (rows, columns))]
        high, wide = BLOCKS.get(block, block)
        high, wide = high or rows, wide or columns
        blocks = (-(-rows // high), -(-columns // wide))
        scales = mx.array(rng.uniform(0.005, 0.02, blocks) / columns**0.5).astype(scale_dtype)
        exact = np.array(scales.astype(mx.float32))
        of_each = np.kron(exact, np.ones((high, wide), np.float32))[:rows, :columns]  # the scale of each value
        weight = table[codes] * of_each
        scales = scales.reshape({"scalar": (), "tensor": (1,)}.get(block, blocks))
        leaf = "weight_scale" if compressed else "weight_scale_inv"
        tensors: dict[str, Any] = {"weight": mx.array(codes.astype(np.uint8)), leaf: scales}
        if scheme == "static":
            tensors["activation_scale"] = mx.array(rng.uniform(0.5, 1.5, ()).astype(np.float32))
        return tensors, weight

    release = _write(folder, settings, module, {"torch_dtype": "bfloat16", **config}, skip)
    rename_dtype(folder / "model.safetensors", {"weight": "F8_E4M3"})
    return release


def e4m3() -> np.ndarray:
    """The value of each of the 256 codes: sign, 4 bits of exponent with bias 7, 3 of mantissa; S.1111.111 is NaN."""
    values = []
    for code in range(256):
        sign, exponent, mantissa = -1.0 if code & 128 else 1.0, (code >> 3) & 15, code & 7
        value = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
        values.append(sign * value if code & 127 != 127 else np.nan)
    return np.array(values, np.float32)


def rename_dtype(path: Path, leaves: dict[str, str], old: str = "U8") -> None:
    """Writes other dtypes of the same size into the header, for tensors of dtype `old` whose names end with a leaf."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == old:
            entry["dtype"] = leaves[name.rpartition(".")[2]]
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


def _integers(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    order: str | None = None,
    dtype: mx.Dtype = mx.float16,
) -> tuple[np.ndarray, ...]:
    """(group of each column, codes, zeros, scales, weight)."""
    size = columns if group_size == -1 else group_size
    groups_of = np.arange(columns) // size
    if order == "shuffled":
        groups_of = rng.permutation(groups_of)
    elif order == "blocks":
        groups_of = rng.permutation(groups_of.reshape(-1, 32)).reshape(-1)
    groups = groups_of.max() + 1
    codes = rng.integers(0, 2**bits, (rows, columns))
    zeros = rng.integers(0, 2**bits, (rows, groups))  # 0 and the largest too
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    random = rng.uniform(0.5, 1.5, (rows, groups)) * 3 * 2.0**-bits / columns**0.5
    scales = np.array(mx.array(random.astype(np.float32)).astype(dtype).astype(mx.float32))
    weight = (codes - zeros[:, groups_of]).astype(np.float32) * scales[:, groups_of]
    return groups_of, codes, zeros, scales, weight


def _write(
    folder: Path, settings: dict[str, Any], module: Any, config: dict[str, Any], skip: tuple[str, ...] = ()
) -> Release:
    config = {**TINY, **SIZES, "torch_dtype": "float16", **config}
    dtype = getattr(mx, config["torch_dtype"])
    stored: dict[str, mx.array] = {}
    weights: dict[str, np.ndarray] = {}
    values = random_weights(config)
    for name, shape in shapes(config).items():
        base = name.removesuffix(".weight")
        inside = name.startswith("model.layers.") or (base == "lm_head" and settings.get("lm_head"))
        if len(shape) == 1 or not inside or any(part in name for part in (*skip, ".mlp.gate.")):  # a router stays
            stored[name] = mx.array(values[name]).astype(dtype)
            weights[name] = np.array(stored[name].astype(mx.float32))
            continue
        tensors, weights[name] = module(*shape)
        stored |= {f"{base}.{leaf}": mx.array(tensor) for leaf, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "pt"})
    return Release(folder, weights)
