// The causal convolution over sequences: a thread walks through kConvTokens tokens of 16 bytes of channels, the window
// in registers. Bound by memory. params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace conv {
using namespace vec;

constexpr int kGroup = 4; // tokens loaded before the first is used

// The tokens [begin, end) of sequence s that this block has.
struct Piece {
    int s, begin, end;
    int first; // the sequence's first token
};

// kConv: d_conv. Whoever has a channel's first tokens also reads its initial state and writes its last, in this order, so
// no thread can find a state that another has already replaced.
template <class T, int kConv, bool kAligned> __device__ void fixed(const ConvForward &p, Piece piece) {
    constexpr int V = kWide<T>, kPast = kConv - 1;
    const int E = p.channels, c = (blockIdx.x * blockDim.x + threadIdx.x) * V, count = E - c;
    if (count <= 0) return;
    const T *x = row<T>(p.x, p.x_stride, 0) + c;
    T *out = row<T>(p.out, p.out_stride, 0) + c;

    float weight[kConv][V], bias[V];
#pragma unroll
    for (int k = 0; k < kConv; k++) {
        const auto w = load<kAligned, V>(p.weight + (long long)k * E + c, count);
#pragma unroll
        for (int i = 0; i < V; i++) weight[k][i] = w[i];
    }
    const auto b = p.bias ? load<kAligned, V>(p.bias + c, count) : Vector<float, V>{};
#pragma unroll
    for (int i = 0; i < V; i++) bias[i] = b[i];

    float past[kConv][V] = {}; // the inputs before the token, oldest first; the last place is not used
    if (piece.begin > piece.first) {
        // A block has more tokens than a window, so these are all of this sequence.
#pragma unroll
        for (int k = 0; k < kPast; k++) {
            const auto v = load<kAligned, V>(x + (piece.begin - kPast + k) * p.x_stride, count);
#pragma unroll
            for (int i = 0; i < V; i++) past[k][i] = v[i];
        }
    } else if (p.state) {
        float *state = p.state + p.slots[piece.s] * p.slot_stride + c;
        if (!p.fresh[piece.s]) {
#pragma unroll
            for (int k = 0; k < kPast; k++) {
                const auto v = load<kAligned, V>(state + (long long)k * E, count);
#pragma unroll
                for (int i = 0; i < V; i++) past[k][i] = v[i];
            }
        }
        const int length = p.cu_seqlens[piece.s + 1] - piece.first;
#pragma unroll
        for (int k = 0; k < kPast; k++) { // row k: input length + k of the initial state and x, end to end
            float last[V];
            if (length + k >= kPast) {
                const auto v = load<kAligned, V>(x + (piece.first + length + k - kPast) * p.x_stride, count);
#pragma unroll
                for (int i = 0; i < V; i++) last[i] = v[i];
            } else {
#pragma unroll
                for (int j = k; j < kPast; j++)
                    if (j == length + k)
#pragma unroll
                        for (int i = 0; i < V; i++) last[i] = past[j][i];
            }
            store<kAligned>(state + (long long)k * E, last, count);
        }
    }

    auto token = [&](int t, const Vector<T, V> &in) {
        float sum[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float now = in[i];
            sum[i] = bias[i];
#pragma unroll
            for (int k = 0; k < kPast; k++) sum[i] = fmaf(weight[k][i], past[k][i], sum[i]);
            sum[i] = fmaf(weight[kPast][i], now, sum[i]);
#pragma unroll
            for (int k = 0; k + 1 < kPast; k++) past[k][i] = past[k + 1][i];
            if (kPast) past[kPast - 1][i] = now;
            sum[i] *= sigmoid(sum[i]);
        }
        store<kAligned>(out + t * p.out_stride, sum, count);
    };
    int t = piece.begin;
    for (; t + kGroup <= piece.end; t += kGroup) {
        Vector<T, V> in[kGroup];
#pragma unroll
        for (int j = 0; j < kGroup; j++) in[j] = load<kAligned, V>(x + (t + j) * p.x_stride, count);
#pragma unroll
        for (int j = 0; j < kGroup; j++) token(t + j, in[j]);
    }
    for (; t < piece.end; t++) token(t, load<kAligned, V>(x + t * p.x_stride, count));
}

// Any d_conv up to kConvTokens; every input is read d_conv times.
template <class T> __device__ void any(const ConvForward &p, Piece piece) {
    constexpr int V = kWide<T>;
    const int E = p.channels, d_conv = p.d_conv, past = d_conv - 1, from = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    for (int c = from; c < min(from + V, E); c++) {
        float *state = p.state ? p.state + p.slots[piece.s] * p.slot_stride + c : nullptr;
        const bool kept = state && !p.fresh[piece.s];
        auto input = [&](int i) { // input i of the initial state and x, end to end
            if (i < past) return kept ? state[(long long)i * E] : 0.f;
            return Vector<T, kWide<T>>(load<false, V>(row<T>(p.x, p.x_stride, piece.first + i - past) + c, 1))[0];
        };
        for (int t = piece.begin; t < piece.end; t++) {
            float sum = p.bias ? p.bias[c] : 0.f;
            for (int k = 0; k < d_conv; k++) sum = fmaf(p.weight[(long long)k * E + c], input(t - piece.first + k), sum);
            sum *= sigmoid(sum);
            const float one[V] = {sum};
            store<false>(row<T>(p.out, p.out_stride, t) + c, one, 1);
        }
        if (!state || piece.begin > piece.first) continue;
        const int length = p.cu_seqlens[piece.s + 1] - piece.first;
        for (int k = 0; k < past; k++) state[(long long)k * E] = input(length + k); // what is still to be read lies behind
    }
}

template <class T> __device__ __forceinline__ void forward(const ConvForward &p) {
    constexpr int V = kWide<T>;
    Piece piece;
    piece.s = sequence_of_block(p.cu_seqlens, p.sequences, kConvTokens, blockIdx.y);
    piece.first = p.cu_seqlens[piece.s];
    piece.begin = piece.first + (blockIdx.y - piece.first / kConvTokens - piece.s) * kConvTokens;
    piece.end = min(piece.begin + kConvTokens, p.cu_seqlens[piece.s + 1]);
    if (piece.begin > piece.first && piece.begin >= piece.end) return;
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.x, p.x_stride) && aligned<V>((const T *)p.out, p.out_stride) &&
                      aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0) && aligned<V>(p.state, p.slot_stride);
    if (p.d_conv == 4) wide ? fixed<T, 4, true>(p, piece) : fixed<T, 4, false>(p, piece);
    else if (p.d_conv == 3 && wide) fixed<T, 3, true>(p, piece);
    else if (p.d_conv == 2 && wide) fixed<T, 2, true>(p, piece);
    else any<T>(p, piece);
}

} // namespace conv

VECTOR_KERNELS(causal_conv1d_forward, ConvForward, 128, 4, conv::forward)
