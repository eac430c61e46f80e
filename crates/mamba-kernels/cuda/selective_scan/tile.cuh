// What forward's tile kernel and backward share. A warp is 16 channels: lane (g = lane / 4, q = lane % 4) owns channels
// 2g, 2g+1 and states 4q .. 4q+3.
#pragma once
#include "common.cuh"

namespace scan {

constexpr int N = 16;

// A lane's corner of [N, E] matrices; values are [channel][state].
struct Corner {
    int channels, channel, q; // channel: the first of two
    bool alive;

    __device__ __forceinline__ long long at(int r) const { return (long long)(4 * q + r) * channels + channel; }
    __device__ __forceinline__ void load(float (&to)[2][4], const float *from) const { // null: zero
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float2 x = load_pair(from, at(r), alive && from);
            to[0][r] = x.x;
            to[1][r] = x.y;
        }
    }
    __device__ __forceinline__ void store(float *to, const float (&from)[2][4]) const {
        if (!alive) return;
#pragma unroll
        for (int r = 0; r < 4; r++) *reinterpret_cast<float2 *>(to + at(r)) = make_float2(from[0][r], from[1][r]);
    }
    __device__ __forceinline__ void load_decay(float (&a)[2][4], const float *from) const { // for exp2
        load(a, from);
#pragma unroll
        for (int r = 0; r < 4; r++) a[0][r] *= kLog2e, a[1][r] *= kLog2e;
    }
    // Takes x through `count` segments, from segment `first` on in direction `way` (1 or -1), each of which decays it
    // by its step sizes and adds what it ends with alone. kBatch: segments' loads in flight.
    template <int kBatch>
    __device__ __forceinline__ void chain(float (&x)[2][4], const float (&a)[2][4], const float *segment_state,
                                          const float *segment_delta, int first, int way, int count) const {
        for (int i0 = 0; i0 < count; i0 += kBatch) {
            float alone[kBatch][2][4];
            float2 delta[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; k++) {
                const long long i = first + way * (i0 + k);
                const bool valid = i0 + k < count; // else: no step, x stays
                delta[k] = load_pair(segment_delta, i * channels + channel, alive && valid);
                load(alone[k], valid ? segment_state + i * N * channels : nullptr);
            }
#pragma unroll
            for (int k = 0; k < kBatch; k++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    x[0][r] = fmaf(exp2_fast(a[0][r] * delta[k].x), x[0][r], alone[k][0][r]);
                    x[1][r] = fmaf(exp2_fast(a[1][r] * delta[k].y), x[1][r], alone[k][1][r]);
                }
        }
    }
};

} // namespace scan
