from .cli import cli

cli(prog_name="mlx-qwen3")
