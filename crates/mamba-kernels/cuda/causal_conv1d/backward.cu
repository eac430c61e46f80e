// The convolution's gradients: a warp walks through an eighth of the block's tokens, 128 channels, the window of inputs and
// that of the pre-activations' gradients in registers; the sums over tokens go through shared memory to one row of `partial`
// a block. Bound by memory, closely followed by arithmetic. params.h has the launch.
#include "common.cuh"

namespace conv {

constexpr int V = kConvChannels, kChannels = 32 * V, kWarps = 8;
template <class T> constexpr int kGroup = 8 / sizeof(T); // tokens whose loads are under way

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
template <class T> __device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid<T>(x);
    return fmaf(x * s, 1.f - s, s);
}

// Row k of the block's partial sums: over the warps, in order.
__device__ __forceinline__ void write_partial(const ConvBackward &p, int k, const float (&sum)[V]) {
    __shared__ float s_sum[kWarps][kChannels];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < V; i++) s_sum[warp][lane * V + i] = sum[i];
    __syncthreads();
    const int c = blockIdx.x * kChannels + threadIdx.x;
    if (threadIdx.x < kChannels && c < p.channels) {
        float total = 0.f;
        for (int w = 0; w < kWarps; w++) total += s_sum[w][threadIdx.x];
        p.partial[((long long)blockIdx.y * (p.d_conv + 1) + k) * p.channels + c] = total;
    }
    __syncthreads();
}

// kConv: d_conv; rows aligned. With g_t the gradient of the pre-activation, input t - (kConv - 1) gets
// sum over k of weight[k] * g_(t - k) once g_t is known; for tokens past the sequence's end g is zero. Inputs before its
// first token are the initial state, those of its last kConv - 1 are also the last state.
template <class T, int kConv> __device__ void fixed(const ConvBackward &p, Piece piece) {
    constexpr int kPast = kConv - 1;
    const int E = p.channels, c = blockIdx.x * kChannels + threadIdx.x % 32 * V;
    float d_weight[kConv][V] = {}, d_bias[V] = {};
    const int begin = piece.begin + threadIdx.x / 32 * (p.block_tokens / kWarps), end = min(begin + p.block_tokens / kWarps, piece.last);
    if (c < E && (begin < end || begin == piece.first)) {
        const T *x = row<T>(p.x, p.x_stride, 0) + c, *d_out = row<T>(p.d_out, p.d_out_stride, 0) + c;
        T *d_x = row<T>(p.d_x, p.d_x_stride, 0) + c;
        const State state = state_of(p, piece.s, c);
        // Weights and bias times -log2(e), so that the pre-activation comes as the exponential's argument y = -log2(e) x. Then
        // g is kept times -ln 2, which undoes it in weight * g, and the sums over tokens get the factor back at their end.
        float weight[kConv][V], bias[V] = {};
#pragma unroll
        for (int k = 0; k < kConv; k++) load_floats(weight[k], p.weight + (long long)k * E + c);
        if (p.bias) load_floats(bias, p.bias + c);
#pragma unroll
        for (int i = 0; i < V; i++) {
#pragma unroll
            for (int k = 0; k < kConv; k++) weight[k][i] *= -kLog2e;
            bias[i] *= -kLog2e;
        }
        // Input and g of the warp's token t at t % kRing: with as many tokens a turn no register ever moves.
        float window[kRing][V] = {}, g[kRing][V] = {};
#pragma unroll
        for (int k = 0; k < kPast; k++) {
            if (begin > piece.first) load_kept(window[(kRing - kPast + k) % kRing], x + (begin - kPast + k) * p.x_stride);
            else if (state.initial) load_floats(window[(kRing - kPast + k) % kRing], state.initial + (long long)k * E);
        }
        // g of token j of a turn, and its sums if the token is this warp's.
        auto advance = [&](int j, const Vector<T, V> &in, const Vector<T, V> &grad, bool is_own) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                window[j][i] = in[i];
                float y = bias[i];
#pragma unroll
                for (int k = 0; k < kConv; k++) y = fmaf(weight[k][i], window[(j + kRing - kPast + k) % kRing][i], y);
                // s = 1 / (1 + e^-x); d SiLU / dx = s (1 + x (1 - s))
                const float s = reciprocal(1.f + exp2_fast(y));
                g[j][i] = grad[i] * (s * fmaf(y, fmaf(s, -kLn2 * kLn2, kLn2 * kLn2), -kLn2));
                if (is_own) {
#pragma unroll
                    for (int k = 0; k < kConv; k++)
                        d_weight[k][i] = fmaf(g[j][i], window[(j + kRing - kPast + k) % kRing][i], d_weight[k][i]);
                    d_bias[i] += g[j][i];
                }
            }
        };
        auto input_grad = [&](int j, float (&sum)[V]) { // of the input kPast tokens before
#pragma unroll
            for (int i = 0; i < V; i++) {
                sum[i] = weight[0][i] * g[j][i];
#pragma unroll
                for (int k = 1; k < kConv; k++) sum[i] = fmaf(weight[k][i], g[(j + kRing - k) % kRing][i], sum[i]);
            }
        };
        auto emit = [&](int j, int t) { // any t
            float sum[V];
            input_grad(j, sum);
            if (t >= piece.last && state.last_grad) {
                float last[V];
                load_floats(last, state.last_grad + (long long)(t - piece.last) * E);
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] += last[i];
            }
            if (t - kPast >= begin) {
                store_vector(d_x + (t - kPast) * p.d_x_stride, sum);
            } else if (begin == piece.first && state.initial_grad) {
                const bool fresh = p.fresh[piece.s];
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] = fresh ? 0.f : sum[i];
                store_vector(state.initial_grad + (long long)(t - begin) * E, sum);
            }
        };
        constexpr int G = kGroup<T>;
        Vector<T, V> in[G] = {}, grad[G] = {}; // tokens t to t + G - 1; each is replaced by that of t + G as soon as it is used
        const T *x_next = x + begin * p.x_stride, *d_out_next = d_out + begin * p.d_out_stride;
        auto fetch = [&](int j, int t) {
            if (t < piece.last) {
                in[j] = load_vector<V>(x_next);
                grad[j] = load_vector<V>(d_out_next);
            }
            x_next += p.x_stride, d_out_next += p.d_out_stride;
        };
