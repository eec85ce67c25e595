// Number formats, and sums over a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;

__device__ __forceinline__ float number(f32 x) { return x; }
__device__ __forceinline__ float number(f16 x) { return __half2float(x); }
__device__ __forceinline__ float number(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T rounded(float x);
template <> __device__ __forceinline__ f32 rounded<f32>(float x) { return x; }
template <> __device__ __forceinline__ f16 rounded<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 rounded<bf16>(float x) { return __float2bfloat16_rn(x); }

constexpr unsigned WARP = 32;
constexpr unsigned ALL = 0xffffffff;

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Sums over all threads of a block of whole warps; every thread gets the sum.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[WARP];
    x = warp_sum(x);
    // all threads must have read the result of an earlier call
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp)
        sum += parts[warp];
    return sum;
}

// The maximum over all threads of a block of whole warps; every thread gets it.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float largest = parts[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP; ++warp)
        largest = fmaxf(largest, parts[warp]);
    return largest;
}

// Elements that are read and written with one instruction.
template <typename T, unsigned COUNT> struct alignas(COUNT * sizeof(T)) Pack {
    T of[COUNT];
};

enum { NONE, RELU, GELU, GELU_TANH };

__device__ __forceinline__ float activated(float x, unsigned activation) {
    if (activation == RELU)
        return x < 0.0f ? 0.0f : x;
    if (activation == GELU)
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if (activation == GELU_TANH)
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * x * (1.0f + 0.044715f * x * x)));
    return x;
}

// Defines the kernel NAME for every number format. PARAMETERS are declared with the element type T; ARGUMENTS are
// passed on.
#define FOR_EVERY_FORMAT(NAME, PARAMETERS, ARGUMENTS)                                                                  \
    FOR_FORMAT(NAME, f32, PARAMETERS, ARGUMENTS)                                                                       \
    FOR_FORMAT(NAME, f16, PARAMETERS, ARGUMENTS)                                                                       \
    FOR_FORMAT(NAME, bf16, PARAMETERS, ARGUMENTS)
#define FOR_FORMAT(NAME, FORMAT, PARAMETERS, ARGUMENTS)                                                                \
    extern "C" __global__ void NAME##_##FORMAT PARAMETERS(FORMAT) { NAME ARGUMENTS; }
