"""A fast BLAS for MLX's CPU back end on Linux.

MLX's Linux wheel links the reference BLAS, which multiplies float32 matrices many times slower than a real one. The
dynamic linker takes the first library that defines a name, so loading a BLAS globally before `mlx.core` replaces it.
The package's __init__ calls `preload`, since it has to come before the first import of MLX.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob

from .errors import UsageError

VARIABLE = "MLX_QWEN3_BLAS"  # path of a library, or "none"
EXTRAS = ("libmkl_rt.so*", "libopenblas.so*")  # MKL first: it is faster at one row times a matrix, as in decode
# Names that the dynamic linker may find. ctypes.util.find_library would start a process for each.
SYSTEM = ("libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so", "libopenblas.so.0", "libopenblas.so")
# Folders, below sys.prefix, where the packages `mkl` and `cmeel-openblas` put them.
FOLDERS = ("lib", "lib/python*/site-packages/cmeel.prefix/lib")

# Bytes of float32 weights from which on a slow BLAS is noticed. The demo has 20 MB and makes 160 tokens per second
# without a fast BLAS, 340 with MKL (2 cores of an Intel Xeon with AMX).
NOTICED = 100_000_000

LATE = "mlx.core was imported before mlx_qwen3, which is too late for a fast BLAS; import mlx_qwen3 first"

# How long OpenMP's threads keep their cores after their work, at the cost of products by other threads: one pass may be
# computed by another thread than the next (model/native.py). MKL's wait for 200 ms by default, now for 3. OpenBLAS has
# threads of its own, for which GNU's make room at once.
WAITING = {"mkl": ("KMP_BLOCKTIME", "3"), "openblas": ("GOMP_SPINCOUNT", "0")}

# The functions that read and set how many threads a product takes, of MKL and OpenBLAS
THREADS = (("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"), ("openblas_get_num_threads", "openblas_set_num_threads"))

in_use: str | None = None  # the library that was loaded
added: set[str] = set()  # to the environment
late = False  # whether MLX was imported before this package, with its own BLAS
_library: ctypes.CDLL | None = None
_sharing = threading.Lock()
_shared: list[int] = []  # the threads of all products, once for each `threads_for` that runs
_refused: str | None = None  # why the library that the variable names was not loaded


def preload() -> None:
    """Load the library that MLX_QWEN3_BLAS names, or the first that is found."""
    global in_use, late, _library, _refused
    chosen = os.environ.get(VARIABLE)
    if chosen == "none" or not _needed():
        return
    if "mlx.core" in sys.modules:  # its functions are bound already, to a library that any name finds or to its own
        in_use = "loaded before MLX" if hasattr(ctypes.CDLL(None), "cblas_sgemm") else None
        late = in_use is None
        _refused = f"{VARIABLE} is {chosen!r}, but {LATE}" if chosen and late else None
        return
    for library in [chosen] if chosen else _candidates():
        try:
            _library = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:  # of another architecture, or without a dependency: try the next
            if chosen:
                reason = f"cannot be loaded ({error}); give the path of a BLAS, or none"
                _refused = f"{VARIABLE} is {chosen!r}, which {reason}"
        else:
            in_use = library
            for name, (variable, value) in WAITING.items():
                if name in library and variable not in os.environ:
                    os.environ[variable] = value
                    added.add(variable)
            return


def check() -> None:
    """Raises UsageError if the library that MLX_QWEN3_BLAS names could not be loaded."""
    if os.environ.get(VARIABLE) and _refused:
        raise UsageError(_refused)


def lacking() -> bool:
    """Whether float32 products run on the reference BLAS of MLX's wheel."""
    return _needed() and in_use is None


def advice(float_bytes: int | None = None) -> str | None:
    """One line on what the missing BLAS costs.

    None if it costs nothing, if the user asked for no BLAS, or if a model has so few bytes of float32 weights that
    nobody waits for it.
    """
    small = float_bytes is not None and float_bytes < NOTICED
    if small or not lacking() or os.environ.get(VARIABLE) == "none":
        return None
    if late:
        return LATE
    return (
        "no fast BLAS found, so float32 on this CPU is many times slower than it could be; "
        f"pip install 'mlx-qwen3[mkl]', or set {VARIABLE} to a library, or to none"
    )


def gemm() -> int | None:
    """The address of `cblas_sgemm` in the library that was loaded."""
    return ctypes.cast(_library.cblas_sgemm, ctypes.c_void_p).value if _library is not None else None


def threads() -> int:
    """How many threads one product takes; 1 if that is not known."""
    functions = _thread_functions()
    return int(functions[0]()) if functions else 1


@contextmanager
def threads_for(products: int) -> Iterator[None]:
    """In the block, each product takes a part of the threads, so that so many run side by side."""
    functions = _thread_functions()
    if functions is None:
        yield
        return
    get, set_ = functions
    with _sharing:
        _shared.append(_shared[0] if _shared else get())
        set_(max(1, _shared[0] // products))
    try:
        yield
    finally:
        with _sharing:
            before = _shared.pop()
            if not _shared:
                set_(before)


def _thread_functions() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    for get, set_ in THREADS:
        if _library is not None and hasattr(_library, set_):
            return getattr(_library, get), getattr(_library, set_)
    return None


def _needed() -> bool:
    return sys.platform == "linux"


def _candidates() -> Iterator[str]:
    for pattern in EXTRAS:
        for folder in FOLDERS:
            yield from sorted(glob(f"{sys.prefix}/{folder}/{pattern}"))
    yield from SYSTEM
