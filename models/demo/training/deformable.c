/* Multi-scale deformable attention, forward and backward, for training on a CPU.
 *
 * The reference implementation samples with grid_sample and stores every sample;
 * accumulating them directly is several times faster. Layouts (all float32,
 * contiguous): value [B, S, H, C], locations [B, Q, H, L, P, 2] in 0..1,
 * weights [B, Q, H, L, P], output [B, Q, H, C]; shapes [L, 2] = height, width.
 */
#include <math.h>
#include <stdint.h>

#define C 32 /* channels of one head */

typedef struct {
    int64_t batch, tokens, queries, heads, levels, points;
} Sizes;

void deformable_forward(const Sizes *n, const int64_t *shapes, const float *value,
                        const float *locations, const float *weights, float *output)
{
    const int64_t row = n->heads * C, samples = n->levels * n->points;
    for (int64_t b = 0; b < n->batch; b++)
        for (int64_t q = 0; q < n->queries; q++)
            for (int64_t h = 0; h < n->heads; h++) {
                const int64_t at = (b * n->queries + q) * n->heads + h;
                const float *loc = locations + at * samples * 2, *weight = weights + at * samples;
                float sum[C] = {0};
                const float *plane = value + b * n->tokens * row + h * C;
                for (int64_t l = 0; l < n->levels; l++) {
                    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
                    for (int64_t p = 0; p < n->points; p++, loc += 2, weight++) {
                        const float x = loc[0] * width - 0.5f, y = loc[1] * height - 0.5f;
                        if (!(x > -1 && y > -1 && x < width && y < height)) continue;
                        const int64_t x0 = (int64_t)floorf(x), y0 = (int64_t)floorf(y);
                        const float fx = x - x0, fy = y - y0;
                        for (int64_t dy = 0; dy < 2; dy++)
                            for (int64_t dx = 0; dx < 2; dx++) {
                                const int64_t xi = x0 + dx, yi = y0 + dy;
                                if (xi < 0 || yi < 0 || xi >= width || yi >= height) continue;
                                const float k = *weight * (dx ? fx : 1 - fx) * (dy ? fy : 1 - fy);
                                const float *v = plane + (yi * width + xi) * row;
                                for (int c = 0; c < C; c++) sum[c] += k * v[c];
                            }
                    }
                    plane += height * width * row;
                }
                for (int c = 0; c < C; c++) output[at * C + c] = sum[c];
            }
}

/* Computes the gradients; grad_value, grad_locations and grad_weights must be zero on entry. */
void deformable_backward(const Sizes *n, const int64_t *shapes, const float *value,
                         const float *locations, const float *weights, const float *grad_output,
                         float *grad_value, float *grad_locations, float *grad_weights)
{
    const int64_t row = n->heads * C, samples = n->levels * n->points;
    for (int64_t b = 0; b < n->batch; b++)
        for (int64_t q = 0; q < n->queries; q++)
            for (int64_t h = 0; h < n->heads; h++) {
                const int64_t at = (b * n->queries + q) * n->heads + h;
                const float *loc = locations + at * samples * 2, *weight = weights + at * samples;
                float *grad_loc = grad_locations + at * samples * 2, *grad_weight = grad_weights + at * samples;
                const float *grad = grad_output + at * C;
                int64_t start = b * n->tokens * row + h * C;
                for (int64_t l = 0; l < n->levels; l++) {
                    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
                    for (int64_t p = 0; p < n->points; p++, loc += 2, weight++, grad_loc += 2, grad_weight++) {
                        const float x = loc[0] * width - 0.5f, y = loc[1] * height - 0.5f;
                        if (!(x > -1 && y > -1 && x < width && y < height)) continue;
                        const int64_t x0 = (int64_t)floorf(x), y0 = (int64_t)floorf(y);
                        const float fx = x - x0, fy = y - y0;
                        float dot[2][2] = {{0, 0}, {0, 0}};
                        for (int64_t dy = 0; dy < 2; dy++)
                            for (int64_t dx = 0; dx < 2; dx++) {
                                const int64_t xi = x0 + dx, yi = y0 + dy;
                                if (xi < 0 || yi < 0 || xi >= width || yi >= height) continue;
                                const float k = *weight * (dx ? fx : 1 - fx) * (dy ? fy : 1 - fy);
                                const float *v = value + start + (yi * width + xi) * row;
                                float *gv = grad_value + start + (yi * width + xi) * row;
                                float sum = 0;
                                for (int c = 0; c < C; c++) {
                                    sum += grad[c] * v[c];
                                    gv[c] += k * grad[c];
                                }
                                dot[dy][dx] = sum;
                            }
                        *grad_weight = (1 - fy) * ((1 - fx) * dot[0][0] + fx * dot[0][1])
                                     + fy * ((1 - fx) * dot[1][0] + fx * dot[1][1]);
                        grad_loc[0] = *weight * width * ((1 - fy) * (dot[0][1] - dot[0][0]) + fy * (dot[1][1] - dot[1][0]));
                        grad_loc[1] = *weight * height * ((1 - fx) * (dot[1][0] - dot[0][0]) + fx * (dot[1][1] - dot[0][1]));
                    }
                    start += height * width * row;
                }
            }
}
