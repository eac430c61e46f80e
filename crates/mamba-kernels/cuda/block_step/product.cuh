// Products of a few rows with a weight that is read once: mma.sync with 16 outputs as its rows and 8 tokens as its
// columns.
//
// Inside a product the order of inputs is free, as long as weight and activations agree. So a lane (g = lane / 4,
// q = lane % 4) takes 8 neighbouring inputs from 8 q on, 16 bytes of a row-major matrix, as what two mma call its
// inputs 2q, 2q + 1, 2q + 8, 2q + 9; 32 inputs of 16 outputs are a chunk, two such loads a lane. No lane needs what another one
// loads: each has its own ring in shared memory, filled by cp.async, without a barrier. The 8 warps of a block take turns in
// the chunks of a tile of 16 outputs; their sums are added in order.
#pragma once
#include "../selective_scan/common.cuh"
#include "params.h"

namespace step {
using namespace scan;

constexpr int kWarps = 8, kThreads = 256;

template <class T> __device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// 32 inputs of 16 outputs (rows g and g + 8) and 8 tokens (g).
template <class T> __device__ __forceinline__ void multiply(float (&d)[4], uint4 low, uint4 high, uint4 x) {
    mma<T>(d, low.x, high.x, low.y, high.y, x.x, x.y);
    mma<T>(d, low.z, high.z, low.w, high.w, x.z, x.w);
}

// 16 bytes, zeros where !valid (nothing is read then).
__device__ __forceinline__ void copy_16(void *shared, const void *global, bool valid) {
    const unsigned s = (unsigned)__cvta_generic_to_shared(shared);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(bytes) : "memory");
}
template <int kPending> __device__ __forceinline__ void copy_wait_for() { asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory"); }

// Asks the L2 for `bytes` (a multiple of 16).
__device__ __forceinline__ void ask_ahead(const void *from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// What other blocks wrote while this one was already there: never from the L1.
__device__ __forceinline__ float4 load_fresh(const float *from) { return __ldcg(reinterpret_cast<const float4 *>(from)); }
template <class T> __device__ __forceinline__ float load_fresh_one(const T *from) {
    const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short *>(from));
    return to_float(*reinterpret_cast<const T *>(&bits));
}

// A block's way through a weight [outputs, inputs]: the tiles `tile`, `tile` + step, ... of 16 outputs, of each the
// inputs from `begin` to `end`.
template <class T, int kDepth> struct Weights {
    const T *weight;
    int outputs, inputs, begin, end, tiles, step;
    int tile, chunk; // what is copied next
    char *ring;
    int slot = 0;

    // Chunks of this warp in a tile.
    __device__ __forceinline__ int chunks() const { return ((end - begin + 31) / 32 + kWarps - 1) / kWarps; }

    __device__ __forceinline__ void copy_next(int slot) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
        const int k = begin + (chunk * kWarps + warp) * 32 + lane % 4 * 8;
        const bool valid = k < end && tile < tiles;
        const int low = min(tile * 16 + g, outputs - 1), high = min(tile * 16 + g + 8, outputs - 1);
        const T *from = weight + (valid ? k : 0);
        char *to = ring + slot * 8192 + threadIdx.x * 16;
        copy_16(to, from + (long long)(valid ? low : 0) * inputs, valid);
        copy_16(to + 4096, from + (long long)(valid ? high : 0) * inputs, valid);
        if (++chunk == chunks()) chunk = 0, tile += step;
    }
    __device__ __forceinline__ void fill() {
#pragma unroll
        for (int i = 0; i < kDepth; i++) copy_next(i), copy_commit();
    }
    // The L2 begins to read the tiles behind the ring.
    __device__ __forceinline__ void ask(int count) const {
        const int in_ring = kDepth / chunks();
        for (int i = threadIdx.x; i < count; i += kThreads) {
            const int at = tile + (in_ring ? 0 : step) + i * step; // `tile` is where the ring ends
            if (at < tiles) ask_ahead(weight + (long long)at * 16 * inputs, min(16, outputs - at * 16) * inputs * (unsigned)sizeof(T));
        }
    }
    __device__ __forceinline__ uint4 low() const { return *reinterpret_cast<const uint4 *>(ring + slot * 8192 + threadIdx.x * 16); }
    __device__ __forceinline__ uint4 high() const { return *reinterpret_cast<const uint4 *>(ring + slot * 8192 + 4096 + threadIdx.x * 16); }
};

