"""The progress bar of a command."""

import sys
import time
from typing import Any

import click


class Bar:
    """Progress on stderr, one bar for each stage: bytes and rate, or steps. Lines where it is no terminal."""

    def __init__(self, wanted: bool | None) -> None:
        self._terminal = sys.stderr.isatty()
        self._on = self._terminal if wanted is None else wanted
        self._stage = ""
        self._bar: Any = None
        self._done = self._total = self._tenths = 0
        self._began = 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._on:
            return
        if stage != self._stage:
            self._close()
            self._stage, self._done, self._total, self._tenths = stage, 0, total, 0
            self._began = time.monotonic()
            if self._terminal:
                self._bar = click.progressbar(
                    length=total, label=stage, item_show_func=lambda _: self._rate(), file=sys.stderr
                )
        self._done = min(self._done + done, total)  # mixed measures some parts again
        if self._bar is not None:
            self._bar.update(done, self._done)
        elif self._done * 10 // total > self._tenths:
            self._tenths = self._done * 10 // total
            click.echo(f"{stage} {10 * self._tenths}%  {self._rate()}", err=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-6)
        if self._total < 10**4:  # steps
            return f"{self._done} of {self._total}"
        return f"{self._done / 1e9:.3f} of {self._total / 1e9:.3f} GB, {self._done / seconds / 1e6:,.0f} MB/s"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
