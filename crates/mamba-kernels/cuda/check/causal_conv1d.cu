// Checks the causal convolution against float64, then times it.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/causal_conv1d.cu causal_conv1d/*.cu -o conv_check; arguments: matrix.h
#include "../causal_conv1d/params.h"
#include "matrix.h"

using namespace harness;

#define DECLARE(T, name)                                                                                       \
    extern "C" __global__ void causal_conv1d_forward_##name(const __grid_constant__ ConvForward);              \
    extern "C" __global__ void causal_conv1d_backward_##name(const __grid_constant__ ConvBackward);            \
    template <> struct Kernels<T> {                                                                            \
        static constexpr void (*forward)(ConvForward) = causal_conv1d_forward_##name;                          \
        static constexpr void (*backward)(ConvBackward) = causal_conv1d_backward_##name;                       \
    };
template <class T> struct Kernels;
DECLARE(__nv_bfloat16, bf16)
DECLARE(__half, f16)
DECLARE(float, f32)
extern "C" __global__ void causal_conv1d_reduce(const __grid_constant__ ConvBackward);

template <class T> void launch(const ConvForward &p, int tokens) {
    Kernels<T>::forward<<<dim3(ceil_div(p.channels, 512), conv_blocks(tokens, p.sequences, p.block_tokens)), 128>>>(p);
    CHECK(cudaGetLastError());
}
template <class T> void launch(const ConvBackward &p) {
    Kernels<T>::backward<<<dim3(ceil_div(p.channels, 128), p.partials), 256>>>(p);
    causal_conv1d_reduce<<<ceil_div((p.d_conv + 1LL) * p.channels, 32), 256>>>(p);
    CHECK(cudaGetLastError());
}

struct Shape {
    std::vector<int> lengths;
    int E, d_conv;
    bool bias, state;
    int pad; // between rows of activations and between slots, odd ones make everything unaligned
    bool long_blocks = false;
};

// What the definition gives; states are [slots, d_conv - 1, E].
struct Exact {
    Values out, last, d_x, d_weight, d_bias, d_initial;
};
Exact reference(const Shape &s, const std::vector<int> &cu, const std::vector<int> &slots, const std::vector<int> &fresh, const Values &x,
                const Values &weight, const Values &bias, const Values &state, const Values &d_out, const Values &d_last) {
    const int E = s.E, past = s.d_conv - 1;
    Exact e{Values(x.size()), state, Values(x.size()), Values(weight.size()), Values(E), d_last};
    for (size_t q = 0; q < slots.size(); q++) {
        const int length = cu[q + 1] - cu[q];
        const size_t slot = (size_t)slots[q] * past * E;
        for (int c = 0; c < E; c++) {
            Values in(past + length), grad(past + length);
            for (int i = 0; i < past; i++) in[i] = s.state && !fresh[q] ? state[slot + (size_t)i * E + c] : 0.;
            for (int t = 0; t < length; t++) in[past + t] = x[(size_t)(cu[q] + t) * E + c];
            for (int t = 0; t < length; t++) {
                const size_t at = (size_t)(cu[q] + t) * E + c;
                double sum = s.bias ? bias[c] : 0.;
                for (int k = 0; k <= past; k++) sum += weight[(size_t)k * E + c] * in[t + k];
                const double gate = 1. / (1. + std::exp(-sum)), g = d_out[at] * gate * (1. + sum * (1. - gate));
                e.out[at] = sum * gate;
                for (int k = 0; k <= past; k++) {
                    grad[t + k] += weight[(size_t)k * E + c] * g;
                    e.d_weight[(size_t)k * E + c] += g * in[t + k];
                }
                e.d_bias[c] += g;
            }
            for (int i = 0; i < past && s.state; i++) {
                e.last[slot + (size_t)i * E + c] = in[length + i];
                grad[length + i] += d_last[slot + (size_t)i * E + c];
            }
            for (int t = 0; t < length; t++) e.d_x[(size_t)(cu[q] + t) * E + c] = grad[past + t];
            for (int i = 0; i < past; i++) e.d_initial[slot + (size_t)i * E + c] = fresh[q] ? 0. : grad[i];
        }
    }
    return e;
}

