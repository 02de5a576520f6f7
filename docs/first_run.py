"""Records the first command of the README in a terminal of 80 columns, and draws it as docs/first-run.svg.

The recording is real: the program runs on a pseudo-terminal, and what it writes is what the picture shows, speed
included. MLX_QWEN3_BLAS=none gives the speed of a machine on which no fast BLAS is installed.
"""

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = 'python generate.py --prompt "What is 17 + 25?"'
ROWS, COLUMNS = 24, 80
LETTER, LINE, SIZE, EDGE = 8.0, 19.0, 13.3, 18.0  # pixels: a letter's width, a line's height, the font, the margin
PAPER, BAR, INK, RIM = "#0d1117", "#21262d", "#e6edf3", "#3d444d"
# The styles that mlx_qwen3/cli/styles.py uses, by their number in a control sequence; 0 ends a style
STYLES = {
    "1": "font-weight: bold",
    "2": "fill: #9198a1",
    "31": "fill: #ff7b72",
    "32": "fill: #3fb950",
    "33": "fill: #d29922",
}
STYLE = re.compile(r"\x1b\[(\d*)m")


def recorded(command: str) -> str:
    """What the command writes to a terminal with colours, on a machine that has downloaded no model."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_CACHE": os.devnull}
    environment.pop("NO_COLOR", None)
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    parts = []
    while data := _read(ours):
        parts.append(data)
    os.close(ours)
    if code := process.wait():
        raise SystemExit(f"{command} ended with {code}: {b''.join(parts).decode()}")
    return b"".join(parts).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the program has ended
        return b""


def spans(text: str) -> list[list[tuple[str, str]]]:
    """Lines of (text, style). Raises SystemExit for a control sequence that this picture cannot show."""
    style = ""
    lines: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"):
        if (width := len(STYLE.sub("", line))) > COLUMNS:
            raise SystemExit(f"a line of {width} characters does not fit {COLUMNS} columns: {line!r}")
        for part, code in _parts(line):
            if part:
                lines[-1].append((part, style))
            if code is not None:
                style = STYLES[code] if code in STYLES else "" if code in ("", "0") else _unknown(code)
        lines.append([])
    return lines[:-1]


def _parts(line: str) -> Iterator[tuple[str, str | None]]:
    """(text, the number of the style that begins after it)."""
    pieces = STYLE.split(line)
    for text, code in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        if found := re.search(r"[\x00-\x1f\x7f]", text):
            _unknown(found[0])
        yield text, code


def _unknown(code: str) -> str:
    raise SystemExit(f"the recording has the control sequence {code!r}, which this script cannot draw; add it")


def drawn(command: str, text: str) -> str:
    """The picture of a terminal in which the command was typed."""
    lines = [[("$ ", STYLES["2"]), (command, "font-weight: bold")], *spans(text)]
    width, top = COLUMNS * LETTER + 2 * EDGE, 32.0
    height = top + len(lines) * LINE + 2 * EDGE - 8
    alt = escape("\n".join("".join(part for part, _ in line) for line in lines))
    picture = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
        f"<title>{alt}</title>",
        f"<style>text {{ font: {SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: {INK}; "
        "white-space: pre }</style>",
        f'<rect width="{width:g}" height="{height:g}" rx="9" fill="{PAPER}"/>',
        f'<path d="M0 {top:g}V9a9 9 0 0 1 9-9H{width - 9:g}a9 9 0 0 1 9 9V{top:g}z" fill="{BAR}"/>',
        # The edge shows where the window ends on a page that is as dark.
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8.5" fill="none" stroke="{RIM}"/>',
        *(f'<circle cx="{EDGE + 4 + 20 * i:g}" cy="16" r="5.5" fill="#57606a"/>' for i in range(3)),
    ]
    for number, line in enumerate(lines):
        picture += _line(line, top + EDGE + 8 + number * LINE)
    return "\n".join([*picture, "</svg>"]) + "\n"


def _line(line: list[tuple[str, str]], y: float) -> Iterator[str]:
    """Each part at its column, and as wide as its letters are on a terminal, whatever font the reader has."""
    column = 0
    for text, style in line:
        place = f'x="{EDGE + column * LETTER:g}" y="{y:g}" textLength="{len(text) * LETTER:g}"'
        if text.strip():
            yield f'<text {place} lengthAdjust="spacingAndGlyphs" style="{style}">{escape(text)}</text>'
        column += len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = ROOT / "docs" / "first-run.svg"
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help="Default: docs/first-run.svg.")
    arguments = parser.parse_args()
    arguments.out.write_text(drawn(COMMAND, recorded(COMMAND)), encoding="utf-8")


if __name__ == "__main__":
    main()
