"""The page in Chromium, and a server whose replies a test writes."""

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from serving import Served

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Headless Chromium has no mouse. With this the page is that of a desktop.
MOUSE = "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"  # of the WebDriver standard
NAME = "__pwned"  # what hostile text tries to set


def delta(**said: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def end(reason: str = "stop", tokens: int = 8, total: int = 20) -> list[dict[str, Any]]:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return [last, {"choices": [], "usage": {"completion_tokens": tokens, "total_tokens": total}}]


class Script:
    """What the server answers in place of the model: events, with None for a wait until `go` is set.

    Without events, the model answers. `asked` has the bodies of all requests. `left` is set once a client has gone
    before the end.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.events: list[Any] = []
        self.asked: list[Any] = []
        self.go, self.left = threading.Event(), threading.Event()
        self.complete = True  # end with [DONE]

    def says(self, *texts: str, thinking: str = "") -> None:
        first = [delta(reasoning_content=thinking)] if thinking else []
        self.events = [*first, *(delta(content=text) for text in texts), *end()]

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        self.asked.append(json.loads(body))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(receive())
        for event in [*self.events, *(["[DONE]"] if self.complete else [])]:
            while event is None and not self.go.is_set():
                await asyncio.wait({leaving}, timeout=0.02)
                if leaving.done():
                    self.left.set()
                    return
            if event is not None:
                text = event if isinstance(event, str) else json.dumps(event)
                await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
        leaving.cancel()
        await send({"type": "http.response.body", "body": b""})

    @contextmanager
    def on(self, served: Served) -> Iterator["Script"]:
        """The server answers chats from this script, for clients that connect while the block lasts."""
        config = served.server.config
        app = config.loaded_app

        async def scripted(scope: Any, receive: Any, send: Any) -> None:
            chat = scope["type"] == "http" and scope["path"] == "/v1/chat/completions"
            await (self.answer if chat and self.events else app)(scope, receive, send)

        config.loaded_app = scripted
        try:
            yield self
        finally:
            config.loaded_app = app


@contextmanager
def chromium() -> Iterator[Any]:
    """A driver. Skips the test if there is no Chromium, no driver of it or no selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in [*FLAGS, MOUSE, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome = webdriver.Chrome(options, Service(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


class Page:
    """The page, opened with an empty storage in a window of the given size."""

    def __init__(self, driver: Any, url: str, script: Script, width: int = 1400, height: int = 900):
        self.driver, self.url, self.script = driver, url, script
        self.emulate(width=width, height=height)
        self.scheme("light")
        driver.get(url)
        self.js("localStorage.clear()")
        driver.refresh()
        self.wait(lambda: self.js("return document.querySelectorAll('#model option').length"))

    def emulate(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def wait(self, condition: Any, seconds: float = 60) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _driver: condition())

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def send(self, text: str) -> None:
        self.js("const field = document.getElementById('text'); field.value = arguments[0]; field.focus()", text)
        self.press(ENTER)

    def new_chat(self) -> None:
        self.find("#new-chat").click()
        self.wait(lambda: not self.all("article"))

    def ask(self, text: str) -> str:
        """Send, wait for the end, and give the reply."""
        before = len(self.all("article"))
        self.send(text)
        self.wait(lambda: len(self.all("article")) == before + 2 and self.idle)
        return self.texts(".content")[-1]

    @property
    def idle(self) -> bool:
        return not self.all("[aria-busy=true]")

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="session")
def script(demo: Served) -> Iterator[Script]:
    with Script().on(demo) as script:
        yield script


@pytest.fixture
def page(browser: Any, demo: Served, script: Script) -> Iterator[Page]:
    """The page with the demo behind it, or with the script once it has events. Nothing may appear on the console."""
    script.clear()
    page = Page(browser, demo.url, script)
    yield page
    script.clear()  # other tests use the same server
    assert page.console() == []
