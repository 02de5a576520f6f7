"""Draws docs/server-page.png: the server's page with a conversation of the demo. It needs Chromium and its driver."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from paging import Page, Script, chromium  # noqa: E402
from serving import serving  # noqa: E402

OTHERS = ("What is the capital of Japan?", "Sort these words: pear, apple, fig.")
QUESTIONS = ("What is the capital of France?", "What is 4821 + 377?")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with serving() as served, chromium() as browser:
        page = Page(browser, served.url, Script(), width=1100, height=680)
        for question in OTHERS:
            page.ask(question)
            page.new_chat()
        for question in QUESTIONS:
            page.ask(question)
        page.all("summary")[-1].click()
        page.js("document.activeElement.blur(); document.getElementById('messages').scrollTop = 1e6")
        browser.save_screenshot(str(ROOT / "docs" / "server-page.png"))


if __name__ == "__main__":
    main()
