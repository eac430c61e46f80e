// Low-rank additions of adapters to a product, row by row: A x by `down`, B times that by `up`. params.h has the launch.
#include "../common/early.cuh"
#include "../common/vector.cuh"
#include "params.h"

namespace low_rank {
using namespace vec;

// That of the block's row; of rank 0 where it has none.
__device__ __forceinline__ LowRank adapter(const LowRankStep &p) {
    const int which = p.adapters[blockIdx.y];
    return which >= 0 && which < p.count ? p.table[which] : LowRank{};
}

// A thread's part of the product of two rows.
template <class T, bool kAligned> __device__ __forceinline__ float part(const T *a, const T *x, int count) {
    constexpr int V = kWide<T>;
    float sum = 0.f;
#pragma unroll 4
    for (int i = threadIdx.x * V; i < count; i += kLowRankDown * V) {
        const Vector<T, V> left = load<kAligned, V>(a + i, count - i), right = load<kAligned, V>(x + i, count - i);
#pragma unroll
        for (int k = 0; k < V; k++) sum = fmaf(left[k], right[k], sum);
    }
    return sum;
}

// A block has one element of a row's A x.
template <class T> __device__ __forceinline__ void down(const LowRankStep &p) {
    __shared__ float scratch[32];
    early::wait_for_previous();
    const LowRank of = adapter(p);
    const int j = blockIdx.x, K = p.inputs;
    if (j >= of.rank) return;
    const T *const a = row<T>(of.a, K, j), *const x = row<T>(p.x, p.x_stride, blockIdx.y);
    const bool whole = K % kWide<T> == 0 && aligned<kWide<T>>(a, 0) && aligned<kWide<T>>(static_cast<const T *>(p.x), p.x_stride);
    float sum[1] = {whole ? part<T, true>(a, x, K) : part<T, false>(a, x, K)};
    block_sum(sum, scratch);
    if (threadIdx.x == 0) p.low[(long long)blockIdx.y * p.ranks + j] = sum[0];
}

// One output's sum, rank by rank.
template <class T, bool kAligned> __device__ __forceinline__ float sum(const T *b, const float *low, int rank) {
    constexpr int V = kWide<T>;
    float sum = 0.f;
#pragma unroll 4
    for (int j = 0; j < rank; j += V) {
        const Vector<T, V> weights = load<kAligned, V>(b + j, rank - j);
#pragma unroll
        for (int k = 0; k < V; k++)
            if (kAligned || j + k < rank) sum = fmaf(weights[k], low[j + k], sum);
    }
    return sum;
}

template <class T, class Out = T> __device__ __forceinline__ void up(const LowRankStep &p) {
    early::wait_for_previous();
    const LowRank of = adapter(p);
    const int n = blockIdx.x * kLowRankUp + threadIdx.x;
    if (of.rank == 0 || n >= p.outputs) return;
    const T *const b = row<T>(of.b, of.rank, n);
    const float *const low = p.low + (long long)blockIdx.y * p.ranks;
    const bool whole = of.rank % kWide<T> == 0 && aligned<kWide<T>>(b, 0);
    Out *const to = row<Out>(p.out, p.out_stride, blockIdx.y) + n;
    const float added = whole ? sum<T, true>(b, low, of.rank) : sum<T, false>(b, low, of.rank);
    *to = static_cast<Out>(static_cast<float>(*to) + added);
}

} // namespace low_rank

VECTOR_KERNELS(low_rank_down, LowRankStep, kLowRankDown, 8, low_rank::down)
VECTOR_KERNELS(low_rank_up, LowRankStep, kLowRankUp, 8, low_rank::up)
VECTOR_KERNEL(low_rank_up_wide_bf16, LowRankStep, kLowRankUp, 8, low_rank::up<__nv_bfloat16, float>(p))
VECTOR_KERNEL(low_rank_up_wide_f16, LowRankStep, kLowRankUp, 8, low_rank::up<__half, float>(p))
