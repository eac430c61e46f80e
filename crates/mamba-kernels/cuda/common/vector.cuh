// Vectors of neighbouring channels, and sums over a block: what the memory-bound kernels share.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace vec {

// V neighbouring elements as whole registers, unpacked where they are used. (As a struct of 16-bit members the compiler
// takes it apart right behind the load, and the warp waits there for memory.)
template <class T, int V> struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector {
    static constexpr int kPerWord = 4 / sizeof(T);
    uint32_t word[V / kPerWord];

    __device__ __forceinline__ float operator[](int i) const {
        const uint32_t w = word[i / kPerWord];
        if constexpr (std::is_same_v<T, float>) return __uint_as_float(w);
        else if constexpr (std::is_same_v<T, __nv_bfloat16>) return __uint_as_float(i % 2 ? w & 0xffff0000u : w << 16);
        else return __half2float(__ushort_as_half((unsigned short)(i % 2 ? w >> 16 : w)));
    }
    // Rounds to T.
    __device__ __forceinline__ void set(const float (&x)[V]) {
#pragma unroll
        for (int i = 0; i < V; i += kPerWord) {
            if constexpr (std::is_same_v<T, float>) {
                word[i] = __float_as_uint(x[i]);
            } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
                const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i], x[i + 1]);
                word[i / 2] = *reinterpret_cast<const uint32_t *>(&pair);
            } else {
                const __half2 pair = __floats2half2_rn(x[i], x[i + 1]);
                word[i / 2] = *reinterpret_cast<const uint32_t *>(&pair);
            }
        }
    }
};

// Elements of 16 bytes.
template <class T> constexpr int kWide = 16 / sizeof(T);

// The first `count` of V elements, zero beyond. kAligned: all V exist and `from` is aligned as a Vector is.
template <bool kAligned, int V, class T> __device__ __forceinline__ Vector<T, V> load(const T *from, int count) {
    if constexpr (kAligned) return *reinterpret_cast<const Vector<T, V> *>(from);
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
    Vector<T, V> x{};
    constexpr int per = Vector<T, V>::kPerWord;
#pragma unroll
    for (int i = 0; i < V; i++)
        if (i < count) x.word[i / per] |= (uint32_t)reinterpret_cast<const Bits *>(from)[i] << (sizeof(T) == 4 ? 0 : 16 * (i % per));
    return x;
}
template <bool kAligned, int V, class T> __device__ __forceinline__ void store(T *to, const Vector<T, V> &x, int count) {
    if constexpr (kAligned) {
        *reinterpret_cast<Vector<T, V> *>(to) = x;
    } else {
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
        constexpr int per = Vector<T, V>::kPerWord;
#pragma unroll
        for (int i = 0; i < V; i++)
            if (i < count) reinterpret_cast<Bits *>(to)[i] = (Bits)(x.word[i / per] >> (sizeof(T) == 4 ? 0 : 16 * (i % per)));
    }
}
template <bool kAligned, int V, class T> __device__ __forceinline__ void store(T *to, const float (&x)[V], int count) {
    Vector<T, V> packed;
    packed.set(x);
    store<kAligned>(to, packed, count);
}

// The same where all exist and are aligned.
template <int V, class T> __device__ __forceinline__ Vector<T, V> load_vector(const T *from) { return load<true, V>(from, V); }
template <int V, class T> __device__ __forceinline__ void store_vector(T *to, const float (&x)[V]) { store<true>(to, x, V); }

// Whether rows of this pointer and stride (elements) can be read as Vector<T, V>.
template <int V, class T> __device__ __forceinline__ bool aligned(const T *base, long long stride) {
    return reinterpret_cast<uintptr_t>(base) % alignof(Vector<T, V>) == 0 && stride * sizeof(T) % alignof(Vector<T, V>) == 0;
}

template <class T> __device__ __forceinline__ const T *row(const void *base, long long stride, long long token) {
    return static_cast<const T *>(base) + token * stride;
}
template <class T> __device__ __forceinline__ T *row(void *base, long long stride, long long token) {
    return static_cast<T *>(base) + token * stride;
}

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x and 1 / x, 2 units in the last place; the exponential unit's own instructions.
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
// 1 / (1 + e^-x). Where the result is kept as f32 the exponent's rounding error is made good (relative error 2e-7 for any
// x); for 16-bit types it is far below their own.
template <class T> __device__ __forceinline__ float sigmoid(float x) {
    const float t = -kLog2e * x;
    float e = exp2_fast(t);
    if (sizeof(T) == 4 && t < 127.f) e = fmaf(e, fmaf(-kLog2e, x, -t) * kLn2, e);
    return reciprocal(1.f + e);
}

// Sums over the block in every thread, always in the same order; blockDim.x a multiple of 32. `scratch` holds
// 32 * K floats and is free again after the next barrier.
template <int K> __device__ __forceinline__ void block_sum(float (&x)[K], float *scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int k = 0; k < K; k++)
        for (int step = 16; step; step /= 2) x[k] += __shfl_xor_sync(~0u, x[k], step);
    if (lane == 0)
        for (int k = 0; k < K; k++) scratch[k * 32 + warp] = x[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = lane < warps ? scratch[k * 32 + lane] : 0.f;
        for (int step = 16; step; step /= 2) x[k] += __shfl_xor_sync(~0u, x[k], step);
    }
}

// The largest s < count with begin[s] / per + s <= block, begin ascending and begin[0] = 0, by all 32 lanes together.
// Sequence s has the blocks from begin[s] / per + s on: enough for its tokens, and one where it is empty.
__device__ __forceinline__ int sequence_of_block(const int *begin, int count, int per, int block) {
    const int lane = threadIdx.x % 32;
    int low = 0;
    while (true) {
        const int step = (count - low + 31) / 32, s = low + lane * step;
        const unsigned before = __ballot_sync(~0u, s < count && begin[s] / per + s <= block);
        low += (31 - __clz(before)) * step; // lane 0 always holds
        if (step == 1) return low;
        count = min(count, low + step);
    }
}

// The sum of column `column` over `rows` rows of partial sums `stride` apart, in one order, by a block of 32 columns x 8
// warps; right in warp 0.
__device__ __forceinline__ float column_sum(const float *partial, int rows, long long stride, long long column, bool exists) {
    __shared__ float s_sum[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0.f;
#pragma unroll 8
    for (int r = warp; r < rows; r += 8) sum += exists ? partial[r * stride + column] : 0.f;
    s_sum[warp][lane] = sum;
    __syncthreads();
    for (int w = 1; w < 8 && warp == 0; w++) sum += s_sum[w][lane];
    return sum;
}

} // namespace vec

// One kernel a dtype, by a name that a fatbin keeps.
#define VECTOR_KERNEL(name, params, threads, blocks, ...)                                                      \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ params p) { __VA_ARGS__; }
#define VECTOR_KERNELS(name, params, threads, blocks, function)                                                \
    VECTOR_KERNEL(name##_bf16, params, threads, blocks, function<__nv_bfloat16>(p))                            \
    VECTOR_KERNEL(name##_f16, params, threads, blocks, function<__half>(p))                                    \
    VECTOR_KERNEL(name##_f32, params, threads, blocks, function<float>(p))
