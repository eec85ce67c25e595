// The softmax of attention scores, with the biases that are added to them first.
#include "numbers.cuh"

// The biases of a row of scores. A bias whose pointer is null is left out, and so is the mask of windows if the shift
// is 0.
template <typename T> struct Added {
    // [images or 1, heads or 1, queries or 1, keys], with a stride of 0 in dimensions of size 1
    const T *bias;
    unsigned image_step, head_step, query_step;
    // decomposed relative positions in windows of `columns` columns and `rows` rows: by query row [rows, groups,
    // columns, rows] and by query column [columns, groups, rows, columns], to be multiplied by `relative_scale`
    const T *by_row;
    const T *by_column;
    unsigned rows, columns;
    float relative_scale;
    // shifted windows, `across` by `down` of an image: -100 between tokens that were not neighbours before the shift
    unsigned shift, across, down;
};

// The part of the map that a token of a shifted window comes from, in rows and in columns.
__device__ __forceinline__ unsigned region(unsigned top, unsigned left, unsigned y, unsigned x, unsigned bottom_edge,
                                           unsigned right_edge) {
    return 2 * (top + y >= bottom_edge) + (left + x >= right_edge);
}

template <typename T> struct Row {
    const Added<T> *added;
    const T *scores, *bias, *by_row, *by_column;
    unsigned top, left, bottom_edge, right_edge, own_region;

    // `groups` counts the heads of all images; an image may be a window
    __device__ Row(const Added<T> &added, const T *scores, size_t row, unsigned groups, unsigned heads,
                   unsigned queries)
        : added(&added), scores(scores), bias(nullptr), by_row(nullptr), by_column(nullptr) {
        const unsigned query = row % queries;
        const size_t group = row / queries;
        const unsigned head = group % heads;
        const size_t image = group / heads;
        if (added.bias)
            bias = added.bias + image * added.image_step + (size_t)head * added.head_step +
                   (size_t)query * added.query_step;
        if (added.by_row) {
            const unsigned y = query / added.columns, x = query % added.columns;
            by_row = added.by_row + (((size_t)y * groups + group) * added.columns + x) * added.rows;
            by_column = added.by_column + (((size_t)x * groups + group) * added.rows + y) * added.columns;
        }
        if (added.shift) {
            const unsigned window = image % (added.across * added.down);
            top = window / added.across * added.rows;
            left = window % added.across * added.columns;
            bottom_edge = added.down * added.rows - added.shift;
            right_edge = added.across * added.columns - added.shift;
            own_region = region(top, left, query / added.columns, query % added.columns, bottom_edge, right_edge);
        }
    }

    __device__ float score(unsigned key) const {
        float score = number(scores[key]);
        if (bias)
            score += number(bias[key]);
        if (by_row || added->shift) {
            const unsigned y = key / added->columns, x = key % added->columns;
            if (by_row)
                score += added->relative_scale * (number(by_row[y]) + number(by_column[x]));
            if (added->shift && region(top, left, y, x, bottom_edge, right_edge) != own_region)
                score -= 100.0f;
        }
        return score;
    }
};

// Combines the denominators of two parts of a row, each relative to the largest score of its part.
__device__ __forceinline__ void join(float &largest, float &sum, float other_largest, float other_sum) {
    const float both = fmaxf(largest, other_largest);
    // the largest score of an empty part is -inf
    const float own = sum == 0.0f ? 0.0f : sum * expf(largest - both);
    const float others = other_sum == 0.0f ? 0.0f : other_sum * expf(other_largest - both);
    largest = both;
    sum = own + others;
}

