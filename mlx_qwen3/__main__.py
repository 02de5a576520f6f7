from .cli.app import cli

cli(prog_name="mlx-qwen3")
