"""Adapters for the tests, every number random, written without the package and without PEFT; and how one is refused."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, shapes
from safetensors.numpy import load_file, save_file

from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.config import Qwen3Config

PEFT = "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def refused(folder: Path, message: str, config: Qwen3Config | None = None) -> None:
    """Opening this adapter for a model, by default a tiny one, is a CheckpointError with this message."""
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder, config or Qwen3Config.from_hf(TINY))


def matrices(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Every projection by its Hugging Face name, with its shape."""
    found = {name.removesuffix(".weight"): shape for name, shape in shapes(config).items() if len(shape) == 2}
    return {
        name: (shape[0], shape[1]) for name, shape in found.items() if "embed" not in name and "lm_head" not in name
    }


def write_peft(
    folder: Path,
    targets: Iterable[str] = ATTENTION,
    model: dict[str, Any] = TINY,
    rank: int = 4,
    seed: int = 0,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    **config: Any,
) -> Path:
    """A LoRA adapter of PEFT for these kinds of projections. `change` may edit the tensors, by their names."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (outputs, inputs) in matrices(model).items():
        if name.endswith(tuple(f".{target}" for target in targets)):
            tensors[f"base_model.model.{name}.lora_A.weight"] = normal(rng, rank, inputs)
            tensors[f"base_model.model.{name}.lora_B.weight"] = normal(rng, outputs, rank)
    change(tensors)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "Qwen/Qwen3-0.6B",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        **config,
    }
    return write(folder, settings, tensors, PEFT)


def peft_deltas(folder: Path) -> dict[str, np.ndarray]:
    """scale * B @ A of an adapter of PEFT with one rank, by the name of the weight in the checkpoint."""
    settings, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / PEFT)
    bare = {name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    names = [name.removesuffix(".lora_A.weight") for name in bare if name.endswith(".lora_A.weight")]
    scale = settings["lora_alpha"] / settings["r"]
    return {f"{n}.weight": scale * bare[f"{n}.lora_B.weight"] @ bare[f"{n}.lora_A.weight"] for n in names}


def write_mlx_lm(
    folder: Path,
    kind: str = "lora",
    model: dict[str, Any] = TINY,
    layers: int = -1,
    keys: list[str] | None = None,
    rank: int = 4,
    seed: int = 0,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
) -> Path:
    """A LoRA or DoRA adapter of mlx-lm for the projections of the last layers, or the keys inside them."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in mlx_matrices(model).items():
        _, _, number, inside = name.split(".", 3)
        if (0 < layers <= model["num_hidden_layers"] - 1 - int(number)) or (keys is not None and inside not in keys):
            continue
        stack, (outputs, inputs) = shape[:-2], shape[-2:]
        if stack:
            tensors |= {f"{name}.lora_a": normal(rng, *stack, rank, inputs)}
            tensors |= {f"{name}.lora_b": normal(rng, *stack, outputs, rank)}
        else:
            tensors |= {f"{name}.lora_a": normal(rng, inputs, rank), f"{name}.lora_b": normal(rng, rank, outputs)}
        if kind == "dora":
            tensors[f"{name}.m"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
    change(tensors)
    parameters: dict[str, Any] = {"rank": rank, "scale": 3.0, "dropout": 0.0}
    parameters |= {} if keys is None else {"keys": keys}
    settings = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": "Qwen/Qwen3-0.6B"}
    return write(folder, settings, tensors, "adapters.safetensors")


def mlx_matrices(model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every projection as mlx-lm names it: the experts of a layer in one."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in matrices(model).items():
        if ".experts." in name:
            before, expert = name.split(".experts.")
            name, shape = f"{before}.switch_mlp.{expert.split('.')[1]}", (model["num_experts"], *shape)
        found[name] = shape
    return found


def write(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray], file: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / file)
    return folder


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(0, 0.2, shape)).astype(np.float32)
