// The norm's gradients: a block takes every gridDim.x-th row, the next row's loads under way while it sums over the
// current one; each thread keeps its channels' sums over rows. Bound by memory. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace addnorm {
using namespace vec;
constexpr int V = kNormChannels;

// What a thread reads of a row.
template <class T> struct Input {
    Vector<T, V> d_out;
    Vector<float, V> residual, d_residual;
};

template <class T, bool kAligned> __device__ void backward_rows(const NormBackward &p) {
    __shared__ float s_sum[2][64];
    const int E = p.channels, step = blockDim.x * V, first = threadIdx.x * V;
    const float count = (float)E;
    float *sums = p.partial + (long long)blockIdx.x * E, *bias_sums = sums + (long long)p.partials * E;

    auto fetch = [&](int t, int c) {
        Input<T> in{};
        if (c >= E) return in;
        in.d_out = load<kAligned, V>(row<T>(p.d_out, p.d_out_stride, t) + c, E - c);
        in.residual = load<kAligned, V>(p.residual + t * p.residual_stride + c, E - c);
        if (p.d_residual) in.d_residual = load<kAligned, V>(p.d_residual + t * p.d_residual_stride + c, E - c);
        return in;
    };
    auto parameters = [&](const float *from, int c) { return c < E ? load<kAligned, V>(from + c, E - c) : Vector<float, V>{}; };
    auto exists = [&](int c, int i) { return kAligned ? c < E : c + i < E; };

    const Vector<float, V> weight = parameters(p.weight, first);
    float d_weight[V] = {}, d_bias[V] = {};
    Input<T> next = fetch(blockIdx.x, first); // gridDim.x <= T
    int buffer = 0;
    for (int t = blockIdx.x; t < p.tokens; t += gridDim.x) {
        const Input<T> in = next;
        if (t + gridDim.x < p.tokens) next = fetch(t + gridDim.x, first);
        // A row that has more channels than the block takes at once is read again for every pass.
        auto each = [&](auto f) {
            f(first, in, weight, d_weight, d_bias);
            for (int c = first + step; c < E; c += step) {
                float w_sum[V] = {}, b_sum[V] = {};
                f(c, fetch(t, c), parameters(p.weight, c), w_sum, b_sum);
            }
        };
        float mean[2] = {0.f, 0.f}; // of residual; of d_out * weight
        if (p.layer) {
            each([&](int, const Input<T> &in, const Vector<float, V> &w, float (&)[V], float (&)[V]) {
#pragma unroll
                for (int i = 0; i < V; i++) {
                    mean[0] += in.residual[i];
                    mean[1] = fmaf(in.d_out[i], w[i], mean[1]);
                }
            });
            block_sum(mean, s_sum[buffer]);
            buffer ^= 1; // the scratch just read is written again only after another barrier
            mean[0] /= count, mean[1] /= count;
        }
        float sum[2] = {0.f, 0.f}; // of the squares; of d_out * weight * residual
        each([&](int c, const Input<T> &in, const Vector<float, V> &w, float (&)[V], float (&)[V]) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float centred = exists(c, i) ? in.residual[i] - mean[0] : 0.f;
                sum[0] = fmaf(centred, centred, sum[0]);
                sum[1] = fmaf(in.d_out[i] * w[i], centred, sum[1]);
            }
        });
        block_sum(sum, s_sum[buffer]);
        buffer ^= 1;
        const float scale = 1.f / sqrtf(sum[0] / count + p.eps), along = scale * scale * (sum[1] / count);
        each([&](int c, const Input<T> &in, const Vector<float, V> &w, float (&w_sum)[V], float (&b_sum)[V]) {
            float y[V];
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float centred = in.residual[i] - mean[0], g = in.d_out[i];
                y[i] = fmaf(scale, fmaf(g, w[i], -mean[1]) - centred * along, in.d_residual[i]);
                w_sum[i] = fmaf(g, centred * scale, w_sum[i]);
                b_sum[i] += g;
            }
            if (c >= E) return;
            store<kAligned>(p.d_residual_out + t * p.d_residual_out_stride + c, y, E - c);
            if (p.d_delta) store<kAligned>(row<T>(p.d_delta, p.d_delta_stride, t) + c, y, E - c);
            if (c == first) return;
            for (int i = 0; i < min(V, E - c); i++) { // sums that no register keeps
                const bool begun = t != blockIdx.x;
                sums[c + i] = (begun ? sums[c + i] : 0.f) + w_sum[i];
                if (p.d_bias) bias_sums[c + i] = (begun ? bias_sums[c + i] : 0.f) + b_sum[i];
            }
        });
    }
    if (first >= E) return;
    const bool wide = E % V == 0 && aligned<V>(p.partial, 0);
    auto keep = [&](float *to, const float (&x)[V]) { wide ? store<true>(to + first, x, E - first) : store<false>(to + first, x, E - first); };
    keep(sums, d_weight);
    if (p.d_bias) keep(bias_sums, d_bias);
}

template <class T> __device__ __forceinline__ void backward(const NormBackward &p) {
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.d_out, p.d_out_stride) && aligned<V>(p.residual, p.residual_stride) &&
                      aligned<V>(p.d_residual, p.d_residual_stride) && aligned<V>(p.d_residual_out, p.d_residual_out_stride) &&
                      aligned<V>((const T *)p.d_delta, p.d_delta_stride) && aligned<V>(p.weight, 0);
    wide ? backward_rows<T, true>(p) : backward_rows<T, false>(p);
}

// d_weight, and in the second half of the blocks d_bias, from the partial sums.
__device__ __forceinline__ void reduce(const NormBackward &p) {
    const int half = (p.channels + 31) / 32, which = blockIdx.x / half, c = blockIdx.x % half * 32 + threadIdx.x % 32;
    const float *partial = p.partial + (long long)which * p.partials * p.channels;
    const float sum = column_sum(partial, p.partials, p.channels, c, c < p.channels);
    if (threadIdx.x < 32 && c < p.channels) (which ? p.d_bias : p.d_weight)[c] = sum;
}

} // namespace addnorm

VECTOR_KERNELS(add_norm_backward, NormBackward, 512, 1, addnorm::backward)
VECTOR_KERNEL(add_norm_reduce, NormBackward, 256, 4, addnorm::reduce(p))