// Softmax in place of scores [groups * queries, keys]. The threads with the same y work on one row; they are more than
// one warp only if the block has a single row.
template <typename T>
__device__ void softmax(T *scores, Added<T> added, unsigned groups, unsigned heads, unsigned queries, unsigned keys) {
    const size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= (size_t)groups * queries)
        return;
    scores += row * keys;
    const Row<T> of_row(added, scores, row, groups, heads, queries);
    float largest = -INFINITY, sum = 0.0f;
    constexpr unsigned HELD = 8;
    if (blockDim.x == WARP && keys <= HELD * WARP) {
        // the row stays in registers between the passes
        float held[HELD];
#pragma unroll
        for (unsigned i = 0; i < HELD; ++i) {
            const unsigned key = i * WARP + threadIdx.x;
            held[i] = key < keys ? of_row.score(key) : -INFINITY;
            largest = fmaxf(largest, held[i]);
        }
        largest = warp_max(largest);
#pragma unroll
        for (unsigned i = 0; i < HELD; ++i) {
            held[i] = i * WARP + threadIdx.x < keys ? expf(held[i] - largest) : 0.0f;
            sum += held[i];
        }
        const float share = 1.0f / warp_sum(sum);
#pragma unroll
        for (unsigned i = 0; i < HELD; ++i) {
            const unsigned key = i * WARP + threadIdx.x;
            if (key < keys)
                scores[key] = rounded<T>(held[i] * share);
        }
        return;
    }
    for (unsigned key = threadIdx.x; key < keys; key += blockDim.x) {
        const float score = of_row.score(key);
        if (score > largest) {
            sum = sum * expf(largest - score) + 1.0f;
            largest = score;
        } else if (score != -INFINITY) {
            sum += expf(score - largest);
        }
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL, largest, step);
        join(largest, sum, other, __shfl_xor_sync(ALL, sum, step));
    }
    if (blockDim.x > WARP) {
        __shared__ float parts[2][WARP];
        const unsigned warps = blockDim.x / WARP;
        if (threadIdx.x % WARP == 0) {
            parts[0][threadIdx.x / WARP] = largest;
            parts[1][threadIdx.x / WARP] = sum;
        }
        __syncthreads();
        largest = parts[0][0];
        sum = parts[1][0];
        for (unsigned warp = 1; warp < warps; ++warp)
            join(largest, sum, parts[0][warp], parts[1][warp]);
    }
    const float share = 1.0f / sum;
    for (unsigned key = threadIdx.x; key < keys; key += blockDim.x)
        scores[key] = rounded<T>(expf(of_row.score(key) - largest) * share);
}

// The same with one row per block and at most 16 elements per thread. The row is read once, 16 bytes at a time, and
// stays in registers between the passes. The number of keys, and of columns if there are relative positions, must be a
// multiple of the elements in 16 bytes; shifted windows are not supported.
template <typename T>
__device__ void softmax_wide(T *scores, Added<T> added, unsigned groups, unsigned heads, unsigned queries,
                             unsigned keys) {
    constexpr unsigned STEP = 16 / sizeof(T), PACKS = 16 / STEP;
    const size_t row = blockIdx.x;
    scores += row * keys;
    const Row<T> of_row(added, scores, row, groups, heads, queries);
    float held[PACKS][STEP];
    float largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (unsigned pack = 0; pack < PACKS; ++pack) {
        const unsigned key = (pack * blockDim.x + threadIdx.x) * STEP;
        if (key >= keys)
            continue;
        const Pack<T, STEP> own = *(const Pack<T, STEP> *)(scores + key);
#pragma unroll
        for (unsigned i = 0; i < STEP; ++i)
            held[pack][i] = number(own.of[i]);
        if (of_row.bias) {
#pragma unroll
            for (unsigned i = 0; i < STEP; ++i)
                held[pack][i] += number(of_row.bias[key + i]);
        }
        if (of_row.by_row) {
            const float of_y = number(of_row.by_row[key / added.columns]);
            const Pack<T, STEP> of_x = *(const Pack<T, STEP> *)(of_row.by_column + key % added.columns);
#pragma unroll
            for (unsigned i = 0; i < STEP; ++i)
                held[pack][i] += added.relative_scale * (of_y + number(of_x.of[i]));
        }
#pragma unroll
        for (unsigned i = 0; i < STEP; ++i)
            largest = fmaxf(largest, held[pack][i]);
    }
    largest = block_max(largest);
#pragma unroll
    for (unsigned pack = 0; pack < PACKS; ++pack) {
        if ((pack * blockDim.x + threadIdx.x) * STEP >= keys)
            continue;
#pragma unroll
        for (unsigned i = 0; i < STEP; ++i) {
            held[pack][i] = expf(held[pack][i] - largest);
            sum += held[pack][i];
        }
    }
    const float share = 1.0f / block_sum(sum);
#pragma unroll
    for (unsigned pack = 0; pack < PACKS; ++pack) {
        const unsigned key = (pack * blockDim.x + threadIdx.x) * STEP;
        if (key >= keys)
            continue;
        Pack<T, STEP> result;
#pragma unroll
        for (unsigned i = 0; i < STEP; ++i)
            result.of[i] = rounded<T>(held[pack][i] * share);
        *(Pack<T, STEP> *)(scores + key) = result;
    }
}

#define PARAMETERS(T)                                                                                                  \
    (T * scores, const T *bias, unsigned image_step, unsigned head_step, unsigned query_step, const T *by_row,        \
     const T *by_column, unsigned rows, unsigned columns, float relative_scale, unsigned shift, unsigned across,      \
     unsigned down, unsigned groups, unsigned heads, unsigned queries, unsigned keys)
#define ADDED                                                                                                          \
    {bias, image_step, head_step, query_step, by_row, by_column, rows, columns, relative_scale, shift, across, down}
FOR_EVERY_FORMAT(softmax, PARAMETERS, (scores, ADDED, groups, heads, queries, keys))
FOR_EVERY_FORMAT(softmax_wide, PARAMETERS, (scores, ADDED, groups, heads, queries, keys))
#undef ADDED
#undef PARAMETERS
