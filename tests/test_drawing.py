"""One look for all pictures, as PNG and as SVG that takes the colours of its page."""

import re
import sys
import xml.etree.ElementTree

import pytest

from mlx_qwen3 import drawing
from mlx_qwen3.drawing import FIRST, INK, check_picture, drawable, figure_class, look, png, svg
from mlx_qwen3.errors import UsageError


def test_a_picture_has_the_name_of_one_and_matplotlib(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"x\.pdf; expected a name that ends in \.png"):
        check_picture(tmp_path / "x.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pictures need matplotlib; pip install 'mlx-qwen3\[plot\]'"):
        check_picture(tmp_path / "x.png")


@look()
def line(label="rate"):
    figure = figure_class()(figsize=(2, 1))
    axes = figure.add_subplot()
    axes.plot([1, 2], [1, 3], "o-", color=FIRST)
    axes.set_xlabel(label)
    return figure


def test_a_figure_as_png():
    assert png(line()).startswith(b"\x89PNG")


def test_an_svg_is_one_element_with_text_in_the_colours_of_the_page():
    text = svg(line("$a$ & <b>"), 'one & "two"')
    element = xml.etree.ElementTree.fromstring(text)
    assert element.get("aria-label") == 'one & "two"'
    assert element.get("viewBox") == "0 0 144 72"
    assert element.get("style") == "max-width: 192px"
    assert "$a$ & <b>" in [part.text for part in element.iter("text")]  # a $ is no formula
    assert "font-family" not in text
    assert "var(--first)" in text
    assert FIRST not in text
    assert INK not in text
    used = set(re.findall(r"#(\w+)[\")]", text))
    assert used == set(re.findall(r' id="(\w+)"', text)) != set()


def test_two_pictures_of_a_page_share_no_id():
    def ids(name):
        return set(re.findall(r' id="(\w+)"', svg(line(), name)))

    assert ids("one") == ids("one")
    assert not ids("one") & ids("two")


def test_text_that_no_font_has_is_spelled(monkeypatch):
    monkeypatch.setattr(drawing, "CHINESE", ())
    drawing._families.cache_clear()
    drawing._has_glyph.cache_clear()
    assert drawable("a $é␣↵ \x1b你") == "a $é␣↵ \\x1b\\u4f60"
    drawing._families.cache_clear()
    drawing._has_glyph.cache_clear()


def test_fonts_with_chinese_come_after_the_usual_one_if_they_are_there(monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["Noto Sans CJK SC", "Other", "DejaVu Sans"])
    assert drawing._families.__wrapped__() == ["DejaVu Sans", "Noto Sans CJK SC"]
