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
// Of outputs g, g, g + 8, g + 8 and tokens 2q, 2q + 1, 2q, 2q + 1. Two sums, so that two mma run at once.
struct Sum {
    float a[4] = {}, b[4] = {};
    __device__ __forceinline__ float operator[](int i) const { return a[i] + b[i]; }
};
// A warp's sums, to [token][output], the 16 outputs from `first` on.
template <int kPitch> __device__ __forceinline__ void put(const Sum &sum, float (&to)[8][kPitch], int first) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    to[2 * q][first + g] = sum[0], to[2 * q + 1][first + g] = sum[1];
    to[2 * q][first + g + 8] = sum[2], to[2 * q + 1][first + g + 8] = sum[3];
}
// 32 inputs of 16 outputs (rows g and g + 8) and 8 tokens (g).
template <class T> __device__ __forceinline__ void multiply(Sum &sum, uint4 low, uint4 high, uint4 x) {
    mma<T>(sum.a, low.x, high.x, low.y, high.y, x.x, x.y);
    mma<T>(sum.b, low.z, high.z, low.w, high.w, x.z, x.w);
}

// 16 bytes, zeros where !valid (nothing is read then).
__device__ __forceinline__ void copy_16(void *shared, const void *global, bool valid) {
    const unsigned s = (unsigned)__cvta_generic_to_shared(shared);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(bytes) : "memory");
}
// What other blocks wrote while this one was already there: never from the L1.
__device__ __forceinline__ float4 load_fresh(const float *from) { return __ldcg(reinterpret_cast<const float4 *>(from)); }
template <class T> __device__ __forceinline__ uint4 load_fresh_16(const T *from) { return __ldcg(reinterpret_cast<const uint4 *>(from)); }
template <class T> __device__ __forceinline__ float load_fresh_one(const T *from) {
    const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short *>(from));
    return to_float(*reinterpret_cast<const T *>(&bits));
}

template <class T> __device__ __forceinline__ uint32_t word(float x, float y) {
    const Pair<T> pair = pair_of<T>(x, y);
    return *reinterpret_cast<const uint32_t *>(&pair);
}
// In the order in which 16 lanes add theirs up by shuffles.
__device__ __forceinline__ float sum_of_16(float (&x)[16]) {
#pragma unroll
    for (int step = 8; step; step /= 2)
#pragma unroll
        for (int i = 0; i < step; i++) x[i] += x[i + step];
    return x[0];
}

// A block's way through a weight [outputs, inputs]: the tiles `tile`, `tile` + step, ... of 16 outputs, of each the
// inputs from `begin` to `end`. The ring has kDepth slots, or as many as there are chunks, where these are fewer.
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
        if (tile < tiles) {
            const int low = min(tile * 16 + g, outputs - 1), high = min(tile * 16 + g + 8, outputs - 1);
            const T *from = weight + (k < end ? k : 0);
            char *to = ring + slot * 8192 + threadIdx.x * 16;
            copy_16(to, from + (long long)low * inputs, k < end);
            copy_16(to + 4096, from + (long long)high * inputs, k < end);
        }
        copy_commit();
        if (++chunk == chunks()) chunk = 0, tile += step;
    }
    __device__ __forceinline__ void fill() {
#pragma unroll 1
        for (int i = 0; i < kDepth; i++) copy_next(i);
    }
    // The next chunk is there.
    __device__ __forceinline__ void wait() const { asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 1) : "memory"); }
    __device__ __forceinline__ uint4 low() const { return *reinterpret_cast<const uint4 *>(ring + slot * 8192 + threadIdx.x * 16); }
    __device__ __forceinline__ uint4 high() const { return *reinterpret_cast<const uint4 *>(ring + slot * 8192 + 4096 + threadIdx.x * 16); }
    // It is used; another one takes its slot.
    __device__ __forceinline__ void next() {
        copy_next(slot);
        if (++slot == kDepth) slot = 0;
    }
};

// Adds up the warps' sums of a tile: thread (m, n) = (thread % 16, thread / 16) gets that of output m and token n, for
// n < 8 * kTiles. Two halves of `sums` in turn, so that one barrier a tile suffices.
template <int kTiles> struct Sums {
    float value[2][kWarps][kTiles][8][17]; // [token][output]
};
template <int kTiles> __device__ __forceinline__ float add_warps(Sums<kTiles> &sums, int half, const Sum (&acc)[kTiles]) {
#pragma unroll
    for (int j = 0; j < kTiles; j++) put(acc[j], sums.value[half][threadIdx.x / 32][j], 0);
    __syncthreads();
    const int m = threadIdx.x % 16, n = threadIdx.x / 16;
    float sum = 0.f;
    if (n < 8 * kTiles)
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += sums.value[half][w][n / 8][n % 8][m];
    return sum;
}

} // namespace step

#define STEP_KERNEL(name, params, T, tiles, run, attribute)                                                    \
    extern "C" __global__ void attribute __launch_bounds__(256, 2) name(const __grid_constant__ params p) { step::run<T, tiles>(p); }
#define STEP_KERNELS(name, params, run, attribute)                                                             \
    STEP_KERNEL(name##_bf16_1, params, __nv_bfloat16, 1, run, attribute)                                       \
    STEP_KERNEL(name##_bf16_2, params, __nv_bfloat16, 2, run, attribute)                                       \
    STEP_KERNEL(name##_f16_1, params, __half, 1, run, attribute)                                               \
    STEP_KERNEL(name##_f16_2, params, __half, 2, run, attribute)
