"""Prints the help of every command, for commands.md.

`python docs/refresh.py` puts it into the page.
"""

import argparse

import click

from mlx_qwen3.cli.app import COMMANDS, cli

COLUMNS = 100


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    group = click.Context(cli, info_name="mlx-qwen3", terminal_width=COLUMNS, **cli.context_settings)
    contexts = {"": group}
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        contexts[f" {name}"] = click.Context(command, info_name=name, parent=group)
    for name, context in contexts.items():
        print(f"## `mlx-qwen3{name}`\n\n```text\n{context.get_help()}\n```\n")


if __name__ == "__main__":
    main()
