// Conversions, and what training does to whole buffers. All bound by memory or by their launch.
#include "params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace elementwise {

template <class T> __device__ __forceinline__ void convert_rows(const ConvertRows &p) {
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (long long)gridDim.x * 256) {
        const long long row = p.count <= 0x7fffffff ? (unsigned)i / (unsigned)p.cols : i / p.cols;
        const long long col = i - row * p.cols;
        T *to = static_cast<T *>(p.to) + row * p.to_stride + col;
        const float x = p.from[row * p.from_stride + col];
        *to = static_cast<T>(p.add ? static_cast<float>(*to) + x : x);
    }
}

template <class T> __device__ __forceinline__ void sum_rows(const SumRows &p) {
    __shared__ float s_sum[8][32];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, col = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (col < p.cols)
        for (long long row = part; row < p.rows; row += 8)
            sum += static_cast<float>(static_cast<const T *>(p.x)[row * p.stride + col]);
    s_sum[part][lane] = sum;
    __syncthreads();
    if (part || col >= p.cols) return;
    for (int other = 1; other < 8; other++) sum += s_sum[other][lane];
    p.out[col] = sum;
}

} // namespace elementwise

extern "C" __global__ void __launch_bounds__(256) combine(const __grid_constant__ Combine p) {
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (long long)gridDim.x * 256) {
        const float x = p.from[i];
        p.to[i] = p.operation == kNegativeExp ? -expf(x) : p.operation == kMultiply ? p.to[i] * x : p.to[i] + x;
    }
}

#define ELEMENTWISE(T, name)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) convert_rows_##name(const __grid_constant__ ConvertRows p) { \
        elementwise::convert_rows<T>(p);                                                                       \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) sum_rows_##name(const __grid_constant__ SumRows p) {     \
        elementwise::sum_rows<T>(p);                                                                           \
    }
ELEMENTWISE(__nv_bfloat16, bf16)
ELEMENTWISE(__half, f16)
ELEMENTWISE(float, f32)
