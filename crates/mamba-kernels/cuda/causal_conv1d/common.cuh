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

// Inputs of the last tokens, token t's at t % kRing: with kRing tokens a turn of the loop no register ever moves.
constexpr int kRing = 4;

// V aligned channels as floats.
template <int V, class T> __device__ __forceinline__ void load_floats(float (&to)[V], const T *from) {
    const auto v = load_vector<V>(from);
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = v[i];
}
// The same of what the block before reads too, at its end: kept in the L2 until then.
template <int V, class T> __device__ __forceinline__ void load_kept(float (&to)[V], const T *from) {
    Vector<T, V> v;
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    if constexpr (sizeof(v) == 8)
        asm("ld.global.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(from), "l"(policy));
    else
        asm("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
            : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
            : "l"(from), "l"(policy));
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = v[i];
}
template <class T> __device__ __forceinline__ float load_one(const T *from) { return load<false, kWide<T>>(from, 1)[0]; }
template <class T> __device__ __forceinline__ void store_one(T *to, float x) {
    float one[kWide<T>] = {x};
    store<false>(to, one, 1);
}

} // namespace conv
