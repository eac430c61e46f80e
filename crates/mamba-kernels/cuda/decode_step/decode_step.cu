// The step of one token of many sequences: what the convolution and the scan do to a sequence of length 1. Both are
// bound by memory: a state is read once and written once, four channels (16 bytes) a lane. params.h has the launch.
#include "../selective_scan/common.cuh"
#include "params.h"

namespace decode {
using namespace scan;

// Whether rows of this pointer and stride can be read four elements at a time.
template <class T> __device__ __forceinline__ bool fours(const void *base, long long stride) {
    return reinterpret_cast<unsigned long long>(base) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}
// Four channels, of which the first `count` exist (all of them where kAligned).
template <class T, bool kAligned> __device__ __forceinline__ float4 load4(const T *from, int count) {
    if constexpr (kAligned) return widen<T>(*reinterpret_cast<const Four<T> *>(from));
    float4 x{};
    if (count > 0) x.x = to_float(from[0]);
    if (count > 1) x.y = to_float(from[1]);
    if (count > 2) x.z = to_float(from[2]);
    if (count > 3) x.w = to_float(from[3]);
    return x;
}
template <class T, bool kAligned> __device__ __forceinline__ void store4(T *to, float4 x, int count) {
    struct alignas(4 * sizeof(T)) Quad { T v[4]; };
    const Quad q{{from_float<T>(x.x), from_float<T>(x.y), from_float<T>(x.z), from_float<T>(x.w)}};
    if constexpr (kAligned) {
        *reinterpret_cast<Quad *>(to) = q;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) to[i] = q.v[i];
    }
}
template <class F> __device__ __forceinline__ float4 map(float4 x, F f) { return make_float4(f(x.x), f(x.y), f(x.z), f(x.w)); }
__device__ __forceinline__ float4 operator+(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }
__device__ __forceinline__ float4 operator*(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }
__device__ __forceinline__ float4 operator*(float4 x, float y) { return make_float4(x.x * y, x.y * y, x.z * y, x.w * y); }
__device__ __forceinline__ float4 fma(float4 x, float4 y, float4 z) {
    return make_float4(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y), fmaf(x.z, y.z, z.z), fmaf(x.w, y.w, z.w));
}

template <class T, bool kAligned> __device__ void conv(const ConvStep &p) {
    constexpr int kWidest = 8;
    const int E = p.channels, c = blockIdx.x * kConvStepChannels + threadIdx.x * 4, count = E - c, i = blockIdx.y;
    if (count <= 0) return;
    float *state = p.state + p.slots[i] * p.slot_stride + c;
    const bool fresh = p.fresh[i] != 0;
    float4 window[kWidest]; // the slot's rows, then x
#pragma unroll
    for (int k = 0; k < kWidest; k++) {
        window[k] = float4{};
        if (k < p.d_conv - 1 && !fresh) window[k] = load4<float, kAligned>(state + (long long)k * E, count);
    }
    const float4 x = load4<T, kAligned>(row<T>(p.x, p.x_stride, i) + c, count);
    float4 sum{};
    if (p.bias) sum = load4<float, kAligned>(p.bias + c, count);
#pragma unroll
    for (int k = 0; k < kWidest; k++) {
        if (k >= p.d_conv) continue;
        if (k == p.d_conv - 1) window[k] = x;
        sum = fma(load4<float, kAligned>(p.weight + (long long)k * E + c, count), window[k], sum);
        if (k > 0) store4<float, kAligned>(state + (long long)(k - 1) * E, window[k], count);
    }
    store4<T, kAligned>(row<T>(p.out, p.out_stride, i) + c, map(sum, [](float x) { return x * sigmoid(x); }), count);
}

