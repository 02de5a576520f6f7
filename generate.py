"""The command `mlx-qwen3 generate`: python generate.py --help"""

import sys

from mlx_qwen3.cli.app import run

if __name__ == "__main__":
    run(["generate", *sys.argv[1:]])
