"""A whole process from start to end: the time that a user waits for 32 tokens."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import interrupt
from ..errors import BenchError
from .options import KINDS, OURS, Contestant
from .process import environment

TOKENS = 32
PROMPT = "The capital of France is"
Command = Callable[[str], list[str]]
SAME = ["--prompt", PROMPT, "--max-tokens", str(TOKENS), "--temp", "0", "--model"]
# kind -> (arguments of the interpreter, a pattern that finds the number of tokens in its output)
COMMANDS: dict[str, tuple[list[str], str]] = {
    OURS: (["-m", "mlx_qwen3", "generate", "--raw", *SAME], r"(?m)^(\d+) tokens, "),
    "mlx-lm": (["-m", "mlx_lm", "generate", "--ignore-chat-template", *SAME], r"Generation: (\d+) tokens"),
}


def can_run(contestant: Contestant, folder: Path) -> bool:
    """Whether the contestant has a command line with the settings used here, and the folder has a tokenizer."""
    known = contestant.name == OURS or (contestant.name == "mlx-lm" and not contestant.dtype and not contestant.blas)
    return known and (folder / "tokenizer.json").exists()


def run(contestant: Contestant, folder: Path) -> tuple[float, int]:
    """Seconds, and how many tokens were generated; an end token ends a reply early."""
    name = next(name for name, kind in KINDS.items() if kind is contestant.kind)
    arguments, count = COMMANDS[name]
    dtype = ["--dtype", contestant.dtype] if contestant.dtype else []
    dtype += ["--weights", contestant.weights] if contestant.weights else []
    option = "--adapter" if name == OURS else "--adapter-path"
    dtype += [word for adapter in contestant.adapters for word in (option, adapter)]
    began = time.perf_counter()
    result = _run([sys.executable, "-P", *arguments, str(folder.absolute()), *dtype])
    seconds = time.perf_counter() - began
    found = re.search(count, result.stdout + result.stderr)
    if result.returncode or not found:
        words = (result.stderr.strip() or result.stdout.strip())[-600:]
        raise BenchError(f"{contestant.name}'s command line ended with code {result.returncode}: {words}")
    return seconds, int(found[1])


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        ) as process,
        interrupt.cleaning(process.kill),
    ):
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
