// Checks residual add and normalization against float64, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/norm.cu norm/*.cu -o norm_check; arguments: matrix.h
#include "../norm/params.h"
#include "matrix.h"

using namespace harness;

template <class T> struct Kernels;
#define DECLARE(T, name)                                                                                       \
    extern "C" __global__ void add_norm_forward_##name(const __grid_constant__ NormForward);                   \
    extern "C" __global__ void add_norm_backward_##name(const __grid_constant__ NormBackward);                 \
    template <> struct Kernels<T> {                                                                            \
        static constexpr void (*forward)(NormForward) = add_norm_forward_##name;                               \
        static constexpr void (*backward)(NormBackward) = add_norm_backward_##name;                            \
    };
DECLARE(__nv_bfloat16, bf16)
DECLARE(__half, f16)
DECLARE(float, f32)
extern "C" __global__ void add_norm_reduce(const __grid_constant__ NormBackward);

template <class T> void launch(const NormForward &p) {
    Kernels<T>::forward<<<norm_blocks(p.tokens), norm_threads(p.channels)>>>(p);
    CHECK(cudaGetLastError());
}
template <class T> void launch(const NormBackward &p) {
    Kernels<T>::backward<<<p.partials, norm_threads(p.channels)>>>(p);
    add_norm_reduce<<<ceil_div(p.channels, 32) * (p.d_bias ? 2 : 1), 256>>>(p);
    CHECK(cudaGetLastError());
}

struct Shape {
    int tokens, E;
    bool layer, bias, delta, in_place;
    int pad;
};

template <class T> void check(const Shape &s) {
    const int tokens = s.tokens, E = s.E;
    const size_t n = (size_t)tokens * E;
    const double eps = 1e-5f;
    Case result(std::to_string(tokens) + "x" + std::to_string(E) + (s.layer ? " layer" : " rms") + (s.bias ? " bias" : "") + (s.delta ? " delta" : "") +
                (s.in_place ? " in place" : "") + " pad " + std::to_string(s.pad) + " " + dtype_name<T>());
    const Values delta = random_values<T>(n, 1), residual = random_values<float>(n, 2, 2.f, 0.3f), weight = random_values<float>(E, 3, 0.3f, 1.f);
    const Values bias = random_values<float>(E, 4, 0.5f), d_out = random_values<T>(n, 5), above = random_values<float>(n, 6, 0.5f);

    // Backward is given the sum as forward leaves it, in f32.
    Values sum(n), out(n), d_residual(n), d_weight(E), d_bias(E), kept(n);
    for (int t = 0; t < tokens; t++) {
        const size_t at = (size_t)t * E;
        auto statistics = [&](const Values &x, double &mean, double &scale) {
            mean = scale = 0.;
            for (int c = 0; c < E && s.layer; c++) mean += x[at + c] / E;
            for (int c = 0; c < E; c++) scale += (x[at + c] - mean) * (x[at + c] - mean) / E;
            scale = 1. / std::sqrt(scale + eps);
        };
        for (int c = 0; c < E; c++) {
            sum[at + c] = residual[at + c] + (s.delta ? delta[at + c] : 0.);
            kept[at + c] = (double)((float)residual[at + c] + (s.delta ? (float)delta[at + c] : 0.f));
        }
        double mean, scale, along = 0., across = 0.;
        statistics(sum, mean, scale);
        for (int c = 0; c < E; c++) out[at + c] = (sum[at + c] - mean) * scale * weight[c] + (s.bias ? bias[c] : 0.);
        statistics(kept, mean, scale);
        for (int c = 0; c < E; c++) {
            const double hat = (kept[at + c] - mean) * scale, g = d_out[at + c] * weight[c];
            along += g * hat / E;
            if (s.layer) across += g / E;
            d_weight[c] += d_out[at + c] * hat;
            d_bias[c] += d_out[at + c];
        }
        for (int c = 0; c < E; c++)
            d_residual[at + c] = (s.delta ? above[at + c] : 0.) + scale * (d_out[at + c] * weight[c] - across - (kept[at + c] - mean) * scale * along);
    }

    const int lead = s.pad % 2;
    Matrix<T> delta_(tokens, E, s.pad, lead), out_(tokens, E, s.pad, lead), d_out_(tokens, E, s.pad, lead), d_delta_(tokens, E, s.pad, lead);
    Matrix<float> residual_(tokens, E, s.pad, lead), sum_(tokens, E, s.pad, lead), above_(tokens, E, s.pad, lead), d_residual_(tokens, E, s.pad, lead);
    Matrix<float> weight_(1, E), bias_(1, E), d_weight_(1, E), d_bias_(1, E);
    const int partials = norm_partials(tokens, E, 13);
    Matrix<float> partial_(2 * partials, E);
    delta_.put(delta), weight_.put(weight), bias_.put(bias), d_out_.put(d_out);
    NormForward f{};
    f.delta = s.delta ? delta_.data() : nullptr, f.residual = residual_.data(), f.out = out_.data(), f.weight = weight_.data();
    f.bias = s.bias ? bias_.data() : nullptr;
    f.residual_out = s.in_place ? residual_.data() : s.delta ? sum_.data() : nullptr; // no delta: not wanted
    f.delta_stride = delta_.stride, f.residual_stride = residual_.stride, f.residual_out_stride = sum_.stride, f.out_stride = out_.stride;
    f.tokens = tokens, f.channels = E, f.layer = s.layer, f.eps = (float)eps;
    NormBackward b{};
    b.d_out = d_out_.data(), b.residual = residual_.data(), b.weight = weight_.data();
    b.d_residual = s.delta ? above_.data() : nullptr, b.d_delta = s.delta ? d_delta_.data() : nullptr;
    b.d_residual_out = s.delta && s.in_place ? above_.data() : d_residual_.data();
    b.partial = partial_.data(), b.d_weight = d_weight_.data(), b.d_bias = s.bias ? d_bias_.data() : nullptr;
    b.d_out_stride = d_out_.stride, b.residual_stride = residual_.stride, b.d_residual_stride = above_.stride;
    b.d_residual_out_stride = d_residual_.stride, b.d_delta_stride = d_delta_.stride;
    b.tokens = tokens, b.channels = E, b.partials = partials, b.layer = s.layer, b.eps = (float)eps;

    Values got[2][6];
    bool gaps = true;
    for (auto &g : got) {
        out_.poison(), sum_.poison(), d_delta_.poison(), d_residual_.poison(), d_weight_.poison(), d_bias_.poison(), partial_.poison();
        residual_.put(residual), above_.put(above);
        launch<T>(f);
        CHECK(cudaDeviceSynchronize());
        g[0] = out_.get(&gaps), g[1] = (s.in_place ? residual_ : sum_).get(&gaps);
        residual_.put(kept);
        launch<T>(b);
        CHECK(cudaDeviceSynchronize());
        g[2] = (b.d_residual_out == above_.data() ? above_ : d_residual_).get(&gaps), g[3] = d_delta_.get(&gaps), g[4] = d_weight_.get(), g[5] = d_bias_.get();
    }
    result.result<T>("out", got[0][0], out);
    if (f.residual_out) result.require("the exact sum", same_bits(got[0][1], kept));
    if (E > 4) { // below, the gradient is what is left of terms that nearly cancel
        result.result<float>("d_residual", got[0][2], d_residual);
        if (s.delta) result.result<T>("d_delta", got[0][3], d_residual);
    }
    result.sums("d_weight", got[0][4], d_weight);
    if (s.bias) result.sums("d_bias", got[0][5], d_bias);
    result.require("the gaps left alone", gaps);
    bool same = true;
    for (int i = 0; i < 6; i++) same = same && same_bits(got[0][i], got[1][i]);
    result.require("repeatable", same);
}

