"""Settings of tokenizer_config.json that change transformers' tokens or text, and that are not followed here."""

from collections.abc import Mapping
from typing import Any

from ..errors import warn
from ..files.reading import short

# Setting -> the values with which transformers does nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # It removes spaces before punctuation. Without it transformers ignores clean_up_tokenization_spaces too.
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": (False,),
    "fast_tokenizer_files": ([], ["tokenizer.json"]),  # another file for each version of transformers
    "add_bos_token": (False,),
    "add_eos_token": (False,),
    "fix_mistral_regex": (False,),
}


def warn_of_ignored(config: Mapping[str, Any]) -> None:
    """Name each setting that could make transformers' tokens or text differ."""
    for name, neutral in NEUTRAL.items():
        if (value := config.get(name)) is not None and value not in neutral:
            warn(f"{name} is {short(repr(value))} in tokenizer_config.json, which is not followed; remove it there")
