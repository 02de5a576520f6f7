"""The SOURCE of a command that was given none."""

from .terminal import say


def default_source(option: str = "") -> str:
    """Qwen3-0.6B if it is downloaded, else the demo, which is then said on stderr.

    `option` is that of the command for a SOURCE, such as "--model ".
    """
    from ..files import hub

    source: str = hub.default_source()
    if source == "demo":
        say(f"using the demo model in the package; {option or 'the SOURCE '}{hub.DEFAULT} downloads the real one")
    return source
