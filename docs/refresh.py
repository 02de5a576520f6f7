"""Runs the commands of the pages in docs/ again and puts their output in place.

Two kinds of block are renewed. One begins with `$ mlx-qwen3 ...  # TITLE`: it shows the part of the output with that
title. The other is between `<!-- begin: python SCRIPT ... -->` and `<!-- end -->`: it shows all that the script prints.
"""

import argparse
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

DOCS = Path(__file__).parent
COMMAND = re.compile(r"(```text\n\$ (?P<command>mlx-qwen3 [^\n]*?)(?:  # (?P<title>[^\n]*))?\n)(.*?)(?=```)", re.DOTALL)
SCRIPT = re.compile(r"(<!-- begin: python (?P<script>[^\n]*) -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


@cache
def printed(command: tuple[str, ...]) -> str:
    """What a command of Python prints, on either stream."""
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=DOCS.parent)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}: {result.stderr}")
    return result.stdout + result.stderr


def refreshed(page: str, places: dict[str, str]) -> str:
    """The page with every block renewed; `places` gives the folder of a source that the page names."""

    def command(block: re.Match[str]) -> str:
        words = [places.get(word, word) for word in shlex.split(block["command"])[1:]]
        text = printed(("-m", "mlx_qwen3", *words))
        for source, folder in places.items():
            text = text.replace(folder, source)
        parts = [part for part in text.split("\n\n") if not block["title"] or part.startswith(block["title"])]
        if not parts:
            raise SystemExit(f"{block['command']} prints no part {block['title']!r}")
        return block[1] + "\n\n".join(parts).strip() + "\n"

    def script(block: re.Match[str]) -> str:
        return block[1] + printed(tuple(shlex.split(block["script"]))).strip() + "\n"

    return SCRIPT.sub(script, COMMAND.sub(command, page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PAGE or SOURCE=FOLDER",
        help="Pages to renew, by default all in docs/. SOURCE=FOLDER reads a page's checkpoint SOURCE from FOLDER.",
    )
    words = parser.parse_args().words
    places = dict(word.split("=", 1) for word in words if "=" in word)
    pages = [Path(word) for word in words if "=" not in word] or sorted(DOCS.glob("*.md"))
    for path in pages:
        path.write_text(refreshed(path.read_text(encoding="utf-8"), places), encoding="utf-8")


if __name__ == "__main__":
    main()
