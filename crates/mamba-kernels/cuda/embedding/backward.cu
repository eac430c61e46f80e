// The embedding's gradient: tokens in the order of their ids, 64 to a block, so that a row's tokens lie next to each other
// and each row is added to once. Rows whose tokens lie in several blocks are joined by a second kernel, block by block in
// order. Bound by memory. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace embedding {
using namespace vec;
constexpr int V = 4, kAhead = 4;

// partial[2 * b]: the sum of block b's first row of the table, where an earlier block has begun it; partial[2 * b + 1]:
// that of its last, where it begins here and goes on in the next block.
template <bool kAligned> __device__ void pieces(const EmbeddingBackward &p) {
    __shared__ int s_token[kEmbeddingTokens], s_id[kEmbeddingTokens + 2]; // with the ids before and after, or -1
    const int begin = blockIdx.y * kEmbeddingTokens, length = min(kEmbeddingTokens, p.count - begin);
    for (int i = threadIdx.x; i < length + 2; i += blockDim.x) {
        const int at = begin + i - 1;
        s_id[i] = at >= 0 && at < p.count ? p.ids[p.order[at]] : -1;
        if (i >= 1 && i <= length) s_token[i - 1] = p.order[at];
    }
    __syncthreads();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V, left = p.channels - c;
    if (left <= 0) return;
    float sum[V] = {};
    for (int i = 0; i < length; i += kAhead) {
        Vector<float, V> x[kAhead], old[kAhead]; // old: the table's row, where its sum is complete here
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            if (i + j >= length) break;
            const int *id = s_id + i + j + 1;
            x[j] = load<kAligned, V>(p.d_out + s_token[i + j] * p.d_out_stride + c, left);
            if (id[0] != id[1] && id[0] != s_id[0]) old[j] = load<kAligned, V>(p.d_table + id[0] * p.d_table_stride + c, left);
        }
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            if (i + j >= length) break;
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += x[j][k];
            const int *id = s_id + i + j + 1;
            const bool goes_on = id[0] == id[1];
            if (goes_on && i + j + 1 < length) continue;
            float *to = p.partial + (long long)2 * blockIdx.y * p.channels + c; // begun by an earlier block
            if (id[0] != s_id[0] && goes_on) to += p.channels;
            if (id[0] != s_id[0] && !goes_on) {
                to = p.d_table + id[0] * p.d_table_stride + c;
#pragma unroll
                for (int k = 0; k < V; k++) sum[k] += old[j][k];
            }
            store<kAligned>(to, sum, left);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] = 0.f;
        }
    }
}

// The row that begins in block blockIdx.y and goes on behind it.
template <bool kAligned> __device__ void join(const EmbeddingBackward &p) {
    auto id = [&](int at) { return at >= 0 && at < p.count ? p.ids[p.order[at]] : -1; };
    const int begin = blockIdx.y * kEmbeddingTokens, end = begin + kEmbeddingTokens, mine = id(end - 1);
    if (mine < 0 || id(end) != mine || id(begin - 1) == mine) return;
    const int lane = threadIdx.x % 32;
    int last = blockIdx.y + 1; // the block in which the row ends, found by a warp's lanes together
    for (unsigned on = ~0u; on == ~0u; last += __popc(on)) {
        // Lane l: whether the row goes on behind block last + l. Ids are in order, so true for the first lanes only.
        on = __ballot_sync(~0u, id((last + lane + 1) * kEmbeddingTokens) == mine);
    }
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V, left = p.channels - c;
    if (left <= 0) return;
    float *to = p.d_table + mine * p.d_table_stride + c;
    float sum[V] = {};
    auto add = [&](const float *from) {
        const auto x = load<kAligned, V>(from, left);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += x[k];
    };
    const float *partial = p.partial + c;
    add(partial + (2LL * blockIdx.y + 1) * p.channels);
#pragma unroll 8
    for (int block = blockIdx.y + 1; block <= last; block++) add(partial + 2LL * block * p.channels);
    add(to);
    store<kAligned>(to, sum, left);
}

__device__ __forceinline__ bool wide(const EmbeddingBackward &p) {
    return p.channels % V == 0 && aligned<V>(p.d_out, p.d_out_stride) && aligned<V>(p.d_table, p.d_table_stride) && aligned<V>(p.partial, 0);
}

} // namespace embedding

VECTOR_KERNEL(embedding_backward, EmbeddingBackward, kGatherThreads, 8,
              embedding::wide(p) ? embedding::pieces<true>(p) : embedding::pieces<false>(p))
VECTOR_KERNEL(embedding_backward_join, EmbeddingBackward, kGatherThreads, 8,
              embedding::wide(p) ? embedding::join<true>(p) : embedding::join<false>(p))
