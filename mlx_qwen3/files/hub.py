"""From a SOURCE, which is a folder, a Hub id or `demo`, to a local folder."""

import re
from pathlib import Path

from ..errors import SourceError
from .members import MEMBERS

DEMO = Path(__file__).parent.parent / "demo"
DEFAULT = "Qwen/Qwen3-0.6B"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A checkpoint has one of each
REQUIRED = (("config.json",), ("model*.safetensors",), ("tokenizer.json", "vocab.json"))


def resolve(source: str | Path) -> Path:
    """The local folder of a SOURCE; downloads a Hub id into huggingface_hub's cache, with its progress bar.

    Raises SourceError where there is no such folder or the Hub does not give the files.
    """
    try:
        folder = DEMO if source == "demo" else Path(source).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that is unknown, a null byte
        is_folder = exists = False
    if is_folder and source != "":  # an empty path would be the current folder
        return folder
    if exists and source != "":
        raise SourceError(f"{source} is a file; give the folder that holds config.json and the weights")
    if not HUB_ID.fullmatch(str(source)):
        raise SourceError(f"there is no folder {str(source)!r}; give a folder, a Hub id such as {DEFAULT}, or 'demo'")
    return _download(str(source))


def default_source() -> str:
    """Qwen3-0.6B where it is already in the local cache, else the demo in the package."""
    from huggingface_hub import try_to_load_from_cache

    cached = all(
        isinstance(try_to_load_from_cache(DEFAULT, name), str)
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    return DEFAULT if cached else "demo"


def _download(repository: str) -> Path:
    # Imported here: it takes 0.2 s, and a local folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    local = f"download it elsewhere with `hf download {repository}` and give its folder, or use --model demo"
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(MEMBERS)))
    except HFValidationError as error:
        raise SourceError(f"there is no folder {repository}, and the Hub has no such name ({error})") from None
    except GatedRepoError:
        raise SourceError(f"{repository} is gated; accept its terms on the Hub, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise SourceError(f"the Hub has no public model {repository}; check the name, or run `hf auth login`") from None
    except LocalEntryNotFoundError:
        raise SourceError(f"{repository} is not in the local cache and the Hub cannot be reached; {local}") from None
    except Exception as error:  # not all are OSError: a connection that breaks is an error of the HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{repository} could not be downloaded ({reason}); try again, or {local}") from None
    # A cache that another program began has no list of files by which huggingface_hub could tell.
    for names in REQUIRED:
        if not any(path for name in names for path in folder.glob(name)):
            raise SourceError(f"{repository} has no {names[0]} on the Hub or in the offline cache; {local}")
    return folder