template <class T> void check_type(bool small) {
    for (bool layer : {false, true}) {
        check<T>({5, 72, layer, true, true, true, 8});
        check<T>({3, 13, layer, layer, true, false, 3});
        check<T>({2, 300, layer, layer, false, false, 0});
        check<T>({3, 4200, layer, true, true, true, 8}); // more than a block takes at once
        if (small) continue;
        for (int E : {1, 5, 8, 64, 256, 257, 768, 1024, 2048, 2560, 4096, 4099, 9000})
            for (bool in_place : {false, true}) {
                check<T>({37, E, layer, layer == in_place, true, in_place, 0});
                check<T>({37, E, layer, layer != in_place, in_place, false, in_place ? 8 : 1});
            }
        check<T>({1, 768, layer, true, true, true, 0});
        check<T>({3000, 256, layer, true, true, true, 0});
    }
}

template <class T> void time_shape(Timer &timer, Report &report, int tokens, int E) {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    const int partials = norm_partials(tokens, E, device.multiProcessorCount);
    Matrix<float> weight(1, E), d_weight(1, E);
    weight.randomize(3);
    struct Set {
        Matrix<T> delta, out, d_out, d_delta;
        Matrix<float> residual, d_residual, partial;
        Set(int tokens, int E, int partials)
            : delta(tokens, E), out(tokens, E), d_out(tokens, E), d_delta(tokens, E), residual(tokens, E), d_residual(tokens, E), partial(partials, E) {
            delta.randomize(1), residual.randomize(2), d_out.randomize(4), d_residual.randomize(5);
        }
    };
    const double n = (double)tokens * E, size = sizeof(T);
    std::vector<std::unique_ptr<Set>> sets;
    std::vector<NormForward> forward;
    std::vector<NormBackward> backward;
    for (int i = 0; i < sets_for(n * (8 + 2 * size)); i++) {
        sets.push_back(std::make_unique<Set>(tokens, E, partials));
        const Set &s = *sets.back();
        NormForward f{};
        f.delta = s.delta.data(), f.residual = s.residual.data(), f.residual_out = s.residual.data(), f.out = s.out.data(), f.weight = weight.data();
        f.delta_stride = f.residual_stride = f.residual_out_stride = f.out_stride = E, f.tokens = tokens, f.channels = E, f.eps = 1e-5f;
        forward.push_back(f);
        NormBackward b{};
        b.d_out = s.d_out.data(), b.residual = s.residual.data(), b.d_residual = s.d_residual.data(), b.d_residual_out = s.d_residual.data(), b.d_delta = s.d_delta.data();
        b.weight = weight.data(), b.partial = s.partial.data(), b.d_weight = d_weight.data();
        b.d_out_stride = b.residual_stride = b.d_residual_stride = b.d_residual_out_stride = b.d_delta_stride = E;
        b.tokens = tokens, b.channels = E, b.partials = partials, b.eps = 1e-5f;
        backward.push_back(b);
    }
    const std::string shape = std::to_string(tokens) + "x" + std::to_string(E) + " " + dtype_name<T>();
    time_sets(timer, report, "add_norm forward " + shape, n * (8 + 2 * size), forward, [](const NormForward &p) { launch<T>(p); });
    time_sets(timer, report, "add_norm backward " + shape, n * (12 + 2 * size), backward, [](const NormBackward &p) { launch<T>(p); });
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
            time_shape<__nv_bfloat16>(timer, report, 16384, 2048);
            time_shape<float>(timer, report, 16384, 2048);
            time_shape<__nv_bfloat16>(timer, report, 16384, 768);
            time_shape<__nv_bfloat16>(timer, report, 2048, 768);
            time_shape<__nv_bfloat16>(timer, report, 16384, 2560);
        });
}