template <class T> void check(const Shape &s) {
    const int E = s.E, past = s.d_conv - 1, sequences = (int)s.lengths.size(), slot_count = 2 * sequences + 1;
    std::vector<int> cu{0}, slots, fresh;
    for (int i = 0; i < sequences; i++) { // slots backwards, with others between
        cu.push_back(cu.back() + s.lengths[i]);
        slots.push_back(2 * (sequences - i) - 1);
        fresh.push_back(s.state && i % 3 == 1);
    }
    const int tokens = cu.back();
    std::string label = std::to_string(tokens) + "x" + std::to_string(E) + " in " + std::to_string(sequences) + ", d_conv " + std::to_string(s.d_conv) +
                        (s.bias ? " bias" : "") + (s.state ? " state" : "") + " pad " + std::to_string(s.pad) + (s.long_blocks ? " long blocks " : " ") + dtype_name<T>();
    Case result(label);
    const Values x = random_values<T>((size_t)tokens * E, 1), d_out = random_values<T>((size_t)tokens * E, 2);
    const Values weight = random_values<float>((size_t)s.d_conv * E, 3, 0.5), bias = random_values<float>(E, 4, 0.5);
    const Values state = random_values<float>((size_t)slot_count * past * E, 5), d_last = random_values<float>((size_t)slot_count * past * E, 6);
    const Exact exact = reference(s, cu, slots, fresh, x, weight, bias, state, d_out, d_last);

    const int lead = s.pad % 2; // odd: not even the first row is aligned
    Matrix<T> d_x_(tokens, E, s.pad, lead), x_(tokens, E, s.pad, lead), out_(tokens, E, s.pad, lead), d_out_(tokens, E, s.pad, lead);
    Matrix<float> weight_(s.d_conv, E), bias_(1, E), state_(slot_count, past * E, s.pad), d_last_(slot_count, past * E, s.pad);
    Matrix<float> initial_(slot_count, past * E, s.pad), d_initial_(slot_count, past * E, s.pad), d_weight_(s.d_conv, E), d_bias_(1, E);
    const int partials = conv_blocks(tokens, sequences, s.long_blocks ? 1024 : 256);
    Matrix<float> partial_(partials * (s.d_conv + 1), E);
    Ints cu_(cu), slots_(slots), fresh_(fresh);
    x_.put(x), d_out_.put(d_out), weight_.put(weight), bias_.put(bias), d_last_.put(d_last);

    Values unread = state; // a fresh sequence's slot is not read
    for (int i = 0; i < sequences; i++)
        if (fresh[i]) std::fill_n(&unread[(size_t)slots[i] * past * E], (size_t)past * E, NAN);
    initial_.put(unread);

    ConvForward f{};
    f.x = x_.data(), f.out = out_.data(), f.weight = weight_.data(), f.bias = s.bias ? bias_.data() : nullptr;
    f.state = s.state ? state_.data() : nullptr, f.cu_seqlens = cu_.data, f.slots = slots_.data, f.fresh = fresh_.data;
    f.x_stride = x_.stride, f.out_stride = out_.stride, f.slot_stride = state_.stride;
    f.sequences = sequences, f.channels = E, f.d_conv = s.d_conv, f.block_tokens = s.long_blocks ? 64 : 16;
    ConvBackward b{};
    b.x = f.x, b.d_out = d_out_.data(), b.d_x = d_x_.data(), b.weight = f.weight, b.bias = f.bias;
    if (s.state) b.initial_state = initial_.data(), b.last_state_grad = d_last_.data(), b.initial_state_grad = d_initial_.data();
    b.partial = partial_.data(), b.d_weight = d_weight_.data(), b.d_bias = s.bias ? d_bias_.data() : nullptr;
    b.cu_seqlens = cu_.data, b.slots = slots_.data, b.fresh = fresh_.data;
    b.x_stride = x_.stride, b.d_out_stride = d_out_.stride, b.d_x_stride = d_x_.stride, b.slot_stride = state_.stride;
    b.sequences = sequences, b.channels = E, b.d_conv = s.d_conv, b.block_tokens = s.long_blocks ? 1024 : 256, b.partials = partials;

    Values first[2][6];
    bool kept = true;
    for (auto &got : first) {
        out_.poison(), d_x_.poison(), d_initial_.poison(), d_weight_.poison(), d_bias_.poison(), partial_.poison();
        state_.put(unread);
        launch<T>(f, tokens);
        CHECK(cudaDeviceSynchronize());
        launch<T>(b);
        CHECK(cudaDeviceSynchronize());
        got[0] = out_.get(&kept), got[1] = state_.get(&kept), got[2] = d_x_.get(&kept), got[3] = d_weight_.get(), got[4] = d_bias_.get(), got[5] = d_initial_.get(&kept);
    }
    result.result<T>("out", first[0][0], exact.out);
    result.result<T>("d_x", first[0][2], exact.d_x);
    result.sums("d_weight", first[0][3], exact.d_weight);
    if (s.bias) result.sums("d_bias", first[0][4], exact.d_bias);
    if (s.state && past) {
        bool moved = true, others = true;
        Values d_initial, d_exact;
        std::vector<int> used(slot_count);
        for (int i : slots) used[i] = 1;
        for (int slot = 0; slot < slot_count; slot++)
            for (int i = 0; i < past * E; i++) {
                const size_t at = (size_t)slot * past * E + i;
                if (used[slot]) {
                    moved = moved && first[0][1][at] == exact.last[at];
                    d_initial.push_back(first[0][5][at]), d_exact.push_back(exact.d_initial[at]);
                } else {
                    others = others && first[0][1][at] == state[at] && std::isnan(first[0][5][at]);
                }
            }
        result.require("the exact last state", moved);
        result.require("the other slots left alone", others);
        result.within("d_initial", d_initial, d_exact, 5e-7);
    }
    result.require("the gaps left alone", kept);
    bool same = true;
    for (int i = 0; i < 6; i++) same = same && same_bits(first[0][i], first[1][i]);
    result.require("repeatable", same);
}

