// Memory that is filled from files by threads of its own: bytes as they are, floats widened to float32, and packed
// codes as the float32 values that they stand for. files/filling.py describes the work, and does it if there is no g++.

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#pragma GCC optimize("fp-contract=off")  // a product and a sum are rounded apart, as NumPy and MLX do

namespace {

// Bytes at a time. What is computed stays in the second-level cache.
constexpr int64_t READ = 1 << 22, COMPUTED = 1 << 18;
constexpr size_t PADDING = 8;       // bytes past a buffer that `unpack` may read
constexpr int POPULATE_WRITE = 23;  // the advice of madvise(2), since Linux 5.14

enum Kind : int32_t { BYTES, FLOAT32, BFLOAT16, FLOAT16, TABLE };

struct Range {
    int64_t start;  // byte of the file
    int64_t width;  // bytes of a row
    int32_t file;
    Kind kind;
};

// Rows of one tensor. Plain tensors have one range; packed ones have codes, scales and perhaps biases.
struct Work {
    char* target;
    int64_t rows, width;  // bytes of a row of the target
    Range ranges[3];
    int32_t bits, group;  // 0 if nothing is packed
    const float* codes;   // the values of the codes; none: they are integers
    const float* scales;  // the values of scales in a byte
};

typedef uint32_t Integers __attribute__((vector_size(32)));
typedef int32_t Signed __attribute__((vector_size(32)));
typedef uint64_t Words __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(32)));

