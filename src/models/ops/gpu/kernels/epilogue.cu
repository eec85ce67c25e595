// Bias, residual and activation after a matrix product.
#include "numbers.cuh"

// Computes activation(xs + bias + residual) in place. xs is [count]; bias is [channels] or null; residual is
// [residual_count] or null, and residual_count divides count. Each thread handles `step` elements; `step` divides
// channels and residual_count.
template <typename T>
__device__ void epilogue(T *xs, const T *bias, const T *residual, unsigned count, unsigned channels,
                         unsigned residual_count, unsigned step, unsigned activation) {
    const size_t start = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * step;
    if (start >= count)
        return;
    const unsigned channel = (unsigned)start % channels;
    const unsigned place = residual ? (unsigned)start % residual_count : 0;
    if (step == 4) {
        struct alignas(4 * sizeof(T)) Four {
            T of[4];
        };
        Four sums = *(const Four *)(xs + start), biases, others;
        if (bias)
            biases = *(const Four *)(bias + channel);
        if (residual)
            others = *(const Four *)(residual + place);
        for (unsigned i = 0; i < 4; ++i) {
            float sum = number(sums.of[i]);
            if (bias)
                sum += number(biases.of[i]);
            if (residual)
                sum += number(others.of[i]);
            sums.of[i] = rounded<T>(activated(sum, activation));
        }
        *(Four *)(xs + start) = sums;
        return;
    }
    float sum = number(xs[start]);
    if (bias)
        sum += number(bias[channel]);
    if (residual)
        sum += number(residual[place]);
    xs[start] = rounded<T>(activated(sum, activation));
}

#define PARAMETERS(T)                                                                                                  \
    (T * xs, const T *bias, const T *residual, unsigned count, unsigned channels, unsigned residual_count,            \
     unsigned step, unsigned activation)
FOR_EVERY_FORMAT(epilogue, PARAMETERS, (xs, bias, residual, count, channels, residual_count, step, activation))
#undef PARAMETERS
