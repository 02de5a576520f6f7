"""Runs the commands for tests: in a process of their own, as a user does, or in this process, which is faster."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mlx_qwen3.cli.app import cli

ROOT = Path(__file__).parents[1]
GENERATE = [sys.executable, str(ROOT / "generate.py")]
QUIET = {**os.environ, "MLX_QWEN3_BLAS": "none"}  # or a line of advice joins stderr on some machines


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Any command, in a process."""
    options = {"capture_output": True, "timeout": 300, "env": QUIET, **options}
    return subprocess.run([str(part) for part in command], **options)


def here(*arguments: Any, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """`mlx-qwen3 ARGUMENTS` in this process."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(cli, words, input=input)
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout_bytes, result.stderr_bytes)
