// Pooling whose sums do not depend on how a sequence is cut into batches: a thread adds a channel's tokens one after the
// other. For results that are equal to the bit in any batch; pool.cu is faster.
#include "params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> __device__ __forceinline__ void pool_in_order(const Pool &p) {
    const int channel = blockIdx.x * 256 + threadIdx.x, sequence = blockIdx.y, kind = p.kinds[sequence];
    const int begin = p.cu_seqlens[sequence], end = p.cu_seqlens[sequence + 1];
    if (channel >= p.channels || kind == 0 || begin == end) return;
    const T *hidden = static_cast<const T *>(p.hidden) + channel;
    float *row = p.out + p.slots[sequence] * p.out_stride + channel;
    float sum = kind == 1 && !p.fresh[sequence] ? *row : 0.f;
#pragma unroll 8
    for (int t = kind == 1 ? begin : end - 1; t < end; t++) sum += static_cast<float>(hidden[t * p.hidden_stride]);
    *row = sum;
}

#define POOL_IN_ORDER(T, name)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) pool_in_order_##name(const __grid_constant__ Pool p) {    \
        pool_in_order<T>(p);                                                                                   \
    }
POOL_IN_ORDER(__nv_bfloat16, bf16)
POOL_IN_ORDER(__half, f16)
POOL_IN_ORDER(float, f32)
