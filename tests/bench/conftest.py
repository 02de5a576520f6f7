"""A run with all contestants, which several files look at. What tests/cli needs too is in benching.py."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from benching import hurry, main


@pytest.fixture(autouse=True)
def quick(at_once):
    pass


@pytest.fixture(scope="session")
def chat(bench_chat: Path) -> Path:
    return bench_chat


@pytest.fixture(scope="session")
def report(bench_report):
    return bench_report


class Run(NamedTuple):
    out: str
    content: dict[str, Any]
    picture: bytes


@pytest.fixture(scope="session")
def everything(chat, tmp_path_factory) -> Run:
    """What a user gets who measures with all contestants."""
    folder = tmp_path_factory.mktemp("files")
    files = "--json", folder / "all.json", "--plot", folder / "all.png"
    measured = "--prompt-tokens", "70,5", "--generate", 12, "--repeat", 1, "--roofline", "--rows", "3,1", "--markdown"
    out = sys.stdout
    with pytest.MonkeyPatch.context() as patch, open(folder / "out", "w") as sys.stdout:
        hurry(patch)
        code = main(chat, "--against", "transformers,mlx-lm", *measured, *files)
    sys.stdout = out
    assert (code, sorted(path.name for path in folder.iterdir())) == (0, ["all.json", "all.png", "out"])

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((folder / "all.json").read_text(), parse_constant=refuse)
    return Run((folder / "out").read_text(), content, (folder / "all.png").read_bytes())
