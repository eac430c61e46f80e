// Residual add and normalization: a block a row, which up to 4096 channels stays in registers between the sums and the
// output. Bound by memory. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace addnorm {
using namespace vec;
constexpr int V = kNormChannels;

template <class T, bool kAligned> __device__ void forward_row(const NormForward &p) {
    __shared__ float s_sum[2][32];
    const int E = p.channels, step = blockDim.x * V, first = threadIdx.x * V;
    const T *delta = row<T>(p.delta, p.delta_stride, blockIdx.x);
    const float *residual = p.residual + blockIdx.x * p.residual_stride;
    float *kept = p.residual_out + blockIdx.x * p.residual_out_stride;
    T *out = row<T>(p.out, p.out_stride, blockIdx.x);

    auto fetch = [&](int c, float (&x)[V]) {
        const auto r = load<kAligned, V>(residual + c, E - c);
        const auto d = p.delta ? load<kAligned, V>(delta + c, E - c) : Vector<T, V>{};
#pragma unroll
        for (int i = 0; i < V; i++) x[i] = r[i] + d[i];
    };
    // A thread's first channels stay in `x`; the others, where a row has more than the block takes at once, are fetched
    // for every pass.
    float x[V] = {};
    if (first < E) {
        fetch(first, x);
        if (p.residual_out) store<kAligned>(kept + first, x, E - first);
    }
    auto each = [&](auto f) {
        if (first < E) f(first, x);
        for (int c = first + step; c < E; c += step) {
            float y[V];
            fetch(c, y);
            f(c, y);
        }
    };
    auto exists = [&](int c, int i) { return kAligned || c + i < E; };

    float mean[1] = {0.f};
    if (p.layer) {
        each([&](int, const float (&x)[V]) {
#pragma unroll
            for (int i = 0; i < V; i++) mean[0] += x[i]; // zero beyond the row
        });
        block_sum(mean, s_sum[0]);
        mean[0] /= (float)E;
    }
    float square[1] = {0.f};
    each([&](int c, const float (&x)[V]) {
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float centred = x[i] - mean[0];
            if (exists(c, i)) square[0] = fmaf(centred, centred, square[0]);
        }
    });
    block_sum(square, s_sum[1]);
    const float scale = 1.f / sqrtf(square[0] / (float)E + p.eps);
    each([&](int c, const float (&x)[V]) {
        const auto w = load<kAligned, V>(p.weight + c, E - c);
        const auto b = p.bias ? load<kAligned, V>(p.bias + c, E - c) : Vector<float, V>{};
        float y[V];
#pragma unroll
        for (int i = 0; i < V; i++) y[i] = fmaf((x[i] - mean[0]) * scale, w[i], b[i]);
        store<kAligned>(out + c, y, E - c);
        if (p.residual_out && c != first) store<kAligned>(kept + c, x, E - c); // only now: it may be where fetch reads
    });
}

template <class T> __device__ __forceinline__ void forward(const NormForward &p) {
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.delta, p.delta_stride) && aligned<V>(p.residual, p.residual_stride) &&
                      aligned<V>(p.residual_out, p.residual_out_stride) && aligned<V>((const T *)p.out, p.out_stride) &&
                      aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0);
    wide ? forward_row<T, true>(p) : forward_row<T, false>(p);
}

} // namespace addnorm

VECTOR_KERNELS(add_norm_forward, NormForward, 512, 2, addnorm::forward)
