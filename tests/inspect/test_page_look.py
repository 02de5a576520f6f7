"""The page in Chromium: on a phone and on a wide screen, light and dark."""

from pathlib import Path

import pytest
from checkpoints import TINY_MOE, random_weights, write_checkpoint, write_tokenizer
from inspecting import FOUR
from paging import browser  # noqa: F401 - a fixture

from mlx_qwen3.inspect import Options, inspect, write_files

pytestmark = pytest.mark.slow

# Text whose contrast with the ground below it is lower than WCAG AA wants. Numbers in the cells of a map are black or
# white, and test_attention_pictures.py measures them.
TOO_PALE = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const luminance = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return a ? 0.2126 * x + 0.7152 * y + 0.0722 * z : null;
};
const found = [];
let seen = 0;
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || element.closest('style')) continue;
  const style = getComputedStyle(element);
  const ink = element.closest('svg') ? style.fill : style.color;
  if (element.closest('svg') && ['rgb(0, 0, 0)', 'rgb(255, 255, 255)'].includes(ink)) continue;
  let ground = null;
  for (let at = element; at && ground === null; at = at.parentElement) {
    ground = luminance(getComputedStyle(at).backgroundColor);
  }
  const [low, high] = [luminance(ink), ground].sort((a, b) => a - b);
  seen += 1;
  if ((high + 0.05) / (low + 0.05) < 4.5) found.push([element.textContent.slice(0, 40), ink]);
}
return [seen, found];
"""
# Text of a picture that is not inside it
CUT_OFF = """
return [...document.querySelectorAll('svg text')].filter(text => {
  const [own, all] = [text, text.ownerSVGElement].map(element => element.getBoundingClientRect());
  return own.left < all.left - 1 || own.right > all.right + 1 || own.top < all.top - 1 || own.bottom > all.bottom + 1;
}).map(text => text.textContent);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A healthy model with tokens, one with faults and all kinds of tables, one with experts."""
    folder = tmp_path_factory.mktemp("pages")
    weights = random_weights(FOUR)
    weights["model.layers.2.self_attn.v_proj.weight"] *= 30
    weights["model.layers.1.self_attn.v_proj.weight"] *= 8
    hot = write_tokenizer(write_checkpoint(folder / "hot", FOUR, weights))
    reports = {
        "demo": inspect("demo", Options(prompt="What is 17 + 25?", layer=1, head=2)),
        "hot": inspect(hot, Options(length=40, heads=True, against=str(hot), kv_bits=None)),
        "moe": inspect(write_checkpoint(folder / "moe", TINY_MOE), Options(length=50)),
    }
    for name, report in reports.items():
        write_files(report, None, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in reports}


@pytest.fixture
def opened(browser, pages, request):  # noqa: F811
    name, width, scheme = request.param
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(pages[name].as_uri())
    return browser


SIZES = [
    (name, width, scheme) for name in ("demo", "hot", "moe") for width in (400, 1400) for scheme in ("light", "dark")
]


@pytest.mark.parametrize("opened", SIZES, indirect=True, ids=["-".join(map(str, size)) for size in SIZES])
def test_a_phone_and_a_wide_screen_light_and_dark(opened, request):
    _, width, scheme = request.node.callspec.params["opened"]
    assert opened.get_log("browser") == []
    page = opened.execute_script("return document.documentElement")
    assert page.get_property("scrollWidth") == page.get_property("clientWidth")
    figures = opened.find_elements("css selector", "figure, .table")
    rects = [figure.rect for figure in figures]
    assert len(rects) > 10
    assert all(rect["x"] >= 0 and rect["x"] + rect["width"] <= page.get_property("clientWidth") for rect in rects)
    assert opened.execute_script(CUT_OFF) == []
    seen, pale = opened.execute_script(TOO_PALE)
    assert seen > 300
    assert pale == []
    fonts = (
        "return [...new Set([...document.querySelectorAll('svg text, body')].map(e => getComputedStyle(e).fontFamily))]"
    )
    assert len(opened.execute_script(fonts)) == 1
    ground = opened.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) > 600) == (scheme == "light")
    beside = len({rect["x"] for rect in rects[:6]})
    assert beside == (1 if width == 400 else 3)


@pytest.mark.parametrize("opened", [("hot", 400, "light")], indirect=True, ids=["phone"])
def test_a_wide_table_scrolls_in_its_own_box_and_keeps_its_first_column(opened):
    box = opened.execute_script("return [...document.querySelectorAll('.table')].find(e => e.scrollWidth > 600)")
    first = "return arguments[0].querySelector('tbody td').getBoundingClientRect().left"
    before = opened.execute_script(first, box)
    opened.execute_script("arguments[0].scrollLeft = 200", box)
    assert box.get_property("scrollLeft") == 200
    assert opened.execute_script(first, box) == before
    assert opened.execute_script("return document.documentElement.scrollLeft") == 0
