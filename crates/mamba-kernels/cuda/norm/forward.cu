// Residual add and normalization: a block takes every gridDim.x-th row, the next row's loads under way while it sums over
// the current one. Bound by memory. params.h has the launch.
#include "common.cuh"

namespace addnorm {

// What a thread reads of a row.
template <class T> struct ForwardInput {
    Vector<float, V> residual[kParts];
    Vector<T, V> delta[kParts];
};

template <class T, bool kFast> __device__ void forward_rows(const NormForward &p) {
    __shared__ float s_sum[2][32];
    const int E = p.channels, tile = blockDim.x * kNormChannels;
    auto fetch = [&](int t, int base) {
        ForwardInput<T> in{};
        parts(base, E, [&](int k, int c) {
            in.residual[k] = load<kFast, V>(p.residual + t * p.residual_stride + c, E - c);
            if (p.delta) in.delta[k] = load<kFast, V>(row<T>(p.delta, p.delta_stride, t) + c, E - c);
        });
        return in;
    };
    const Parameters weight = parameters<kFast>(p.weight, 0, E);
    ForwardInput<T> next = fetch(blockIdx.x, 0); // gridDim.x <= T
    int buffer = 0;
    for (int t = blockIdx.x; t < p.tokens; t += gridDim.x) {
        const ForwardInput<T> in = next;
        if (t + gridDim.x < p.tokens) next = fetch(t + gridDim.x, 0);
        float x[kParts][V]; // the row's first tile; what a block does not take at once is read again for every pass
        auto add = [&](const ForwardInput<T> &in, float (&x)[kParts][V]) {
#pragma unroll
            for (int k = 0; k < kParts; k++)
#pragma unroll
                for (int i = 0; i < V; i++) x[k][i] = in.residual[k][i] + in.delta[k][i];
        };
        add(in, x);
        auto each = [&](auto f) {
            parts(0, E, [&](int k, int c) { f(c, x[k], weight.of[k]); });
            for (int base = tile; base < E && !kFast; base += tile) {
                float y[kParts][V];
                add(fetch(t, base), y);
                const Parameters w = parameters<kFast>(p.weight, base, E);
                parts(base, E, [&](int k, int c) { f(c, y[k], w.of[k]); });
            }
        };
        float mean[1] = {0.f}, square[1] = {0.f};
        if (p.layer) {
            each([&](int, const float (&x)[V], const Vector<float, V> &) {
#pragma unroll
                for (int i = 0; i < V; i++) mean[0] += x[i]; // zero beyond the row
            });
            block_sum(mean, s_sum[buffer]);
            buffer ^= 1; // the scratch just read is written again only after another barrier
            mean[0] /= (float)E;
        }
        each([&](int c, const float (&x)[V], const Vector<float, V> &) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float centred = kFast || c + i < E ? x[i] - mean[0] : 0.f;
                square[0] = fmaf(centred, centred, square[0]);
            }
        });
        block_sum(square, s_sum[buffer]);
        buffer ^= 1;
        const float scale = 1.f / sqrtf(square[0] / (float)E + p.eps);
        each([&](int c, const float (&x)[V], const Vector<float, V> &w) {
            const auto b = p.bias ? load<kFast, V>(p.bias + c, E - c) : Vector<float, V>{};
            float y[V];
#pragma unroll
            for (int i = 0; i < V; i++) y[i] = fmaf((x[i] - mean[0]) * scale, w[i], b[i]);
            store<kFast>(row<T>(p.out, p.out_stride, t) + c, y, E - c);
            // Not sooner: a row of several tiles is still read, perhaps from there.
            if (p.residual_out) store<kFast>(p.residual_out + t * p.residual_out_stride + c, x, E - c);
        });
    }
}

template <class T> __device__ __forceinline__ void forward(const NormForward &p) {
    wait_for_previous();
    const bool fast = p.channels % V == 0 && p.channels <= blockDim.x * kNormChannels && aligned<V>((const T *)p.delta, p.delta_stride) && aligned<V>(p.residual, p.residual_stride) &&
                      aligned<V>(p.residual_out, p.residual_out_stride) && aligned<V>((const T *)p.out, p.out_stride) &&
                      aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0);
    fast ? forward_rows<T, true>(p) : forward_rows<T, false>(p);
}

} // namespace addnorm

VECTOR_KERNELS(add_norm_forward, NormForward, 512, 2, addnorm::forward)
