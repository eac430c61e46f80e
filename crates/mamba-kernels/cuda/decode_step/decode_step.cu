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

// The scan: four warps share 128 channels, four a lane; each warp has a quarter of the states. Warp 0 adds the four
// sums in order and finishes the output.
template <class T> __device__ __forceinline__ float4 step_size(const ScanStep &p, float4 delta, float4 bias) {
    const float4 sum = delta + bias;
    return p.softplus ? map(sum, [](float x) { return softplus<T>(x); }) : sum;
}
__device__ __forceinline__ float4 advance(float4 h, float4 a, float4 step, float4 input, float b) {
    return fma(map(step * a, [](float x) { return exp2_fast(x); }), h, input * b);
}
template <class T, bool kAligned>
__device__ __forceinline__ void finish(const ScanStep &p, int i, int c, const float4 (&sums)[4][32], float4 u, float4 skip) {
    const int lane = threadIdx.x, count = p.channels - c;
    float4 sum = sums[0][lane];
    for (int w = 1; w < 4; w++) sum = sum + sums[w][lane];
    sum = fma(skip, u, sum);
    if (p.z) {
        const float4 z = load4<T, kAligned>(row<T>(p.z, p.z_stride, i) + c, count);
        sum = sum * z * map(z, [](float x) { return sigmoid(x); });
    }
    store4<T, kAligned>(row<T>(p.y, p.y_stride, i) + c, sum, count);
}

// Zeros where !valid. Without a branch, behind which the warp would wait for memory.
__device__ __forceinline__ float4 load_state_if(const float *from, bool valid) {
    float4 x;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
                 " @p ld.global.v4.f32 {%0, %1, %2, %3}, [%4]; }"
                 : "=&f"(x.x), "=&f"(x.y), "=&f"(x.z), "=&f"(x.w)
                 : "l"(from), "r"((int)valid));
    return x;
}

// 16 states, aligned rows. While a sequence is computed, the next one's state is on its way, and the slot of the one
// after that: memory is never idle.
template <class T> __device__ void step_16(const ScanStep &p) {
    __shared__ float4 s_sums[2][4][32];
    constexpr int kMine = 4;
    const int E = p.channels, S = p.sequences, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int c = blockIdx.x * kScanStepChannels + lane * 4, from = min(c, E - 4);
    const bool alive = c < E; // else it computes what another does, and writes nothing
    const long long first_state = (long long)warp * kMine * E + from;
    auto parameters = [&](const float *of) { return of ? *reinterpret_cast<const float4 *>(of + from) : float4{}; };

    struct Place {
        float *state;
        bool valid; // whether there is something to read
    };
    auto place = [&](int i) {
        const int last = min(i, S - 1);
        return Place{p.state + p.slots[last] * p.slot_stride + first_state, i < S && p.fresh[last] == 0};
    };
    struct Inputs {
        float4 h[kMine];
        Four<T> u, delta;
        T b[kMine], c[kMine];
    };
    auto fetch = [&](int i, Place at) {
        Inputs x;
#pragma unroll
        for (int k = 0; k < kMine; k++) x.h[k] = load_state_if(at.state + (long long)k * E, at.valid);
        i = min(i, S - 1);
        x.u = *reinterpret_cast<const Four<T> *>(row<T>(p.u, p.u_stride, i) + from);
        x.delta = *reinterpret_cast<const Four<T> *>(row<T>(p.delta, p.delta_stride, i) + from);
#pragma unroll
        for (int k = 0; k < kMine; k++) {
            x.b[k] = row<T>(p.b, p.b_stride, i)[warp * kMine + k];
            x.c[k] = row<T>(p.c, p.c_stride, i)[warp * kMine + k];
        }
        return x;
    };
    Place at = place(blockIdx.y), at_next = place(blockIdx.y + gridDim.y);
    Inputs x = fetch(blockIdx.y, at);
    const float4 bias = parameters(p.delta_bias), skip = parameters(p.d);
    float4 a[kMine]; // one load for all sequences of the block
#pragma unroll
    for (int k = 0; k < kMine; k++) a[k] = *reinterpret_cast<const float4 *>(p.a + first_state + (long long)k * E) * kLog2e;

    int buffer = 0;
    for (int i = blockIdx.y; i < S; i += gridDim.y, buffer ^= 1) {
        const Inputs next = fetch(i + gridDim.y, at_next);
        const Place at_after = place(i + 2 * gridDim.y);
        const float4 u = widen<T>(x.u), step = step_size<T>(p, widen<T>(x.delta), bias), input = step * u;
        float4 sum{};
#pragma unroll
        for (int k = 0; k < kMine; k++) {
            const float4 h = advance(x.h[k], a[k], step, input, to_float(x.b[k]));
            sum = fma(h, float4{1.f, 1.f, 1.f, 1.f} * to_float(x.c[k]), sum);
            if (alive) __stcs(reinterpret_cast<float4 *>(at.state + (long long)k * E), h); // not read before all layers have run
        }
        s_sums[buffer][warp][lane] = sum;
        __syncthreads(); // two buffers: the next round's sums do not overwrite what warp 0 still reads
        if (warp == 0 && alive) finish<T, true>(p, i, c, s_sums[buffer], u, skip);
        x = next, at = at_next, at_next = at_after;
    }
}

