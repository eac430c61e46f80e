// What forward and backward share: which channels a thread has.
#pragma once
#include "../common/early.cuh"
#include "../common/vector.cuh"
#include "params.h"

namespace addnorm {
using namespace early;
using namespace vec;

// A block takes a row in tiles of blockDim.x * kNormChannels channels. Of each a thread has kParts vectors, the block's
// threads side by side in each part, so that a warp reads and writes without gaps. kFast: rows of one tile, aligned.
constexpr int V = 4, kParts = kNormChannels / V;

// f(part, channel) for the vectors of the tile at channel `base` that exist.
template <class F> __device__ __forceinline__ void parts(int base, int channels, F f) {
#pragma unroll
    for (int k = 0; k < kParts; k++) {
        const int c = base + (k * blockDim.x + threadIdx.x) * V;
        if (c < channels) f(k, c);
    }
}

struct Parameters {
    Vector<float, V> of[kParts];
};
template <bool kFast> __device__ __forceinline__ Parameters parameters(const float *from, int base, int channels) { // zero where null
    Parameters x{};
    if (from) parts(base, channels, [&](int k, int c) { x.of[k] = load<kFast, V>(from + c, channels - c); });
    return x;
}

} // namespace addnorm
