"""The command `mlx-qwen3 convert`: python convert.py --help"""

import sys

from mlx_qwen3.cli.app import run

if __name__ == "__main__":
    run(["convert", *sys.argv[1:]])
