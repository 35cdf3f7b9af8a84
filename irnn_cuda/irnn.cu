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
constexpr int RESIDENT = 4;  // blocks at once on a multiprocessor, or more: 128 registers a thread
// Elements that a thread asks for together: one wait for memory serves as many steps. Of float64 only
// so many fit into its registers.
template <typename T>
constexpr int PREFETCH = sizeof(T) == 8 ? 4 : 16;

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
    Half() = default;
    __device__ explicit Half(float value) : bits(half_bits(value)) {}
    __device__ explicit operator float() const { return half_value(bits); }
};

struct BFloat {  // the upper half of a float32, rounded to nearest, ties to even
    unsigned short bits;
    BFloat() = default;
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

// A line's elements, one after the other, PREFETCH at a time; past its end the last one again,
// since a branch between two reads would wait for the first.
template <typename T>
struct Reader {
    const T* place;
    Offset step;
    int left;  // elements that come after the one at place

    template <int COUNT>
    __device__ void read(T (&values)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i, --left) {
            values[i] = *place;
            place += left > 0 ? step : 0;
        }
    }
};

template <typename T, int COUNT>
__device__ void copy(const T (&from)[COUNT], T (&to)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = from[i];
}

// In both scans T is the type in memory and A that of the arithmetic, and a block of elements is
// asked for before the one before it is worked on.

// Grid: (blocks of lines and channels, 4).
template <typename T, typename A>
__device__ void forward(const T* __restrict__ x, const A* __restrict__ weight,
                        const A* __restrict__ bias, T* __restrict__ y, int images, int height,
                        int width, int channels) {
    const int direction = static_cast<int>(blockIdx.y);
    const Line line = own_line(direction, images, height, width, channels);
    if (!line.exists) return;
    const Offset column = Offset{direction} * channels + line.channel, step = line.stride * channels;
    const A w = weight[column], b = bias[column];
    Reader<T> reader{x + line.first * channels + line.channel, step, line.length - 1};
    y += line.first * channels * 4 + column;
    T next[PREFETCH<T>];
    reader.read(next);
    A value = 0;
    for (int begin = 0; begin < line.length; begin += PREFETCH<T>) {
        T input[PREFETCH<T>];
        copy(next, input);
        reader.read(next);
#pragma unroll
        for (int i = 0; i < PREFETCH<T>; ++i, y += step * 4) {
            const int t = begin + i;
            const A own = static_cast<A>(input[i]);
            value = relu(t == 0 ? own : w * value + b + own);
            if (t < line.length) *y = static_cast<T>(value);
        }
    }
}

// Where the gradient of a direction goes: into target (N,H,W,C), alone or on top of what an earlier
// launch left there, or to a block of its own in target (N,H,W,4C).
enum Mode { WRITE, ADD, SPLIT };

// Gradient of one direction.
// sums (4,2,lines,C) receives each line's own share of the gradients of weight and of bias.
template <Mode MODE, typename T, typename A, typename Target>
__device__ void backward(const T* __restrict__ grad, const T* __restrict__ y,
                         const A* __restrict__ weight, Target* __restrict__ target,
                         A* __restrict__ sums, int images, int height, int width, int channels,
                         int lines, int direction) {
    const Line line = own_line(direction, images, height, width, channels);
    if (!line.exists) return;
    const Offset column = Offset{direction} * channels + line.channel, step = line.stride * channels;
    const Offset last = line.first + (line.length - 1) * line.stride;
    const Offset wide = last * channels * 4 + column, narrow = last * channels + line.channel;
    const A w = weight[column];
    target += MODE == SPLIT ? wide : narrow;
    const int more = line.length - 1;
    Reader<T> uppers{grad + wide, -step * 4, more};
    Reader<T> befores{y + wide - (more ? step * 4 : 0), -step * 4, more ? more - 1 : 0};
    Reader<Target> totals{target, -step, more};
    T value = y[wide], next_upper[PREFETCH<T>], next_before[PREFETCH<T>];
    Target next_total[PREFETCH<T>];
    uppers.read(next_upper);
    befores.read(next_before);
    if (MODE == ADD) totals.read(next_total);
    A delta = 0, sum_weight = 0, sum_bias = 0;
    for (int end = line.length - 1; end >= 0; end -= PREFETCH<T>) {
        T upper[PREFETCH<T>], before[PREFETCH<T>];
        Target total[PREFETCH<T>];
        copy(next_upper, upper);
        copy(next_before, before);
        copy(next_total, total);
        uppers.read(next_upper);
        befores.read(next_before);
        if (MODE == ADD) totals.read(next_total);
#pragma unroll
        for (int i = 0; i < PREFETCH<T>; ++i, target -= MODE == SPLIT ? step * 4 : step) {
            const int t = end - i;
            delta = static_cast<A>(value) <= A{0} ? A{0} : static_cast<A>(upper[i]) + w * delta;
            const A sum = MODE == ADD ? static_cast<A>(total[i]) + delta : delta;
            if (t >= 0) *target = static_cast<Target>(sum);
            if (t > 0) {  // the first element takes neither weight nor bias
                sum_weight += delta * static_cast<A>(before[i]);
                sum_bias += delta;
            }
            value = before[i];
        }
    }
    const Offset own = (Offset{direction} * 2 * lines + line.index) * channels + line.channel;
    sums[own] = sum_weight;
    sums[own + Offset{lines} * channels] = sum_bias;
}

// Sum of the four directions' gradients, parts (pixels,4C), in the order and with the roundings of
// four launches one after the other.
template <typename T, typename A>
__device__ void sum(const A* __restrict__ parts, T* __restrict__ grad_x, int pixels, int channels) {
    const Offset thread = Offset{blockIdx.x} * THREADS + threadIdx.x;
    if (thread >= Offset{pixels} * channels) return;
    parts += thread / channels * channels * 4 + thread % channels;
    T total = static_cast<T>(parts[RIGHT * channels]);
    total = static_cast<T>(static_cast<A>(total) + parts[LEFT * channels]);
    total = static_cast<T>(static_cast<A>(total) + parts[DOWN * channels]);
    total = static_cast<T>(static_cast<A>(total) + parts[UP * channels]);
    grad_x[thread] = total;
}

#define BACKWARD(KERNEL, MODE, TARGET, T, A)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) KERNEL(                       \
        const T* grad, const T* y, const A* weight, TARGET* target, A* sums, int images,          \
        int height, int width, int channels, int lines, int direction) {                          \
        backward<MODE, T, A>(grad, y, weight, target, sums, images, height, width, channels,      \
                            lines, direction + static_cast<int>(blockIdx.y));                     \
    }

#define KERNELS(NAME, T, A)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) irnn_forward_##NAME(          \
        const T* x, const A* weight, const A* bias, T* y, int images, int height, int width,      \
        int channels) {                                                                           \
        forward<T, A>(x, weight, bias, y, images, height, width, channels);                       \
    }                                                                                             \
    BACKWARD(irnn_write_##NAME, WRITE, T, T, A)                                                   \
    BACKWARD(irnn_add_##NAME, ADD, T, T, A)                                                       \
    BACKWARD(irnn_split_##NAME, SPLIT, A, T, A)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) irnn_sum_##NAME(              \
        const A* parts, T* grad_x, int pixels, int channels) {                                    \
        sum<T, A>(parts, grad_x, pixels, channels);                                               \
    }

KERNELS(float32, float, float)
KERNELS(float64, double, double)
KERNELS(float16, Half, float)
KERNELS(bfloat16, BFloat, float)
