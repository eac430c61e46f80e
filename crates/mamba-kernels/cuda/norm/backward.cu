// The norm's gradients: a block takes every gridDim.x-th row, the next row's loads under way while it sums over the
// current one; each thread keeps its channels' sums over rows. Bound by memory. params.h has the launch.
#include "common.cuh"

namespace addnorm {

// What a thread reads of a row.
template <class T> struct BackwardInput {
    Vector<T, V> d_out[kParts];
    Vector<float, V> residual[kParts], d_residual[kParts];
};

template <class T, bool kFast> __device__ void backward_rows(const NormBackward &p) {
    __shared__ float s_sum[2][64];
    const int E = p.channels, tile = blockDim.x * kNormChannels;
    const float count = (float)E;
    float *sums = p.partial + (long long)blockIdx.x * E, *bias_sums = sums + (long long)p.partials * E;
    auto fetch = [&](int t, int base) {
        BackwardInput<T> in{};
        parts(base, E, [&](int k, int c) {
            in.d_out[k] = load<kFast, V>(row<T>(p.d_out, p.d_out_stride, t) + c, E - c);
            in.residual[k] = load<kFast, V>(p.residual + t * p.residual_stride + c, E - c);
            if (p.d_residual) in.d_residual[k] = load<kFast, V>(p.d_residual + t * p.d_residual_stride + c, E - c);
        });
        return in;
    };
    const Parameters weight = parameters<kFast>(p.weight, 0, E);
    float d_weight[kParts][V] = {}, d_bias[kParts][V] = {}; // of the row's first tile; the others' are summed in `partial`
    BackwardInput<T> next = fetch(blockIdx.x, 0);           // gridDim.x <= T
    int buffer = 0;
    for (int t = blockIdx.x; t < p.tokens; t += gridDim.x) {
        const BackwardInput<T> first = next;
        if (t + gridDim.x < p.tokens) next = fetch(t + gridDim.x, 0);
        // A row of several tiles is read again for every pass.
        auto each = [&](auto f) {
            parts(0, E, [&](int k, int c) { f(first, weight, k, c); });
            for (int base = tile; base < E && !kFast; base += tile) {
                const BackwardInput<T> in = fetch(t, base);
                const Parameters w = parameters<kFast>(p.weight, base, E);
                parts(base, E, [&](int k, int c) { f(in, w, k, c); });
            }
        };
        float mean[2] = {0.f, 0.f}; // of residual; of d_out * weight
        if (p.layer) {
            each([&](const BackwardInput<T> &in, const Parameters &w, int k, int) {
#pragma unroll
                for (int i = 0; i < V; i++) {
                    mean[0] += in.residual[k][i];
                    mean[1] = fmaf(in.d_out[k][i], w.of[k][i], mean[1]);
                }
            });
            block_sum(mean, s_sum[buffer]);
            buffer ^= 1; // the scratch just read is written again only after another barrier
            mean[0] /= count, mean[1] /= count;
        }
        float sum[2] = {0.f, 0.f}; // of the squares; of d_out * weight * residual
        each([&](const BackwardInput<T> &in, const Parameters &w, int k, int c) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float centred = kFast || c + i < E ? in.residual[k][i] - mean[0] : 0.f;
                sum[0] = fmaf(centred, centred, sum[0]);
                sum[1] = fmaf(in.d_out[k][i] * w.of[k][i], centred, sum[1]);
            }
        });
        block_sum(sum, s_sum[buffer]);
        buffer ^= 1;
        const float scale = 1.f / sqrtf(sum[0] / count + p.eps), along = scale * scale * (sum[1] / count);
        each([&](const BackwardInput<T> &in, const Parameters &w, int k, int c) {
            float y[V], w_term[V], b_term[V];
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float centred = in.residual[k][i] - mean[0];
                b_term[i] = in.d_out[k][i];
                w_term[i] = b_term[i] * (centred * scale);
                y[i] = fmaf(scale, fmaf(b_term[i], w.of[k][i], -mean[1]) - centred * along, in.d_residual[k][i]);
            }
            store<kFast>(p.d_residual_out + t * p.d_residual_out_stride + c, y, E - c);
            if (p.d_delta) store<kFast>(row<T>(p.d_delta, p.d_delta_stride, t) + c, y, E - c);
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (kFast || c < tile) {
                    d_weight[k][i] += w_term[i];
                    d_bias[k][i] += b_term[i];
                } else if (c + i < E) {
                    const bool begun = t != blockIdx.x;
                    sums[c + i] = (begun ? sums[c + i] : 0.f) + w_term[i];
                    if (p.d_bias) bias_sums[c + i] = (begun ? bias_sums[c + i] : 0.f) + b_term[i];
                }
            }
        });
    }
    parts(0, E, [&](int k, int c) {
        for (int i = 0; i < min(V, E - c); i++) {
            sums[c + i] = d_weight[k][i];
            if (p.d_bias) bias_sums[c + i] = d_bias[k][i];
        }
    });
}

template <class T> __device__ __forceinline__ void backward(const NormBackward &p) {
    const bool fast = p.channels % V == 0 && p.channels <= blockDim.x * kNormChannels && aligned<V>((const T *)p.d_out, p.d_out_stride) && aligned<V>(p.residual, p.residual_stride) &&
                      aligned<V>(p.d_residual, p.d_residual_stride) && aligned<V>(p.d_residual_out, p.d_residual_out_stride) &&
                      aligned<V>((const T *)p.d_delta, p.d_delta_stride) && aligned<V>(p.weight, 0);
    fast ? backward_rows<T, true>(p) : backward_rows<T, false>(p);
}

// d_weight, and in the second half of the blocks d_bias, from the partial sums.
__device__ __forceinline__ void reduce(const NormBackward &p) {
    const int half = (p.channels + 31) / 32, which = blockIdx.x / half, c = blockIdx.x % half * 32 + threadIdx.x % 32;
    const float *partial = p.partial + (long long)which * p.partials * p.channels;
    const float sum = column_sum(partial, p.partials, p.channels, c, c < p.channels);
    if (threadIdx.x < 32 && c < p.channels) (which ? p.d_bias : p.d_weight)[c] = sum;
}

} // namespace addnorm

VECTOR_KERNELS(add_norm_backward, NormBackward, 640, 1, addnorm::backward)
VECTOR_KERNEL(add_norm_reduce, NormBackward, 256, 4, addnorm::reduce(p))
