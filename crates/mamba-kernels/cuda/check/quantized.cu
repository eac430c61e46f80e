// Checks products with quantized weights, and their rows, against f64 from the same bytes, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/quantized.cu quantized/*.cu -o quantized_check; arguments: matrix.h
#include "../quantized/params.h"
#include "matrix.h"

using namespace harness;

#define QUANTIZED_DECLARE(format, out)                                                                         \
    extern "C" __global__ void quantized_product_##format##_##out##_1(const __grid_constant__ QuantizedProduct); \
    extern "C" __global__ void quantized_product_##format##_##out##_2(const __grid_constant__ QuantizedProduct); \
    extern "C" __global__ void quantized_rows_##format##_##out(const __grid_constant__ QuantizedRows);
QUANTIZED_DECLARE(q8_0, f16)
QUANTIZED_DECLARE(q8_0, f32)
QUANTIZED_DECLARE(q4_k, f16)
QUANTIZED_DECLARE(q4_k, f32)

template <class F, class Out> struct Kernels;
#define QUANTIZED_TABLE(F, format, Out, out)                                                                   \
    template <> struct Kernels<F, Out> {                                                                       \
        static constexpr void (*product[2])(QuantizedProduct) = {quantized_product_##format##_##out##_1, quantized_product_##format##_##out##_2}; \
        static constexpr void (*rows)(QuantizedRows) = quantized_rows_##format##_##out;                        \
    };

// Random bytes of a row, and what they mean: `value` in f64, `rounded` as the CPU widens it.
struct Q8_0 {
    static constexpr const char *name = "q8_0";
    static int weight_bytes(int K) { return q8_0_weight_bytes(K); }
    static int row_bytes(int K) { return q8_0_row_bytes(K); }
    static void fill(uint8_t *row, int K, uint64_t seed, double *value, float *rounded) {
        for (int i = 0; i < K; i++) {
            const int group = i / 32, q = (int)(uniform(i, seed) * 255) - 127;
            const __half d = (__half)(uniform(group, seed + 1) * 0.02f);
            row[q8_0_weight(i)] = (uint8_t)(q + 128);
            std::memcpy(row + q8_0_scale(K, group), &d, 2);
            value[i] = (double)(float)d * q;
            rounded[i] = (float)d * (float)q;
        }
    }
};
struct Q4K {
    static constexpr const char *name = "q4_k";
    static int weight_bytes(int K) { return q4_k_weight_bytes(K); }
    static int row_bytes(int K) { return q4_k_row_bytes(K); }
    static void fill(uint8_t *row, int K, uint64_t seed, double *value, float *rounded) {
        for (int i = 0; i < K; i++) {
            const int group = i / 32, block = i / 256, q = (int)(uniform(i, seed) * 16), bit = q4_k_weight(i);
            const uint8_t scale = (uint8_t)(uniform(group, seed + 1) * 64), min = (uint8_t)(uniform(group, seed + 2) * 64);
            const __half d[2] = {(__half)(uniform(block, seed + 3) * 0.003f), (__half)(uniform(block, seed + 4) * 0.02f)};
            row[bit / 8] |= q << bit % 8;
            row[q4_k_scale(K, group)] = scale, row[q4_k_scale(K, group) + 1] = min;
            std::memcpy(row + q4_k_d(K, block), d, 4);
            value[i] = (double)(float)d[0] * scale * q - (double)(float)d[1] * min;
            const float s = (float)d[0] * (float)scale, m = (float)d[1] * (float)min, product = s * (float)q;
            rounded[i] = product - m;
        }
    }
};
QUANTIZED_TABLE(Q8_0, q8_0, __half, f16)
QUANTIZED_TABLE(Q8_0, q8_0, float, f32)
QUANTIZED_TABLE(Q4K, q4_k, __half, f16)
QUANTIZED_TABLE(Q4K, q4_k, float, f32)

// A weight [N, K] on the device and what it is.
template <class F> struct Weight {
    int N, K;
    Pool pool;
    uint8_t *bytes;
    Values value;
    std::vector<float> rounded;
    Weight(int N, int K, uint64_t seed) : N(N), K(K), value((size_t)N * K), rounded((size_t)N * K) {
        std::vector<uint8_t> all((size_t)N * row_bytes());
        for (int n = 0; n < N; n++) F::fill(&all[(size_t)n * row_bytes()], K, seed + 16 * n, &value[(size_t)n * K], &rounded[(size_t)n * K]);
        bytes = pool.of(all);
    }
    int row_bytes() const { return F::row_bytes(K); }
};

template <class P> void launch(void (*kernel)(P), dim3 grid, int threads, int bytes, const P &p) {
    CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = bytes;
    CHECK(cudaLaunchKernelEx(&config, kernel, p));
}
template <class F, class Out> void multiply(QuantizedProduct p) {
    p.row_bytes = F::row_bytes(p.inputs), p.weight_bytes = F::weight_bytes(p.inputs);
    p.ring_bytes = quantized_ring(p.weight_bytes), p.scale_stride = quantized_scale_stride(p.row_bytes, p.weight_bytes);
    const int tiles = p.rows > 8 ? 2 : 1;
    launch(Kernels<F, Out>::product[tiles - 1], dim3(ceil_div(p.outputs, 16), ceil_div(p.rows, 8 * tiles)), 256, quantized_shared(p.row_bytes, p.weight_bytes), p);
}
template <class F, class Out> void widen(QuantizedRows p) {
    p.row_bytes = F::row_bytes(p.inputs), p.weight_bytes = F::weight_bytes(p.inputs);
    launch(Kernels<F, Out>::rows, dim3(ceil_div(p.inputs, kQuantizedRowInputs), std::min(p.count, 1024)), kQuantizedRowThreads, 0, p);
}

template <class F, class Out> void check_product(int rows, int K, int N, int pad, bool bias) {
    Case result(std::string("product ") + std::to_string(rows) + "x" + std::to_string(K) + "x" + std::to_string(N) + " pad " + std::to_string(pad) + (bias ? " bias " : " ") + F::name + " to " + dtype_name<Out>());
    const Weight<F> weight(N, K, 100);
    const Values x = random_values<__half>((size_t)rows * K, 1), biases = random_values<float>(N, 2);
    Values exact((size_t)rows * N);
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < N; n++) {
            double sum = bias ? biases[n] : 0;
            for (int k = 0; k < K; k++) sum += x[(size_t)r * K + k] * weight.value[(size_t)n * K + k];
            exact[(size_t)r * N + n] = sum;
        }
    Matrix<__half> x_(rows, K, pad, pad % 3); // behind each row NaN, which must not count
    Matrix<Out> out(rows, N, pad, pad % 2), alone(1, N);
    Matrix<float> bias_(1, N);
    x_.put(x), bias_.put(biases);
    const QuantizedProduct p{weight.bytes, x_.data(), bias ? bias_.data() : nullptr, out.data(), x_.stride, out.stride, rows, K, N};
    Values got[2];
    bool gaps = true;
    for (Values &g : got) {
        out.poison();
        multiply<F, Out>(p);
        CHECK(cudaDeviceSynchronize());
        g = out.get(&gaps);
    }
    if (sizeof(Out) == 4) result.sums("out", got[0], exact);
    else result.template result<Out>("out", got[0], exact);
    QuantizedProduct last = p; // a row by itself
    last.x = x_.data() + (rows - 1) * x_.stride, last.out = alone.data(), last.rows = 1;
    multiply<F, Out>(last);
    CHECK(cudaDeviceSynchronize());
    result.require("the same bits alone", same_bits(alone.get(), Values(got[0].end() - N, got[0].end())));
    result.require("the gaps left alone", gaps);
    result.require("repeatable", same_bits(got[0], got[1]));
}
template <class F, class Out> void check_rows(int count, int K, int N, int pad) {
    Case result(std::string("rows ") + std::to_string(count) + "x" + std::to_string(K) + " of " + std::to_string(N) + " pad " + std::to_string(pad) + " " + F::name + " to " + dtype_name<Out>());
    const Weight<F> weight(N, K, 100);
    std::vector<int> ids(count);
    for (int i = 0; i < count; i++) ids[i] = (int)(uniform(i, 7) * N);
    Ints ids_(ids);
    const int first = N > count ? N - count : 0, run = std::min(count, N);
    Matrix<Out> chosen(count, K, pad, pad % 2), in_order(run, K, pad, pad % 2);
    widen<F, Out>({weight.bytes, ids_.data, chosen.data(), chosen.stride, 0, count, K});
    widen<F, Out>({weight.bytes, nullptr, in_order.data(), in_order.stride, first, run, K});
    CHECK(cudaDeviceSynchronize());
    auto expected = [&](int rows, auto row) {
        Values v;
        for (int i = 0; i < rows; i++)
            for (int k = 0; k < K; k++) v.push_back((double)(float)(Out)weight.rounded[(size_t)row(i) * K + k]);
        return v;
    };
    bool gaps = true;
    result.require("the rows by id", same_bits(chosen.get(&gaps), expected(count, [&](int i) { return ids[i]; })));
    result.require("the rows in order", same_bits(in_order.get(&gaps), expected(run, [&](int i) { return first + i; })));
    result.require("the gaps left alone", gaps);
}