template <class T> void check_type(bool small) {
    const std::vector<int> few{5, 0, 1, 70, 2};
    check<T>({few, 72, 4, true, true, 8});
    check<T>({few, 13, 4, true, true, 3});
    check<T>({few, 24, 3, false, true, 0, true});
    check<T>({few, 9, 5, true, true, 1});
    if (small) return;
    const std::vector<int> many{300, 0, 1, 2, 3, 33, 64, 0, 513, 1300};
    for (int d_conv : {1, 2, 3, 4, 5, 8, 16})
        for (int E : {200, 13})
            for (bool state : {false, true})
                for (bool long_blocks : {false, true}) check<T>({many, E, d_conv, state != (E == 13), state, E == 13 ? 3 : 8, long_blocks});
    check<T>({{0}, 64, 4, true, true, 0});
    check<T>({{1}, 64, 4, true, true, 0});
    check<T>({{2048, 2048}, 2048, 4, true, true, 2048, true});
    check<T>({std::vector<int>(1100, 3), 64, 4, true, true, 0}); // the search for a block's sequence in three rounds
    std::vector<int> mixed;
    for (int i = 0; i < 77; i++) mixed.push_back(i * 37 % 90);
    check<T>({mixed, 132, 4, true, true, 4, true});
    check<T>({mixed, 130, 4, true, true, 6});
}

template <class T> void time_shape(Timer &timer, Report &report, int batch, int length, int E) {
    const int tokens = batch * length, d_conv = 4, partials = conv_blocks(tokens, batch, conv_backward_tokens(tokens));
    std::vector<int> cu, slots, fresh(batch);
    for (int i = 0; i <= batch; i++) cu.push_back(i * length);
    for (int i = 0; i < batch; i++) slots.push_back(i);
    Matrix<float> weight(d_conv, E), bias(1, E), d_weight(d_conv, E), d_bias(1, E);
    weight.randomize(3), bias.randomize(4);
    Ints cu_(cu), slots_(slots), fresh_(fresh);
    struct Set {
        Matrix<T> x, out, d_out, d_x;
        Matrix<float> state, partial;
        Set(int tokens, int E, int batch, int partials) // x is half of in_proj's output
            : x(tokens, E, E), out(tokens, E), d_out(tokens, E), d_x(tokens, E, E), state(batch, 3 * E), partial(partials * 5, E) {
            x.randomize(1), d_out.randomize(2), state.randomize(5);
        }
    };
    const double element = (double)tokens * E * sizeof(T);
    std::vector<std::unique_ptr<Set>> sets;
    std::vector<ConvForward> forward;
    std::vector<ConvBackward> backward;
    for (int i = 0; i < sets_for(3 * element); i++) {
        sets.push_back(std::make_unique<Set>(tokens, E, batch, partials));
        const Set &s = *sets.back();
        ConvForward f{};
        f.x = s.x.data(), f.out = s.out.data(), f.weight = weight.data(), f.bias = bias.data(), f.state = s.state.data();
        f.cu_seqlens = cu_.data, f.slots = slots_.data, f.fresh = fresh_.data;
        f.x_stride = s.x.stride, f.out_stride = E, f.slot_stride = s.state.stride, f.sequences = batch, f.channels = E, f.d_conv = d_conv, f.block_tokens = conv_forward_tokens(tokens);
        forward.push_back(f);
        ConvBackward b{};
        b.x = s.x.data(), b.d_out = s.d_out.data(), b.d_x = s.d_x.data(), b.weight = weight.data(), b.bias = bias.data();
        b.partial = s.partial.data(), b.d_weight = d_weight.data(), b.d_bias = d_bias.data(), b.cu_seqlens = cu_.data;
        b.x_stride = s.x.stride, b.d_out_stride = E, b.d_x_stride = s.d_x.stride, b.sequences = batch, b.channels = E, b.d_conv = d_conv, b.block_tokens = conv_backward_tokens(tokens), b.partials = partials;
        backward.push_back(b);
    }
    const std::string shape = std::to_string(batch) + "x" + std::to_string(length) + "x" + std::to_string(E) + " " + dtype_name<T>();
    time_sets(timer, report, "causal_conv1d forward " + shape, 2 * element, forward, [&](const ConvForward &p) { launch<T>(p, tokens); });
    time_sets(timer, report, "causal_conv1d backward " + shape, 3 * element, backward, [](const ConvBackward &p) { launch<T>(p); });
}

int main(int argc, char **argv) {
    return run_program(
        argc, argv,
        [](bool small) {
            check_type<__nv_bfloat16>(small);
            check_type<__half>(small);
            check_type<float>(small);
        },
        [](Timer &timer, Report &report) {
            time_shape<__nv_bfloat16>(timer, report, 8, 2048, 2048);
            time_shape<float>(timer, report, 8, 2048, 2048);
            time_shape<__nv_bfloat16>(timer, report, 8, 2048, 1536);
            time_shape<__nv_bfloat16>(timer, report, 1, 2048, 1536);
            time_shape<__nv_bfloat16>(timer, report, 1, 131072, 1024);
        });
}
