"""Tensors that are not part of a Qwen3: some are ignored, others show that this is another kind of model."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from .reading import short

BASE = "use the model that it was trained from"
SAVE = "save the language model alone, with AutoModelForCausalLM's from_pretrained and save_pretrained of transformers"
INSIDE = "save the model inside the wrapper, with save_pretrained"
# Tensors and names that training adds to a model: pattern of the name without `model.` -> (what it is, remedy)
ADDED = {
    r"(^|\.)(v_head|value_head)\.": ("a value head of reinforcement learning, which generates no text", SAVE),
    r"(^|\.)(reward_head|reward_model)\.": ("a reward head, which generates no text", BASE),
    r"(^|\.)(score|classifier|classification_head)\.": ("a classification head, which generates no text", BASE),
    r"(^|\.)qa_outputs\.": ("a question-answering head, which generates no text", BASE),
    r"\.lora_(A|B|embedding_A|embedding_B)\b": ("an adapter", "merge it into the model with PEFT's merge_and_unload"),
    # Names that a wrapper gives to the tensors of the model inside it. transformers does not know them either.
    r"(^|\.)_orig_mod\.": ("a name of torch.compile's wrapper", f"{INSIDE}, model._orig_mod"),
    r"(^|\.)_(fsdp|checkpoint)_wrapped_module\.": ("a name of FSDP's wrapper", INSIDE),
    r"^module\.": ("a name of the wrapper of DeepSpeed or DistributedDataParallel", f"{INSIDE}, model.module"),
    r"^base_model\.|\.base_layer\.": ("a name of PEFT's wrapper", "save what merge_and_unload of PEFT returns"),
    r"^model\.": ("a name with the prefix 'model.' twice", INSIDE),
}
ANY_ADDED = re.compile("|".join(f"(?:{pattern})" for pattern in ADDED))  # one search for each of thousands of names


def is_ignored(name: str) -> bool:
    """Whether a tensor is ignored, as in transformers: old checkpoints hold the frequencies of RoPE."""
    return "rotary_emb.inv_freq" in name


def refuse_added(folder: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError for a tensor that training added, and says what it is.

    Called before the check for missing tensors: such a model may lack some, and that message would not help.
    """
    for name in sorted(filter(ANY_ADDED.search, names)):
        for pattern, (what, remedy) in ADDED.items():
            if re.search(pattern, name):
                raise CheckpointError(f"{folder} holds {short(name)}, {what}; {remedy}")
