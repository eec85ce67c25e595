// Convolutions of channels-last maps with square kernels of `side` rows, an odd number, and zero padding of half of it.
#include "numbers.cuh"

// Gathers patches (im2col), with one thread per output element: from xs [images, height, width, channels] to out
// [images, rows, columns, side * side * channels], which has count elements.
template <typename T>
__device__ void patches(const T *xs, T *out, unsigned count, unsigned height, unsigned width, unsigned channels,
                        unsigned rows, unsigned columns, unsigned side, unsigned stride) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    unsigned rest = (unsigned)i;
    const unsigned channel = rest % channels;
    rest /= channels;
    const unsigned cell = rest % (side * side);
    rest /= side * side;
    const unsigned column = rest % columns;
    rest /= columns;
    const unsigned row = rest % rows, image = rest / rows;
    // a negative row wraps around to a large unsigned number, which is outside the map too
    const unsigned y = row * stride + cell / side - side / 2, x = column * stride + cell % side - side / 2;
    const bool is_inside = y < height && x < width;
    out[i] = is_inside ? xs[(((size_t)image * height + y) * width + x) * channels + channel] : rounded<T>(0.0f);
}

// Depthwise convolution with one thread per element of out [images, rows, columns, channels], which has count elements;
// kernel is [side * side, channels] and bias [channels].
template <typename T>
__device__ void depthwise(const T *xs, const T *kernel, const T *bias, T *out, unsigned count, unsigned height,
                          unsigned width, unsigned channels, unsigned rows, unsigned columns, unsigned side,
                          unsigned stride, unsigned activation) {
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
    for (unsigned cell = 0; cell < side * side; ++cell) {
        const unsigned y = row * stride + cell / side - side / 2, x = column * stride + cell % side - side / 2;
        if (y < height && x < width) {
            const T seen = xs[(((size_t)image * height + y) * width + x) * channels + channel];
            sum += number(seen) * number(kernel[cell * channels + channel]);
        }
    }
    out[i] = rounded<T>(activated(sum + number(bias[channel]), activation));
}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, T *out, unsigned count, unsigned height, unsigned width, unsigned channels, unsigned rows,          \
     unsigned columns, unsigned side, unsigned stride)
FOR_EVERY_FORMAT(patches, PARAMETERS, (xs, out, count, height, width, channels, rows, columns, side, stride))
#undef PARAMETERS

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *kernel, const T *bias, T *out, unsigned count, unsigned height, unsigned width,            \
     unsigned channels, unsigned rows, unsigned columns, unsigned side, unsigned stride, unsigned activation)
FOR_EVERY_FORMAT(depthwise, PARAMETERS,
                 (xs, kernel, bias, out, count, height, width, channels, rows, columns, side, stride, activation))
#undef PARAMETERS
