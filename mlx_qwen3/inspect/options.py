"""The options of `inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..files.config import Qwen3Config
from ..model.kv_format import kv_format


@dataclass(frozen=True)
class Options:
    """What to look at: `prompt`, in a `chat_template`, or random tokens of `batch` and `length`.

    layer, head: those shown in detail.
    decode: show the decode step after this many tokens of the reply, instead of the prompt's pass.
    temperature, seed: of that reply.
    kv_bits: 8 or 4 adds the errors of a quantized cache in each layer.
    adapters: each FOLDER|HUBID[=SCALE], for the model that is looked at; `against` a SOURCE, that has none.
    """

    prompt: str | None = None
    chat_template: str | None = None
    batch: int | None = None
    length: int | None = None
    decode: int | None = None
    temperature: float | None = None
    seed: int | None = None
    layer: int = 0
    head: int = 0
    heads: bool = False
    dtype: str | None = None
    rules: Path | None = None
    against: str | None = None
    kv_bits: int | None = None
    adapters: Sequence[str] = ()


def check_options(options: Options, config: Qwen3Config) -> None:
    """Raises UsageError for options that contradict each other or the model."""
    for name, value, count in (
        ("layer", options.layer, config.num_hidden_layers),
        ("head", options.head, config.num_attention_heads),
    ):
        if not 0 <= value < count:
            raise UsageError(f"--{name} is {value}; this model has {name}s 0 to {count - 1}")
    kv_format(options.kv_bits, config.head_dim)
    for name, size in (("batch", options.batch), ("length", options.length)):
        if size is not None and options.prompt is not None:
            raise UsageError(f"--{name} is for random tokens, but --prompt brings its own; drop one of them")
        if size is not None and size < 1:
            raise UsageError(f"--{name} is {size}; expected 1 or more")
    if options.length is not None and options.length > config.context_length:
        raise UsageError(f"--length is {options.length}; the context of this model has {config.context_length} tokens")
    if options.decode is not None and options.decode < 1:
        raise UsageError(f"--decode is {options.decode}; expected 1 or more")
    if options.chat_template is not None and options.prompt is None:
        raise UsageError("--chat-template is for a prompt; give --prompt too, or leave it out")
    for name, setting in (("temp", options.temperature), ("seed", options.seed)):
        if setting is not None and (options.decode is None or options.prompt is None):
            raise UsageError(f"--{name} is for the reply to a prompt; give --prompt and --decode too, or leave it out")
