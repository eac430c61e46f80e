// What forward and backward share: which tokens a block has.
#pragma once
#include "../common/vector.cuh"
#include "params.h"

namespace conv {
using namespace vec;

// Tokens [begin, end) of sequence s, which is [first, last).
struct Piece {
    int s, first, last, begin, end;
    __device__ __forceinline__ bool has_first() const { return begin == first; }
    __device__ __forceinline__ bool empty() const { return begin >= end; }
};

__device__ __forceinline__ Piece piece_of_block(const int *cu_seqlens, int sequences, int tokens) {
    Piece p;
    p.s = sequence_of_block(cu_seqlens, sequences, tokens, blockIdx.y);
    p.first = cu_seqlens[p.s];
    p.last = cu_seqlens[p.s + 1];
    p.begin = p.first + (blockIdx.y - p.first / tokens - p.s) * tokens;
    p.end = min(p.begin + tokens, p.last);
    return p;
}

// V aligned channels as floats.
template <int V, class T> __device__ __forceinline__ void load_floats(float (&to)[V], const T *from) {
    const auto v = load_vector<V>(from);
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = v[i];
}
template <class T> __device__ __forceinline__ float load_one(const T *from) { return load<false, kWide<T>>(from, 1)[0]; }
template <class T> __device__ __forceinline__ void store_one(T *to, float x) {
    float one[kWide<T>] = {x};
    store<false>(to, one, 1);
}

} // namespace conv
