"""The machine in words: chip, back end, versions."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from ..model import kernels

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers", "numpy")


def describe() -> dict[str, str]:
    found = {"chip": _chip(), "backend": _backend(), "os": platform.platform(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _chip() -> str:
    if kernels.on_gpu():
        name = str(mx.device_info()["device_name"])
    elif platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    else:
        name = _from_cpuinfo()
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


def _from_cpuinfo() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    # A virtual machine hides the name; family and model still identify the chip.
    family = ", ".join(f"{key.removeprefix('cpu ')} {known[key]}" for key in ("cpu family", "model") if key in known)
    return f"{known.get('model name', '')} ({family})" if family else known.get("model name", "")


def _backend() -> str:
    if not kernels.on_gpu():
        return "MLX CPU"
    return "MLX Metal" if mx.metal.is_available() else "MLX CUDA"