// Adds up the warps' sums of a tile: thread (m, n) = (thread % 16, thread / 16) gets that of output m and token n, for
// n < 8 * kTiles. Two halves of `sums` in turn, so that one barrier a tile suffices.
template <int kTiles> struct Sums {
    float value[2][kWarps][kTiles][8][17]; // [token][output]
};
template <int kTiles> __device__ __forceinline__ float add_warps(Sums<kTiles> &sums, int half, const float (&acc)[kTiles][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
        float(&s)[8][17] = sums.value[half][warp][j];
        s[2 * q][g] = acc[j][0], s[2 * q + 1][g] = acc[j][1];
        s[2 * q][g + 8] = acc[j][2], s[2 * q + 1][g + 8] = acc[j][3];
    }
    __syncthreads();
    const int m = threadIdx.x % 16, n = threadIdx.x / 16;
    float sum = 0.f;
    if (n < 8 * kTiles)
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += sums.value[half][w][n / 8][n % 8][m];
    return sum;
}

// RMSNorm of all rows, rounded to T, into `to` (rows `stride` elements apart). A thread has the same channels of every
// row, so a row's sum does not depend on how many there are.
template <class T> __device__ __forceinline__ void normalize(T *to, int stride, const float *residual, const float *norm, int rows, int channels, float eps) {
    constexpr int kRows = 4, kHeld = 5; // rows under way, and float4 of each that a thread holds: up to kMaxModel channels
    __shared__ float s_sum[2][kRows][kWarps];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int half = 0;
    for (int first = 0; first < rows; first += kRows, half ^= 1) {
        float4 held[kRows][kHeld];
#pragma unroll
        for (int r = 0; r < kRows; r++)
#pragma unroll
            for (int i = 0; i < kHeld; i++) {
                const int c = (i * kThreads + threadIdx.x) * 4;
                held[r][i] = float4{};
                if (c < channels && first + r < rows) held[r][i] = load_fresh(residual + (long long)(first + r) * channels + c);
            }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            float sum = 0.f;
#pragma unroll
            for (int i = 0; i < kHeld; i++) {
                const float4 x = held[r][i];
                sum += x.x * x.x + x.y * x.y + (x.z * x.z + x.w * x.w);
            }
            for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
            if (lane == 0) s_sum[half][r][warp] = sum;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            if (first + r >= rows) break;
            float sum = 0.f;
            for (int w = 0; w < kWarps; w++) sum += s_sum[half][r][w];
            const float scale = rsqrtf(sum / channels + eps);
#pragma unroll
            for (int i = 0; i < kHeld; i++) {
                const int c = (i * kThreads + threadIdx.x) * 4;
                if (c >= channels) continue;
                const float4 x = held[r][i], w = *reinterpret_cast<const float4 *>(norm + c);
                const Pair<T> v[2] = {pair_of<T>(x.x * scale * w.x, x.y * scale * w.y), pair_of<T>(x.z * scale * w.z, x.w * scale * w.w)};
                *reinterpret_cast<uint2 *>(to + (first + r) * stride + c) = *reinterpret_cast<const uint2 *>(v);
            }
        }
    }
    __syncthreads();
}

} // namespace step

#define STEP_KERNEL(name, params, T, tiles, run)                                                               \
    extern "C" __global__ void __launch_bounds__(256, 2) name(const __grid_constant__ params p) { step::run<T, tiles>(p); }
#define STEP_KERNELS(name, params, run)                                                                        \
    STEP_KERNEL(name##_bf16_1, params, __nv_bfloat16, 1, run)                                                  \
    STEP_KERNEL(name##_bf16_2, params, __nv_bfloat16, 2, run)                                                  \
    STEP_KERNEL(name##_f16_1, params, __half, 1, run)                                                          \
    STEP_KERNEL(name##_f16_2, params, __half, 2, run)
