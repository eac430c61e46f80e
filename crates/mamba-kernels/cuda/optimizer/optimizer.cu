// The norm of all gradients, and a step of AdamW over all parameters in one launch: bound by memory (28 bytes an element
// and 2 for its copy).
#include "params.h"
#include <cuda_bf16.h>

namespace optimizer {

// The sum over the block in thread 0.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double s_sum[8];
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    if (threadIdx.x % 32 == 0) s_sum[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0.0;
    for (int warp = 0; warp < 8; warp++) sum += s_sum[warp];
    return sum;
}

// The copies of four neighbouring elements, `at` of the flat group on. bf16 is rounded up or down by chance, in proportion
// to what is cut off, by the same number for an element at every step: on average over many elements the whole of a step
// reaches the copies. To the nearest, a step below half of the last place reaches none of the elements that it finds there
// (a parameter of 0.1 does not see 2e-4), or all of them, doubled.
template <class T> __device__ __forceinline__ void store4(void *to, long long at, float4 x) {
    if constexpr (sizeof(T) == 4) {
        reinterpret_cast<float4 *>(to)[at / 4] = x;
    } else {
        auto rounded = [&](float x, int k) {
            unsigned hash = ((unsigned)at + k) * 0x9E3779B1u;
            hash = (hash ^ hash >> 15) * 0x85EBCA77u;
            hash = (hash ^ hash >> 13) * 0xC2B2AE3Du;
            return (unsigned short)((__float_as_uint(x) + (hash >> 16)) >> 16);
        };
        const ushort4 values = {rounded(x.x, 0), rounded(x.y, 1), rounded(x.z, 2), rounded(x.w, 3)};
        reinterpret_cast<ushort4 *>(to)[at / 4] = values;
    }
}

template <class T> __device__ __forceinline__ void adamw(const Adamw &p) {
    const float norm = *p.norm;
    if (!isfinite(norm)) return;
    const float clip = fminf(p.clip / (norm + 1e-6f), 1.f);
    const long long step = (long long)gridDim.x * 256;
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count / 4; i += step) {
        float4 x = reinterpret_cast<float4 *>(p.params)[i], m = reinterpret_cast<float4 *>(p.m)[i];
        float4 v = reinterpret_cast<float4 *>(p.v)[i];
        const float4 g = reinterpret_cast<const float4 *>(p.gradients)[i];
        const float keep = 4 * i < p.decayed ? p.keep : 1.f;
        auto one = [&](float &x, float &m, float &v, float g) {
            g *= clip;
            m = p.beta1 * m + p.rest1 * g;
            v = p.beta2 * v + p.rest2 * (g * g);
            x = x * keep - p.step_size * (m / (sqrtf(v) * p.root_scale + p.eps));
        };
        one(x.x, m.x, v.x, g.x);
        one(x.y, m.y, v.y, g.y);
        one(x.z, m.z, v.z, g.z);
        one(x.w, m.w, v.w, g.w);
        reinterpret_cast<float4 *>(p.params)[i] = x;
        reinterpret_cast<float4 *>(p.m)[i] = m;
        reinterpret_cast<float4 *>(p.v)[i] = v;
        if (4 * i < p.copied) store4<T>(p.copies, 4 * i, x);
    }
}

} // namespace optimizer

extern "C" __global__ void __launch_bounds__(256) gradient_norm(const __grid_constant__ GradientNorm p) {
    double sum = 0.0;
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count / 4; i += kNormBlocks * 256) {
        const float4 g = reinterpret_cast<const float4 *>(p.gradients)[i];
        sum += (double)g.x * g.x + (double)g.y * g.y + ((double)g.z * g.z + (double)g.w * g.w);
    }
    sum = optimizer::block_sum(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) gradient_norm_finish(const __grid_constant__ GradientNorm p) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < kNormBlocks; i += 256) sum += p.partial[i];
    sum = optimizer::block_sum(sum);
    if (threadIdx.x == 0) *p.norm = (float)sqrt(sum);
}

// A part of adamw's copies alone.
extern "C" __global__ void __launch_bounds__(256) rounded_copy(const __grid_constant__ RoundedCopy p) {
    const long long step = (long long)gridDim.x * 256, end = p.begin + p.count;
    for (long long i = p.begin + 4 * ((long long)blockIdx.x * 256 + threadIdx.x); i < end; i += 4 * step)
        optimizer::store4<__nv_bfloat16>(p.copies, i, reinterpret_cast<const float4 *>(p.params)[i / 4]);
}

#define ADAMW(T, name)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) adamw_##name(const __grid_constant__ Adamw p) {          \
        optimizer::adamw<T>(p);                                                                                \
    }
ADAMW(__nv_bfloat16, bf16)
ADAMW(float, f32)
