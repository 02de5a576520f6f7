"""The BLAS that is loaded before MLX. Each case is a process of its own, since a library cannot be unloaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_qwen3 import blas

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MLX brings a fast BLAS on macOS")
# A small BLAS: sgemm that only says that it was called, which is all that shows whose it is.
SOURCE = """
#include <stdio.h>
void cblas_sgemm(int o, int a, int b, int m, int n, int k, float x, void *A, int s, void *B, int t, float y, float *C,
                 int u) { fputs("called\\n", stderr); for (int i = 0; i < m * n; i++) C[i] = 7; }
"""
PRODUCT = "import mlx_qwen3, mlx.core as mx; print((mx.ones((32, 32)) @ mx.ones((32, 32)))[0, 0].item())"


def run(program, **environment):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, cwd=ROOT, text=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blas")
    (folder / "blas.c").write_text(SOURCE)
    path = folder / "libopenblas.so"
    build = ["cc", "-shared", "-fPIC", str(folder / "blas.c"), "-o", str(path)]
    if subprocess.run(build, capture_output=True, check=False).returncode:
        pytest.skip("no C compiler")
    return path


def test_the_library_of_the_variable_multiplies(library):
    result = run(PRODUCT, MLX_QWEN3_BLAS=str(library))
    assert (result.stdout, "called" in result.stderr) == ("7.0\n", True)


def test_none_leaves_the_one_of_mlx(library):
    assert run(PRODUCT, MLX_QWEN3_BLAS="none").stdout == "32.0\n"


def test_a_library_that_packages_install_is_found(library):
    """`mkl` puts its library into PREFIX/lib, `cmeel-openblas` deeper."""
    program = f"import sys; sys.prefix = {str(library.parent.parent / 'prefix')!r}; {PRODUCT}"
    for folder in ("lib", "lib/python3.11/site-packages/cmeel.prefix/lib"):
        place = library.parent.parent / "prefix" / folder
        place.mkdir(parents=True)
        (place / "libopenblas.so.0").write_bytes(library.read_bytes())
        assert run(program).stdout == "7.0\n"
        (place / "libopenblas.so.0").unlink()


@pytest.mark.parametrize(("users", "seen"), [(None, "0"), ("7", "7")])
def test_openmp_makes_room_for_the_library_unless_the_user_decided(library, users, seen):
    """The peers of `bench` get the user's environment."""
    program = (
        "import os, mlx_qwen3; from mlx_qwen3.bench.process import environment; "
        "print(os.environ['GOMP_SPINCOUNT'], environment().get('GOMP_SPINCOUNT'))"
    )
    own = {"GOMP_SPINCOUNT": users} if users else {}
    assert run(program, MLX_QWEN3_BLAS=str(library), **own).stdout == f"{seen} {users}\n"


@pytest.mark.parametrize("arguments", [["generate", "--prompt", "x"], ["convert", "a", "b"]])
def test_a_library_that_cannot_be_loaded_is_named(arguments):
    program = f"from mlx_qwen3.cli.app import cli; cli({arguments!r})"
    result = run(program, MLX_QWEN3_BLAS="/nowhere/libblas.so")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "MLX_QWEN3_BLAS is '/nowhere/libblas.so', which cannot be loaded" in result.stderr


def test_the_version_shows_what_is_in_use(library):
    program = "from mlx_qwen3.cli.app import cli; cli(['--version'])"
    assert str(library) in run(program, MLX_QWEN3_BLAS=str(library)).stdout
    assert run(program, MLX_QWEN3_BLAS="none").stdout.endswith("BLAS of MLX\n")


def test_advice_only_where_it_helps(library):
    program = "from mlx_qwen3 import blas; blas.in_use = None; print(blas.advice())"
    assert "pip install 'mlx-qwen3[mkl]'" in run(program).stdout
    assert run(program, MLX_QWEN3_BLAS="none").stdout == "None\n"
    assert run("from mlx_qwen3 import blas; print(blas.advice())", MLX_QWEN3_BLAS=str(library)).stdout == "None\n"


LATE = "import mlx.core as mx, mlx_qwen3; from mlx_qwen3 import blas; "


def test_a_library_that_comes_after_mlx_is_not_in_use(library):
    """Sorted imports have `mlx.core` first. Python binds MLX's functions when it is imported."""
    late = run(LATE + "print(blas.in_use, blas.advice(), (mx.ones((32, 32)) @ mx.ones((32, 32)))[0, 0].item())")
    assert late.stdout == f"None {blas.LATE} 32.0\n"
    assert run(LATE + "print(blas.in_use)", LD_PRELOAD=str(library)).stdout == "loaded before MLX\n"


def test_load_warns_if_mlx_came_first_and_refuses_a_library_that_was_chosen(library):
    program = LATE + "blas.NOTICED = 0; mlx_qwen3.load('demo')"
    assert f"Qwen3Warning: {blas.LATE}" in run(program).stderr
    assert run(program, MLX_QWEN3_BLAS="none").stderr == ""
    assert (
        f"UsageError: MLX_QWEN3_BLAS is {str(library)!r}, but {blas.LATE}"
        in run(program, MLX_QWEN3_BLAS=str(library)).stderr
    )


def test_products_side_by_side_share_the_threads(monkeypatch):
    """The first of several passes remembers how many there were, and the last one sets them again."""
    threads = [6]
    monkeypatch.setattr(blas, "_thread_functions", lambda: (lambda: threads[-1], threads.append))
    with blas.threads_for(2):
        assert blas.threads() == 3
        with blas.threads_for(4):
            assert blas.threads() == 1
        with pytest.raises(KeyError), blas.threads_for(4):
            raise KeyError
    assert blas.threads() == 6
    monkeypatch.setattr(blas, "_thread_functions", lambda: None)
    with blas.threads_for(2):
        assert blas.threads() == 1


def test_the_threads_of_a_real_library():
    program = """
from mlx_qwen3 import blas
import mlx.core as mx
mx.eval(mx.ones((300, 300)) @ mx.ones((300, 300)))
before = blas.threads()
with blas.threads_for(2):
    inside = blas.threads()
print(before, inside, blas.threads(), blas.in_use is not None)
"""
    environment = dict.fromkeys(("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "2")
    found = run(program, MKL_DYNAMIC="FALSE", **environment).stdout.split()
    if found[3] == "False":
        pytest.skip("no fast BLAS")
    assert found[:3] == (["2", "1", "2"] if (os.cpu_count() or 1) > 1 else ["1", "1", "1"])
