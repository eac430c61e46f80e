// What the selective-scan kernels share: conversions, the exponential, the tensor-core sums.
#pragma once
#include "../common/early.cuh"
#include "params.h"
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace scan {
using namespace early;

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
// Steps between two states kept for backward.
constexpr int kChunk = 64;

template <class T> struct alignas(2 * sizeof(T)) Pair { T v[2]; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float(float x) { return x; }
template <> __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }

template <class T> __device__ __forceinline__ Pair<T> pair_of(float x, float y) {
    Pair<T> p;
    p.v[0] = from_float<T>(x);
    p.v[1] = from_float<T>(y);
    return p;
}

// Two and four neighbouring elements as whole registers, unpacked where they are used. (As structs of 16-bit
// members the compiler takes them apart right behind the load, and the warp waits there for memory.)
template <class T> struct Packed;
template <> struct Packed<float> {
    using Two = float2;
    using Four = float4;
    static __device__ __forceinline__ float2 widen(float2 x) { return x; }
    static __device__ __forceinline__ float4 widen(float4 x) { return x; }
    template <int i> static __device__ __forceinline__ float2 zip(float4 x, float4 y) { // (x[i], y[i])
        return i == 0 ? make_float2(x.x, y.x) : i == 1 ? make_float2(x.y, y.y) : i == 2 ? make_float2(x.z, y.z) : make_float2(x.w, y.w);
    }
};
template <class T> struct Packed16 {
    using Two = uint32_t;
    using Four = uint2;
    static __device__ __forceinline__ float2 widen(uint32_t x) {
        if constexpr (std::is_same_v<T, __half>) return __half22float2(*reinterpret_cast<__half2 *>(&x));
        else return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
    }
    static __device__ __forceinline__ float4 widen(uint2 x) {
        float2 a = widen(x.x), b = widen(x.y);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    template <int i> static __device__ __forceinline__ uint32_t zip(uint2 x, uint2 y) {
        return __byte_perm(i < 2 ? x.x : x.y, i < 2 ? y.x : y.y, i % 2 ? 0x7632 : 0x5410);
    }
};
template <> struct Packed<__half> : Packed16<__half> {};
template <> struct Packed<__nv_bfloat16> : Packed16<__nv_bfloat16> {};
template <class T> using Two = typename Packed<T>::Two;
template <class T> using Four = typename Packed<T>::Four;
template <class T, class P> __device__ __forceinline__ auto widen(P x) { return Packed<T>::widen(x); }
// Zeros where !valid.
template <class V> __device__ __forceinline__ V load_if(const void *from, bool valid) {
    V x = {};
    if (valid) x = *static_cast<const V *>(from);
    return x;
}

// Where results are rounded to bfloat16 a sum over states may take tensor-core operands of 11 bits; the
// other types sum in f32.
template <class T> constexpr bool kExact = true;
template <> constexpr bool kExact<__nv_bfloat16> = false;
// The tensor core cuts an f32 operand to tf32; for evenly spread mantissas that takes 2^-11 ln 2 of the value.
constexpr float kCutMean = 1.00034f;

// 2^x, 2 units in the last place; the exponential unit's own instruction.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-kLog2e * x)); }

// e^x. kExact types get the product's rounding error back (3e-8 relative instead of 3e-7).
template <class T> __device__ __forceinline__ float exponential(float x) {
    float t = x * kLog2e, e = exp2_fast(t);
    return kExact<T> && t < 127.f ? fmaf(e, fmaf(x, kLog2e, -t) * kLn2, e) : e;
}

// log(1 + w), w >= 0, relative error 1e-7 and no branch: 1 + w = 2^k (1 + m) with m in [-1/4, 1/2].
__device__ __forceinline__ float log1p_positive(float w) {
    const int k = (__float_as_int(1.f + w) - 0x3f400000) & 0xff800000; // k << 23
    const float m = __int_as_float(__float_as_int(w) - k) + fmaf(0.25f, __int_as_float(0x40800000 - k), -1.f);
    const float s = m * m;
    float r = fmaf(-4.53482792e-2f, s, -1.32296383e-1f), t = fmaf(1.05469480e-1f, s, 1.44914404e-1f);
    r = fmaf(r, s, -1.66415766e-1f);
    t = fmaf(t, s, 1.99888635e-1f);
    r = fmaf(r, s, -2.50002027e-1f);
    r = fmaf(t, m, r);
    r = fmaf(r, m, 3.33335280e-1f);
    r = fmaf(r, m, -0.5f);
    r = fmaf(r, s, m);
    return fmaf(__int_as_float((k >> 23) + 0x4b400000) - 12582912.f, kLn2, r); // k as a float without a conversion
}

// *to = x where valid, without a branch (4 or 8 bytes).
template <class T> __device__ __forceinline__ void store_if(T *to, Pair<T> x, bool valid) {
    if constexpr (sizeof(x) == 4)
        asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.global.b32 [%0], %1; }" ::"l"(to), "r"(*reinterpret_cast<uint32_t *>(&x)), "r"((int)valid) : "memory");
    else
        asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.global.b64 [%0], %1; }" ::"l"(to), "l"(*reinterpret_cast<uint64_t *>(&x)), "r"((int)valid) : "memory");
}