// Four warps share 128 channels: warp w has a quarter of the states, and warp 0 adds the four sums in order.
// kStates: 16, or 0 for any number.
template <class T, bool kAligned, int kStates> __device__ void step(const ScanStep &p) {
    __shared__ float4 s_sum[2][3][32];
    constexpr int kKept = kStates ? kStates / 4 : 1;
    const int E = p.channels, N = kStates ? kStates : p.states, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int c = blockIdx.x * kScanStepChannels + lane * 4, count = E - c;
    const bool alive = count > 0;
    const int quarter = (N + 3) / 4, begin = min(warp * quarter, N), end = min(begin + quarter, N);
    auto parameters = [&](const float *from, long long offset) {
        return alive && from ? load4<float, kAligned>(from + offset + c, count) : float4{};
    };
    auto scaled = [&](int n) { return parameters(p.a, (long long)n * E) * kLog2e; };
    const float4 bias = parameters(p.delta_bias, 0), skip = parameters(p.d, 0);
    float4 a[kKept]; // one load for all sequences of the block
    if constexpr (kStates != 0) {
#pragma unroll
        for (int k = 0; k < kKept; k++) a[k] = scaled(begin + k);
    }
    int buffer = 0;
    for (int i = blockIdx.y; i < p.sequences; i += gridDim.y, buffer ^= 1) {
        float *state = p.state + p.slots[i] * p.slot_stride + c;
        const bool read = alive && p.fresh[i] == 0;
        const T *b = row<T>(p.b, p.b_stride, i), *cc = row<T>(p.c, p.c_stride, i);
        float4 h[kKept];
        if constexpr (kStates != 0) { // all loads before the first use
#pragma unroll
            for (int k = 0; k < kKept; k++) h[k] = read ? load4<float, kAligned>(state + (long long)(begin + k) * E, count) : float4{};
        }
        float4 u{}, delta{}, sum{};
        if (alive) {
            u = load4<T, kAligned>(row<T>(p.u, p.u_stride, i) + c, count);
            delta = load4<T, kAligned>(row<T>(p.delta, p.delta_stride, i) + c, count);
        }
        float4 length = delta + bias;
        if (p.softplus) length = map(length, [](float x) { return softplus<T>(x); });
        const float4 input = length * u;
        auto advance = [&](int n, float4 a, float4 h) {
            h = fma(map(length * a, [](float x) { return exp2_fast(x); }), h, input * to_float(b[n]));
            sum = fma(h, make_float4(1.f, 1.f, 1.f, 1.f) * to_float(cc[n]), sum);
            if (alive) store4<float, kAligned>(state + (long long)n * E, h, count);
        };
        if constexpr (kStates != 0) {
#pragma unroll
            for (int k = 0; k < kKept; k++) advance(begin + k, a[k], h[k]);
        } else {
            for (int n = begin; n < end; n++)
                advance(n, scaled(n), read ? load4<float, kAligned>(state + (long long)n * E, count) : float4{});
        }
        if (warp > 0) s_sum[buffer][warp - 1][lane] = sum;
        __syncthreads(); // two buffers: the next round's sums do not overwrite what warp 0 still reads
        if (warp == 0 && alive) {
            for (int w = 0; w < 3; w++) sum = sum + s_sum[buffer][w][lane];
            sum = fma(skip, u, sum);
            if (p.z) {
                const float4 z = load4<T, kAligned>(row<T>(p.z, p.z_stride, i) + c, count);
                sum = sum * z * map(z, [](float x) { return sigmoid(x); });
            }
            store4<T, kAligned>(row<T>(p.y, p.y_stride, i) + c, sum, count);
        }
    }
}

template <class T> __device__ __forceinline__ void conv_step(const ConvStep &p) {
    const bool aligned = p.channels % 4 == 0 && fours<T>(p.x, p.x_stride) && fours<T>(p.out, p.out_stride) &&
                         fours<float>(p.weight, 0) && fours<float>(p.bias, 0) && fours<float>(p.state, p.slot_stride);
    aligned ? conv<T, true>(p) : conv<T, false>(p);
}
template <class T> __device__ __forceinline__ void scan_step(const ScanStep &p) {
    const bool aligned = p.channels % 4 == 0 && fours<T>(p.u, p.u_stride) && fours<T>(p.delta, p.delta_stride) &&
                         fours<T>(p.z, p.z_stride) && fours<T>(p.y, p.y_stride) && fours<float>(p.a, 0) &&
                         fours<float>(p.d, 0) && fours<float>(p.delta_bias, 0) && fours<float>(p.state, p.slot_stride);
    if (aligned && p.states == 16) step<T, true, 16>(p);
    else if (aligned) step<T, true, 0>(p);
    else step<T, false, 0>(p);
}

} // namespace decode

#define DECODE_KERNELS(T, name)                                                                                \
    SCAN_KERNEL(conv_step_##name, ConvStep, 128, 4, decode::conv_step<T>(p))                                   \
    SCAN_KERNEL(scan_step_##name, ScanStep, 128, 4, decode::scan_step<T>(p))
DECODE_KERNELS(__nv_bfloat16, bf16)
DECODE_KERNELS(__half, f16)
DECODE_KERNELS(float, f32)
