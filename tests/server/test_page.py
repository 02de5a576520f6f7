"""A chat on the page, in Chromium: against the demo, and against replies that a test writes."""

import re

import pytest
from paging import ENTER, ESCAPE, Page, delta, end
from serving import serving

pytestmark = pytest.mark.slow


def test_a_reply_of_the_demo(page):
    assert page.ask("What is 17 + 25?") == "17 + 25 = 42."
    thought = page.find(".thought")
    assert not thought.is_displayed()
    page.find("summary").click()
    assert "17 + 25" in thought.text
    assert page.text("summary").startswith("Thought for")
    assert page.text(".stats").startswith("60 tokens")
    assert re.search(r"tokens/s · first after (0\.\d\d|\d\.\d) s$", page.text(".stats"))
    assert page.text("#used") == "78 of 4,096 tokens"
    assert page.text("#title") == page.texts("#conversations a")[0] == "What is 17 + 25?"
    assert page.text("#model") == "demo"
    assert page.ask("And what is 40 + 2?")
    assert all(
        name.startswith(page.url)
        for name in page.js("return performance.getEntriesByType('resource').map(entry => entry.name)")
    )


def test_text_appears_as_it_streams(page):
    page.script.events = [delta(reasoning_content="I think."), delta(content="One "), None, delta(content="two.")]
    page.script.events += end()
    page.send("count")
    page.wait(lambda: page.text(".content") == "One")
    assert not page.idle
    assert page.find("#send").get_attribute("aria-label") == "Stop"
    page.script.go.set()
    page.wait(lambda: page.idle)
    assert page.text(".content") == "One two."
    assert page.find("#send").get_attribute("aria-label") == "Send"


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop(page, way):
    page.script.events = [delta(content="One "), None]
    page.send("count")
    page.wait(lambda: page.text(".content") == "One")
    if way == "button":
        page.find("#send").click()
    else:
        page.press(ESCAPE)
    assert page.script.left.wait(60)
    page.wait(lambda: page.idle)
    assert page.text(".content") == "One"
    assert page.text(".stats").endswith("stopped")
    page.script.says("Again.")
    assert page.ask("more") == "Again."
    said = [(message["role"], message["content"]) for message in page.script.asked[-1]["messages"]]
    assert said == [("user", "count"), ("assistant", "One "), ("user", "more")]


def test_retry(page):
    page.script.says("First.")
    page.ask("hello")
    page.script.says("Second.")
    page.find(".retry").click()
    page.wait(lambda: page.texts(".content") == ["Second."])
    assert [request["messages"] for request in page.script.asked] == [[{"role": "user", "content": "hello"}]] * 2


def test_edit(page):
    page.script.says("A reply.", thinking="A thought.")
    for text in ("one", "two", "three"):
        page.ask(text)
    edits = page.all(".edit")
    page.js("arguments[0].click()", edits[1])
    field = page.find(".editor textarea")
    assert field.get_attribute("value") == "two"
    field.send_keys(ESCAPE)
    assert not page.all(".editor")
    page.js("arguments[0].click()", edits[1])
    page.find(".editor textarea").send_keys(" and a half", ENTER)
    page.wait(lambda: len(page.all("article")) == 4 and page.idle)
    assert page.texts(".bubble") == ["one", "two and a half"]
    said = page.script.asked[-1]["messages"]
    assert [message["content"] for message in said] == ["one", "A reply.", "two and a half"]
    assert said[1]["reasoning_content"] == "A thought."


def test_a_reload_keeps_the_conversation(page):
    page.script.says("A **reply**.", thinking="A thought.")
    page.ask("hello")
    page.driver.refresh()
    assert (page.texts(".bubble"), page.texts(".content")) == (["hello"], ["A reply."])
    assert page.find(".content strong").text == "reply"
    page.script.events = [delta(content="Half "), None]
    page.send("more")
    page.wait(lambda: page.texts(".content")[-1:] == ["Half"])
    page.driver.refresh()
    assert page.script.left.wait(60)
    assert page.texts(".content")[-1] == "Half"
    assert page.texts(".stats")[-1].endswith("stopped")


