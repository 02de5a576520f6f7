"""From a SOURCE, which is a folder, a Hub id, `demo` or `demo-moe`, to a local folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SourceError
from . import adapter_config
from .forms import NO_GGUF
from .members import CONFIG, MEMBERS
from .reading import exists, short

PACKAGE = Path(__file__).parent.parent
DEMO, DEMO_MOE = PACKAGE / "demo", PACKAGE / "demo_moe"
PACKAGED: dict[str | Path, Path] = {"demo": DEMO, "demo-moe": DEMO_MOE}  # the trained checkpoints inside the package
DEFAULT = "Qwen/Qwen3-0.6B"
SOURCE = f"a folder, a Hub id such as {DEFAULT}, 'demo' or 'demo-moe'"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A checkpoint has at least one file of each group
REQUIRED = ((CONFIG,), ("model*.safetensors",), ("tokenizer.json", "vocab.json"))
REQUIRED_OF_ADAPTER = ((adapter_config.FILE,), (adapter_config.PEFT_WEIGHTS, adapter_config.MLX_LM_WEIGHTS))


def resolve(source: str | Path, expected: str = SOURCE) -> Path:
    """The local folder of a SOURCE; downloads a Hub id into huggingface_hub's cache, with its progress bar.

    `expected` is what error messages ask for. Raises SourceError if there is no such folder, if the Hub does not
    give the files, or if it is an adapter.
    """
    local = _local(source, expected, "config.json and the weights")
    folder = local or _download(str(source), (*MEMBERS, adapter_config.FILE))
    if adapter_config.has_adapter(folder) and not exists(folder / CONFIG):
        raise SourceError(adapter_config.what_it_is(folder, str(source)))
    if local is None:
        _check_download(str(source), folder, REQUIRED)
    return folder


def resolve_adapter(source: str | Path) -> Path:
    """The same for the folder or Hub id of an adapter."""
    local = _local(source, "a folder or a Hub id of an adapter", f"{adapter_config.FILE} and the adapter's weights")
    folder = local or _download(str(source), adapter_config.MEMBERS)
    if local is None:
        _check_download(str(source), folder, REQUIRED_OF_ADAPTER)
    if not adapter_config.has_adapter(folder):
        raise SourceError(f"{source} is not an adapter: it has no {adapter_config.FILE}; give the folder of an adapter")
    return folder


def _local(source: str | Path, expected: str, content: str) -> Path | None:
    """The folder that a source names, or None for a Hub id. `content` is what the folder should hold."""
    name = str(source)
    if not name.strip():  # an empty path would be the current folder
        raise SourceError(f"SOURCE is empty; give {expected}")
    check_text(name)
    try:
        folder = PACKAGED.get(source) or Path(source).expanduser()
        is_folder, there = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that is unknown, a null byte
        is_folder = there = False
    if is_folder:
        return folder
    if there:
        remedy = NO_GGUF if name.endswith(".gguf") else f"give the folder that holds {content}"
        raise SourceError(f"{name} is a file; {remedy}")
    if not HUB_ID.fullmatch(name):
        raise SourceError(f"there is no folder {short(name)!r}{_similar(name)}; give {expected}")
    return None


def check_text(name: str) -> None:
    """Raises SourceError for a path whose bytes are not UTF-8, which JSON and other libraries cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(f"the name {short(name)!r} has bytes that are not UTF-8; give or make another name") from None


def _similar(name: str) -> str:
    """The existing folders with a similar name, for an error message."""
    from difflib import get_close_matches  # only a failure needs it

    path = Path(name)
    try:
        found = [entry.name for entry in path.expanduser().parent.iterdir() if entry.is_dir()]
    except (OSError, RuntimeError, ValueError):
        return ""
    close = get_close_matches(path.name, found)
    return f" ({path.parent} has {', '.join(close)})" if close else ""


def default_source() -> str:
    """Qwen3-0.6B if it is already in the local cache, else the demo in the package."""
    from huggingface_hub import try_to_load_from_cache

    cached = all(
        isinstance(try_to_load_from_cache(DEFAULT, name), str)
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    return DEFAULT if cached else "demo"


def _download(repository: str, files: Sequence[str]) -> Path:
    # Imported here: it takes 0.2 s, and a local folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    neither = f"there is no folder {repository}{_similar(repository)}, and"
    local = _elsewhere(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except HFValidationError as error:
        raise SourceError(f"{neither} the Hub can have no such name ({error})") from None
    except GatedRepoError:
        raise SourceError(f"{repository} is gated; accept its terms on the Hub, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{neither} the Hub has no public model of this name; check it, or run `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise SourceError(f"{neither} it is not in the local cache and the Hub cannot be reached; {local}") from None
    except Exception as error:  # not all are OSError: a connection that breaks is an error of the HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{repository} could not be downloaded ({reason}); try again, or {local}") from None


def _check_download(repository: str, folder: Path, required: Sequence[Sequence[str]]) -> None:
    """Raises SourceError if a download lacks a file.

    If another program made the cache, huggingface_hub has no list of the repository's files, and reports nothing
    missing.
    """
    for names in required:
        if not any(path for name in names for path in folder.glob(name)):
            remedy = NO_GGUF if "gguf" in repository.lower() else _elsewhere(repository)
            raise SourceError(f"{repository} has no {names[0]} on the Hub or in the offline cache; {remedy}")


def _elsewhere(repository: str) -> str:
    return f"download it elsewhere with `hf download {repository}` and give its folder"
