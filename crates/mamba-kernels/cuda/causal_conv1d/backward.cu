// The convolution's gradients: a warp walks through 64 tokens of 128 channels, the window of inputs and that of the
// pre-activations' gradients in registers; the sums over tokens go through shared memory to one row of `partial` a block.
// Bound by memory, closely followed by arithmetic. params.h has the launch.
#include "common.cuh"

namespace conv {

constexpr int V = 4, kWarps = 8, kRun = kConvBackwardTokens / kWarps, kGroup = 4;

struct State { // what a sequence has before and after; null: nothing
    const float *initial, *last_grad;
    float *initial_grad;
};
__device__ __forceinline__ State state_of(const ConvBackward &p, int s, int c) {
    if (!p.initial_state && !p.last_state_grad && !p.initial_state_grad) return {};
    const long long at = p.slots[s] * p.slot_stride + c;
    return {p.initial_state && !p.fresh[s] ? p.initial_state + at : nullptr, p.last_state_grad ? p.last_state_grad + at : nullptr,
            p.initial_state_grad ? p.initial_state_grad + at : nullptr};
}

// d SiLU(x) / dx
__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.f - s, 1.f);
}

// Row k of the block's partial sums: over the warps, in order.
__device__ __forceinline__ void write_partial(const ConvBackward &p, int k, const float (&sum)[V]) {
    __shared__ float s_sum[kWarps][kConvBackwardChannels];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < V; i++) s_sum[warp][lane * V + i] = sum[i];
    __syncthreads();
    const int c = blockIdx.x * kConvBackwardChannels + threadIdx.x;
    if (threadIdx.x < kConvBackwardChannels && c < p.channels) {
        float total = 0.f;
        for (int w = 0; w < kWarps; w++) total += s_sum[w][threadIdx.x];
        p.partial[((long long)blockIdx.y * (p.d_conv + 1) + k) * p.channels + c] = total;
    }
    __syncthreads();
}

// kConv: d_conv. With g_t the gradient of the pre-activation, input t - (kConv - 1) gets sum over k of weight[k] * g_(t - k)
// once g_t is known; for tokens past the sequence's end g is zero. Inputs before its first token are the initial state, those
// of its last kConv - 1 are also the last state.
template <class T, int kConv, bool kAligned> __device__ void fixed(const ConvBackward &p, Piece piece) {
    constexpr int kPast = kConv - 1;
    const int E = p.channels, c = blockIdx.x * kConvBackwardChannels + threadIdx.x % 32 * V, count = E - c;
    float d_weight[kConv][V] = {}, d_bias[V] = {};
    const int begin = piece.begin + threadIdx.x / 32 * kRun, end = min(begin + kRun, piece.last);
    if (count > 0 && (begin < end || begin == piece.first)) {
        const T *x = row<T>(p.x, p.x_stride, 0) + c, *d_out = row<T>(p.d_out, p.d_out_stride, 0) + c;
        T *d_x = row<T>(p.d_x, p.d_x_stride, 0) + c;
        const State state = state_of(p, piece.s, c);
        float weight[kConv][V], bias[V] = {};
#pragma unroll
        for (int k = 0; k < kConv; k++) load_floats<kAligned>(weight[k], p.weight + (long long)k * E + c, count);
        if (p.bias) load_floats<kAligned>(bias, p.bias + c, count);

        float past[kPast][V] = {}, g[kConv][V] = {}; // inputs before the token, oldest first; g_t, g_(t - 1), ...
#pragma unroll
        for (int k = 0; k < kPast; k++) {
            if (begin > piece.first) load_floats<kAligned>(past[k], x + (begin - kPast + k) * p.x_stride, count);
            else if (state.initial) load_floats<kAligned>(past[k], state.initial + (long long)k * E, count);
        }
        auto advance = [&](const Vector<T, V> &in, const Vector<T, V> &grad, bool is_own) { // g_t, and its sums if the token is this warp's
#pragma unroll
            for (int i = 0; i < V; i++) {
#pragma unroll
                for (int k = kPast; k > 0; k--) g[k][i] = g[k - 1][i];
                const float now = in[i];
                float sum = bias[i];
#pragma unroll
                for (int k = 0; k < kPast; k++) sum = fmaf(weight[k][i], past[k][i], sum);
                sum = fmaf(weight[kPast][i], now, sum);
                g[0][i] = grad[i] * silu_slope(sum);
                if (is_own) {
#pragma unroll
                    for (int k = 0; k < kPast; k++) d_weight[k][i] = fmaf(g[0][i], past[k][i], d_weight[k][i]);
                    d_weight[kPast][i] = fmaf(g[0][i], now, d_weight[kPast][i]);
                    d_bias[i] += g[0][i];
                }
#pragma unroll
                for (int k = 0; k + 1 < kPast; k++) past[k][i] = past[k + 1][i];
                past[kPast - 1][i] = now;
            }
        };
        auto emit = [&](int t) { // the gradient of input t - kPast
            float sum[V] = {};
#pragma unroll
            for (int k = 0; k < kConv; k++)
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] = fmaf(weight[k][i], g[k][i], sum[i]);
            if (t >= piece.last && state.last_grad) {
                float last[V];
                load_floats<kAligned>(last, state.last_grad + (long long)(t - piece.last) * E, count);
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] += last[i];
            }
            if (t - kPast >= begin) {
                store<kAligned>(d_x + (t - kPast) * p.d_x_stride, sum, count);
            } else if (begin == piece.first && state.initial_grad) {
                for (int i = 0; i < V && p.fresh[piece.s]; i++) sum[i] = 0.f;
                store<kAligned>(state.initial_grad + (long long)(t - begin) * E, sum, count);
            }
        };
        int t = begin;
        for (; t + kGroup <= end; t += kGroup) {
            Vector<T, V> in[kGroup], grad[kGroup];
#pragma unroll
            for (int j = 0; j < kGroup; j++) {
                in[j] = load<kAligned, V>(x + (t + j) * p.x_stride, count);
                grad[j] = load<kAligned, V>(d_out + (t + j) * p.d_out_stride, count);
            }
#pragma unroll
            for (int j = 0; j < kGroup; j++) {
                advance(in[j], grad[j], true);
                emit(t + j);
            }
        }
        for (; t < end; t++) {
            advance(load<kAligned, V>(x + t * p.x_stride, count), load<kAligned, V>(d_out + t * p.d_out_stride, count), true);
            emit(t);
        }
        for (; t < end + kPast; t++) { // the next warp's tokens that reach back to this one's
            const bool exists = t < piece.last;
            const Vector<T, V> in = exists ? load<kAligned, V>(x + t * p.x_stride, count) : Vector<T, V>{};
            const Vector<T, V> grad = exists ? load<kAligned, V>(d_out + t * p.d_out_stride, count) : Vector<T, V>{};
            advance(in, grad, false);
            emit(t);
        }
    }
