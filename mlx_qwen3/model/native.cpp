// The operations of a pass on a CPU, each on all cores; native.py has their shapes. All numbers are float32.
//
// B batch, L new tokens, T = B * L, H query heads, K key/value heads, D head_dim, S keys

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112;  // of CBLAS
constexpr float LOG2_E = 1.44269504f;
// Queries and keys of a tile: its scores stay in the cache of a core, and a product of this size is a fast one.
constexpr long QUERIES = 64, KEYS = 512;
// Smaller powers are 0. They change no sum that has a 1, and products with them could be too small for float32's normal
// numbers, which a processor multiplies a hundred times slower.
constexpr float LEAST = -63, MOST = 128;

// A product of few rows: so many rows and columns of the weight at a time have their sums in registers.
#if defined(__AVX512F__)
constexpr long LANES = 16, ROWS = 8, COLUMNS = 3;
#else
constexpr long LANES = 8, ROWS = 4, COLUMNS = 2;
#endif
constexpr long FEW_ROWS = 16;  // with more, a BLAS is faster

using Gemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

// 2 to the x <= MOST, off by 3e-7 of the result. The compiler makes vectors of it, and it makes none of std::exp2.
inline float power_of_2(float x) {
    const float above = std::max(x, LEAST), whole = std::rint(above), f = above - whole;
    // 2^f for f from -0.5 to 0.5, off by 1e-7: a polynomial through Chebyshev's points
    float fraction = 0.001339086336353527f;
    fraction = fraction * f + 0.009676031918255982f;
    fraction = fraction * f + 0.05550357114222094f;
    fraction = fraction * f + 0.2402210748530968f;
    fraction = fraction * f + 0.6931471880262273f;
    fraction = fraction * f + 1.0000000754548972f;
    const int32_t bits = (int32_t(whole) + 127) << 23;  // of a number without fraction
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < LEAST ? 0 : fraction * power;
}

inline float inverse_of_norm(const float* x, long n, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < n; i++) squares += x[i] * x[i];
    return 1 / std::sqrt(squares / n + eps);
}

inline float largest(const float* x, long n, float least) {
#pragma omp simd reduction(max : least)
    for (long i = 0; i < n; i++) least = x[i] > least ? x[i] : least;
    return least;
}

// x becomes 2 to the (x - most). Returns the sum.
inline float powers(float* x, long n, float most) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += x[i] = power_of_2(x[i] - most);
    return sum;
}

// The scores of QUERIES queries and KEYS keys, and the weighted sum of the values of all tiles before.
struct Tile {
    Gemm gemm;
    long D;
    std::vector<float> scores, out, most, total;

    Tile(Gemm gemm, long D)
        : gemm(gemm), D(D), scores(QUERIES * KEYS), out(QUERIES * D), most(QUERIES), total(QUERIES) {}

    void begin() {
        std::fill(out.begin(), out.end(), 0);
        std::fill(most.begin(), most.end(), -INFINITY);
        std::fill(total.begin(), total.end(), 0);
    }

    // The queries i of `rows` see the first seen + i of these keys; with a mask, of them only those that it shows.
    void add(const float* q, long q_stride, const float* k, const float* v, long kv_stride, long rows, long keys,
             long seen, float scale, const bool* mask, long mask_stride) {
        gemm(ROW_MAJOR, AS_IT_IS, TRANSPOSED, rows, keys, D, scale * LOG2_E, q, q_stride, k, kv_stride, 0,
             scores.data(), KEYS);
        for (long i = 0; i < rows; i++) {
            float* row = scores.data() + i * KEYS;
            long n = std::clamp(seen + i, 0l, keys);
            for (long s = 0; mask && s < n; s++)
                if (!mask[i * mask_stride + s]) row[s] = -INFINITY;
            const float before = most[i], now = largest(row, n, before);
            if (now == -INFINITY) n = 0;  // no key is seen yet
            if (n) {
                const float rescale = power_of_2(before - now);
                most[i] = now;
                total[i] = total[i] * rescale + powers(row, n, now);
                for (long d = 0; d < D; d++) out[i * D + d] *= rescale;
            }
            std::fill(row + n, row + keys, 0);
        }
        gemm(ROW_MAJOR, AS_IT_IS, AS_IT_IS, rows, D, keys, 1, scores.data(), KEYS, v, kv_stride, 1, out.data(), D);
    }
};

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

// y (R, C) += x (R, n) @ w (C, n).T. The rows of w come from memory, those of x from a core's cache. A page of memory
// ends with many a row, and the processor fetches none ahead, so the next rows are asked for here.
template <long R, long C>
inline void add_dots(const float* x, const float* w, long n, float* y, long y_stride) {
    Lanes sums[R][C] = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        Lanes columns[C];
        for (long c = 0; c < C; c++) {
            columns[c] = *reinterpret_cast<const Lanes*>(w + c * n + i);
            __builtin_prefetch(w + (c + C) * n + i, 0, 2);
        }
        for (long r = 0; r < R; r++) {
            const Lanes row = *reinterpret_cast<const Lanes*>(x + r * n + i);
            for (long c = 0; c < C; c++) sums[r][c] += row * columns[c];
        }
    }
    for (long r = 0; r < R; r++)
        for (long c = 0; c < C; c++) {
            float parts[LANES], sum = 0;
            std::memcpy(parts, &sums[r][c], sizeof parts);
#pragma omp simd reduction(+ : sum)
            for (long lane = 0; lane < LANES; lane++) sum += parts[lane];
            for (long j = i; j < n; j++) sum += x[r * n + j] * w[c * n + j];
            y[r * y_stride + c] += sum;
        }
}

