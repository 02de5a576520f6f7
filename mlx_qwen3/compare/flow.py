"""The steps of the forward pass as data, in order: names, axes, and what happens.

B batch, L new tokens, S cached + new, H query heads, K key/value heads, D head_dim, V vocabulary, E experts, k of them
for each token
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One tensor of the forward pass.

    A `view` has no statistics: it has the same numbers as the step before it, in another shape, or it has names.
    """

    name: str  # the name in JSON, in the rules and in comparisons
    axes: str
    meaning: str
    view: bool = False

    @property
    def head_axis(self) -> int | None:
        """The axis of the heads, of queries or of keys and values."""
        return next((i for i, axis in enumerate(self.axes.split()) if axis in ("H", "K")), None)

    @property
    def token_axis(self) -> int:
        """The axis along which the passes of a long prompt are joined; -1 if each pass holds all tokens so far."""
        axes = self.axes.split()
        return axes.index("L") if "L" in axes else -1


# Event, as the model calls it -> the tensors that the model then shows.
EVENTS: dict[str, tuple[Step, ...]] = {
    "input": (Step("input", "B L hidden", "the residual stream that the layers before have made"),),
    "input_norm": (Step("input_norm", "B L hidden", "RMSNorm: every token to RMS 1, times input_layernorm.weight"),),
    "qkv": (Step("qkv", "B L (H+2K)D", "one fused projection makes queries, keys and values"),),
    "split": (
        Step("q_split", "B L HD", "the first H * D columns", view=True),
        Step("k_split", "B L KD", "the next K * D", view=True),
        Step("v_split", "B L KD", "the last K * D", view=True),
    ),
    "heads": (
        Step("q_heads", "B L H D", "columns cut into heads of D"),
        Step("k_heads", "B L K D", "fewer key heads than query heads"),
        Step("v_heads", "B L K D", "as many value heads as key heads"),
    ),
    "qk_norm": (
        Step("q_norm", "B L H D", "QK-norm: RMSNorm over the D of each head, times q_norm.weight"),
        Step("k_norm", "B L K D", "the same with k_norm.weight; v is not normalised"),
    ),
    "transpose": (
        Step("q_heads_transposed", "B H L D", "heads before tokens, as attention reads them", view=True),
        Step("k_heads_transposed", "B K L D", "", view=True),
        Step("v_heads_transposed", "B K L D", "", view=True),
    ),
    "rope": (
        Step("q_rope", "B H L D", "RoPE: pairs (i, i + D/2) turned by an angle that grows with the position"),
        Step("k_rope", "B K L D", "the same angles, so that q.k depends on the distance"),
    ),
    "cache": (
        Step("k_cache", "B K S D", "keys of all tokens so far, cached and new", view=True),
        Step("v_cache", "B K S D", "values of all tokens so far", view=True),
    ),
    "attention": (Step("attention", "B H L D", "weights @ v: each query's mean of the values it attends to"),),
    "merge": (Step("merged_heads", "B L HD", "heads side by side again", view=True),),
    "o_proj": (Step("o_proj", "B L hidden", "mixes the heads"),),
    "residual": (Step("residual", "B L hidden", "input + o_proj"),),
    "post_norm": (Step("post_norm", "B L hidden", "RMSNorm, times post_attention_layernorm.weight"),),
    "gate_up": (Step("gate_up", "B L 2inner", "one fused projection makes gate and up"),),
    "activation": (Step("activation", "B L inner", "SwiGLU: silu(gate) * up"),),
    "router": (Step("router_logits", "B L E", "a score for every expert"),),
    "experts": (
        Step("chosen_experts", "B L k", "the k experts with the highest scores, by number", view=True),
        Step("expert_weights", "B L k", "softmax over all experts, at the chosen; with norm_topk_prob made to sum 1"),
    ),
    "expert_gate_up": (Step("expert_gate_up", "B L k 2inner", "gate and up of each chosen expert"),),
    "expert_activation": (Step("expert_activation", "B L k inner", "SwiGLU in each"),),
    "expert_down": (Step("expert_down", "B L k hidden", "the output of each"),),
    "down": (Step("down", "B L hidden", "back to the width of the stream; of experts the weighted sum"),),
    "output": (Step("output", "B L hidden", "residual + down: the input of the next layer"),),
    "final_norm": (Step("final_norm", "B L hidden", "RMSNorm after the last layer, times norm.weight"),),
    "logits": (Step("logits", "B L V", "hidden @ lm_head.T: a score for every token of the vocabulary"),),
}
# Fused attention never shows these. The probe computes scores and weights again from q and k. The grouped keys and
# values are only how attention reads k and v; they are never a tensor.
K_SHARED = Step("k_grouped", "B H S D", "grouped-query attention: {sharing}", view=True)
V_SHARED = Step("v_grouped", "B H S D", "the same for values; nothing is copied", view=True)
SCORES = Step("scores", "B H L S", "q.k * {scale}, for the keys that a query sees; made again in query blocks")
SOFTMAX = Step("softmax", "B H L S", "exp(scores), each row to sum 1", view=True)
ENTROPY = Step("entropy", "B H L", "of each query's weights, in nats; 0: it sees one token")
FIRST_TOKEN = Step("first_token", "B H L", "the weight that each query gives to the first token")
HIDDEN: tuple[Step, ...] = (K_SHARED, V_SHARED, SCORES, SOFTMAX)

AFTER_LAYERS = ("final_norm", "logits")  # events outside the layers
# events of layers with a dense MLP, and of layers with experts
DENSE = ("gate_up", "activation")
SPARSE = ("router", "experts", "expert_gate_up", "expert_activation", "expert_down")
FLOW: tuple[Step, ...] = tuple(
    step for event, steps in EVENTS.items() for step in (*steps, *(HIDDEN if event == "cache" else ()))
)
# The steps that have statistics; views would only repeat those of another step
NUMBERS: tuple[Step, ...] = tuple(
    step for shown in FLOW for step in ((shown, ENTROPY, FIRST_TOKEN) if shown is SCORES else (shown,)) if not step.view
)
