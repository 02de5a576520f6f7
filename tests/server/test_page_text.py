"""What a model writes, on the page: Markdown is drawn, and nothing else has an effect."""

import pytest
from paging import NAME

pytestmark = pytest.mark.slow

PWN = f"window.{NAME}=1"
HOSTILE = [
    f"<script>{PWN}</script>",
    f"<img src=x onerror={PWN}>",
    f"a <b onmouseover={PWN}>b</b>",
    f"<svg onload={PWN}><a xlink:href='javascript:{PWN}'>x</a></svg>",
    f"<iframe srcdoc='<script>parent.{NAME}=1</script>'></iframe>",
    f"[click](javascript:{PWN})",
    f"[click](JaVaScRiPt&colon;{PWN})",
    f"[click](data:text/html,<script>{PWN}</script>)",
    f"<javascript:{PWN}>",
    f'![picture](x"onerror="{PWN})',
    f"![picture](https://example.org/x.png?secret=1 '\"><script>{PWN}</script>')",
    f"</details></div></article></main><script>{PWN}</script>",
    f"</think></details><img src=x onerror={PWN}>",
    f'```html"onclick="{PWN}"><script>{PWN}</script>\n<script>{PWN}</script>\n```',
    f"```\n</code></pre><script>{PWN}</script>\n```",
    f"$$</span><img src=x onerror={PWN}>$$",
    "<style>body { display: none }</style><link rel=stylesheet href=//example.org><base href=//example.org>",
    "<form action=//example.org><input name=x><button>Send</button></form><meta http-equiv=refresh content=0>",
    f"| a |\n|---|\n| <img src=x onerror={PWN}> |",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror={PWN}&gt;'>",
]


def test_markdown(page):
    code = "def f(x):\n    return x  # <b>"
    page.script.says(f"## Title\n\n- [ ] *one*\n- [x] `two`\n\n```python\n{code}\n```\n\n[link](https://example.org)")
    page.ask("show")
    assert page.text(".content h2") == "Title"
    assert page.texts(".content li") == ["☐ one", "☑ two"]
    assert page.text(".content .language") == "python"
    assert page.text(".content .hljs-keyword") == "def"
    link = page.find(".content a")
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.find(".copy-code").click()
    page.wait(lambda: page.text(".copy-code") == "Copied")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied.strip() == code


def test_a_formula_stays_as_it_was_written(page):
    page.script.says(r"So \(a_1 * b_2 * c\) and $$\frac{1}{2}$$.")
    assert page.ask("show") == r"So \(a_1 * b_2 * c\) and $$\frac{1}{2}$$."


def test_hostile_text_is_harmless(page):
    outside = (
        "script:not([src]), img, iframe, form:not(#composer), svg:not(.icon svg, .row svg, body > svg), math, style"
    )
    before = len(page.all(outside))
    for text in HOSTILE:
        cut = len(text) // 2
        page.script.says(text[:cut], text[cut:], thinking=text)
        page.ask(text)
        for link in page.js("return [...document.querySelectorAll('article a[href]')].map(a => a.href)"):
            assert link.startswith("https://example.org/")
        found = page.js(
            "return [...document.querySelectorAll('article *')].flatMap(e => [...e.attributes].map(a => a.name))"
        )
        assert not [name for name in found if name.startswith("on") or name in ("src", "style", "action", "srcdoc")]
        assert len(page.all(outside)) == before, text
        page.new_chat()
    assert page.js(f"return window.{NAME}") is None
    page.driver.refresh()  # the titles in the list are hostile too
    assert page.js(f"return window.{NAME}") is None


@pytest.mark.parametrize("text", [HOSTILE[0], HOSTILE[1], HOSTILE[11]])
def test_html_is_shown_as_text(page, text):
    page.script.says(text)
    assert page.ask("show") == text


def test_the_page_refuses_html_that_nobody_checked(page):
    with pytest.raises(Exception, match="TrustedHTML"):
        page.js("document.body.innerHTML = '<b>x</b>'")
    assert any("TrustedHTML" in message for message in page.console())