// Any number of states, any alignment.
template <class T, bool kAligned> __device__ void step_any(const ScanStep &p) {
    __shared__ float4 s_sums[2][4][32];
    const int E = p.channels, N = p.states, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int c = blockIdx.x * kScanStepChannels + lane * 4, count = E - c;
    const bool alive = count > 0;
    const int quarter = (N + 3) / 4, begin = min(warp * quarter, N), end = min(begin + quarter, N);
    auto parameters = [&](const float *from, long long offset) {
        return alive && from ? load4<float, kAligned>(from + offset + c, count) : float4{};
    };
    const float4 bias = parameters(p.delta_bias, 0), skip = parameters(p.d, 0);
    int buffer = 0;
    for (int i = blockIdx.y; i < p.sequences; i += gridDim.y, buffer ^= 1) {
        float *state = p.state + p.slots[i] * p.slot_stride + c;
        const bool fresh = p.fresh[i] != 0;
        float4 u{}, delta{}, sum{};
        if (alive) {
            u = load4<T, kAligned>(row<T>(p.u, p.u_stride, i) + c, count);
            delta = load4<T, kAligned>(row<T>(p.delta, p.delta_stride, i) + c, count);
        }
        const float4 step = step_size<T>(p, delta, bias), input = step * u;
        for (int n = begin; n < end; n++) {
            float4 h = alive && !fresh ? load4<float, kAligned>(state + (long long)n * E, count) : float4{};
            h = advance(h, parameters(p.a, (long long)n * E) * kLog2e, step, input, to_float(row<T>(p.b, p.b_stride, i)[n]));
            sum = fma(h, float4{1.f, 1.f, 1.f, 1.f} * to_float(row<T>(p.c, p.c_stride, i)[n]), sum);
            if (alive) store4<float, kAligned>(state + (long long)n * E, h, count);
        }
        s_sums[buffer][warp][lane] = sum;
        __syncthreads(); // as above
        if (warp == 0 && alive) finish<T, kAligned>(p, i, c, s_sums[buffer], u, skip);
    }
}

template <class T> __device__ __forceinline__ void conv_step(const ConvStep &p) {
    wait_for_previous();
    const bool aligned = p.channels % 4 == 0 && fours<T>(p.x, p.x_stride) && fours<T>(p.out, p.out_stride) &&
                         fours<float>(p.weight, 0) && fours<float>(p.bias, 0) && fours<float>(p.state, p.slot_stride);
    aligned ? conv<T, true>(p) : conv<T, false>(p);
}
template <class T> __device__ __forceinline__ void scan_step(const ScanStep &p) {
    wait_for_previous();
    const bool aligned = p.channels % 4 == 0 && fours<T>(p.u, p.u_stride) && fours<T>(p.delta, p.delta_stride) &&
                         fours<T>(p.z, p.z_stride) && fours<T>(p.y, p.y_stride) && fours<float>(p.a, 0) &&
                         fours<float>(p.d, 0) && fours<float>(p.delta_bias, 0) && fours<float>(p.state, p.slot_stride);
    if (aligned && p.states == 16) step_16<T>(p);
    else if (aligned) step_any<T, true>(p);
    else step_any<T, false>(p);
}

} // namespace decode

#define DECODE_KERNELS(T, name)                                                                                \
    SCAN_KERNEL(conv_step_##name, ConvStep, 128, 4, decode::conv_step<T>(p))                                   \
    SCAN_KERNEL(scan_step_##name, ScanStep, 128, 4, decode::scan_step<T>(p))
DECODE_KERNELS(__nv_bfloat16, bf16)
DECODE_KERNELS(__half, f16)
DECODE_KERNELS(float, f32)
