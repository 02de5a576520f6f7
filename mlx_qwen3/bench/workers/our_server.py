"""This package's server, by the command that its users type."""

import runpy
import sys


def main(*arguments: str) -> None:
    sys.argv = ["mlx-qwen3", *arguments]
    runpy.run_module("mlx_qwen3", run_name="__main__")
