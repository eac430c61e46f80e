// Rows by index: of the embedding table into the f32 residual stream, and of activations. Bound by memory. params.h has
// the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace gather {
using namespace vec;

template <class T, class Out, bool kAligned> __device__ void rows(const Gather &p) {
    constexpr int V = kWide<Out>;
    const int c = (blockIdx.x * kGatherThreads + threadIdx.x) * V, left = p.channels - c, first = blockIdx.y * kGatherRows;
    if (left <= 0) return;
    Vector<T, V> x[kGatherRows];
#pragma unroll
    for (int i = 0; i < kGatherRows; i++) // past the last row: the last once more
        x[i] = load<kAligned, V>(row<T>(p.table, p.table_stride, p.ids[min(first + i, p.count - 1)]) + c, left);
#pragma unroll
    for (int i = 0; i < kGatherRows; i++) {
        if (first + i >= p.count) return;
        Out *out = row<Out>(p.out, p.out_stride, first + i) + c;
        if constexpr (std::is_same_v<T, Out>) {
            store<kAligned>(out, x[i], left);
        } else {
            float y[V];
#pragma unroll
            for (int j = 0; j < V; j++) y[j] = x[i][j];
            store<kAligned>(out, y, left);
        }
    }
}

template <class T, class Out> __device__ __forceinline__ void run(const Gather &p) {
    constexpr int V = kWide<Out>;
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.table, p.table_stride) && aligned<V>((const Out *)p.out, p.out_stride);
    wide ? rows<T, Out, true>(p) : rows<T, Out, false>(p);
}
template <class T> __device__ __forceinline__ void to_f32(const Gather &p) { run<T, float>(p); }
template <class T> __device__ __forceinline__ void same(const Gather &p) { run<T, T>(p); }

} // namespace gather

VECTOR_KERNELS(embedding, Gather, kGatherThreads, 12, gather::to_f32)
VECTOR_KERNELS(gather, Gather, kGatherThreads, 12, gather::same)
