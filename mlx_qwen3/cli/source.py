"""The default SOURCE of a command."""

from .terminal import say


def default_source(option: str = "") -> str:
    """Qwen3-0.6B if it is downloaded, else the demo; a line on stderr says that it is the demo.

    `option` is the command's option for a SOURCE, such as "--model ".
    """
    from ..files import hub

    source: str = hub.default_source()
    if source == "demo":
        say(f"note: this is the demo model; {option or 'the SOURCE '}{hub.DEFAULT} downloads the real one")
    return source
