"""What a forward pass does differently on each of MLX's back ends, and why.

B batch, L new tokens, T = B * L, H query heads, K key/value heads, D head_dim, S keys
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx

from .. import blas, compiler
from ..errors import warn
from ..files.config import Qwen3Config
from . import cpu, native
from .rope import rotate

Mask = mx.array | str | None  # which keys a query sees, see `attend`
# Up to so many queries, attention multiplies by packed keys; for more it unpacks them once.
FEW_QUERIES = 8
PROMPT = 16  # tokens of a pass from which attention goes block by block on a CPU
# A pass is computed at once in C++ if it is a prompt of LONG tokens. With fewer, a small model does not wait for g++.
# If the matrices are LARGE, two tokens are enough: MKL reads a weight twice for four.
# Over MANY_KEYS even one token gains.
LONG, LARGE, MANY_KEYS = 64, 1 << 20, 8192
KERNEL_BYTES = 4_000_000  # that must be free to compile; a step's kernels take 0.3 MB, g++ more while it runs
REASON = 200  # characters of an error that a warning quotes


def on_gpu() -> bool:
    return mx.default_device().type == mx.gpu


def on_metal() -> bool:
    return on_gpu() and mx.metal.is_available()


def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """RMSNorm of x (T, n), times weight (n,)."""
    return native.norm(x, weight, eps) if native.computes(x, weight) else mx.fast.rms_norm(x, weight, eps)


def norm_rope(qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """QK-norm and rotation of a fused projection.

    qkv (T, (H + 2K) * D); weight (H + K, 1, D) of the norms; cos and sin (B, 1, L, D) float32, the first half of sin
    negated. Returns queries (B, H, L, D), and keys and values (2, B, K, L, D) as the cache takes them.
    """
    # MLX has no call for the two together: on Metal one kernel takes the place of five, and of the copies that
    # rms_norm makes of the slices of queries and keys.
    if native.computes(qkv, weight):
        return native.norm_rope(qkv, weight, cos, sin, eps)
    return metal_norm_rope(qkv, weight, cos, sin, eps) if on_metal() else plain_norm_rope(qkv, weight, cos, sin, eps)


def plain_norm_rope(
    qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    (B, _, L, _), (normed, _, D) = cos.shape, weight.shape
    # A decode step has one token: it is reshaped and not transposed, which is a node less.
    heads = qkv.reshape(B, -1, 1, D) if L == 1 else qkv.reshape(B, L, -1, D).transpose(0, 2, 1, 3)
    K = heads.shape[1] - normed
    qk, v = mx.split(heads, [normed], axis=1)
    qk = rotate(qk_norm(qk, weight, eps), cos, sin).astype(qkv.dtype)
    q, k = mx.split(qk, [normed - K], axis=1)
    return q, mx.concatenate([k, v]).reshape(2, B, K, L, D)  # two nodes less than mx.stack


def qk_norm(qk: mx.array, weight: mx.array, eps: float) -> mx.array:
    """RMSNorm over the D of each query and key head, times the norms' weights, in any order of the axes before D."""
    return mx.fast.rms_norm(qk, None, eps) * weight


