"""The settings of a mixture of experts in config.json, of `qwen3_moe`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .settings import count, flag, is_int, shown

MODEL_TYPE = "qwen3_moe"
MOST_EXPERTS = 10_000  # a file may ask for any number, and each expert of a layer has an entry in several tables

DEFAULTS: dict[str, Any] = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []}  # as read_moe has


@dataclass(frozen=True)
class MoE:
    """The experts of a model: each token of a layer in `layers` goes through the few that its router chooses."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool  # the weights of the chosen experts are divided by their sum
    layers: frozenset[int]  # the others have a dense MLP


def read_moe(raw: Mapping[str, Any], num_hidden_layers: int) -> MoE | None:
    """None for a dense model. Raises ConfigError for a setting that is missing, malformed or contradicts another.

    Sizes must be there. Without norm_topk_prob, decoder_sparse_step or mlp_only_layers, the values are those of
    transformers' Qwen3MoeConfig: false, 1 and no layer.
    """
    if raw.get("model_type") != MODEL_TYPE:
        return None
    experts, chosen = _num_experts(raw), count(raw, "num_experts_per_tok")
    if chosen > experts:
        raise ConfigError(f"num_experts_per_tok is {chosen}, but num_experts is {experts}; take config.json anew")
    step = 1 if raw.get("decoder_sparse_step") is None else count(raw, "decoder_sparse_step")
    dense = _mlp_only_layers(raw, num_hidden_layers)
    return MoE(
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=count(raw, "moe_intermediate_size"),
        norm_topk_prob=raw.get("norm_topk_prob") is not None and flag(raw, "norm_topk_prob"),
        layers=frozenset(i for i in range(num_hidden_layers) if (i + 1) % step == 0 and i not in dense),
    )


def spelled_out(raw: Mapping[str, Any], moe: MoE, rope_theta: float) -> dict[str, Any]:
    """The settings of config.json that mlx-lm needs: it has no defaults, and not the names of transformers 5."""
    missing = {key: value for key, value in DEFAULTS.items() if raw.get(key) is None}
    return {"num_experts": moe.num_experts, "rope_theta": rope_theta, **missing}


def _num_experts(raw: Mapping[str, Any]) -> int:
    """Under its name in the releases, or that of transformers 5."""
    names = [name for name in ("num_experts", "num_local_experts") if raw.get(name) is not None]
    found = {name: count(raw, name, MOST_EXPERTS) for name in names or ["num_experts"]}
    if len(set(found.values())) > 1:
        raise ConfigError(
            "num_experts is {}, but num_local_experts is {}; remove the wrong one".format(*found.values())
        )
    return next(iter(found.values()))


def _mlp_only_layers(raw: Mapping[str, Any], num_hidden_layers: int) -> list[int]:
    layers = raw.get("mlp_only_layers") or []
    if not isinstance(layers, list) or not all(is_int(layer) and 0 <= layer < num_hidden_layers for layer in layers):
        raise ConfigError(
            f"mlp_only_layers is {shown(layers)} in config.json; expected a list of layers from 0 to "
            f"{num_hidden_layers - 1}"
        )
    return layers