def test_several_conversations(page):
    script = page.script
    script.says("A reply.")
    page.ask("first")
    page.new_chat()
    script.events = [delta(content="Slow "), None, delta(content="reply."), *end()]
    page.send("second")
    page.wait(lambda: page.text(".content") == "Slow")
    assert page.texts("#conversations a") == ["second", "first"]
    page.all("#conversations a")[1].click()  # the second goes on meanwhile
    page.wait(lambda: page.texts(".bubble") == ["first"])
    script.go.set()
    page.all("#conversations a")[0].click()
    page.wait(lambda: page.texts(".content") == ["Slow reply."])

    page.js("arguments[0].click()", page.find(".rename"))
    page.press("A <b>name</b>", ENTER)
    assert page.text("#title") == page.texts("#conversations a")[0] == "A <b>name</b>"
    page.driver.refresh()
    assert page.text("#title") == "A <b>name</b>"
    page.js("arguments[0].click()", page.find(".delete"))
    assert "A <b>name</b>" in page.text("#question")
    page.find("#delete").click()
    page.wait(lambda: page.texts("#conversations a") == ["first"])
    assert not page.all("article")
    page.driver.refresh()
    assert page.texts("#conversations a") == ["first"]


def test_settings(page):
    script = page.script
    script.says("A reply.")
    page.ask("first")
    assert set(script.asked[-1]) == {"messages", "model", "stream", "stream_options"}
    page.find("#open-settings").click()
    numbers = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 64, "seed": 3, "thinking_budget": 100}
    for name, value in numbers.items():
        page.find(f"#{name}").send_keys(str(value))
    page.find("#system").send_keys("Be short.")
    page.js("document.querySelector('[name=thinking][value=on]').click()")
    page.press(ESCAPE)
    page.driver.refresh()
    page.ask("second")
    asked = script.asked[-1]
    assert {name: asked[name] for name in numbers} == numbers
    assert asked["enable_thinking"] is True
    assert asked["messages"][0] == {"role": "system", "content": "Be short."}

    page.find("#open-settings").click()
    page.js("document.querySelector('[name=thinking][value=off]').click()")
    assert not page.find("#thinking_budget").is_enabled()
    page.find("#top_k").send_keys("-")
    page.press(ESCAPE)
    count = len(script.asked)
    page.send("third")
    assert page.find("#settings").is_displayed()
    assert "Top-k" in page.text("#invalid")
    page.find("#reset").click()
    page.press(ESCAPE)
    assert len(script.asked) == count
    page.find("#text").send_keys(ENTER)
    page.wait(lambda: page.idle and len(script.asked) == count + 1)
    assert set(script.asked[-1]) == {"messages", "model", "stream", "stream_options"}


def test_an_error_of_the_server_in_words(page):
    page.find("#open-settings").click()
    page.find("#max_tokens").send_keys("999999")
    page.press(ESCAPE)
    page.ask("hello")
    assert "999999" in page.text(".fault").replace(",", "")
    assert "400" in page.console()[0]  # the browser's own line of a failed request
    page.find("#open-settings").click()
    page.find("#reset").click()
    page.press(ESCAPE)
    page.find(".retry").click()
    page.wait(lambda: page.idle and page.text(".content"))
    assert not page.find(".fault").is_displayed()


def test_an_error_within_a_stream(page):
    page.script.events = [delta(content="One"), {"error": {"message": "NaN in the logits"}}]
    assert page.ask("count") == "One"
    assert page.text(".fault") == "The server says: NaN in the logits"


def test_a_connection_that_breaks(page):
    page.script.events, page.script.complete = [delta(content="One")], False
    assert page.ask("count") == "One"
    assert "before the reply was complete" in page.text(".fault")


def test_a_server_with_a_key(browser):
    with serving(api_key="secret") as served:
        browser.get(served.url)  # a port of its own, and so an empty storage
        page = Page.__new__(Page)
        page.driver = browser
        page.wait(lambda: page.find("#settings").is_displayed())
        assert "API key" in page.text("#notice")
        assert page.js("return document.activeElement.id") == "key"
        page.press("secret", ENTER, ESCAPE)
        page.wait(lambda: page.all("#model option"))
        assert not page.find("#notice").is_displayed()
        assert page.ask("What is the capital of France?") == "The capital of France is Paris."
        browser.refresh()
        page.wait(lambda: page.all("#model option"))
        assert all("401" in message for message in page.console())


def test_another_tab(page):
    page.script.says("A reply.")
    page.ask("hello")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    try:
        page.emulate(1400, 900)
        page.driver.get(page.url)
        page.wait(lambda: page.texts("#conversations a") == ["hello"])
        page.ask("from elsewhere")
        page.driver.close()
    finally:
        page.driver.switch_to.window(first)
    page.wait(lambda: page.texts("#conversations a") == ["from elsewhere", "hello"])
    assert page.texts(".bubble") == ["hello"]


def test_a_storage_that_is_full(page):
    page.script.says("A reply.")
    page.js("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }")
    assert page.ask("hello") == "A reply."
    assert "storage of this browser is full" in page.text("#notice")
