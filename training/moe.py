"""The demo with a mixture of experts: the dense demo's MLP cut into experts, with a router, and written as Qwen3-MoE.

In training an MLP stays one (E * I, C) matrix, and a token's weights switch the experts' neurons off and on. At this
size that costs no more than the dense MLP, and the optimizers see the matrices that they see in the dense demo.
"""

# N tokens, C hidden, E experts, I neurons of an expert

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from training import attention
from training.recipe import MOE

EXPERTS, ACTIVE = 12, 4
DENSE = Path(__file__).parents[1] / "mlx_qwen3" / "demo"


class RoutedMLP(nn.Module):
    """A Qwen3 MLP whose neurons are EXPERTS groups, of which each token uses the ACTIVE likeliest."""

    def __init__(self, dense: Any):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = dense.gate_proj, dense.up_proj, dense.down_proj
        self.router = nn.Parameter(torch.randn(EXPERTS, dense.hidden_size) * dense.hidden_size**-0.5)
        with torch.no_grad():
            # ACTIVE would let each expert count as it did, EXPERTS would let the active ones stand for all:
            # the first loss is lowest between the two
            self.down_proj.weight *= (EXPERTS * ACTIVE) ** 0.5
        self.chances: torch.Tensor | None = None  # (N, E) of the last pass, for the balance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            chances = F.linear(x.float(), self.router).softmax(-1)  # (B, L, E)
        self.chances = chances
        best, chosen = chances.topk(ACTIVE, dim=-1)
        weights = torch.zeros_like(chances).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)  # (B, L, E * I)
        hidden = hidden.unflatten(-1, (EXPERTS, -1)) * weights.to(hidden.dtype).unsqueeze(-1)
        return self.down_proj(hidden.flatten(-2))


def upcycled(seed: int, source: Path = DENSE) -> Qwen3ForCausalLM:
    """The dense demo in float32 with routed MLPs."""
    model = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=attention.NAME)
    torch.manual_seed(seed)
    for layer in model.model.layers:
        layer.mlp = RoutedMLP(layer.mlp)
    return model


def balance_loss(model: Qwen3ForCausalLM, real: torch.Tensor) -> torch.Tensor:
    """Mean over the layers of E * sum of (share of choices) * (mean probability): 1 if the load is even.

    real (B, L): true for tokens that are not padding.
    """
    losses = []
    for layer in model.model.layers:
        chances = layer.mlp.chances[real]  # (N, E)
        chosen = torch.zeros_like(chances).scatter(-1, chances.topk(ACTIVE, dim=-1).indices, 1 / ACTIVE)
        losses.append(EXPERTS * (chosen.mean(0) * chances.mean(0)).sum())
    return torch.stack(losses).mean()


def as_qwen3_moe(model: Qwen3ForCausalLM) -> Qwen3MoeForCausalLM:
    """The trained model as transformers' class for Qwen3-MoE, with the same weights."""
    shape = model.config.to_dict()
    config = Qwen3MoeConfig(
        **{key: value for key, value in shape.items() if key not in ("architectures", "model_type", "layer_types")},
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        moe_intermediate_size=shape["intermediate_size"] // EXPERTS,
        norm_topk_prob=True,
        router_aux_loss_coef=MOE.balance,
    )
    out = Qwen3MoeForCausalLM(config)
    out.load_state_dict(dict(_renamed(model.state_dict())))
    return out


def _renamed(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in state.items():
        stem, _, last = name.partition(".mlp.")
        if last == "router":
            yield f"{stem}.mlp.gate.weight", value
        elif last == "gate_proj.weight":
            up = state[f"{stem}.mlp.up_proj.weight"]
            both = torch.cat([value.unflatten(0, (EXPERTS, -1)), up.unflatten(0, (EXPERTS, -1))], 1)
            yield f"{stem}.mlp.experts.gate_up_proj", both  # (E, 2 * I, C)
        elif last == "down_proj.weight":
            yield f"{stem}.mlp.experts.down_proj", value.unflatten(1, (EXPERTS, -1)).transpose(0, 1)  # (E, C, I)
        elif last != "up_proj.weight":
            yield name, value
