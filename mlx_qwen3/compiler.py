"""Functions in C++ for a CPU on Linux, compiled on the machine that runs them.

MLX's wheels serve every processor of an architecture, so they use none of its wide vectors. g++ is what MLX runs
itself for `mx.compile` on a CPU. Its results are kept in a folder that only this user can write to.
"""

import ctypes
import hashlib
import os
import stat
import sys
from functools import cache
from pathlib import Path

# No -ffast-math: a library that is linked with it changes how the whole process rounds the smallest numbers.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
TEMPORARY = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # the order in which C++ looks for the folder
CPUINFO = Path("/proc/cpuinfo")
REASON = 200  # characters of the compiler's message that an error quotes


def temporary() -> str:
    """The folder where MLX keeps what it compiles."""
    return next((os.environ[name] for name in TEMPORARY if name in os.environ), "/tmp")


@cache
def library(source: Path) -> ctypes.CDLL:
    """The functions of a C++ file. Raises OSError with the reason if they cannot be compiled here."""
    if sys.platform != "linux":
        raise OSError(f"only Linux is known to have g++ and OpenMP, not {sys.platform}")
    parts = (source.read_text(), FLAGS, _processor())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    place = _folder() / f"{source.stem}-{digest}.so"
    if not place.exists():
        _compile(source, place)
    return ctypes.CDLL(str(place))


def _compile(source: Path, place: Path) -> None:
    import subprocess  # seldom needed, and a start would wait for them
    import tempfile

    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        made = Path(folder) / place.name
        run = subprocess.run(["g++", *FLAGS, str(source), "-o", str(made)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise OSError(f"g++ failed: {' '.join(run.stderr.split())[:REASON]}")
        made.replace(place)  # whole or not at all, also if two processes compile


def _folder() -> Path:
    """Where results are kept: in TMPDIR, as those of MLX."""
    folder = Path(temporary()) / f"mlx-qwen3-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022 or not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is not a folder that only you can write to; remove it, or set TMPDIR to another")
    return folder


def _processor() -> str:
    """What the compiler reads off the processor: a folder may be shared by machines."""
    lines = CPUINFO.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("flags", "Features", "model", "CPU")))
