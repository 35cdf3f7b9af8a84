// The IRNN on a GPU. README.md beside this file has the recurrence and its gradient.
//
// Memory is channels_last: x and its gradient (N,H,W,C), y and its gradient (N,H,W,4C). A thread
// owns one channel of one line and walks it once. Neighbouring threads own neighbouring channels,
// so a warp reads and writes runs of neighbouring elements whichever way the scan goes.
// No thread reads what another one of its launch writes, and there are no atomics: results do not
// depend on the order in which threads run. Compiled by NVRTC: no headers.

using Offset = long long;  // tensors that fit into a GPU can pass 2^31 elements
enum Direction { UP, RIGHT, DOWN, LEFT };  // rows of weight and bias, blocks of channels of y
constexpr int THREADS = 128;  // a block
constexpr int AHEAD = 8;  // elements asked for together: one wait for memory serves as many steps

#ifdef __CUDACC__
__device__ unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ float half_value(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

struct Half {
    unsigned short bits;
    __device__ explicit Half(float value) : bits(half_bits(value)) {}
    __device__ explicit operator float() const { return half_value(bits); }
};

struct BFloat {  // the upper half of a float32, rounded to nearest, ties to even
    unsigned short bits;
    __device__ explicit BFloat(float value) {
        const unsigned wide = __float_as_uint(value);
        const unsigned rounded = wide + 0x7fffu + ((wide >> 16) & 1u);
        bits = static_cast<unsigned short>(value != value ? 0x7fffu : rounded >> 16);
    }
    __device__ explicit operator float() const { return __uint_as_float(unsigned{bits} << 16); }
};

// The line that a thread walks, as pixels of the batch: first, first + stride, ...
struct Line {
    Offset index, first, stride;  // index among the lines of its direction
    int channel, length;
    bool exists;
};

__device__ Line own_line(int direction, int images, int height, int width, int channels) {
    const bool vertical = direction == UP || direction == DOWN;
    const Offset thread = Offset{blockIdx.x} * THREADS + threadIdx.x;
    Line line;
    line.index = thread / channels;
    line.channel = static_cast<int>(thread % channels);
    line.exists = line.index < Offset{images} * (vertical ? width : height);
    line.length = vertical ? height : width;
    const Offset image = line.index / width, column = line.index % width;
    line.first = vertical ? image * height * width + column : line.index * width;
    line.stride = vertical ? width : 1;
    if (direction == UP || direction == LEFT) {
        line.first += (line.length - 1) * line.stride;
        line.stride = -line.stride;
    }
    return line;
}

template <typename A>
__device__ A relu(A value) {
    return value <= A{0} ? A{0} : value;  // NaN stays NaN, as in torch.relu
}

// T is the type in memory, A that of the arithmetic. Grid: (blocks of lines and channels, 4).
template <typename T, typename A>
__device__ void forward(const T* __restrict__ x, const A* __restrict__ weight,
                        const A* __restrict__ bias, T* __restrict__ y, int images, int height,
                        int width, int channels) {
    const int direction = static_cast<int>(blockIdx.y);
    const Line line = own_line(direction, images, height, width, channels);
    if (!line.exists) return;
    const Offset column = Offset{direction} * channels + line.channel, step = line.stride * channels;
    const A w = weight[column], b = bias[column];
    x += line.first * channels + line.channel;
    y += line.first * channels * 4 + column;
    A value = 0;
    for (int begin = 0; begin < line.length; begin += AHEAD) {
        A input[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i, x += step) {
            if (begin + i < line.length) input[i] = static_cast<A>(*x);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i, y += step * 4) {
            const int t = begin + i;
            if (t >= line.length) continue;
            value = relu(t == 0 ? input[i] : w * value + b + input[i]);
            *y = static_cast<T>(value);
        }
    }
}

// Gradient of one direction: writes grad_x, or adds to it what earlier launches left there.
// sums (4,2,lines,C) receives each line's own share of the gradients of weight and of bias.
template <typename T, typename A>
__device__ void backward(const T* __restrict__ grad, const T* __restrict__ y,
                         const A* __restrict__ weight, T* __restrict__ grad_x,
                         A* __restrict__ sums, int images, int height, int width, int channels,
                         int lines, int direction, int add) {
    const Line line = own_line(direction, images, height, width, channels);
    if (!line.exists) return;
    const Offset column = Offset{direction} * channels + line.channel, step = line.stride * channels;
    const A w = weight[column];
    grad += line.first * channels * 4 + column;
    y += line.first * channels * 4 + column;
    grad_x += line.first * channels + line.channel;
    A delta = 0, sum_weight = 0, sum_bias = 0;
    A value = static_cast<A>(y[(line.length - 1) * step * 4]);
    for (int end = line.length - 1; end >= 0; end -= AHEAD) {
        A upper[AHEAD], before[AHEAD], total[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int t = end - i;
            if (t < 0) continue;
            upper[i] = static_cast<A>(grad[t * step * 4]);
            before[i] = t > 0 ? static_cast<A>(y[(t - 1) * step * 4]) : A{0};
            total[i] = add ? static_cast<A>(grad_x[t * step]) : A{0};
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int t = end - i;
            if (t < 0) continue;
            delta = value <= A{0} ? A{0} : upper[i] + w * delta;
            grad_x[t * step] = static_cast<T>(total[i] + delta);
            if (t > 0) {  // the first element takes neither weight nor bias
                sum_weight += delta * before[i];
                sum_bias += delta;
            }
            value = before[i];
        }
    }
    const Offset own = (Offset{direction} * 2 * lines + line.index) * channels + line.channel;
    sums[own] = sum_weight;
    sums[own + Offset{lines} * channels] = sum_bias;
}

#define KERNELS(NAME, T, A)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) irnn_forward_##NAME(                    \
        const T* x, const A* weight, const A* bias, T* y, int images, int height, int width,      \
        int channels) {                                                                           \
        forward<T, A>(x, weight, bias, y, images, height, width, channels);                       \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) irnn_backward_##NAME(                   \
        const T* grad, const T* y, const A* weight, T* grad_x, A* sums, int images, int height,   \
        int width, int channels, int lines, int direction, int add) {                             \
        backward<T, A>(grad, y, weight, grad_x, sums, images, height, width, channels, lines,     \
                       direction, add);                                                           \
    }

KERNELS(float32, float, float)
KERNELS(float64, double, double)
KERNELS(float16, Half, float)
KERNELS(bfloat16, BFloat, float)
