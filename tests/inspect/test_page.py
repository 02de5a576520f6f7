"""The HTML page: well-formed, self-contained, and nothing in it is taken for HTML."""

import html.parser

from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.page import _table, page
from mlx_qwen3.table import Table


def test_cells_are_escaped_too():
    table = Table("<i>", ("<u>", "x"), [["<b>", "&"]], "ll", notes=("<p>",))
    assert _table(table).count("&lt;") == 4
    assert "&amp;" in _table(table)


class Links(html.parser.HTMLParser):
    """Collects whatever a page would load, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.loads, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(four_layers):
    parser = Links()
    parser.feed(page(inspect(four_layers, Options(heads=True, against=str(four_layers))), full=True, picture=b"png"))
    assert parser.open == []
    assert [link[:22] for link in parser.loads] == ["data:image/png;base64,"]
