"""The one hook of the model: it names the steps of its forward pass, and `watching` lets a listener see them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

Listener = Callable[..., None]

_listener: Listener | None = None


def watch(step: str, *arrays: mx.array) -> Any:
    """Returns the arrays of a step as they came, one or a tuple, and shows them to the listener if there is one."""
    if _listener is not None:
        _listener(step, *arrays)
    return arrays[0] if len(arrays) == 1 else arrays


@contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Call `listener(step, *arrays)` for every step of the forward passes made inside; nested ones replace it."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
