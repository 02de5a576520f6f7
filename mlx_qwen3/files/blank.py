"""Memory of MLX that nobody has written to.

`mx.empty` fills its array with zeros. The system gives memory to a process page by page, at the first write, so zeros
cost time, and they cost the memory of places that are never used.
"""

import threading
import time
import weakref
from typing import Any

import mlx.core as mx

MAGIC = b"\x93NUMPY\x01\x00"  # of a .npy file of version 1
_one_at_a_time = threading.Lock()  # MLX's thread needs Python's lock to read, and `mx.clear_cache` holds it and waits


class _Blank:
    """A .npy file, as `mx.load` reads one, but the bytes stay what they are in memory."""

    closed, name = False, "blank"

    def __init__(self, shape: tuple[int, ...], kind: str):
        entries = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        self._header = MAGIC + len(entries).to_bytes(2, "little") + entries
        self._place = 0

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> None:
        self._place = offset + (self._place if whence else 0)

    def readinto(self, target: memoryview) -> int:
        if self._place < len(self._header):
            target[:] = self._header[self._place : self._place + len(target)]
        self._place += len(target)
        return len(target)

    read: Any = None  # mx.load wants the attribute


def blank(*shape: int, kind: str = "|u1") -> mx.array:
    """An evaluated array with any values; kind is their type as NumPy writes it, by default bytes."""
    file = _Blank(shape, kind)
    alive = weakref.ref(file)
    with _one_at_a_time:
        made: mx.array = mx.load(file, format="npy")  # type: ignore[arg-type, assignment]
        del file
        mx.eval(made)
        # MLX's thread lets go of the file after it has said that it is done. If Python ended meanwhile, it would abort.
        while alive():
            time.sleep(0)
    return made


def clear_cache() -> None:
    """Give the memory that MLX keeps for later arrays back to the system."""
    with _one_at_a_time:
        mx.clear_cache()
