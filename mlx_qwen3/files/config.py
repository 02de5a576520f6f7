"""`config.json` as a frozen `Qwen3Config`. What is missing, malformed or not supported raises; nothing is guessed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .config_keys import check_keys
from .forms import Form, read_form
from .moe import MoE, read_moe
from .quantization import Quantization, read_quantization
from .rope import Scaling, Yarn, read_rope
from .settings import count, flag, number, token_ids

MOST_LAYERS = 10_000  # a file may ask for any number, and each layer has an entry in several tables


@dataclass(frozen=True)
class Qwen3Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    moe: MoE | None  # None: every layer has a dense MLP
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope_theta: float
    rope_scaling: Scaling | None
    quantization: Quantization | None  # of every quantized module that `quantization_overrides` does not name
    quantization_overrides: Mapping[str, Quantization | None]  # Hugging Face module name without `model.`
    form: Form | None = None  # of a release that MLX's modes do not describe: FP8, AWQ, GPTQ, compressed-tensors

    @property
    def active_widths(self) -> list[int]:
        """Of each layer, the columns of its MLP that one token goes through, in all its experts together."""
        dense, moe = self.intermediate_size, self.moe
        active = moe.num_experts_per_tok * moe.moe_intermediate_size if moe else 0
        return [active if moe and layer in moe.layers else dense for layer in range(self.num_hidden_layers)]

    @property
    def mlp_in_words(self) -> str:
        """What the MLPs are, for a line that describes the model."""
        if not (moe := self.moe):
            return f"MLP {self.intermediate_size}"
        experts = f"{moe.num_experts} experts of {moe.moe_intermediate_size}, {moe.num_experts_per_tok} for each token"
        layers = self.num_hidden_layers
        dense = layers - len(moe.layers)
        return f"{experts}, MLP {self.intermediate_size} in {dense} of {layers} layers" if dense else experts

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        scaling = self.rope_scaling
        stretched = scaling.factor * scaling.original_max_position_embeddings if isinstance(scaling, Yarn) else 0
        return max(self.max_position_embeddings, int(stretched))

    @property
    def attention_factor(self) -> float:
        """The factor that rotary embeddings apply to both q and k: a setting of YaRN and LongRoPE, 1 otherwise."""
        return getattr(self.rope_scaling, "attention_factor", 1.0)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """The config of a Hugging Face, mlx-lm or native checkpoint, in the style of transformers 4 or 5.

        Raises ConfigError for a setting that is missing, malformed or not supported. Warns about an unknown one.
        """
        check_keys(raw)
        token_ids(raw, "eos_token_id")  # only checked here: the tokenizer reads it
        heads = count(raw, "num_attention_heads")
        alike = "num_key_value_heads" in raw and raw["num_key_value_heads"] is None  # null: as in transformers
        kv_heads = heads if alike else count(raw, "num_key_value_heads")
        if heads % kv_heads:
            raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if (head_dim := count(raw, "head_dim")) % 2:
            raise ConfigError(f"head_dim {head_dim} is odd; rotary embeddings need an even number")
        layers = count(raw, "num_hidden_layers", MOST_LAYERS)
        theta, scaling = read_rope(raw)
        form = read_form(raw)
        quantization, overrides = (None, {}) if form else read_quantization(raw)
        return cls(
            vocab_size=count(raw, "vocab_size"),
            hidden_size=count(raw, "hidden_size"),
            intermediate_size=count(raw, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            moe=read_moe(raw, layers),
            rms_norm_eps=number(raw, "rms_norm_eps"),
            max_position_embeddings=count(raw, "max_position_embeddings"),
            tie_word_embeddings=flag(raw, "tie_word_embeddings"),
            rope_theta=theta,
            rope_scaling=scaling,
            quantization=quantization,
            quantization_overrides=overrides,
            form=form,
        )
