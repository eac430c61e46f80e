// The norm of all gradients, and a step of AdamW over all parameters in one launch: bound by memory (28 bytes an element
// and 2 for its copy).
#include "params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

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

template <class T> __device__ __forceinline__ void store4(void *to, long long at, float4 x) {
    if constexpr (sizeof(T) == 4) {
        reinterpret_cast<float4 *>(to)[at] = x;
    } else {
        const T values[4] = {static_cast<T>(x.x), static_cast<T>(x.y), static_cast<T>(x.z), static_cast<T>(x.w)};
        reinterpret_cast<uint2 *>(to)[at] = *reinterpret_cast<const uint2 *>(values);
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
        if (4 * i < p.copied) store4<T>(p.copies, i, x);
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

#define ADAMW(T, name)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) adamw_##name(const __grid_constant__ Adamw p) {          \
        optimizer::adamw<T>(p);                                                                                \
    }
ADAMW(__nv_bfloat16, bf16)
ADAMW(__half, f16)
ADAMW(float, f32)
