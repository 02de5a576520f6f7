"""Runs the commands of inside-qwen3.md again and puts their output in its place.

python docs/refresh.py [SOURCE=FOLDER ...]

A block of the page begins with `$ COMMAND  # TITLE`; it shows the part of the output with that title. SOURCE=FOLDER
reads a checkpoint of the page from another place.
"""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

PAGE = Path(__file__).with_name("inside-qwen3.md")
BLOCK = re.compile(r"(```text\n\$ (?P<command>mlx-qwen3 [^\n]*?)(?:  # (?P<title>[^\n]*))?\n)(.*?)(?=```)", re.DOTALL)


@cache
def output(command: str) -> str:
    """What a command prints, with the names of the page for the folders it read."""
    places = dict(argument.split("=", 1) for argument in sys.argv[1:])
    words = [places.get(word, word) for word in shlex.split(command)[1:]]
    result = subprocess.run([sys.executable, "-m", "mlx_qwen3", *words], capture_output=True, text=True)
    text = result.stdout + result.stderr
    for source, folder in places.items():
        text = text.replace(folder, source)
    return text


def shown(block: re.Match[str]) -> str:
    text, title = output(block["command"]), block["title"]
    parts = [part for part in text.split("\n\n") if not title or part.startswith(title)]
    if not parts:
        raise SystemExit(f"{block['command']} prints no part {title!r}")
    return block[1] + "\n\n".join(parts).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(shown, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