float widened(uint16_t half) {
    uint32_t exponent = half & 0x7c00, bits = uint32_t(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;  // exact, also for denormal numbers
    memcpy(&bits, &value, 4);
    if (exponent == 0x7c00) bits |= 0x7f800000;
    bits |= uint32_t(half & 0x8000) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

void to_float32(const char* stored, Kind kind, const float* table, int64_t count, float* out) {
    auto halves = reinterpret_cast<const uint16_t*>(stored);
    auto bytes = reinterpret_cast<const uint8_t*>(stored);
    if (kind == FLOAT32) memcpy(out, stored, count * 4);
    if (kind == BFLOAT16)
        for (int64_t i = 0; i < count; i++) { uint32_t x = uint32_t(halves[i]) << 16; memcpy(out + i, &x, 4); }
    if (kind == FLOAT16)
        for (int64_t i = 0; i < count; i++) out[i] = widened(halves[i]);
    if (kind == TABLE)
        for (int64_t i = 0; i < count; i++) out[i] = table[bytes[i]];
}

template <int BITS>
void unpack(const Work& work, const char* packed, const float* scales, const float* biases, int64_t count, float* out) {
    constexpr Words shifts = {0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS};
    for (int64_t group = 0; group < count / work.group; group++) {
        float scale = scales[group], bias = biases ? biases[group] : -0.0f;  // the sum with -0 changes nothing
        for (int i = 0; i < work.group; i += 8, packed += BITS, out += 8) {
            uint64_t word;
            memcpy(&word, packed, 8);
            Words codes = (word >> shifts) & ((1u << BITS) - 1);
            Signed narrow = __builtin_convertvector(codes, Signed);
            Floats values;
            if (work.codes)
                for (int k = 0; k < 8; k++) values[k] = work.codes[narrow[k]];
            else
                values = __builtin_convertvector(narrow, Floats);
            values = values * scale;
            values = values + bias;
            memcpy(out, &values, 32);
        }
    }
}

using Unpack = decltype(&unpack<4>);
Unpack by_bits(int bits) {
    switch (bits) {
        case 2: return unpack<2>;
        case 3: return unpack<3>;
        case 4: return unpack<4>;
        case 5: return unpack<5>;
        case 6: return unpack<6>;
        default: return unpack<8>;
    }
}

void populate(char* target, int64_t count) {
    static const int64_t page = sysconf(_SC_PAGESIZE);
    int64_t first = (int64_t(target) + page - 1) / page * page, end = (int64_t(target) + count) / page * page;
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, POPULATE_WRITE);
}

bool read(const Range& range, int64_t first, int64_t rows, char* target) {
    int64_t start = range.start + first * range.width, left = rows * range.width;
    while (left) {
        ssize_t count = pread(range.file, target, left, start);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        target += count, start += count, left -= count;
    }
    return true;
}

bool is_read(const Work& work) { return work.ranges[0].kind == BYTES && !work.bits; }

struct Buffers {
    std::vector<char> stored;
    std::vector<float> scales, biases;
};

bool fill(const Work& work, int64_t first, int64_t rows, Buffers& buffers) {
    char* target = work.target + first * work.width;
    const Range& main = work.ranges[0];
    populate(target, rows * work.width);
    if (is_read(work)) return read(main, first, rows, target);
    auto out = reinterpret_cast<float*>(target);
    int64_t count = rows * work.width / 4;
    auto take = [&](const Range& range) {
        size_t size = rows * range.width + PADDING;
        if (buffers.stored.size() < size) buffers.stored.resize(size);
        return read(range, first, rows, buffers.stored.data());
    };
    if (!work.bits) {
        if (!take(main)) return false;
        to_float32(buffers.stored.data(), main.kind, nullptr, count, out);
        return true;
    }
    int64_t groups = count / work.group;
    for (int i = 1; i < 3; i++) {
        auto& values = i == 1 ? buffers.scales : buffers.biases;
        if (!work.ranges[i].width) continue;
        if (!take(work.ranges[i])) return false;
        if (int64_t(values.size()) < groups) values.resize(groups);
        to_float32(buffers.stored.data(), work.ranges[i].kind, work.scales, groups, values.data());
    }
    if (!take(main)) return false;
    by_bits(work.bits)(work, buffers.stored.data(), buffers.scales.data(),
        work.ranges[2].width ? buffers.biases.data() : nullptr, count, out);
    return true;
}

class Filling {
   public:
    Filling(const Work* works, int64_t count) : works(works, works + count), left(count) {
        for (auto& work : this->works) {
            int64_t index = &work - this->works.data(), size = is_read(work) ? READ : COMPUTED;
            int64_t step = std::max<int64_t>(1, size / work.width);
            left[index] = (work.rows + step - 1) / step;
            for (int64_t first = 0; first < work.rows; first += step)
                blocks.push_back({index, first, std::min(step, work.rows - first)});
        }
    }

    void start(int count) {
        std::lock_guard<std::mutex> lock(mutex);
        running += count;
        while (count--) threads.emplace_back([this] { run(); });
    }

    bool wait(double seconds) {
        std::unique_lock<std::mutex> lock(mutex);
        return ended.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !running; });
    }

    void end(uint8_t* done) {
        stop = true;
        for (auto& thread : threads) thread.join();
        for (size_t i = 0; i < left.size(); i++) done[i] = !left[i];
    }

   private:
    struct Block { int64_t work, first, rows; };

    void run() {
        Buffers buffers;
        while (!stop) {
            size_t index = next++;
            if (index >= blocks.size()) break;
            Block block = blocks[index];
            if (fill(works[block.work], block.first, block.rows, buffers)) left[block.work]--;
            else stop = true;
        }
        std::lock_guard<std::mutex> lock(mutex);
        if (!--running) ended.notify_all();
    }

    std::vector<Work> works;
    std::vector<Block> blocks;
    std::vector<std::atomic<int64_t>> left;  // blocks of each work that are not filled yet
    std::vector<std::thread> threads;
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::condition_variable ended;
    int running = 0;
};

}  // namespace

extern "C" {
Filling* begin(const Work* works, int64_t count) { return new Filling(works, count); }
void start(Filling* filling, int threads) { filling->start(threads); }
int wait_for(Filling* filling, double seconds) { return filling->wait(seconds); }
void end(Filling* filling, uint8_t* done) {
    filling->end(done);
    delete filling;
}
int size_of_work() { return sizeof(Work); }
}
