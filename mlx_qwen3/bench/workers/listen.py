"""A server in its process, which ends when the process that measures it is gone."""

import ctypes
import os
import signal
import sys
import threading
from importlib import import_module


def main(module: str, blas: str = "", *arguments: str) -> None:
    """Run the server of a module of this folder. `blas` is a library to load first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends its servers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if blas:
        ctypes.CDLL(blas, mode=ctypes.RTLD_GLOBAL)
    import_module(f".{module}", __package__).main(*arguments)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
