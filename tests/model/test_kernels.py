"""Every kernel of our own against its plain form: on Metal if there is a GPU, and as C++ on any machine."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import blas
from mlx_qwen3.errors import Qwen3Warning
from mlx_qwen3.model import cpu, kernels

# B, L, H, K, D: one token of each row, and prompts of several rows
SHAPES = {
    "0.6B": (1, 1, 16, 8, 128),
    "4B, batch": (3, 1, 32, 8, 128),
    "demo": (2, 1, 4, 2, 96),
    "prompt": (1, 7, 16, 8, 128),
    "padded prompts": (3, 5, 6, 2, 20),
}
EPS = 1e-5

# Metal is C++ with other built-in functions. A SIMD group is 32 lanes that exchange numbers in simd_sum. So every lane
# runs twice: first to give its number, then to use the sum.
METAL_IN_CPP = """
#include <cmath>
using uint = unsigned int;
struct uint3 { uint x, y, z; };
namespace metal::precise { float rsqrt(float x) { return 1.0f / std::sqrt(x); } }
static float lanes[32];
static uint own;
static bool handing_over;
static float simd_sum(float x) {
    if (handing_over) lanes[own] = x;
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += lanes[i];
    return sum;
}
template <typename T, int H, int K, int D>
void kernel(const float* qkv, const float* weight, const float* cos, const float* sin, const float& eps, float* q,
            float* kv, const int* cos_shape, uint3 thread_position_in_grid) {
%s
}
extern "C" void run(const float* qkv, const float* weight, const float* cos, const float* sin, float eps, float* q,
                    float* kv, const int* cos_shape) {
    for (int token = 0; token < cos_shape[0] * cos_shape[2]; token++) for (int head = 0; head < %d + 2 * %d; head++)
        for (int time = 0; time < 2; time++) for (own = 0; own < 32; own++) {
            handing_over = time == 0;
            kernel<float, %d, %d, %d>(qkv, weight, cos, sin, eps, q, kv, cos_shape, {own, uint(head), uint(token)});
        }
}
"""


def arguments(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """qkv, weight, cos and sin as `norm_rope` takes them; every row and token has its own angles."""
    B, L, H, K, D = shape
    angles = mx.random.uniform(-9, 40, (B, 1, L, D // 2), key=mx.random.key(1))
    cos, sin = mx.cos(angles), mx.sin(angles)
    qkv = 3 * mx.random.normal((B * L, (H + 2 * K) * D), key=mx.random.key(2))
    weight = mx.random.normal((H + K, 1, D), key=mx.random.key(3))
    turn = [mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)]
    return [qkv.astype(dtype), weight.astype(dtype), *turn]


def as_cpp(source: str, shape: tuple[int, ...], folder) -> list[np.ndarray]:
    """q and kv of the kernel's source, compiled for the CPU."""
    B, L, H, K, D = shape
    file, library = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(METAL_IN_CPP % (source, H, K, H, K, D))
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", file, "-o", library], check=True)
    inputs = [np.array(x) for x in arguments(shape)]
    q, kv = np.full((B, H, L, D), np.nan, np.float32), np.full((2, B, K, L, D), np.nan, np.float32)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (*inputs, q, kv, np.array([B, 1, L, D], np.int32))]
    ctypes.CDLL(str(library)).run(*pointers[:4], ctypes.c_float(EPS), *pointers[4:])
    return [q, kv]


def worst(found, expected) -> float:
    return float(np.max([np.abs(np.array(a) - np.array(b)).max() for a, b in zip(found, expected, strict=True)]))


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
needs_metal = pytest.mark.skipif(not mx.metal.is_available(), reason="needs Metal")


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_metal_source_as_cpp(shape, tmp_path):
    expected = kernels.plain_norm_rope(*arguments(shape), EPS)
    assert worst(as_cpp(kernels.NORM_ROPE, shape, tmp_path), expected) < 1e-5


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("y * sin", "-y * sin"),
        ("+ D / 2) % D", "+ 1) % D"),
        ("is_value * B", "0 * B"),
        ("weight[head * D + j]", "1"),
        ("cos[token * D + i]", "cos[place * D + i]"),
        ("sin[token * D + i]", "sin[row * L * D + i]"),
        (" * L + place) * D", " + place * H) * D"),
        ("token / L", "token % B"),
    ],
)
def test_the_comparison_sees_mistakes(right, wrong, tmp_path):
    shape = SHAPES["padded prompts"]
    planted = kernels.NORM_ROPE.replace(right, wrong)
    assert planted != kernels.NORM_ROPE
    assert not worst(as_cpp(planted, shape, tmp_path), kernels.plain_norm_rope(*arguments(shape), EPS)) < 1e-2