def metal_norm_rope(
    qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    (B, _, L, _), (normed, _, D) = cos.shape, weight.shape
    heads = qkv.shape[1] // D
    H, K = 2 * normed - heads, heads - normed
    q, kv = _metal_kernel()(
        inputs=[qkv, weight, cos, sin, mx.array(eps)],
        template=[("T", qkv.dtype), ("H", H), ("K", K), ("D", D)],
        grid=(32, heads, B * L),
        threadgroup=(32, 1, 1),
        output_shapes=[(B, H, L, D), (2, B, K, L, D)],
        output_dtypes=[qkv.dtype, qkv.dtype],
    )
    return q, kv


# One SIMD group of 32 lanes for every head of a token; roundings to T as in mx.fast.rms_norm and mx.fast.rope. Metal
# hands over the shape of cos because its name occurs: L as a template argument would compile a kernel for each length.
NORM_ROPE = """
    const uint lane = thread_position_in_grid.x, head = thread_position_in_grid.y, token = thread_position_in_grid.z;
    const uint B = cos_shape[0], L = cos_shape[2];
    const uint row = token / L, place = token % L;
    const uint from = (token * (H + 2 * K) + head) * D;
    float squares = 0;
    for (uint i = lane; i < D; i += 32) {
        const float x = qkv[from + i];
        squares += x * x;
    }
    const float scale = metal::precise::rsqrt(simd_sum(squares) / D + eps);
    const bool is_value = head >= H + K;
    const uint plane = is_value * B + row;
    const uint into = ((head < H ? row * H + head : plane * K + (head - H) % K) * L + place) * D;
    for (uint i = lane; i < D; i += 32) {
        const uint j = (i + D / 2) % D;
        T result = qkv[from + i];
        if (!is_value) {
            const T x = weight[head * D + i] * T(qkv[from + i] * scale);
            const T y = weight[head * D + j] * T(qkv[from + j] * scale);
            result = T(x * cos[token * D + i] + y * sin[token * D + i]);
        }
        if (head < H) q[into + i] = result;
        else kv[into + i] = result;
    }
"""


@cache
def _metal_kernel() -> Any:
    return mx.fast.metal_kernel(
        name="norm_rope",
        input_names=["qkv", "weight", "cos", "sin", "eps"],
        output_names=["q", "kv"],
        source=NORM_ROPE,
    )


def product(x: mx.array, weight: mx.array, columns: mx.array) -> mx.array:
    """x (..., inputs) @ columns (inputs, outputs), which are the transpose of `weight`."""
    return native.product(x, weight) if native.computes(x, weight) else x @ columns


def add_product(residual: mx.array, x: mx.array, weight: mx.array, columns: mx.array) -> mx.array:
    """residual + product(x, weight, columns), in one call."""
    if native.computes(residual, x, weight):
        return native.product(x, weight, residual)
    return mx.addmm(residual, x, columns)


def attend(q: mx.array, kv: mx.array, scale: float, mask: Mask) -> mx.array:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D), (B, H, L, D).

    mask: (B, 1, L, S) bool, "causal", or None if every query sees every key.
    """
    L = q.shape[2]
    if native.computes(q, kv):
        return native.attend(q, kv, scale, mask)
    if not on_gpu() and L == 1:
        return cpu.attend_one(q, kv, scale, mask if isinstance(mask, mx.array) else None)
    if not on_gpu() and L >= PROMPT and not isinstance(mask, mx.array):
        return cpu.attend(q, kv, scale, mask == "causal")
    # slices, because kv[0] is a gather, which copies
    return mx.fast.scaled_dot_product_attention(q, kv[0, :], kv[1, :], scale=scale, mask=mask)


def attend_quantized(
    q: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    scale: float,
    mask: Mask,
    group_size: int,
    bits: int,
) -> mx.array:
    """`attend` for few queries, over packed keys and values, which are not unpacked.

    keys and values: (packed, scales, biases) as mx.quantize gives them for (B, K, S, D).
    """
    B, H, L, D = q.shape
    K, S = keys[0].shape[1:3]
    if mask == "causal":
        mask = mx.arange(S) <= mx.arange(S - L, S)[:, None]
    # The queries of a key head are the rows of one product, which reads the keys once.
    scores = _packed_product(q.reshape(B, K, -1, D), keys, True, group_size, bits).reshape(B, H, L, S) * scale
    scores = mx.where(mask, scores, -mx.inf) if isinstance(mask, mx.array) else scores
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(B, K, -1, S)
    return _packed_product(weights, values, False, group_size, bits).reshape(B, H, L, D)


def _packed_product(x: mx.array, matrix: Sequence[mx.array], transpose: bool, group_size: int, bits: int) -> mx.array:
    packed, scales, biases = matrix
    return mx.quantized_matmul(x, packed, scales, biases, transpose=transpose, group_size=group_size, bits=bits)


def swiglu(gate_up: mx.array) -> mx.array:
    """silu(gate) * up of the two halves of gate_up (T, 2 * inner)."""
    if native.computes(gate_up):
        return native.swiglu(gate_up)
    gate, up = mx.split(gate_up, 2, axis=1)
    if on_gpu():
        return _fused_swiglu(gate, up)
    one = len(gate) == 1  # token, whose numbers are too few to pay for more operations
    return _swiglu(gate, up) if one or gate.dtype != mx.float32 else gate / (1 + cpu.exp(-gate)) * up


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


# One kernel in place of three. Not on a CPU, where mx.compile waits for g++.
_fused_swiglu = mx.compile(_swiglu, shapeless=True)


def computes_at_once(config: Qwen3Config, rows: int, tokens: int, dtype: mx.Dtype, keys: int = 0) -> bool:
    """Whether a pass over so many tokens of each row, after so many keys, computes its operations by native.py."""
    large = config.hidden_size * config.num_attention_heads * config.head_dim >= LARGE
    enough = rows * tokens > 1 if large else tokens >= PROMPT and rows * tokens >= LONG
    return (
        (enough or keys >= MANY_KEYS)
        and dtype == mx.float32
        and not on_gpu()
        and blas.gemm() is not None
        and can_compile()
    )


@cache
def can_compile() -> bool:
    """Whether kernels can be compiled. If not, a warning says why: a reply needs none, but is faster with them."""
    if on_gpu():
        return True
    # On a CPU g++ runs in a folder in TMPDIR, where its results are kept. The folder may be another user's, missing,
    # full, or forbid programs. MLX's kernels and native.py have a folder each.
    reason = ""
    folder = compiler.temporary()
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < KERNEL_BYTES:
            reason = f"no space left in {folder}"
        else:
            mx.eval(_fused_swiglu(mx.zeros((2,)), mx.zeros((2,))))
            if blas.gemm() is not None:
                native.functions()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON]
    if reason:
        warn(
            f"kernels cannot be compiled ({reason}), so long prompts and replies are slower; install g++, or set "
            "TMPDIR to a folder that can be written and has room"
        )
    return not reason


def replay_after() -> int:
    """How often a graph is built before it is compiled."""
    # On a CPU mx.compile runs g++ for every kernel that the machine has not seen: some two seconds that a short reply
    # would wait for.
    return 0 if on_gpu() else 64


class Replayed:
    """A function of arrays whose graph is built anew for the first calls, and then compiled once and replayed."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._left = replay_after()

    def __call__(self, *arrays: mx.array | None) -> Any:
        if self._left == 0 and can_compile():
            self._function = mx.compile(self._function)
        self._left -= 1
        return self._function(*arrays)
