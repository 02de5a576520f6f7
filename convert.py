"""The command `mlx-qwen3 convert`: python convert.py --help"""

import sys

from mlx_qwen3.cli.app import cli

if __name__ == "__main__":
    cli(["convert", *sys.argv[1:]], prog_name="mlx-qwen3")