@needs_metal
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_metal_kernel(shape, dtype):
    expected = kernels.plain_norm_rope(*arguments(shape, dtype), EPS)
    found = kernels.metal_norm_rope(*arguments(shape, dtype), EPS)
    assert [x.dtype for x in found] == [dtype, dtype]
    tolerance = 1e-5 if dtype == mx.float32 else 2**-6 * float(mx.abs(expected[0]).max())
    assert worst([x.astype(mx.float32) for x in found], [x.astype(mx.float32) for x in expected]) < tolerance


def test_the_plain_form_is_norm_and_rope_of_mlx():
    """Against mx.fast, whose positions count on from that of the first token."""
    B, L, H, K, D = 2, 5, 6, 2, 20
    qkv = mx.random.normal((B * L, (H + 2 * K) * D), key=mx.random.key(4))
    norms, freqs = mx.random.normal((2, D), key=mx.random.key(5)), 10.0 ** mx.arange(D // 2)
    angles = (mx.array([[3], [-2]]) + mx.arange(L))[:, None, :, None] / freqs
    turn = mx.concatenate([mx.cos(angles)] * 2, axis=-1), mx.concatenate([-mx.sin(angles), mx.sin(angles)], axis=-1)
    q, k, v = mx.split(qkv.reshape(B, L, -1, D).transpose(0, 2, 1, 3), [H, H + K], axis=1)
    options = {"traditional": False, "base": None, "scale": 1.0, "offset": mx.array([3, -2]), "freqs": freqs}
    q, k = (mx.fast.rope(mx.fast.rms_norm(x, w, EPS), D, **options) for x, w in zip((q, k), norms, strict=True))
    weight = mx.stack([norms[0]] * H + [norms[1]] * K)[:, None]
    assert worst(kernels.plain_norm_rope(qkv, weight, *turn, EPS), [q, mx.stack([k, v])]) < 1e-5


def test_exponentials_on_a_cpu():
    x = np.concatenate([np.linspace(-87, 10, 10_001), np.linspace(-1, 1, 1001)]).astype(np.float32)
    found = np.array(cpu.exp(mx.array(x)), np.float64)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 4e-6  # 2.7e-6, at -87
    assert np.abs(found / expected - 1)[10_001:].max() < 2e-7
    assert cpu.exp(mx.array([-mx.inf, -200.0, mx.inf])).tolist() == [0, 0, mx.inf]
    assert np.isnan(cpu.exp(mx.array([mx.nan])).item())


def test_swiglu_of_large_numbers():
    """The exponential of 100 is infinite in float32."""
    gate, up = np.array([-1e30, -100, -5, 0, 3, 100], np.float32), np.array([1e30, 2, 2, 2, 2, 2], np.float32)
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    found = kernels.swiglu(mx.array(np.concatenate([gate, up]))[None])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("heads", [(16, 8), (6, 2), (3, 1), (4, 4)], ids=str)
def test_attention_of_one_query(heads):
    (H, K), S, D = heads, 40, 16
    q, k, v = (mx.random.normal((2, n, s, D), key=mx.random.key(n + s)) for n, s in ((H, 1), (K, S), (K, S)))
    padded = (mx.arange(S) >= mx.array([0, 9])[:, None, None, None]) & (mx.arange(S) <= 33)
    for mask in (padded, None):
        expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
        assert worst([kernels.attend(q, mx.stack([k, v]), 0.3, mask)], [expected]) < 1e-6


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("many_blocks", [20, 100], ids=["blocks", "one block"])
def test_attention_of_one_query_over_many_keys(rows, many_blocks, monkeypatch):
    """A part of a buffer, whose last key alone is large in one block, and of which one block is hidden."""
    for name, value in {"MANY_KEYS": 10, "MANY_BLOCKS": many_blocks, "SMALLEST_BLOCK": 8}.items():
        monkeypatch.setattr(cpu, name, value)
    S, D = 40, 16
    assert cpu._key_blocks(S) == (5 if many_blocks == 20 else 0)
    assert cpu._key_blocks(S + 1) == 0
    q = mx.random.normal((rows, 6, 1, D), key=mx.random.key(1))
    kv = mx.random.normal((2, rows, 2, S + 24, D), key=mx.random.key(2))
    kv[0, :, :, S - 1] = 30 * q[:, :2, 0]
    kv = kv[:, :, :, :S]
    hidden = (mx.arange(S) >= mx.array([9, 17])[:rows, None, None, None]) & (mx.arange(S) != 30)
    for mask in (hidden, None):
        expected = mx.fast.scaled_dot_product_attention(q, kv[0], kv[1], scale=0.3, mask=mask)
        assert worst([kernels.attend(q, kv, 0.3, mask)], [expected]) < 2e-6


@pytest.mark.parametrize(("can_compile", "built"), [(True, 4), (False, 6)])
def test_a_graph_is_built_some_times_and_then_replayed(can_compile, built, monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "replay_after", lambda: 3)
    monkeypatch.setattr(kernels, "can_compile", lambda: can_compile)
    replayed = kernels.Replayed(lambda x, none: calls.append(none) or x + 1)
    assert [replayed(mx.array(i), None).item() for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert calls == [None] * built


ON_A_CPU = pytest.mark.skipif(mx.default_device().type == mx.gpu, reason="a GPU compiles without TMPDIR")
REPLY = """
import sys, mlx_qwen3
from mlx_qwen3.model import cpu, kernels
kernels.replay_after = lambda: 2
options = {"max_tokens": 12, "sampling": mlx_qwen3.SamplingParams(temperature=0), "lookup": False}
print(mlx_qwen3.generate(*mlx_qwen3.load("demo"), "Hello", **options).tokens)
"""


def reply(folder, library="none"):
    environment = {**os.environ, "TMPDIR": str(folder), "MLX_QWEN3_BLAS": library}
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", REPLY], capture_output=True, env=environment, cwd=root, text=True)


@ON_A_CPU
def test_a_reply_needs_no_place_to_compile(tmp_path):
    """A file takes the place of another user's folder, because root may write to every folder."""
    expected = reply(tmp_path)
    assert (expected.returncode, expected.stderr) == (0, "")
    assert list(tmp_path.rglob("*.so"))  # it did compile
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mlx").touch()
    for place, reason in (("file", "Not a directory"), ("missing", "No such file"), ("taken", "cannot create")):
        result = reply(tmp_path / place)
        assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
        assert result.stderr.count("Qwen3Warning") == 1
        assert "set TMPDIR to a folder" in result.stderr
        assert reason in result.stderr


@ON_A_CPU
@pytest.mark.skipif(blas.in_use is None, reason="needs a fast BLAS")
def test_the_folder_of_mlx_alone_may_be_of_no_use(tmp_path):
    """With a fast BLAS, kernels of our own are compiled beside it."""
    (tmp_path / "mlx").touch()
    result = reply(tmp_path, blas.in_use)
    assert (result.returncode, result.stderr.count("Qwen3Warning")) == (0, 1), result.stderr


@ON_A_CPU
@pytest.mark.parametrize(("option", "reason"), [("size=64k", "no space left in"), ("noexec", "")])
def test_a_full_folder_and_one_without_programs(option, reason, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        result = reply(tmp_path)
        assert result.returncode == 0
        assert f"kernels cannot be compiled ({reason}" in result.stderr
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@ON_A_CPU
def test_the_warning_comes_when_the_step_is_to_be_replayed(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.warns(Qwen3Warning, match=r"kernels cannot be compiled \(.*/nowhere"):
        assert not kernels.can_compile.__wrapped__()
