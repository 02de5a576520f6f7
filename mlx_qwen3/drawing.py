"""The look of all pictures that matplotlib draws, and their two forms: PNG, and SVG in the colours of its page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape as attribute
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .table import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LONGEST = 130  # characters of a heading
INK, QUIET, RULE = "#1f2328", "#59636e", "#d1d9e0"  # text, less important text, lines
FIRST, SECOND = "#0b62c4", "#a14a00"  # what is shown, and what is shown beside it
FAULT = "#980000"
ABSENT = "#9aa2ab"  # the ground of a cell without a number
# The colours that `svg` leaves to the page, as var(--NAME): a page in the dark has others.
OF_PAGE = {INK: "ink", QUIET: "quiet", RULE: "rule", FIRST: "first", SECOND: "second"}
# Fonts with Chinese characters. Those that are installed are used after matplotlib's own.
CHINESE = (
    *("Hiragino Sans GB", "PingFang SC", "Arial Unicode MS", "Noto Sans CJK SC", "Noto Sans SC"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei"),
)
LOOK: dict[Any, Any] = {
    "text.parse_math": False,  # a $ in a token or a path is a $
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.fonttype": "none",  # text stays text
}


def figure_class() -> Any:
    """matplotlib's Figure. Raises UsageError if it is not installed: it is an optional dependency."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib; pip install 'mlx-qwen3[plot]'") from None
    return Figure


def check_picture(path: Path) -> None:
    """Raises UsageError if a picture cannot be made, or if the name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot is {path}; expected a name that ends in .png")
    figure_class()


@contextmanager
def look() -> Iterator[None]:
    """All that is drawn and written inside the block, or by the function that this decorates, has one look."""
    figure_class()
    from matplotlib import rc_context

    with rc_context({**LOOK, "font.family": _families()}):
        yield


@look()
def png(figure: "Figure") -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@look()
def svg(figure: "Figure", name: str) -> str:
    """An `svg` element for an HTML page. `name` says what it shows, and no other picture of the page has it."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids hang on it
        figure.savefig(buffer, format="svg", facecolor="none", metadata=dict.fromkeys(("Creator", "Date")))
    text = buffer.getvalue()
    text = re.sub(r" *<(metadata|style).*?</\1>\n", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"|url\()#(\w+)", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own font
    for colour, variable in OF_PAGE.items():
        text = text.replace(colour, f"var(--{variable})")
    width = figure.get_figwidth() * 96  # CSS pixels of an inch
    opening = f'<svg role="img" aria-label="{attribute(name)}" style="max-width: {width:.0f}px" '
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    return re.sub(r"^<svg[^>]*>", lambda _: f"{opening}{box[0]}>", text).replace("xlink:href", "href").strip()


def drawable(text: str) -> str:
    """Text as pictures show it on one line: a character that no font has is written as \\u4f60."""
    return "".join(c if _has_glyph(c) else c.encode("unicode_escape").decode() for c in escape(text))


def heading(text: str) -> str:
    """Text for the line above a whole picture; the end of a long one is left out."""
    shown = drawable(text)
    return shown if len(shown) < LONGEST else f"{shown[: LONGEST - 3]}..."


def whole_ticks(axis: Any, count: int, most: int) -> None:
    """Whole numbers from 0, at most about `most` of them."""
    axis.set_ticks(range(0, count, -(-count // most)))


@cache
def _families() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(family for family in CHINESE if family in installed)]


@cache
def _has_glyph(character: str) -> bool:
    from matplotlib import font_manager

    fonts = (font_manager.get_font(font_manager.findfont(family)) for family in _families())
    return any(font.get_char_index(ord(character)) for font in fonts)
