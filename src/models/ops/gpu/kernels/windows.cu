// Splits maps into windows and channels into heads, and back.
#include "numbers.cuh"

// The windows of maps with `height` rows and `width` columns. The maps are padded to whole windows and rolled by
// `shift`.
struct Windows {
    unsigned height, width, rows, columns, down, across, shift;

    // Computes the position in the map of a window's token; returns false beyond the map's edge.
    __device__ bool place(unsigned window, unsigned token, unsigned &y, unsigned &x) const {
        const unsigned filled_height = down * rows, filled_width = across * columns;
        y = window / across * rows + token / columns + shift;
        x = window % across * columns + token % columns + shift;
        y -= y >= filled_height ? filled_height : 0;
        x -= x >= filled_width ? filled_width : 0;
        return y < height && x < width;
    }
};

// Copies xs [images, height, width, parts * heads * channels] to out [parts, windows, heads, tokens, channels] and
// multiplies the first part by scale. Each thread copies STEP elements; STEP divides the channels. Positions beyond the
// edge get padding_token [parts * heads * channels], or zeros if it is null.
template <unsigned STEP, typename T>
__device__ void to_windows_by(const T *xs, const T *padding_token, T *out, Windows windows, unsigned count,
                              unsigned parts, unsigned heads, unsigned channels, float scale) {
    const unsigned tokens = windows.rows * windows.columns;
    const unsigned of_image = windows.down * windows.across;
    const unsigned inner = heads * channels, all = parts * inner;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned place = thread / (all / STEP), i = thread % (all / STEP) * STEP;
    const unsigned window = place / tokens, token = place % tokens;
    if (window >= count)
        return;
    unsigned y, x;
    const T *from = padding_token;
    if (windows.place(window % of_image, token, y, x))
        from = xs + (((size_t)(window / of_image) * windows.height + y) * windows.width + x) * all;
    const unsigned part = i / inner, head = i % inner / channels, channel = i % channels;
    Pack<T, STEP> pack;
    if (from) {
        pack = *(const Pack<T, STEP> *)(from + i);
    } else {
        for (unsigned of = 0; of < STEP; ++of)
            pack.of[of] = rounded<T>(0.0f);
    }
    if (part == 0 && scale != 1.0f) {
        for (unsigned of = 0; of < STEP; ++of)
            pack.of[of] = rounded<T>(number(pack.of[of]) * scale);
    }
    T *to = out + ((((size_t)part * count + window) * heads + head) * tokens + token) * channels + channel;
    *(Pack<T, STEP> *)to = pack;
}

// The inverse for one part: copies xs [windows, heads, tokens, channels] to out [images, height, width, heads *
// channels], which has `places` positions. Each thread copies STEP elements.
template <unsigned STEP, typename T>
__device__ void from_windows_by(const T *xs, T *out, Windows windows, unsigned places, unsigned heads,
                                unsigned channels) {
    const unsigned tokens = windows.rows * windows.columns;
    const unsigned filled_height = windows.down * windows.rows, filled_width = windows.across * windows.columns;
    const unsigned of_map = windows.height * windows.width;
    const unsigned inner = heads * channels;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned i = thread % (inner / STEP) * STEP;
    if (thread / (inner / STEP) >= places)
        return;
    const unsigned image = thread / (inner / STEP) / of_map, place = thread / (inner / STEP) % of_map;
    unsigned y = place / windows.width, x = place % windows.width;
    y += (y < windows.shift ? filled_height : 0) - windows.shift;
    x += (x < windows.shift ? filled_width : 0) - windows.shift;
    const size_t window =
        ((size_t)image * windows.down + y / windows.rows) * windows.across + x / windows.columns;
    const unsigned token = y % windows.rows * windows.columns + x % windows.columns;
    const unsigned head = i / channels, channel = i % channels;
    const T *from = xs + ((window * heads + head) * tokens + token) * channels + channel;
    *(Pack<T, STEP> *)(out + (size_t)thread * STEP) = *(const Pack<T, STEP> *)from;
}

// `step` is 1, or the number of elements in 16 bytes.
template <typename T>
__device__ void to_windows(const T *xs, const T *padding_token, T *out, Windows windows, unsigned step, unsigned count,
                           unsigned parts, unsigned heads, unsigned channels, float scale) {
    if (step == 1)
        to_windows_by<1>(xs, padding_token, out, windows, count, parts, heads, channels, scale);
    else
        to_windows_by<16 / sizeof(T)>(xs, padding_token, out, windows, count, parts, heads, channels, scale);
}

template <typename T>
__device__ void from_windows(const T *xs, T *out, Windows windows, unsigned step, unsigned places, unsigned heads,
                             unsigned channels) {
    if (step == 1)
        from_windows_by<1>(xs, out, windows, places, heads, channels);
    else
        from_windows_by<16 / sizeof(T)>(xs, out, windows, places, heads, channels);
}

#define WINDOWS                                                                                                        \
    unsigned height, unsigned width, unsigned rows, unsigned columns, unsigned down, unsigned across, unsigned shift
#define OF_WINDOWS {height, width, rows, columns, down, across, shift}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *padding_token, T *out, WINDOWS, unsigned step, unsigned count, unsigned parts,              \
     unsigned heads, unsigned channels, float scale)
FOR_EVERY_FORMAT(to_windows, PARAMETERS,
                 (xs, padding_token, out, OF_WINDOWS, step, count, parts, heads, channels, scale))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *xs, T *out, WINDOWS, unsigned step, unsigned places, unsigned heads, unsigned channels)
FOR_EVERY_FORMAT(from_windows, PARAMETERS, (xs, out, OF_WINDOWS, step, places, heads, channels))
#undef PARAMETERS
