// The product of a few rows of attention weights with very many values: text tokens that attend to an image.
#include "numbers.cuh"

// The rows of a block, and the number of tokens whose weights are in shared memory at a time.
constexpr unsigned SUMMED = 16, STAGE = 32;

// The tokens are split into `splits` parts of `part` tokens, and a block of `width` threads sums over one part: from
// weights [images, heads, rows, tokens] and values [images, tokens, heads * width] to partial [splits, images * heads,
// rows, width].
template <typename T>
__device__ void partial_sums(const T *shares, const T *values, float *partial, unsigned groups, unsigned heads,
                             unsigned rows, unsigned tokens, unsigned width, unsigned splits, unsigned part) {
    alignas(16) __shared__ float staged[STAGE][SUMMED + 4];
    const unsigned split = blockIdx.x % splits, block = blockIdx.x / splits;
    const unsigned group = block % groups, first_row = block / groups * SUMMED;
    const unsigned stride = heads * width;
    shares += ((size_t)group * rows + first_row) * tokens;
    values += (size_t)(group / heads) * tokens * stride + group % heads * width + threadIdx.x;
    const unsigned end = min(tokens, (split + 1) * part);
    float sums[SUMMED];
#pragma unroll
    for (unsigned row = 0; row < SUMMED; ++row)
        sums[row] = 0.0f;
    for (unsigned start = split * part; start < end; start += STAGE) {
        __syncthreads();
        for (unsigned i = threadIdx.x; i < STAGE * SUMMED; i += blockDim.x) {
            const unsigned row = i / STAGE, token = i % STAGE;
            const bool is_inside = start + token < end && first_row + row < rows;
            staged[token][row] = is_inside ? number(shares[(size_t)row * tokens + start + token]) : 0.0f;
        }
        __syncthreads();
        const T *from = values + (size_t)start * stride;
        const unsigned count = min(STAGE, end - start);
#pragma unroll 8
        for (unsigned token = 0; token < count; ++token) {
            const float value = number(from[(size_t)token * stride]);
#pragma unroll
            for (unsigned row = 0; row < SUMMED; ++row)
                sums[row] += staged[token][row] * value;
        }
    }
    partial += (((size_t)split * groups + group) * rows + first_row) * width + threadIdx.x;
#pragma unroll
    for (unsigned row = 0; row < SUMMED; ++row) {
        if (first_row + row < rows)
            partial[(size_t)row * width] = sums[row];
    }
}

// Adds the sums of the parts, with one thread per element of out [images, rows, heads * width], which has `count`.
template <typename T>
__device__ void joined_sums(const float *partial, T *out, unsigned count, unsigned heads, unsigned rows,
                            unsigned width, unsigned splits) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const unsigned channel = i % width, head = i / width % heads, row = i / (width * heads) % rows;
    const unsigned image = i / (width * heads * rows);
    partial += (((size_t)image * heads + head) * rows + row) * width + channel;
    float sum = 0.0f;
    for (unsigned split = 0; split < splits; ++split)
        sum += partial[(size_t)split * count];
    out[i] = rounded<T>(sum);
}

#define PARAMETERS(T)                                                                                                  \
    (const T *shares, const T *values, float *partial, unsigned groups, unsigned heads, unsigned rows,                \
     unsigned tokens, unsigned width, unsigned splits, unsigned part)
FOR_EVERY_FORMAT(partial_sums, PARAMETERS,
                 (shares, values, partial, groups, heads, rows, tokens, width, splits, part))
#undef PARAMETERS

#define PARAMETERS(T)                                                                                                  \
    (const float *partial, T *out, unsigned count, unsigned heads, unsigned rows, unsigned width, unsigned splits)
FOR_EVERY_FORMAT(joined_sums, PARAMETERS, (partial, out, count, heads, rows, width, splits))
#undef PARAMETERS
