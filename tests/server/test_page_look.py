"""The page on narrow screens, in the dark, by keyboard, and for screen readers."""

import pytest
from paging import ENTER, ESCAPE, SHIFT, TAB

pytestmark = pytest.mark.slow

WIDE = f"""{"word" * 60} `{"code" * 60}`

```python
{"x = 1; " * 60}
```

| {" | ".join(f"column {index}" for index in range(20))} |
|{"---|" * 20}
| {" | ".join("value" for _ in range(20))} |
"""


def test_a_narrow_screen(page):
    page.emulate(400, 800)
    page.script.says(WIDE, thinking=WIDE)
    page.ask("w" * 200)
    page.js("document.querySelectorAll('details').forEach(e => { e.open = true })")
    for selector in ("html", "#messages", "#composer"):
        assert (
            page.js("const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth", selector)
            == 0
        )
    assert page.js("return document.documentElement.clientWidth") == 400
    page.wait(lambda: not page.find("#side").is_displayed())
    page.find("#open-side").click()
    page.wait(lambda: page.find("#conversations a").is_displayed())
    page.press(ESCAPE)
    page.wait(lambda: not page.find("#side").is_displayed())
    page.find("#open-settings").click()
    assert page.js("const e = document.getElementById('settings'); return e.scrollWidth - e.clientWidth") == 0


def test_dark_and_light(page):
    def ground():
        return sum(page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))

    assert ground() > 600
    page.scheme("dark")
    assert ground() < 150
    page.js("document.querySelector('[name=theme][value=light]').click()")
    assert ground() > 600
    page.driver.refresh()
    assert ground() > 600
    page.js("document.querySelector('[name=theme][value=system]').click()")
    assert ground() < 150


def tab_to(page, selector, most=40):
    for _ in range(most):
        page.press(TAB)
        if page.js("return document.activeElement.matches(arguments[0])", selector):
            assert page.js("return getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_keyboard_alone(page):
    page.script.says("A reply.")
    page.press("one", SHIFT, ENTER)
    page.press("two")
    composing = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true}))"
    page.js(composing)
    assert page.script.asked == []
    page.press(ENTER)
    page.wait(lambda: page.idle and page.texts(".content") == ["A reply."])
    assert page.script.asked[0]["messages"][0]["content"] == "one\ntwo"
    tab_to(page, ".edit")
    page.press(ENTER)
    page.press(" and three", ENTER)
    page.wait(lambda: page.idle and page.texts(".bubble") == ["one\ntwo and three"])
    tab_to(page, ".retry")
    page.press(ENTER)
    page.wait(lambda: page.idle and len(page.script.asked) == 3)
    for selector, shown in {
        ".rename": "#conversations input",
        ".delete": "#confirm",
        "#open-settings": "#settings",
    }.items():
        tab_to(page, selector)
        page.press(ENTER)
        assert page.find(shown).is_displayed()
        page.press(ESCAPE)
        page.wait(lambda shown=shown: not any(element.is_displayed() for element in page.all(shown)))


def test_everything_to_use_has_a_name(page):
    page.script.says("A reply.\n\n```\ncode\n```", thinking="A thought.")
    page.ask("hello")
    for opener in (None, "#open-settings"):
        if opener:
            page.find(opener).click()
        nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = ("button", "textbox", "combobox", "radio", "link", "spinbutton", "meter", "dialog")
        used = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
        assert len(used) > 8
        assert not [node for node in used if not node["name"]["value"]]
