"""Every kernel of our own against its plain form: on Metal where there is one, and as C++ on any machine."""

import ctypes
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.model import kernels

SHAPES = {"0.6B": (1, 16, 8, 128), "4B, batch": (3, 32, 8, 128), "demo": (2, 4, 2, 96), "small": (2, 6, 2, 20)}
EPS = 1e-5

# Metal is C++ but for the names of its built-ins. A SIMD group is 32 threads that meet at simd_sum.
METAL_IN_CPP = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
using uint = unsigned int;
struct uint3 { uint x, y, z; };
namespace metal::precise { float rsqrt(float x) { return 1.0f / std::sqrt(x); } }
static thread_local float* lanes;
static thread_local std::barrier<>* meet;
static thread_local uint own;
static float simd_sum(float x) {
    lanes[own] = x;
    meet->arrive_and_wait();
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += lanes[i];
    meet->arrive_and_wait();
    return sum;
}
template <typename T, int H, int K, int D>
void kernel(const float* qkv, const float* weight, const float* cos, const float* sin, const float& eps, float* q,
            float* kv, uint3 thread_position_in_grid, uint3 threads_per_grid) {
%s
}
extern "C" void run(const float* qkv, const float* weight, const float* cos, const float* sin, float eps, float* q,
                    float* kv, uint rows) {
    const uint heads = %d + 2 * %d;
    std::vector<float> shared(32);
    std::barrier<> barrier(32);
    std::vector<std::thread> threads;
    for (uint lane = 0; lane < 32; lane++) threads.emplace_back([&, lane] {
        lanes = shared.data(); meet = &barrier; own = lane;
        for (uint row = 0; row < rows; row++) for (uint head = 0; head < heads; head++)
            kernel<float, %d, %d, %d>(qkv, weight, cos, sin, eps, q, kv, {lane, head, row}, {32, heads, rows});
    });
    for (auto& thread : threads) thread.join();
}
"""


def arguments(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """qkv, weight, cos and sin as `norm_rope` takes them."""
    B, H, K, D = shape
    angles = mx.random.uniform(0, 40, (B, 1, 1, D // 2), key=mx.random.key(1))
    cos, sin = mx.cos(angles), mx.sin(angles)
    qkv = 3 * mx.random.normal((B, H + 2 * K, 1, D), key=mx.random.key(2))
    weight = mx.random.normal((H + K, 1, D), key=mx.random.key(3))
    turn = [mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)]
    return [qkv.astype(dtype), weight.astype(dtype), *turn]


def as_cpp(source: str, shape: tuple[int, ...], folder) -> list[np.ndarray]:
    """q and kv of the kernel's source, compiled for the CPU."""
    B, H, K, D = shape
    file, library = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(METAL_IN_CPP % (source, H, K, H, K, D))
    subprocess.run(["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", file, "-o", library], check=True)
    inputs = [np.array(x) for x in arguments(shape)]
    q, kv = np.full((B, H, 1, D), np.nan, np.float32), np.full((2, B, K, 1, D), np.nan, np.float32)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (*inputs, q, kv)]
    ctypes.CDLL(str(library)).run(*pointers[:4], ctypes.c_float(EPS), *pointers[4:], B)
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
        ("is_value * threads", "0 * threads"),
        ("weight[head * D + j]", "1"),
    ],
)
def test_the_comparison_sees_mistakes(right, wrong, tmp_path):
    shape = SHAPES["demo"]
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


@pytest.mark.parametrize("heads", [(16, 8), (6, 2), (3, 1), (4, 4)], ids=str)
def test_attention_of_one_query(heads):
    (H, K), S, D = heads, 40, 16
    q, k, v = (mx.random.normal((2, n, s, D), key=mx.random.key(n + s)) for n, s in ((H, 1), (K, S), (K, S)))
    mask = (mx.arange(S) >= mx.array([0, 9])[:, None, None, None]) & (mx.arange(S) <= 33)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    assert worst([kernels.attend(q, k, v, 0.3, mask)], [expected]) < 1e-6
