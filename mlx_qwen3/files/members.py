"""The one list of the files that belong to a checkpoint: these are read, downloaded, copied by `convert` and certified.

A repository or folder may also hold pictures, other formats and second copies of the weights, which are left alone.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"  # a folder of named templates, beside chat_template.jinja
WEIGHTS = ("model*.safetensors", INDEX)
CONFIG = "config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    f"{TEMPLATES}/*.jinja",
)
CARRIED = (*TOKENIZER, "generation_config.json")  # a conversion copies them as they are
MEMBERS = (CONFIG, *WEIGHTS, *CARRIED)


def members(folder: Path, patterns: Sequence[str] = MEMBERS) -> list[str]:
    """The names, relative to `folder` and sorted, of its entries that match a pattern, broken links included."""
    names = [path.name for path in folder.iterdir()]
    if TEMPLATES in names and (folder / TEMPLATES).is_dir():
        names += [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).iterdir()]
    return sorted(name for name in names if is_member(name, patterns))


def is_member(name: str, patterns: Sequence[str] = MEMBERS) -> bool:
    """Whether a name, relative to the folder, belongs to a checkpoint. No such name leads out of the folder."""
    fits = (name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)
    return "\0" not in name and any(fits)
