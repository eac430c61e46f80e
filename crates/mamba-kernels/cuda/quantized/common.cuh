// Weights of 8 and 4 bits as pairs of f16 (each a whole number, exactly), and their scales. params.h has the layout.
#pragma once
#include "../block_step/product.cuh"
#include "../common/vector.cuh"
#include "params.h"

namespace quantized {

__device__ __forceinline__ uint32_t minus(uint32_t pair, uint32_t other) { // of two f16 each
    const __half2 difference = __hsub2(*reinterpret_cast<const __half2 *>(&pair), *reinterpret_cast<const __half2 *>(&other));
    return *reinterpret_cast<const uint32_t *>(&difference);
}

// In both, an f16 of 1024 has a unit of 1, so that a number below 1024 may be put into its lowest bits.
struct Q8_0 {
    static constexpr int kGroups = 2; // of 32 inputs in a lane's 16 bytes
    // What a row's weights are to be multiplied by, and what is to be taken away.
    struct Scale {
        float scale;
    };
    // The 8 weights of group h that a lane has, two a word.
    static __device__ __forceinline__ uint4 weights(uint4 bytes, int h) {
        const uint32_t a = h ? bytes.z : bytes.x, b = h ? bytes.w : bytes.y;
        auto pair = [](uint32_t word, uint32_t which) { return minus(__byte_perm(word, 0x64646464, which), 0x64806480); }; // 1152
        return make_uint4(pair(a, 0x4140), pair(a, 0x4342), pair(b, 0x4140), pair(b, 0x4342));
    }
    // Of group h of a chunk, which is 64 bytes of weights; `scales` are a row's.
    static __device__ __forceinline__ Scale scale(const char *scales, int, int chunk, int h) {
        return {__half2float(*reinterpret_cast<const __half *>(scales + 4 * chunk + 2 * h))};
    }
    // 8 weights by themselves.
    static __device__ __forceinline__ uint4 weights_at(const char *from) {
        const uint2 bytes = *reinterpret_cast<const uint2 *>(from);
        return weights(make_uint4(bytes.x, bytes.y, 0, 0), 0);
    }
    static __device__ __forceinline__ float value(Scale s, float q) { return __fmul_rn(s.scale, q); }
};

struct Q4K {
    static constexpr int kGroups = 4;
    struct Scale {
        float scale, min;
    };
    static __device__ __forceinline__ uint4 weights(uint4 bytes, int h) {
        const uint32_t word = h == 0 ? bytes.x : h == 1 ? bytes.y : h == 2 ? bytes.z : bytes.w;
        auto pair = [&](int shift) { return minus((word >> shift & 0x000f000f) | 0x64006400, 0x64006400); }; // 1024
        return make_uint4(pair(0), pair(4), pair(8), pair(12));
    }
    static __device__ __forceinline__ Scale scale(const char *scales, int weight_bytes, int chunk, int h) {
        const uchar2 s = *reinterpret_cast<const uchar2 *>(scales + 8 * chunk + 2 * h);
        const __half2 d = *reinterpret_cast<const __half2 *>(scales + weight_bytes / 8 + chunk / 2 * 4);
        return {__fmul_rn(__low2float(d), s.x), __fmul_rn(__high2float(d), s.y)};
    }
    static __device__ __forceinline__ uint4 weights_at(const char *from) {
        return weights(make_uint4(*reinterpret_cast<const uint32_t *>(from), 0, 0, 0), 0);
    }
    // As the CPU rounds it: twice.
    static __device__ __forceinline__ float value(Scale s, float q) { return __fsub_rn(__fmul_rn(s.scale, q), s.min); }
};

} // namespace quantized

#define QUANTIZED_KERNELS(KERNEL)                                                                              \
    KERNEL(Q8_0, q8_0, __half, f16)                                                                            \
    KERNEL(Q8_0, q8_0, float, f32)                                                                             \
    KERNEL(Q4K, q4_k, __half, f16)                                                                             \
    KERNEL(Q4K, q4_k, float, f32)
