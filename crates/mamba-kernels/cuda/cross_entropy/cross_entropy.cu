// Cross-entropy over a large vocabulary, with its gradient in place of the logits, one block a row: the first pass
// takes the largest logit and the sum of exponentials together (online softmax), the second writes. The second pass
// finds the row in the L2, so memory sees one pass of reads and one of writes.
#include "../selective_scan/common.cuh"
#include "params.h"

namespace cross_entropy {
using namespace scan;

template <class T> constexpr int kThreads = cross_entropy_threads(sizeof(T));

// Of the elements so far, the largest and the sum of e^(x - largest). Begins at a number that no other is below, so
// that differences are no NaN.
struct Sum {
    float largest = -3.402823466e38f, sum = 0.f;
};
// e^x for x <= 0, -infinity included; NaN stays NaN.
template <class T> __device__ __forceinline__ float power(float x) {
    return exponential<T>(kExact<T> && x < -200.f ? -200.f : x); // its correction would make NaN of infinity
}
template <class T> __device__ __forceinline__ Sum join(Sum a, Sum b) {
    const float m = fmaxf(a.largest, b.largest);
    return {m, fmaf(a.sum, power<T>(a.largest - m), b.sum * power<T>(b.largest - m))};
}

// 16 bytes of T as floats, and back.
template <class T> constexpr int kCount = 16 / sizeof(T);
template <class T> __device__ __forceinline__ void unpack(uint4 raw, float (&x)[kCount<T>]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 4) {
            x[i] = __uint_as_float(words[i]);
        } else {
            const float2 two = widen<T>(words[i]);
            x[2 * i] = two.x, x[2 * i + 1] = two.y;
        }
    }
}
template <class T> __device__ __forceinline__ uint4 pack(const float (&x)[kCount<T>]) {
    uint4 raw;
    T *out = reinterpret_cast<T *>(&raw);
#pragma unroll
    for (int i = 0; i < kCount<T>; i++) out[i] = from_float<T>(x[i]);
    return raw;
}

// The thread's part of a row, 16 bytes at a time and several loads ahead: f(index of the first, floats). What is not
// whole 16 bytes, or begins at none, comes as one(index, float).
template <class T, class F, class One> __device__ __forceinline__ void each(const T *row, int vocab, F f, One one) {
    constexpr int kAhead = 4;
    const int vectors = reinterpret_cast<unsigned long long>(row) % 16 == 0 ? vocab / kCount<T> : 0;
    const uint4 *from = reinterpret_cast<const uint4 *>(row);
    for (int first = threadIdx.x; first < vectors; first += kThreads<T> * kAhead) {
        uint4 raw[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; k++) raw[k] = load_if<uint4>(from + first + k * kThreads<T>, first + k * kThreads<T> < vectors);
#pragma unroll
        for (int k = 0; k < kAhead; k++) {
            if (first + k * kThreads<T> >= vectors) break;
            float x[kCount<T>];
            unpack<T>(raw[k], x);
            f((first + k * kThreads<T>) * kCount<T>, x);
        }
    }
    for (int i = vectors * kCount<T> + threadIdx.x; i < vocab; i += kThreads<T>) one(i, to_float(row[i]));
}

template <class T> __device__ void loss(const CrossEntropy &p) {
    constexpr int kWarps = kThreads<T> / 32;
    __shared__ Sum s_sums[kWarps];
    __shared__ float s_target;
    T *const row = static_cast<T *>(p.logits) + blockIdx.x * p.stride;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, target = p.targets[blockIdx.x];
    if (target < 0) {
        if (threadIdx.x == 0) p.loss[blockIdx.x] = 0.f;
        if (p.gradient)
            for (int i = threadIdx.x; i < p.vocab; i += kThreads<T>) row[i] = from_float<T>(0.f);
        return;
    }
    if (threadIdx.x == 0) s_target = target < p.vocab ? to_float(row[target]) : __int_as_float(0x7fc00000);

    Sum sum;
    each(
        row, p.vocab,
        [&](int, const float(&x)[kCount<T>]) {
            float largest = x[0], of_these = 0.f;
#pragma unroll
            for (int i = 1; i < kCount<T>; i++) largest = fmaxf(largest, x[i]);
            if (largest > sum.largest) {
                sum.sum *= power<T>(sum.largest - largest);
                sum.largest = largest;
            }
#pragma unroll
            for (int i = 0; i < kCount<T>; i++) of_these += power<T>(x[i] - sum.largest);
            sum.sum += of_these;
        },
        [&](int, float x) { sum = join<T>(sum, Sum{x, 1.f}); });
    auto over_lanes = [&] {
        for (int d = 16; d; d /= 2)
            sum = join<T>(sum, Sum{__shfl_xor_sync(~0u, sum.largest, d), __shfl_xor_sync(~0u, sum.sum, d)});
    };
    over_lanes();
    if (lane == 0) s_sums[warp] = sum;
    __syncthreads();
    sum = lane < kWarps ? s_sums[lane] : Sum{};
    over_lanes();
    const float log_sum = sum.largest + logf(sum.sum);
    if (threadIdx.x == 0) p.loss[blockIdx.x] = sum.largest - s_target + logf(sum.sum) + p.z_loss * log_sum * log_sum;
    if (!p.gradient) return;

    const float of_one = p.scale * (1.f + 2.f * p.z_loss * log_sum) / sum.sum;
    auto gradient = [&](int i, float x) { return fmaf(power<T>(x - sum.largest), of_one, i == target ? -p.scale : 0.f); };
    each(
        row, p.vocab,
        [&](int at, float(&x)[kCount<T>]) {
#pragma unroll
            for (int i = 0; i < kCount<T>; i++) x[i] = gradient(at + i, x[i]);
            __stcs(reinterpret_cast<uint4 *>(row + at), pack<T>(x)); // not read again here: the first to leave the L2
        },
        [&](int i, float x) { row[i] = from_float<T>(gradient(i, x)); });
}

} // namespace cross_entropy

#define CROSS_ENTROPY_KERNEL(T, name)                                                                          \
    SCAN_KERNEL(cross_entropy_loss_##name, CrossEntropy, cross_entropy::kThreads<T>, 1024 / cross_entropy::kThreads<T>, cross_entropy::loss<T>(p))
CROSS_ENTROPY_KERNEL(__nv_bfloat16, bf16)
CROSS_ENTROPY_KERNEL(__half, f16)
CROSS_ENTROPY_KERNEL(float, f32)
