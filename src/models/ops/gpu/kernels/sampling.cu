// The sampling step of multi-scale deformable attention.
#include "numbers.cuh"

constexpr unsigned MAX_LEVELS = 16;

struct Levels {
    unsigned count;
    unsigned rows[MAX_LEVELS];
    unsigned columns[MAX_LEVELS];
};

// One warp sums the samples of one head of one query. First each lane computes the location and weight of one sample;
// then each lane sums one channel over all samples.
//
// value [images, heads, tokens, width], samples [images, queries, 3 * heads * count] with count = levels * points: all
// x offsets, all y offsets, all logits; reference [images, queries, levels, coordinates]; out [images, queries, heads *
// width]. rows = images * queries.
template <typename T>
__device__ void sampling(const T *value, const T *samples, const float *reference, T *out, Levels levels,
                         unsigned rows, unsigned queries, unsigned heads, unsigned tokens, unsigned width,
                         unsigned points, unsigned coordinates) {
    const size_t warp = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (warp >= (size_t)rows * heads)
        return;
    const unsigned head = warp % heads;
    const size_t row = warp / heads;
    const unsigned count = levels.count * points;
    const T *offsets_x = samples + (row * 3 * heads + head) * count;
    const T *offsets_y = offsets_x + (size_t)heads * count;
    const T *logits = offsets_y + (size_t)heads * count;
    const float *references = reference + row * levels.count * coordinates;
    const T *map = value + (row / queries * heads + head) * tokens * width;

    float largest = -INFINITY;
    for (unsigned i = lane; i < count; i += WARP)
        largest = fmaxf(largest, number(logits[i]));
    largest = warp_max(largest);
    float sum = 0.0f;
    for (unsigned i = lane; i < count; i += WARP)
        sum += expf(number(logits[i]) - largest);
    sum = warp_sum(sum);

    for (unsigned first_channel = 0; first_channel < width; first_channel += WARP) {
        const unsigned channel = first_channel + lane;
        float total = 0.0f;
        for (unsigned first = 0; first < count; first += WARP) {
            const unsigned i = first + lane;
            // the bilinear weights of the four cells around the location, and the index of the top left cell
            float shares[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            int cell = 0, columns = 0;
            if (i < count) {
                const unsigned level = i / points;
                int start = 0;
                for (unsigned before = 0; before < level; ++before)
                    start += levels.rows[before] * levels.columns[before];
                const int height = levels.rows[level];
                columns = levels.columns[level];
                const float *at = references + level * coordinates;
                float x = number(offsets_x[i]), y = number(offsets_y[i]);
                if (coordinates == 2) {
                    x = x / columns + at[0];
                    y = y / height + at[1];
                } else {
                    x = x / points * (at[2] * 0.5f) + at[0];
                    y = y / points * (at[3] * 0.5f) + at[1];
                }
                x = x * columns - 0.5f;
                y = y * height - 0.5f;
                // a location outside the map, or one that is NaN, gets weight 0
                if (x > -1.0f && y > -1.0f && x < columns && y < height) {
                    const float weight = expf(number(logits[i]) - largest) / sum;
                    const int left = (int)floorf(x), top = (int)floorf(y);
                    const float right_share = x - left, bottom_share = y - top;
                    cell = start + top * columns + left;
                    if (top >= 0) {
                        if (left >= 0)
                            shares[0] = weight * (1.0f - bottom_share) * (1.0f - right_share);
                        if (left + 1 < columns)
                            shares[1] = weight * (1.0f - bottom_share) * right_share;
                    }
                    if (top + 1 < height) {
                        if (left >= 0)
                            shares[2] = weight * bottom_share * (1.0f - right_share);
                        if (left + 1 < columns)
                            shares[3] = weight * bottom_share * right_share;
                    }
                }
            }
            const unsigned places = min(WARP, count - first);
            for (unsigned place = 0; place < places; ++place) {
                const int corner = __shfl_sync(ALL, cell, place);
                const int below = __shfl_sync(ALL, columns, place);
                const float top_left = __shfl_sync(ALL, shares[0], place);
                const float top_right = __shfl_sync(ALL, shares[1], place);
                const float bottom_left = __shfl_sync(ALL, shares[2], place);
                const float bottom_right = __shfl_sync(ALL, shares[3], place);
                if (channel >= width)
                    continue;
                // a cell with weight 0 may lie outside the map, so it is not read
                const T *cells = map + (ptrdiff_t)corner * width + channel;
                if (top_left != 0.0f)
                    total += top_left * number(cells[0]);
                if (top_right != 0.0f)
                    total += top_right * number(cells[width]);
                cells += (ptrdiff_t)below * width;
                if (bottom_left != 0.0f)
                    total += bottom_left * number(cells[0]);
                if (bottom_right != 0.0f)
                    total += bottom_right * number(cells[width]);
            }
        }
        if (channel < width)
            out[(row * heads + head) * width + channel] = rounded<T>(total);
    }
}

#define PARAMETERS(T)                                                                                                  \
    (const T *value, const T *samples, const float *reference, T *out, Levels levels, unsigned rows,                  \
     unsigned queries, unsigned heads, unsigned tokens, unsigned width, unsigned points, unsigned coordinates)
FOR_EVERY_FORMAT(sampling, PARAMETERS,
                 (value, samples, reference, out, levels, rows, queries, heads, tokens, width, points, coordinates))
#undef PARAMETERS
