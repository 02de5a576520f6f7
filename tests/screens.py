"""What a command shows on a terminal: its lines, with the names of their styles in front."""

import io
from collections.abc import Callable

from mlx_qwen3.cli.styles import LOOKS, Part, rendered

CODES = {
    f"\x1b[{code}m": name for name, code in {"emphasis": 1, "dim": 2, "good": 32, "warning": 33, "bad": 31}.items()
}
assert set(CODES.values()) == set(LOOKS)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(parts: list[Part], monkeypatch: object, columns: int = 80, mask: Callable[[str], str] = str) -> list[str]:
    """The lines as a terminal of `columns` shows them, such as `dim: 13 tokens`; `mask` hides what differs by machine.

    Fails if a line is wider than the terminal.
    """
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = []
    for line in rendered(parts, Screen(), harmless=True).split("\n"):
        code = next((code for code in CODES if line.startswith(code)), "")
        text = line.removeprefix(code).replace("\x1b[0m", "")
        assert len(text) <= columns, text
        shown.append(mask(f"{CODES[code]}: {text}" if code else text))
    return shown