#pragma unroll
        for (int j = 0; j < G; j++) fetch(j, begin + j);
        for (int t = begin; t < end + kPast; t += kRing) { // the last kPast: the next warp's tokens that reach back to this one's
            if (t - begin >= kPast && t + kRing <= end) {
                T *to = d_x + (t - kPast) * p.d_x_stride;
#pragma unroll
                for (int j = 0; j < kRing; j++) {
                    float sum[V];
                    advance(j, in[j % G], grad[j % G], true);
                    fetch(j % G, t + G + j);
                    input_grad(j, sum);
                    store_vector(to, sum);
                    to += p.d_x_stride;
                }
            } else {
#pragma unroll
                for (int j = 0; j < kRing; j++) {
                    if (t + j >= end + kPast) break;
                    if (t + j >= piece.last) in[j % G] = grad[j % G] = {};
                    advance(j, in[j % G], grad[j % G], t + j < end);
                    fetch(j % G, t + G + j);
                    emit(j, t + j);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < V; i++) {
#pragma unroll
            for (int k = 0; k < kConv; k++) d_weight[k][i] *= -kLog2e;
            d_bias[i] *= -kLog2e;
        }
    }
#pragma unroll
    for (int k = 0; k < kConv; k++) write_partial(p, k, d_weight[k]);
    write_partial(p, kConv, d_bias);
}

// Any alignment and any d_conv; every pre-activation is computed again wherever it is needed.
template <class T> __device__ void any(const ConvBackward &p, Piece piece) {
    const int E = p.channels, d_conv = p.d_conv, past = d_conv - 1, from = blockIdx.x * kChannels + threadIdx.x % 32 * V;
    const int begin = piece.begin + threadIdx.x / 32 * (p.block_tokens / kWarps), end = min(begin + p.block_tokens / kWarps, piece.last);
    for (int k = 0; k <= d_conv; k++) { // row k of partial; what is no sum over tokens with the last
        float total[V] = {};
#pragma unroll 1
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
                return load_one(row<T>(p.d_out, p.d_out_stride, t) + c) * silu_slope<T>(sum);
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
    const Piece piece = piece_of_block(p.cu_seqlens, p.sequences, p.block_tokens);
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.x, p.x_stride) && aligned<V>((const T *)p.d_out, p.d_out_stride) &&
                      aligned<V>((const T *)p.d_x, p.d_x_stride) && aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0) &&
                      aligned<V>(p.initial_state, p.slot_stride) && aligned<V>(p.last_state_grad, p.slot_stride) &&
                      aligned<V>(p.initial_state_grad, p.slot_stride);
    if (p.d_conv == 4 && wide) fixed<T, 4>(p, piece);
    else if (p.d_conv == 3 && wide) fixed<T, 3>(p, piece);
    else if (p.d_conv == 2 && wide) fixed<T, 2>(p, piece);
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
