// Pooling over each sequence of a packed batch. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace pool {
using namespace vec;

template <class T, bool kAligned> __device__ void sequence(const Pool &p) {
    constexpr int V = kWide<T>, kGroups = 256 / kPoolLanes, kAhead = 8;
    __shared__ float s_sum[kGroups][kPoolLanes][V + 1];
    const int s = blockIdx.y, begin = p.cu_seqlens[s], end = p.cu_seqlens[s + 1], kind = p.kinds[s];
    if (kind == 0 || begin == end) return;
    const int lane = threadIdx.x % kPoolLanes, group = threadIdx.x / kPoolLanes;
    const int c = (blockIdx.x * kPoolLanes + lane) * V, left = p.channels - c;
    const T *hidden = row<T>(p.hidden, p.hidden_stride, 0) + c;
    auto token = [&](int t) { return left > 0 ? load<kAligned, V>(hidden + t * p.hidden_stride, left) : Vector<T, V>{}; };
    float sum[V] = {};
    auto add = [&](const Vector<T, V> &x) {
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += x[i];
    };
    if (kind == 2) {
        if (group == 0) add(token(end - 1));
    } else {
        int t = begin + group;
        for (; t + (kAhead - 1) * kGroups < end; t += kAhead * kGroups) {
            Vector<T, V> x[kAhead];
#pragma unroll
            for (int j = 0; j < kAhead; j++) x[j] = token(t + j * kGroups);
#pragma unroll
            for (int j = 0; j < kAhead; j++) add(x[j]);
        }
        for (; t < end; t += kGroups) add(token(t));
#pragma unroll
        for (int i = 0; i < V; i++) s_sum[group][lane][i] = sum[i];
        __syncthreads();
        if (group == 0)
            for (int g = 1; g < kGroups; g++)
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] += s_sum[g][lane][i];
    }
    if (group || left <= 0) return;
    float *out = p.out + p.slots[s] * p.out_stride + c;
    for (int i = 0; i < min(V, left); i++) out[i] = (kind == 1 && !p.fresh[s] ? out[i] : 0.f) + sum[i];
}

template <class T> __device__ __forceinline__ void run(const Pool &p) {
    const bool wide = p.channels % kWide<T> == 0 && aligned<kWide<T>>((const T *)p.hidden, p.hidden_stride);
    wide ? sequence<T, true>(p) : sequence<T, false>(p);
}

} // namespace pool

VECTOR_KERNELS(pool, Pool, 256, 2, pool::run)
