// Layer norm.
#include "numbers.cuh"

// A warp norms a row of xs [rows, channels], around its mean, into out; weight and bias are [channels].
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
