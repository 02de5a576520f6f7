"""The command `mlx-qwen3 generate`: python generate.py --help"""

import sys

from mlx_qwen3.cli.app import cli

if __name__ == "__main__":
    cli(["generate", *sys.argv[1:]], prog_name="mlx-qwen3")
