// Pooling over each sequence of a packed batch. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace pool {
using namespace vec;

template <class T, bool kAligned> __device__ void sequence(const Pool &p) {
    constexpr int V = kWide<T>, kGroups = 256 / kPoolLanes, kColumns = kPoolLanes * V, kAhead = 8;
    __shared__ float s_sum[kGroups][kColumns];
    const int s = blockIdx.y, begin = p.cu_seqlens[s], end = p.cu_seqlens[s + 1], kind = p.kinds[s];
    if (kind == 0 || begin == end) return;
    const int lane = threadIdx.x % kPoolLanes, group = threadIdx.x / kPoolLanes, first = blockIdx.x * kColumns;
    const int left = p.channels - first - lane * V;
    const T *hidden = row<T>(p.hidden, p.hidden_stride, 0) + first + lane * V;
    auto token = [&](int t) { return left > 0 ? load<kAligned, V>(hidden + t * p.hidden_stride, left) : Vector<T, V>{}; };
    float sum[V] = {};
    auto add = [&](const Vector<T, V> &x) {
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += x[i];
    };
    int t = (kind == 1 ? begin : end - 1) + group; // the last token alone is group 0's
    for (; t + (kAhead - 1) * kGroups < end; t += kAhead * kGroups) {
        Vector<T, V> x[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; j++) x[j] = token(t + j * kGroups);
#pragma unroll
        for (int j = 0; j < kAhead; j++) add(x[j]);
    }
    for (; t < end; t += kGroups) add(token(t));
#pragma unroll
    for (int i = 0; i < V; i++) s_sum[group][lane * V + i] = sum[i];
    __syncthreads();
    const int column = threadIdx.x;
    if (column >= kColumns || first + column >= p.channels) return;
    float *out = p.out + p.slots[s] * p.out_stride + first + column;
    float total = 0.f;
#pragma unroll
    for (int g = 0; g < kGroups; g++) total += s_sum[g][column];
    *out = (kind == 1 && !p.fresh[s] ? *out : 0.f) + total;
}

template <class T> __device__ __forceinline__ void run(const Pool &p) {
    const bool wide = p.channels % kWide<T> == 0 && aligned<kWide<T>>((const T *)p.hidden, p.hidden_stride);
    wide ? sequence<T, true>(p) : sequence<T, false>(p);
}

} // namespace pool

VECTOR_KERNELS(pool, Pool, 256, 2, pool::run)