// The same for any number of rows.
template <long C, long R = ROWS>
inline void add_columns(const float* x, const float* w, long n, float* y, long y_stride, long rows) {
    for (; rows >= R; rows -= R, x += R * n, y += R * y_stride) add_dots<R, C>(x, w, n, y, y_stride);
    if constexpr (R > 1) add_columns<C, R - 1>(x, w, n, y, y_stride, rows);
}

}  // namespace

extern "C" {

void norm(long threads, const float* x, const float* weight, float* y, long T, long n, float eps) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < T; t++) {
        const float scale = inverse_of_norm(x + t * n, n, eps);
        for (long i = 0; i < n; i++) y[t * n + i] = x[t * n + i] * scale * weight[i];
    }
}

void norm_rope(long threads, const float* qkv, const float* weight, const float* cos, const float* sin, float* q,
               float* kv, long B, long L, long H, long K, long D, float eps) {
    const long heads = H + 2 * K, half = D / 2;
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < B * L; t++) {
        const long b = t / L, l = t % L;
        const float *c = cos + t * D, *s = sin + t * D;
        for (long h = 0; h < heads; h++) {
            const float *x = qkv + (t * heads + h) * D, *w = weight + h * D;
            const long value = h >= H + K, pair = (h - H) % K;
            float* y = h < H ? q + ((b * H + h) * L + l) * D : kv + (((value * B + b) * K + pair) * L + l) * D;
            if (value) {
                std::memcpy(y, x, D * sizeof *y);
                continue;
            }
            const float scale = inverse_of_norm(x, D, eps);
#pragma omp simd
            for (long i = 0; i < half; i++) {
                const float first = x[i] * scale * w[i], second = x[i + half] * scale * w[i + half];
                y[i] = first * c[i] + second * s[i];
                y[i + half] = second * c[i + half] + first * s[i + half];
            }
        }
    }
}

// Strides are in numbers, for the axes before D; of the mask (B, L, S) for those before S. Blocks of queries are computed
// by the cores as they become free, the largest first.
void attend(long threads, Gemm gemm, const float* q, const long* q_strides, const float* kv, const long* kv_strides,
            const bool* mask, const long* mask_strides, float* out, const long* out_strides, long B, long H, long K,
            long L, long S, long D, float scale, long causal) {
    const long blocks = (L + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads)
    {
        Tile tile(gemm, D);
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < blocks * B * H; task++) {
            const long first = (blocks - 1 - task / (B * H)) * QUERIES, b = task / H % B, h = task % H;
            const long rows = std::min(QUERIES, L - first), seen = causal ? S - L + first + 1 : S;
            const float* queries = q + b * q_strides[0] + h * q_strides[1] + first * q_strides[2];
            const float* keys = kv + b * kv_strides[1] + h / (H / K) * kv_strides[2];
            const bool* visible = mask ? mask + b * mask_strides[0] + first * mask_strides[1] : nullptr;
            float* results = out + b * out_strides[0] + h * out_strides[1] + first * out_strides[2];
            const long end = causal ? seen + rows - 1 : S;
            tile.begin();
            for (long s = 0; s < end; s += KEYS) {
                const float* from = keys + s * kv_strides[3];
                tile.add(queries, q_strides[2], from, from + kv_strides[0], kv_strides[3], rows,
                         std::min(KEYS, end - s), seen - s, scale, mask ? visible + s : nullptr,
                         mask ? mask_strides[1] : 0);
            }
            for (long i = 0; i < rows; i++)
                for (long d = 0; d < D; d++)
                    results[i * out_strides[2] + d] = tile.out[i * D + d] / tile.total[i];
        }
    }
}

void swiglu(long threads, const float* gate_up, float* y, long T, long n) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < T; t++) {
        const float *gate = gate_up + 2 * t * n, *up = gate + n;
#pragma omp simd
        for (long i = 0; i < n; i++)
            y[t * n + i] = gate[i] / (1 + power_of_2(std::min(gate[i] * -LOG2_E, MOST))) * up[i];
    }
}

void product(long threads, Gemm gemm, const float* x, const float* weight, const float* residual, float* y, long T,
             long inputs, long outputs) {
    const bool few = T <= FEW_ROWS;
    if (few || residual) {
#pragma omp parallel for num_threads(threads)
        for (long t = 0; t < T; t++)
            if (residual)
                std::memcpy(y + t * outputs, residual + t * outputs, outputs * sizeof *y);
            else
                std::fill_n(y + t * outputs, outputs, 0);
    }
    if (!few) {
        gemm(ROW_MAJOR, AS_IT_IS, TRANSPOSED, T, outputs, inputs, 1, x, inputs, weight, inputs, residual ? 1 : 0, y,
             outputs);
        return;
    }
#pragma omp parallel for num_threads(threads)
    for (long o = 0; o < outputs; o += COLUMNS)
        if (o + COLUMNS <= outputs)
            add_columns<COLUMNS>(x, weight + o * inputs, inputs, y + o, outputs, T);
        else
            for (long last = o; last < outputs; last++)
                add_columns<1>(x, weight + last * inputs, inputs, y + last, outputs, T);
}
}
