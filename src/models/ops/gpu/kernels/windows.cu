// Maps cut into windows, and their channels into heads.
#include "numbers.cuh"

// Windows of maps of `height` rows and `width` columns, which are filled up to whole windows, and rolled by `shift`.
struct Windows {
    unsigned height, width, rows, columns, down, across, shift;

    // The place in the map of a window's token, `false` beyond the map's edge.
    __device__ bool place(unsigned window, unsigned token, unsigned &y, unsigned &x) const {
        const unsigned filled_height = down * rows, filled_width = across * columns;
        y = window / across * rows + token / columns + shift;
        x = window % across * columns + token % columns + shift;
        y -= y >= filled_height ? filled_height : 0;
        x -= x >= filled_width ? filled_width : 0;
        return y < height && x < width;
    }
};

// A block for every window's token: of xs [images, height, width, parts * heads * channels] to out [parts, windows,
// heads, tokens, channels], the first part multiplied by scale; filler [parts * heads * channels] lies beyond the edge,
// or zeros where there is none.
template <typename T>
__device__ void to_windows(const T *xs, const T *filler, T *out, Windows windows, unsigned count, unsigned parts,
                           unsigned heads, unsigned channels, float scale) {
    const unsigned tokens = windows.rows * windows.columns;
    const unsigned window = blockIdx.x / tokens, token = blockIdx.x % tokens;
    const unsigned of_image = windows.down * windows.across;
    const unsigned inner = heads * channels, all = parts * inner;
    unsigned y, x;
    const T *from = filler;
    if (windows.place(window % of_image, token, y, x))
        from = xs + (((size_t)(window / of_image) * windows.height + y) * windows.width + x) * all;
    for (unsigned i = threadIdx.x; i < all; i += blockDim.x) {
        const unsigned part = i / inner, head = i % inner / channels, channel = i % channels;
        T number_ = from ? from[i] : rounded<T>(0.0f);
        if (part == 0 && scale != 1.0f)
            number_ = rounded<T>(number(number_) * scale);
        out[((((size_t)part * count + window) * heads + head) * tokens + token) * channels + channel] = number_;
    }
}

// The inverse for one part, a block for every place of a map: of xs [windows, heads, tokens, channels] to out [images,
// height, width, heads * channels].
template <typename T>
__device__ void from_windows(const T *xs, T *out, Windows windows, unsigned heads, unsigned channels) {
    const unsigned tokens = windows.rows * windows.columns;
    const unsigned filled_height = windows.down * windows.rows, filled_width = windows.across * windows.columns;
    const unsigned of_map = windows.height * windows.width;
    const unsigned image = blockIdx.x / of_map, place = blockIdx.x % of_map;
    unsigned y = place / windows.width, x = place % windows.width;
    y += (y < windows.shift ? filled_height : 0) - windows.shift;
    x += (x < windows.shift ? filled_width : 0) - windows.shift;
    const size_t window =
        ((size_t)image * windows.down + y / windows.rows) * windows.across + x / windows.columns;
    const unsigned token = y % windows.rows * windows.columns + x % windows.columns;
    const unsigned inner = heads * channels;
    for (unsigned i = threadIdx.x; i < inner; i += blockDim.x) {
        const unsigned head = i / channels, channel = i % channels;
        out[(size_t)blockIdx.x * inner + i] = xs[((window * heads + head) * tokens + token) * channels + channel];
    }
}

#define WINDOWS                                                                                                        \
    unsigned height, unsigned width, unsigned rows, unsigned columns, unsigned down, unsigned across, unsigned shift
#define OF_WINDOWS {height, width, rows, columns, down, across, shift}

#define PARAMETERS(T)                                                                                                  \
    (const T *xs, const T *filler, T *out, WINDOWS, unsigned count, unsigned parts, unsigned heads,                   \
     unsigned channels, float scale)
FOR_EVERY_FORMAT(to_windows, PARAMETERS, (xs, filler, out, OF_WINDOWS, count, parts, heads, channels, scale))
#undef PARAMETERS

#define PARAMETERS(T) (const T *xs, T *out, WINDOWS, unsigned heads, unsigned channels)
FOR_EVERY_FORMAT(from_windows, PARAMETERS, (xs, out, OF_WINDOWS, heads, channels))
#undef PARAMETERS
