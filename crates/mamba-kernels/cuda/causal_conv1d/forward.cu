// The causal convolution over sequences: a thread walks through block_tokens tokens of four channels, the window in
// registers. Bound by memory. params.h has the launch.
#include "common.cuh"

namespace conv {

constexpr int V = kConvChannels;
template <class T> constexpr int kGroup = 8 / sizeof(T); // tokens whose loads are under way

// kConv: d_conv; rows aligned. Whoever has a channel's first tokens also reads its initial state and writes its last, in
// this order, so no thread can find a state that another has already replaced.
template <class T, int kConv> __device__ void fixed(const ConvForward &p, Piece piece) {
    constexpr int kPast = kConv - 1;
    const int E = p.channels, c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= E) return;
    const T *x = row<T>(p.x, p.x_stride, 0) + c;
    T *out = row<T>(p.out, p.out_stride, 0) + c;

    float weight[kConv][V], bias[V] = {};
#pragma unroll
    for (int k = 0; k < kConv; k++) load_floats(weight[k], p.weight + (long long)k * E + c);
    if (p.bias) load_floats(bias, p.bias + c);

    float window[kRing][V] = {}; // input t of the piece at t % kRing
    auto past = [&](int k) -> float (&)[V] { return window[(kRing - kPast + k) % kRing]; }; // before the first, oldest first
    if (!piece.has_first()) {  // a block has more tokens than a window, so these are all of this sequence
#pragma unroll
        for (int k = 0; k < kPast; k++) load_kept(past(k), x + (piece.begin - kPast + k) * p.x_stride);
    } else if (p.state) {
        float *state = p.state + p.slots[piece.s] * p.slot_stride + c;
#pragma unroll
        for (int k = 0; k < kPast; k++)
            if (!p.fresh[piece.s]) load_floats(past(k), state + (long long)k * E);
        const int length = piece.last - piece.first;
#pragma unroll
        for (int k = 0; k < kPast; k++) { // row k: input length + k of the initial state and x, end to end
            float last[V];
            if (length + k >= kPast) {
                load_floats(last, x + (piece.last + k - kPast) * p.x_stride);
            } else {
#pragma unroll
                for (int j = k; j < kPast; j++)
#pragma unroll
                    for (int i = 0; i < V; i++)
                        if (j == length + k) last[i] = past(j)[i];
            }
            store_vector(state + (long long)k * E, last);
        }
    }

    auto token = [&](int j, const Vector<T, V> &in, float (&sum)[V]) { // j: t % kRing
#pragma unroll
        for (int i = 0; i < V; i++) {
            window[j][i] = in[i];
            sum[i] = bias[i];
#pragma unroll
            for (int k = 0; k < kConv; k++) sum[i] = fmaf(weight[k][i], window[(j + kRing - kPast + k) % kRing][i], sum[i]);
            sum[i] *= sigmoid<T>(sum[i]);
        }
    };
    constexpr int G = kGroup<T>;
    Vector<T, V> in[G]; // tokens t to t + G - 1; each is replaced by that of t + G as soon as it is used
    const T *next = x + piece.begin * p.x_stride;
    auto fetch = [&](int j, int t) {
        if (t < piece.end) in[j] = load_vector<V>(next);
        next += p.x_stride;
    };
#pragma unroll
    for (int j = 0; j < G; j++) fetch(j, piece.begin + j);
    T *to = out + piece.begin * p.out_stride;
    for (int t = piece.begin; t < piece.end; t += kRing) {
#pragma unroll
        for (int j = 0; j < kRing; j++) {
            if (t + j >= piece.end) return;
            float sum[V];
            token(j, in[j % G], sum);
            fetch(j % G, t + G + j);
            store_vector(to, sum);
            to += p.out_stride;
        }
    }
}

// Any alignment and any d_conv up to block_tokens; every input is read d_conv times.
template <class T> __device__ void any(const ConvForward &p, Piece piece) {
    const int E = p.channels, d_conv = p.d_conv, past = d_conv - 1, from = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    for (int c = from; c < min(from + V, E); c++) {
        float *state = p.state ? p.state + p.slots[piece.s] * p.slot_stride + c : nullptr;
        const bool kept = state && !p.fresh[piece.s];
        auto input = [&](int i) { // input i of the initial state and x, end to end
            if (i < past) return kept ? state[(long long)i * E] : 0.f;
            return load_one(row<T>(p.x, p.x_stride, piece.first + i - past) + c);
        };
        for (int t = piece.begin; t < piece.end; t++) {
            float sum = p.bias ? p.bias[c] : 0.f;
            for (int k = 0; k < d_conv; k++) sum = fmaf(p.weight[(long long)k * E + c], input(t - piece.first + k), sum);
            store_one(row<T>(p.out, p.out_stride, t) + c, sum * sigmoid<T>(sum));
        }
        if (!state || !piece.has_first()) continue;
        for (int k = 0; k < past; k++) // in this order, what is still to be read lies behind what is written
            state[(long long)k * E] = input(piece.last - piece.first + k);
    }
}

template <class T> __device__ __forceinline__ void forward(const ConvForward &p) {
    const Piece piece = piece_of_block(p.cu_seqlens, p.sequences, p.block_tokens);
    if (piece.empty() && !piece.has_first()) return;
    const bool wide = p.channels % V == 0 && aligned<V>((const T *)p.x, p.x_stride) && aligned<V>((const T *)p.out, p.out_stride) &&
                      aligned<V>(p.weight, 0) && aligned<V>(p.bias, 0) && aligned<V>(p.state, p.slot_stride);
    if (p.d_conv == 4 && wide) fixed<T, 4>(p, piece);
    else if (p.d_conv == 3 && wide) fixed<T, 3>(p, piece);
    else if (p.d_conv == 2 && wide) fixed<T, 2>(p, piece);
    else any<T>(p, piece);
}

} // namespace conv

VECTOR_KERNELS(causal_conv1d_forward, ConvForward, 128, 8, conv::forward)