#pragma unroll
    for (int k = 0; k < kConv; k++) write_partial(p, k, d_weight[k]);
    write_partial(p, kConv, d_bias);
}

// Any d_conv up to kRun; every pre-activation is computed again wherever it is needed.
template <class T> __device__ void any(const ConvBackward &p, Piece piece) {
    const int E = p.channels, d_conv = p.d_conv, past = d_conv - 1, from = blockIdx.x * kConvBackwardChannels + threadIdx.x % 32 * V;
    const int begin = piece.begin + threadIdx.x / 32 * kRun, end = min(begin + kRun, piece.last);
    for (int k = 0; k <= d_conv; k++) { // row k of partial; what is no sum over tokens with the last
        float total[V] = {};
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int c = from + i;
            if (c >= E) break;
            const State state = state_of(p, piece.s, c);
            auto input = [&](int t) {
                if (t >= piece.first) return load_one(row<T>(p.x, p.x_stride, t) + c);
                return state.initial ? state.initial[(long long)(t - piece.first + past) * E] : 0.f;
            };
            auto g = [&](int t) {
                if (t < piece.first || t >= piece.last) return 0.f;
                float sum = p.bias ? p.bias[c] : 0.f;
                for (int j = 0; j < d_conv; j++) sum = fmaf(p.weight[(long long)j * E + c], input(t - past + j), sum);
                return load_one(row<T>(p.d_out, p.d_out_stride, t) + c) * silu_slope(sum);
            };
            for (int t = begin; t < end; t++) total[i] += g(t) * (k < d_conv ? input(t - past + k) : 1.f);
            if (k < d_conv || (begin >= end && begin > piece.first)) continue;
            for (int t = begin == piece.first ? begin - past : begin; t < end; t++) {
                float sum = 0.f;
                for (int j = 0; j < d_conv; j++) sum = fmaf(p.weight[(long long)j * E + c], g(t + past - j), sum);
                if (t + past >= piece.last && state.last_grad) sum += state.last_grad[(long long)(t + past - piece.last) * E];
                if (t >= begin) store_one(row<T>(p.d_x, p.d_x_stride, t) + c, sum);
                else if (state.initial_grad) state.initial_grad[(long long)(t - begin + past) * E] = p.fresh[piece.s] ? 0.f : sum;
            }
        }
        write_partial(p, k, total);
    }
}

template <class T> __device__ __forceinline__ void backward(const ConvBackward &p) {
    const Piece piece = piece_of_block(p.cu_seqlens, p.sequences, kConvBackwardTokens);
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.x, p.x_stride) && aligned<V>((const T *)p.d_out, p.d_out_stride) &&
                      aligned<V>((const T *)p.d_x, p.d_x_stride) && aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0) &&
                      aligned<V>(p.initial_state, p.slot_stride) && aligned<V>(p.last_state_grad, p.slot_stride) &&
                      aligned<V>(p.initial_state_grad, p.slot_stride);
    if (p.d_conv == 4) wide ? fixed<T, 4, true>(p, piece) : fixed<T, 4, false>(p, piece);
    else if (p.d_conv == 3 && wide) fixed<T, 3, true>(p, piece);
    else if (p.d_conv == 2 && wide) fixed<T, 2, true>(p, piece);
    else any<T>(p, piece);
}

// d_weight and d_bias from the partial sums; columns are [d_conv + 1, E].
__device__ __forceinline__ void reduce(const ConvBackward &p) {
    const int columns = (p.d_conv + 1) * p.channels, column = blockIdx.x * 32 + threadIdx.x % 32;
    const float sum = column_sum(p.partial, p.partials, columns, column, column < columns);
    if (threadIdx.x >= 32 || column >= columns) return;
    const int bias = column - p.d_conv * p.channels;
    if (bias < 0) p.d_weight[column] = sum;
    else if (p.d_bias) p.d_bias[bias] = sum;
}

} // namespace conv

VECTOR_KERNELS(causal_conv1d_backward, ConvBackward, 256, 2, conv::backward)
VECTOR_KERNEL(causal_conv1d_reduce, ConvBackward, 256, 4, conv::reduce(p))
