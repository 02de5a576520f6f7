"""Draws what `mlx-qwen3 inspect` shows of the demo: docs/inspect-demo.png, and for the README docs/inspect-demo.svg.

The PNG is that of `mlx-qwen3 inspect demo --prompt "What is 17 + 25?" --layer 1 --head 2 --plot FILE`. The SVG has two
of its panels, light or dark as the reader's browser is. It needs matplotlib.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mlx_qwen3.drawing import figure_class, look, png, svg  # noqa: E402
from mlx_qwen3.inspect import Options, inspect  # noqa: E402
from mlx_qwen3.inspect.page import STYLE  # noqa: E402
from mlx_qwen3.inspect.pictures import WIDTH, draw, panels  # noqa: E402
from mlx_qwen3.inspect.report import Report  # noqa: E402

OPTIONS = Options(prompt="What is 17 + 25?", layer=1, head=2)
SHOWN = ("Largest magnitude", "Attention map, layer 1, head 2")


@look()
def beside(report: Report) -> str:
    """The panels of the README beside one another, as an SVG file."""
    chosen = [panel for panel in panels(report) if panel.title in SHOWN]
    height = max(panel.height for panel in chosen) + 0.3
    figure = figure_class()(figsize=(WIDTH * len(chosen), height), layout="constrained")
    for part, panel in zip(figure.subfigures(1, len(chosen)), chosen, strict=True):
        axes = part.add_subplot()
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", pad=8)
    return alone(svg(figure, " and ".join(SHOWN)))


def alone(element: str) -> str:
    """An element of a page as a file of its own, with the page's colours and its ground."""
    colours = STYLE.read_text(encoding="utf-8").split("* {")[0]
    style = f"<style>\n{colours}text {{ font-family: system-ui, sans-serif }}\n</style>"
    ground = '<rect width="100%" height="100%" rx="9" style="fill: var(--paper)"/>'
    width = re.search(r"max-width: (\d+)px", element)
    assert width
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width[1]}" '
    return element.replace("<svg ", opening, 1).replace(">", f">\n{style}\n{ground}", 1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="FOLDER", help="Default: docs.")
    folder = parser.parse_args().out
    report = inspect("demo", OPTIONS)
    (folder / "inspect-demo.png").write_bytes(png(draw(report)))
    (folder / "inspect-demo.svg").write_text(beside(report), encoding="utf-8")


if __name__ == "__main__":
    main()
