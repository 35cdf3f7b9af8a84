// The baseline of the GPU benchmark: the IRNN by the published scheme, written anew. A thread owns
// one pixel and channel, and walks each of its four lines from the end that the scan comes from up
// to itself: W+H+2 steps a pixel forward, as many for the gradient of x and again for the products
// that make up those of weight and bias. Memory is (N,C,H,W); y, grad and products (N,4C,H,W).

using Count = long long;

struct Pixel {
    Count plane;   // n * channels + c
    int n, c, row, column;
    bool exists;
};

__device__ Pixel own_pixel(int images, int height, int width, int channels) {
    const Count thread = Count{blockIdx.x} * 128 + threadIdx.x;
    const Count size = Count{height} * width;
    Pixel p;
    p.plane = thread / size;
    p.n = static_cast<int>(p.plane / channels);
    p.c = static_cast<int>(p.plane % channels);
    p.row = static_cast<int>(thread % size / width);
    p.column = static_cast<int>(thread % width);
    p.exists = p.n < images;
    return p;
}

// Of the line of `direction` (up, right, down, left) through a pixel: its length, the place of the
// pixel on it, and where its first element lies in a plane and how far the next one is.
struct Walk {
    int length, place;
    Count first, step;
};

__device__ Walk walk(const Pixel& p, int direction, int height, int width) {
    const bool vertical = direction == 0 || direction == 2, backwards = direction == 0 || direction == 3;
    Walk a;
    a.length = vertical ? height : width;
    a.place = vertical ? p.row : p.column;
    a.first = vertical ? p.column : Count{p.row} * width;
    a.step = vertical ? width : 1;
    if (backwards) {
        a.first += (a.length - 1) * a.step;
        a.step = -a.step;
        a.place = a.length - 1 - a.place;
    }
    return a;
}

extern "C" __global__ void rescan_forward(const float* x, const float* weight, const float* bias,
                                          float* y, int images, int height, int width,
                                          int channels) {
    const Pixel p = own_pixel(images, height, width, channels);
    if (!p.exists) return;
    const Count size = Count{height} * width;
    for (int direction = 0; direction < 4; ++direction) {
        const Walk a = walk(p, direction, height, width);
        const float w = weight[direction * channels + p.c], b = bias[direction * channels + p.c];
        const float* line = x + p.plane * size + a.first;
        float value = line[0] <= 0 ? 0 : line[0];
        for (int t = 1; t <= a.place; ++t) {
            value = w * value + b + line[t * a.step];
            value = value <= 0 ? 0 : value;
        }
        const Count plane = (Count{p.n} * 4 + direction) * channels + p.c;
        y[plane * size + a.first + a.place * a.step] = value;
    }
}

__device__ float delta_at(const Pixel& p, const Walk& a, int direction, float w, const float* grad,
                          const float* y, Count size, int channels) {
    const Count line = ((Count{p.n} * 4 + direction) * channels + p.c) * size + a.first;
    float delta = 0;
    for (int t = a.length - 1; t >= a.place; --t) {
        const Count at = line + t * a.step;
        delta = y[at] <= 0 ? 0 : grad[at] + w * delta;
    }
    return delta;
}

extern "C" __global__ void rescan_grad_x(const float* grad, const float* y, const float* weight,
                                         float* grad_x, int images, int height, int width,
                                         int channels) {
    const Pixel p = own_pixel(images, height, width, channels);
    if (!p.exists) return;
    const Count size = Count{height} * width;
    float total = 0;
    for (int direction = 0; direction < 4; ++direction) {
        const Walk a = walk(p, direction, height, width);
        const float w = weight[direction * channels + p.c];
        total += delta_at(p, a, direction, w, grad, y, size, channels);
    }
    grad_x[p.plane * size + Count{p.row} * width + p.column] = total;
}

// A pixel's own terms of the gradients of weight and of bias, to be added up over N, H and W.
extern "C" __global__ void rescan_products(const float* grad, const float* y, const float* weight,
                                           float* by_weight, float* by_bias, int images, int height,
                                           int width, int channels) {
    const Pixel p = own_pixel(images, height, width, channels);
    if (!p.exists) return;
    const Count size = Count{height} * width;
    for (int direction = 0; direction < 4; ++direction) {
        const Walk a = walk(p, direction, height, width);
        const float w = weight[direction * channels + p.c];
        const Count line = ((Count{p.n} * 4 + direction) * channels + p.c) * size + a.first;
        const Count at = line + a.place * a.step;
        const float delta = delta_at(p, a, direction, w, grad, y, size, channels);
        by_weight[at] = a.place > 0 ? delta * y[at - a.step] : 0;
        by_bias[at] = a.place > 0 ? delta : 0;
    }
}
