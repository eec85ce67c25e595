// Layer norm and group norm.
#include "numbers.cuh"

// Layer norm with one warp per row of xs [rows, channels]; weight and bias are [channels]. The variance is computed
// around the mean, in a second pass.
template <typename T>
__device__ void layer_norm(const T *xs, const T *weight, const T *bias, T *out, unsigned rows, unsigned channels,
                           float eps, unsigned activation) {
    const size_t row = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows)
        return;
    xs += row * channels;
    out += row * channels;
    float sum = 0.0f;
    for (unsigned channel = lane; channel < channels; channel += WARP)
        sum += number(xs[channel]);
    const float mean = warp_sum(sum) / channels;
    float squares = 0.0f;
    for (unsigned channel = lane; channel < channels; channel += WARP) {
        const float difference = number(xs[channel]) - mean;
        squares += difference * difference;
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / channels + eps);
    for (unsigned channel = lane; channel < channels; channel += WARP) {
        const float normed = (number(xs[channel]) - mean) * scale;
        const float result = normed * number(weight[channel]) + number(bias[channel]);
        out[channel] = rounded<T>(activated(result, activation));
    }
}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *weight, const T *bias, T *out, unsigned rows, unsigned channels, float eps,                \
     unsigned activation)
FOR_EVERY_FORMAT(layer_norm, PARAMETERS, (xs, weight, bias, out, rows, channels, eps, activation))
#undef PARAMETERS

// Group norm with one block per image and group of xs [images, cells, groups * width]; weight and bias are
// [groups * width]. The variance is computed around the mean, in a second pass.
template <typename T>
__device__ void group_norm(const T *xs, const T *weight, const T *bias, T *out, unsigned cells, unsigned groups,
                           unsigned width, float eps) {
    const unsigned group = blockIdx.x % groups, channels = groups * width, count = cells * width;
    const size_t start = (size_t)(blockIdx.x / groups) * cells * channels + group * width;
    xs += start;
    out += start;
    weight += group * width;
    bias += group * width;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x)
        sum += number(xs[(size_t)(i / width) * channels + i % width]);
    const float mean = block_sum(sum) / count;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const float difference = number(xs[(size_t)(i / width) * channels + i % width]) - mean;
        squares += difference * difference;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / count + eps);
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const unsigned channel = i % width;
        const size_t place = (size_t)(i / width) * channels + channel;
        const float normed = (number(xs[place]) - mean) * scale;
        out[place] = rounded<T>(normed * number(weight[channel]) + number(bias[channel]));
    }
}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *weight, const T *bias, T *out, unsigned cells, unsigned groups, unsigned width, float eps)
FOR_EVERY_FORMAT(group_norm, PARAMETERS, (xs, weight, bias, out, cells, groups, width, eps))
#undef PARAMETERS
