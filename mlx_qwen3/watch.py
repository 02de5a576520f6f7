"""The one hook of the model: it names the steps of its forward pass, and `watching` lets a listener see them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

Listener = Callable[..., None]

_listener: Listener | None = None


def watch(step: str, *arrays: mx.array) -> None:
    """Show the arrays of a step to the listener, if there is one. Changes nothing: the arrays pass by."""
    if _listener is not None:
        _listener(step, *arrays)


@contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Call `listener(step, *arrays)` for every step of the forward passes made inside; nested ones replace it."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