// which ? yes : no, both computed: a branch would keep the compiler from mixing this code with its surroundings.
__device__ __forceinline__ float select(int which, float yes, float no) {
    float r;
    asm("{ .reg .pred p; setp.ne.s32 p, %3, 0; selp.f32 %0, %1, %2, p; }" : "=f"(r) : "f"(yes), "f"(no), "r"(which));
    return r;
}

// log(1 + e^x), and its derivative where it is asked for.
template <class T> __device__ __forceinline__ float softplus(float x) {
    return fmaxf(x, log1p_positive(exponential<T>(x))); // where e^x overflows, log1p_positive gives 128 ln 2
}
template <class T> __device__ __forceinline__ float softplus(float x, float &slope) {
    const float w = exponential<T>(fminf(x, 20.f));
    slope = w * reciprocal(1.f + w);
    return fmaxf(x, log1p_positive(w)); // x past 20
}

// D += A(16x8) B(8x8), tf32 operands (f32 bits, the low 13 ignored). With g = lane / 4, q = lane % 4:
// a0 = A[g][q], a1 = A[g+8][q], a2 = A[g][q+4], a3 = A[g+8][q+4]; b0 = B[q][g], b1 = B[q+4][g];
// d0 = D[g][2q], d1 = D[g][2q+1], d2 = D[g+8][2q], d3 = D[g+8][2q+1].
__device__ __forceinline__ void mma(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// What the tensor core leaves of x, and what it drops.
__device__ __forceinline__ float cut(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// Sum over the four lanes of a channel, in every one of them.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// 16 bytes to shared memory in the background; zeros where !valid.
__device__ __forceinline__ void copy16(void *shared, const void *global, bool valid) {
    uint32_t s = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class T> __device__ __forceinline__ const T *row(const void *base, long long stride, long long token) {
    return static_cast<const T *>(base) + token * stride;
}
template <class T> __device__ __forceinline__ T *row(void *base, long long stride, long long token) {
    return static_cast<T *>(base) + token * stride;
}

// The [N, E] rows of a sequence's slot; null where there are none.
template <class F> __device__ __forceinline__ F *state_slot(F *states, long long stride, int index) {
    return states ? states + index * stride : nullptr;
}
// Where a sequence's initial state lies; null: it is zero.
__device__ __forceinline__ const float *initial_state(const ScanForward &p, const ScanSegment &seg) {
    return seg.fresh ? nullptr : state_slot(p.initial_state, p.state_stride, seg.slot);
}
// Where the main kernel's segment finds the state to begin from, or to chain the segments before it from.
__device__ __forceinline__ const float *state_before(const ScanForward &p, const ScanSegment &seg) {
    if (!p.segment_state) return initial_state(p, seg);
    const int row = p.carry_inside ? p.first_segment[seg.sequence + 1] - 1 : blockIdx.y;
    return p.segment_state + (long long)row * p.states * p.channels;
}

// Two neighbouring channels' [N, E] values of state n; zero or nothing past the last channel.
__device__ __forceinline__ float2 load_pair(const float *base, long long index, bool valid) {
    return valid ? *reinterpret_cast<const float2 *>(base + index) : make_float2(0.f, 0.f);
}

} // namespace scan

// One kernel a dtype, by a name that a fatbin keeps.
#define SCAN_KERNEL(name, params, threads, blocks, ...)                                                        \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ params p) { __VA_ARGS__; }
