// 3x3 convolutions of channels-last maps, zero-padded by one.
#include "numbers.cuh"

// Gathers 3x3 patches (im2col), with one thread per output element: from xs [images, height, width, channels] to out
// [images, rows, columns, 9 * channels], which has count elements.
template <typename T>
__device__ void patches(const T *xs, T *out, unsigned count, unsigned height, unsigned width, unsigned channels,
                        unsigned rows, unsigned columns, unsigned stride) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    unsigned rest = (unsigned)i;
    const unsigned channel = rest % channels;
    rest /= channels;
    const unsigned cell = rest % 9;
    rest /= 9;
    const unsigned column = rest % columns;
    rest /= columns;
    const unsigned row = rest % rows, image = rest / rows;
    // row -1 wraps around to a large unsigned number, which is outside the map too
    const unsigned y = row * stride + cell / 3 - 1, x = column * stride + cell % 3 - 1;
    const bool is_inside = y < height && x < width;
    out[i] = is_inside ? xs[(((size_t)image * height + y) * width + x) * channels + channel] : rounded<T>(0.0f);
}

// Depthwise convolution with one thread per element of out [images, rows, columns, channels], which has count elements;
// kernel is [9, channels] and bias [channels].
template <typename T>
__device__ void depthwise(const T *xs, const T *kernel, const T *bias, T *out, unsigned count, unsigned height,
                          unsigned width, unsigned channels, unsigned rows, unsigned columns, unsigned stride,
                          unsigned activation) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    unsigned rest = (unsigned)i;
    const unsigned channel = rest % channels;
    rest /= channels;
    const unsigned column = rest % columns;
    rest /= columns;
    const unsigned row = rest % rows, image = rest / rows;
    float sum = 0.0f;
    for (unsigned cell = 0; cell < 9; ++cell) {
        const unsigned y = row * stride + cell / 3 - 1, x = column * stride + cell % 3 - 1;
        if (y < height && x < width) {
            const T seen = xs[(((size_t)image * height + y) * width + x) * channels + channel];
            sum += number(seen) * number(kernel[cell * channels + channel]);
        }
    }
    out[i] = rounded<T>(activated(sum + number(bias[channel]), activation));
}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, T *out, unsigned count, unsigned height, unsigned width, unsigned channels, unsigned rows,          \
     unsigned columns, unsigned stride)
FOR_EVERY_FORMAT(patches, PARAMETERS, (xs, out, count, height, width, channels, rows, columns, stride))
#undef PARAMETERS

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *kernel, const T *bias, T *out, unsigned count, unsigned height, unsigned width,            \
     unsigned channels, unsigned rows, unsigned columns, unsigned stride, unsigned activation)
FOR_EVERY_FORMAT(depthwise, PARAMETERS,
                 (xs, kernel, bias, out, count, height, width, channels, rows, columns, stride, activation))
#undef PARAMETERS
