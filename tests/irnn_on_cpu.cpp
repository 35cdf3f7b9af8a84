// Just enough of CUDA for a C++ compiler to take our kernels, so that the kernels themselves can be run
// and checked where there is no GPU. Threads run one after another, in either order.

#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Index {
    unsigned x, y;
};
static thread_local Index blockIdx, threadIdx;

static unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static float half_value(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent ? std::ldexp(1024.0f + fraction, exponent - 25)
                           : std::ldexp(static_cast<float>(fraction), -24);
    if (exponent == 31) value = fraction ? NAN : INFINITY;
    return bits >> 15 ? -value : value;
}

static unsigned short half_bits(float value) {  // to nearest, ties to even
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    const int fraction = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return sign | (((exponent + 14) << 10) + fraction);
}

#include "irnn.cu"
#include "rescan.cu"

template <typename... P, std::size_t... I>
static void call(void (*kernel)(P...), void** words, std::index_sequence<I...>) {
    kernel(*static_cast<P*>(words[I])...);
}

template <typename... P>
static int run(void (*kernel)(P...), const unsigned* grid, unsigned threads, int reversed,
               void** words) {
    const unsigned begin = grid[0], end = grid[1], rows = grid[2];
    for (unsigned y = 0; y < rows; ++y) {
        for (unsigned x = begin; x < end; ++x) {
            for (unsigned t = 0; t < threads; ++t) {
                blockIdx = reversed ? Index{begin + end - 1 - x, rows - 1 - y} : Index{x, y};
                threadIdx = reversed ? Index{threads - 1 - t, 0} : Index{t, 0};
                call(kernel, words, std::index_sequence_for<P...>{});
            }
        }
    }
    return 0;
}

// As the driver's launch: words[i] points to the i-th argument. The grid is given as the first block
// in x, the one past the last, and the number of blocks in y. Returns 1 for an unknown name.
extern "C" int launch(const char* name, const unsigned* grid, unsigned threads, int reversed,
                      void** words) {
#define KERNEL(NAME) \
    if (!std::strcmp(name, #NAME)) return run(NAME, grid, threads, reversed, words);
#define OF_TYPE(NAME)            \
    KERNEL(irnn_forward_##NAME)  \
    KERNEL(irnn_write_##NAME)    \
    KERNEL(irnn_add_##NAME)      \
    KERNEL(irnn_split_##NAME)    \
    KERNEL(irnn_sum_##NAME)
    OF_TYPE(float32)
    OF_TYPE(float64)
    OF_TYPE(float16)
    OF_TYPE(bfloat16)
    KERNEL(rescan_forward)
    KERNEL(rescan_grad_x)
    KERNEL(rescan_products)
    return 1;
}

extern "C" unsigned short as_half(float value) { return half_bits(value); }
extern "C" float from_half(unsigned short bits) { return half_value(bits); }
extern "C" unsigned short as_bfloat(float value) { return BFloat(value).bits; }
extern "C" float from_bfloat(unsigned short bits) {
    BFloat value(0);
    value.bits = bits;
    return static_cast<float>(value);
}