template <class F, class Out> void check_type(bool small) {
    check_product<F, Out>(3, 96, 20, 8, true);
    check_product<F, Out>(17, 300, 33, 3, false);
    check_rows<F, Out>(5, 72, 9, 8);
    check_rows<F, Out>(7, 301, 4, 3);
    if (small) return;
    for (int rows : {1, 2, 7, 8, 9, 15, 16, 31, 33})
        for (int K : {1, 8, 31, 48, 64, 65, 256, 520, 1024}) check_product<F, Out>(rows, K, K % 2 ? 50 : 80, K % 8 ? 1 : 0, rows % 2);
    for (int N : {1, 15, 16, 17}) check_product<F, Out>(5, 768, N, 0, false);
    check_product<F, Out>(2, 5120, 160, 0, false);
    check_product<F, Out>(16, 32768, 16, 0, false); // the most inputs
    for (int K : {1, 8, 64, 768, 2050}) check_rows<F, Out>(101, K, 300, K % 8 ? 1 : 0);
    check_rows<F, Out>(3000, 264, 5, 0);
}

template <class F, class Out> void time_product(Timer &timer, Report &report, const char *what, int K, int N) {
    const double bytes = (double)N * F::row_bytes(K);
    const int count = sets_for(bytes);
    Pool pool;
    std::vector<uint8_t *> weights;
    for (int i = 0; i < count; i++) {
        weights.push_back(pool.get<uint8_t>((size_t)bytes));
        CHECK(cudaMemset(weights[i], 0x11, (size_t)bytes));
    }
    for (int rows : {1, 2, 4, 8, 16, 32, 64}) {
        Matrix<__half> x(rows, K);
        Matrix<Out> out(rows, N);
        x.randomize(1);
        std::vector<QuantizedProduct> sets;
        for (uint8_t *weight : weights) sets.push_back({weight, x.data(), nullptr, out.data(), x.stride, out.stride, rows, K, N});
        time_sets(timer, report, std::string(F::name) + " " + what + " " + std::to_string(rows) + "x" + std::to_string(K) + "x" + std::to_string(N), bytes, sets,
                  [](const QuantizedProduct &p) { multiply<F, Out>(p); });
    }
}
template <class F> void time_type(Timer &timer, Report &report) {
    time_product<F, __half>(timer, report, "in_proj 130m", 768, 3072);
    time_product<F, __half>(timer, report, "out_proj 130m", 1536, 768);
    time_product<F, __half>(timer, report, "in_proj 2.8b", 2560, 10240);
    time_product<F, __half>(timer, report, "x_proj 2.8b", 5120, 192);
    time_product<F, __half>(timer, report, "out_proj 2.8b", 5120, 2560);
    time_product<F, float>(timer, report, "head 2.8b", 2560, 50288);
    // What a matrix costs before cuBLAS has it.
    const int K = 2560, N = 3264;
    const double bytes = (double)N * (F::row_bytes(K) + 2 * K);
    Pool pool;
    std::vector<QuantizedRows> sets;
    for (int i = 0; i < sets_for(bytes); i++) {
        uint8_t *weight = pool.get<uint8_t>((size_t)N * F::row_bytes(K));
        CHECK(cudaMemset(weight, 0x11, (size_t)N * F::row_bytes(K)));
        sets.push_back({weight, nullptr, pool.get<__half>((size_t)N * K), K, 0, N, K});
    }
    time_sets(timer, report, std::string(F::name) + " to f16 " + std::to_string(N) + "x" + std::to_string(K), bytes, sets, [](const QuantizedRows &p) { widen<F, __half>(p); });
}

int main(int argc, char **argv) {
    return run_program(
        argc, argv,
        [](bool small) {
            check_type<Q8_0, __half>(small), check_type<Q8_0, float>(small);
            check_type<Q4K, __half>(small), check_type<Q4K, float>(small);
        },
        [](Timer &timer, Report &report) { time_type<Q8_0>(timer, report), time_type<Q4K>(timer, report); });
}
