// Checks the decode-step kernels against f64 and against the sequence kernel, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/decode_step.cu decode_step/*.cu selective_scan/*.cu -o decode_step_check
//   ./decode_step_check            check, then time
//   ./decode_step_check small      a few small cases (for compute-sanitizer)
//   ./decode_step_check time [json file]
#include "harness.h"
#include "launch.h"
#include "../decode_step/params.h"

using namespace harness;

#define DECODE_DECLARE(T, name)                                                                                \
    extern "C" __global__ void conv_step_##name(const __grid_constant__ ConvStep);                             \
    extern "C" __global__ void scan_step_##name(const __grid_constant__ ScanStep);                             \
    template <> struct DecodeKernels<T> {                                                                      \
        static constexpr void (*conv)(ConvStep) = conv_step_##name;                                            \
        static constexpr void (*scan)(ScanStep) = scan_step_##name;                                            \
    };
template <class T> struct DecodeKernels;
DECODE_DECLARE(__nv_bfloat16, bf16)
DECODE_DECLARE(__half, f16)
DECODE_DECLARE(float, f32)

template <class T> void launch_conv(const ConvStep &p, int sequences, cudaStream_t stream) {
    DecodeKernels<T>::conv<<<dim3(ceil_div(p.channels, kConvStepChannels), sequences), 128, 0, stream>>>(p);
    CHECK(cudaGetLastError());
}
template <class T> void launch_scan(const ScanStep &p, int rows, cudaStream_t stream) {
    DecodeKernels<T>::scan<<<dim3(ceil_div(p.channels, kScanStepChannels), rows), 128, 0, stream>>>(p);
    CHECK(cudaGetLastError());
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }

struct Shape {
    int S, E, N, d_conv;
    bool full = true;  // with biases, D, gate and softplus
    int odd = 0;       // elements before each row and slot, so that nothing is aligned
};

template <class T> struct Case {
    Shape shape;
    Pool pool;
    std::vector<int> slots, fresh;
    int *slots_, *fresh_;
    long long stride, slot_stride; // of all rows of E; of a slot
    int conv_offset, scan_offset, S, E, N;
    size_t state_elements;
    T *x, *out, *u, *delta, *z, *bc, *y;
    long long bc_stride;
    float *weight, *bias, *a, *d, *delta_bias;
    std::vector<float> state; // before the step; NaN in fresh slots

    explicit Case(Shape s) : shape(s), S(s.S), E(s.E), N(s.N) {
        for (int i = 0; i < S; i++) slots.push_back(2 * (S - i) - 1), fresh.push_back(i % 3 == 1);
        slots_ = pool.of(slots), fresh_ = pool.of(fresh);
        stride = s.odd ? E + s.odd : 2 * E;
        conv_offset = s.odd, scan_offset = conv_offset + (s.d_conv - 1) * E + s.odd;
        slot_stride = scan_offset + (long long)N * E + (s.odd ? s.odd : 4);
        state_elements = 2 * (size_t)S * slot_stride;
        auto rows = [&](int seed) { return pool.normal<T>(S * stride, seed) + s.odd; };
        x = rows(1), u = rows(2), z = rows(3);
        delta = s.full ? pool.normal<T>(S * stride, 4, 0.5f, -1.f) : pool.normal<T>(S * stride, 4, 0.05f, 0.3f);
        delta += s.odd; // without softplus, steps as they are: positive
        out = pool.get<T>(S * stride) + s.odd, y = pool.get<T>(S * stride) + s.odd;
        const int lead = s.odd ? s.odd : 16; // dt_rank
        bc_stride = lead + 2 * N;
        bc = pool.normal<T>(S * bc_stride, 5) + lead;
        weight = pool.normal<float>((size_t)s.d_conv * E + s.odd, 6, 0.5f) + s.odd;
        bias = pool.normal<float>(E + s.odd, 7, 0.5f) + s.odd;
        d = pool.normal<float>(E + s.odd, 8) + s.odd;
        delta_bias = pool.normal<float>(E + s.odd, 9, 0.5f) + s.odd;
        std::vector<float> negative((size_t)N * E + s.odd);
        for (size_t i = 0; i < negative.size(); i++) negative[i] = -(float)(i / E + 1) * (0.5f + uniform(i, 10));
        a = pool.of(negative) + s.odd;
        state = fetch(pool.normal<float>(state_elements, 11), state_elements);
        for (int i = 0; i < S; i++)
            if (fresh[i]) std::fill_n(&state[slots[i] * slot_stride], slot_stride, NAN);
    }
    ConvStep conv(float *states) const {
        ConvStep p{};
        p.x = x, p.out = out, p.weight = weight, p.bias = shape.full ? bias : nullptr, p.state = states + conv_offset;
        p.slots = slots_, p.fresh = fresh_, p.x_stride = p.out_stride = stride, p.slot_stride = slot_stride;
        p.channels = E, p.d_conv = shape.d_conv;
        return p;
    }
    ScanStep scan(float *states) const {
        ScanStep p{};
        p.u = u, p.delta = delta, p.b = bc, p.c = bc + N, p.y = y, p.a = a, p.state = states + scan_offset;
        if (shape.full) p.z = z, p.d = d, p.delta_bias = delta_bias;
        p.softplus = shape.full, p.slots = slots_, p.fresh = fresh_;
        p.u_stride = p.delta_stride = p.z_stride = p.y_stride = stride, p.b_stride = p.c_stride = bc_stride, p.slot_stride = slot_stride;
        p.sequences = S, p.channels = E, p.states = N;
        return p;
    }
    std::vector<double> rows(const T *p) const {
        const std::vector<double> all = wide(fetch(p, (S - 1) * stride + E));
        std::vector<double> mine;
        for (int i = 0; i < S; i++) mine.insert(mine.end(), &all[i * stride], &all[i * stride] + E);
        return mine;
    }
    // One tensor of all the sequences' slots.
    std::vector<double> states(const std::vector<float> &all, long long offset, size_t count) const {
        std::vector<double> mine;
        for (int i = 0; i < S; i++)
            for (size_t k = 0; k < count; k++) mine.push_back(all[slots[i] * slot_stride + offset + k]);
        return mine;
    }
};

template <class T> void check(Checks &checks, const std::string &label, Shape shape) {
    Case<T> c(shape);
    const int S = c.S, E = c.E, N = c.N, K = shape.d_conv;
    const size_t window = (size_t)(K - 1) * E, en = (size_t)N * E;
    Pool pool;
    checks.begin();
    float *states = pool.of(c.state);
    launch_conv<T>(c.conv(states), S, 0);
    const int rows = scan_step_rows(S, E, 132);
    launch_scan<T>(c.scan(states), rows, 0);
    const std::vector<float> after = fetch(states, c.state_elements);
    const std::vector<double> out = c.rows(c.out), y = c.rows(c.y);

    // f64
    const auto x = c.rows(c.x), u = c.rows(c.u), delta = c.rows(c.delta), z = c.rows(c.z);
    const auto bc = wide(fetch(c.bc, (S - 1) * c.bc_stride + 2 * N));
    const auto weight = wide(fetch(c.weight, (size_t)K * E)), bias = wide(fetch(c.bias, E)), a = wide(fetch(c.a, en));
    const auto d = wide(fetch(c.d, E)), delta_bias = wide(fetch(c.delta_bias, E));
    std::vector<double> exact_out, exact_y, exact_window, exact_state(S * en);
    for (int i = 0; i < S; i++) {
        const float *slot = &c.state[c.slots[i] * c.slot_stride];
        auto old = [&](size_t at) { return c.fresh[i] ? 0. : (double)slot[at]; };
        for (int e = 0; e < E; e++) {
            double sum = shape.full ? bias[e] : 0.;
            for (int k = 0; k < K; k++) sum += weight[(size_t)k * E + e] * (k < K - 1 ? old(c.conv_offset + (size_t)k * E + e) : x[(size_t)i * E + e]);
            exact_out.push_back(silu(sum));
        }
        for (size_t k = 0; k < window; k++) exact_window.push_back(k + E < window ? old(c.conv_offset + k + E) : x[(size_t)i * E + (k + E - window)]);
        for (int e = 0; e < E; e++) {
            const size_t at = (size_t)i * E + e;
            const double step = shape.full ? softplus(delta[at] + delta_bias[e]) : delta[at];
            double sum = shape.full ? d[e] * u[at] : 0.;
            for (int n = 0; n < N; n++) {
                const double b = bc[i * c.bc_stride + n], cc = bc[i * c.bc_stride + N + n];
                const double h = std::exp(step * a[(size_t)n * E + e]) * old(c.scan_offset + (size_t)n * E + e) + step * b * u[at];
                exact_state[i * en + (size_t)n * E + e] = h;
                sum += cc * h;
            }
            exact_y.push_back(shape.full ? sum * silu(z[at]) : sum);
        }
    }
    const std::vector<double> h = c.states(after, c.scan_offset, en);
    checks.error("out", relative(out, exact_out), bound<T>(exact_out));
    checks.error("y", relative(y, exact_y), bound<T>(exact_y));
    checks.error("state", relative(h, exact_state), 5e-7);
    checks.holds("window moved on to the bit", c.states(after, c.conv_offset, window) == exact_window);
    // Nothing else in the slots, nor in the gaps of rows, has changed.
    std::vector<float> others = after;
    auto restore = [&](long long offset, size_t count) {
        for (int i = 0; i < S; i++) std::copy_n(&c.state[c.slots[i] * c.slot_stride + offset], count, &others[c.slots[i] * c.slot_stride + offset]);
    };
    restore(c.conv_offset, window), restore(c.scan_offset, en);
    checks.holds("only its own state", std::memcmp(others.data(), c.state.data(), others.size() * sizeof(float)) == 0);
    for (const T *to : std::vector<const T *>{c.out, c.y}) {
        const auto all = wide(fetch(to, (S - 1) * c.stride + E));
        bool gaps = true;
        for (size_t i = 0; i < all.size(); i++) gaps = gaps && (i % c.stride < (size_t)E || std::isnan(all[i]));
        checks.holds("gaps untouched", gaps);
    }
    // Sequences to blocks in any way, and in place over u and x: the same bits.
    for (int r : std::vector<int>{1, S}) {
        float *again = pool.of(c.state);
        ScanStep p = c.scan(again);
        T *copy = pool.of(fetch(c.u - shape.odd, S * c.stride));
        p.u = p.y = copy + shape.odd;
        launch_scan<T>(p, r, 0);
        ConvStep q = c.conv(again);
        T *copy_x = pool.of(fetch(c.x - shape.odd, S * c.stride));
        q.x = q.out = copy_x + shape.odd;
        launch_conv<T>(q, S, 0);
        const auto twice = fetch(again, c.state_elements);
        checks.holds("same bits", std::memcmp(twice.data(), after.data(), after.size() * sizeof(float)) == 0);
        checks.holds("same bits in place", c.rows(copy + shape.odd) == y && c.rows(copy_x + shape.odd) == out);
    }
    // The sequence kernel on sequences of length 1.
    {
        std::vector<int> cu;
        for (int i = 0; i <= S; i++) cu.push_back(i);
        const bool fast = N == 16 && !shape.odd && E % 4 == 0;
        const ScanPlan plan{fast ? ScanPath::tile : ScanPath::generic, 1};
        const auto segments = cut(cu, c.slots, c.fresh, plan);
        float *again = pool.of(c.state);
        T *copy = pool.get<T>(S * c.stride) + shape.odd;
        const ScanStep p = c.scan(again);
        ScanForward f{};
        f.u = p.u, f.delta = p.delta, f.z = p.z, f.b = p.b, f.c = p.c, f.y = copy, f.a = p.a, f.d = p.d, f.delta_bias = p.delta_bias;
        f.initial_state = f.last_state = p.state, f.state_stride = p.slot_stride;
        f.u_stride = p.u_stride, f.delta_stride = p.delta_stride, f.z_stride = p.z_stride, f.b_stride = p.b_stride, f.c_stride = p.c_stride, f.y_stride = p.y_stride;
        f.segments = pool.of(segments), f.first_segment = pool.of(first_segments(segments)), f.segment_count = S;
        f.channels = E, f.states = N, f.softplus = p.softplus, f.carry_inside = 1;
        launch_forward<T>(f, plan.path, S, 0);
        const auto sequence_h = c.states(fetch(again, c.state_elements), c.scan_offset, en);
        checks.error("y - sequence's", relative(c.rows(copy), y), bound<T>(y) + (sizeof(T) == 4 ? 0 : rounding<T>(exact_y)));
        checks.error("state - sequence's", relative(sequence_h, h), 5e-7);
    }
    checks.end(label);
}

void check_small(Checks &checks) {
    check<__nv_bfloat16>(checks, "3 x 136, N 16 bf16", {3, 136, 16, 4});
    check<float>(checks, "3 x 136, N 16 f32", {3, 136, 16, 4});
    check<__half>(checks, "4 x 70, N 5, odd, f16", {4, 70, 5, 3, true, 1});
    check<float>(checks, "2 x 7, N 16, odd, f32", {2, 7, 16, 4, true, 3});
}

template <class T> void check_all(Checks &checks, const std::string &name) {
    for (int S : {1, 2, 5, 64, 200}) check<T>(checks, std::to_string(S) + " x 1536, N 16 " + name, {S, 1536, 16, 4});
    check<T>(checks, "64 x 4096, N 16 " + name, {64, 4096, 16, 4});
    check<T>(checks, "7 x 256, N 16, plain " + name, {7, 256, 16, 4, false});
    for (int N : {1, 2, 3, 8, 15, 16, 17, 64, 128, 256}) {
        check<T>(checks, "5 x 132, N " + std::to_string(N) + " " + name, {5, 132, N, 4});
        check<T>(checks, "5 x 133, N " + std::to_string(N) + ", odd " + name, {5, 133, N, 4, true, 3});
    }
    for (int K : {1, 2, 3, 5, 8}) check<T>(checks, "6 x 516, width " + std::to_string(K) + " " + name, {6, 516, 4, K});
}

// A decode step runs the kernels of all layers one after the other, each on its own states: so 24 launches in a graph,
// over states that together are larger than the L2.
void time_all(const char *path) {
    using T = __nv_bfloat16;
    Timer timer;
    Report report(timer);
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    for (auto shape : std::vector<std::pair<int, int>>{{64, 4096}, {1, 4096}, {16, 4096}, {128, 4096}, {64, 1536}, {1, 1536}, {64, 5120}}) {
        const int S = shape.first, E = shape.second, layers = 24;
        Case<T> c({S, E, 16, 4});
        c.fresh.assign(S, 0);
        c.fresh_ = c.pool.of(c.fresh);
        std::vector<float *> states;
        for (int i = 0; i < layers; i++) states.push_back(c.pool.normal<float>(c.state_elements, 20 + i));
        const double row = (double)S * E, activations = 2 * row * sizeof(T);
        const std::string label = std::to_string(S) + " x " + std::to_string(E);
        auto conv = [&](int layer, cudaStream_t s) { launch_conv<T>(c.conv(states[layer]), S, s); };
        const double conv_bytes = 2 * 3 * row * 4 + activations;
        report.row("conv_step " + label + ", one launch", timer([&](cudaStream_t s) { conv(0, s); }), conv_bytes);
        report.row("conv_step " + label, timer.graph([&](cudaStream_t s) { for (int i = 0; i < layers; i++) conv(i, s); }), conv_bytes, layers);
        const double scan_bytes = 2 * 16 * row * 4 + 2 * activations;
        const int chosen = scan_step_rows(S, E, device.multiProcessorCount);
        report.row("scan_step " + label + ", one launch", timer([&](cudaStream_t s) { launch_scan<T>(c.scan(states[0]), chosen, s); }), scan_bytes);
        report.row("scan_step " + label, timer.graph([&](cudaStream_t s) { for (int i = 0; i < layers; i++) launch_scan<T>(c.scan(states[i]), chosen, s); }), scan_bytes, layers);
    }
    {
        // What a copy of as many bytes as a step of 64 x 4096 moves reaches in the same way.
        const int layers = 24;
        const size_t bytes = 64ull * 4096 * 16 * 4;
        Pool pool;
        std::vector<std::pair<float *, float *>> buffers;
        for (int i = 0; i < layers; i++) buffers.push_back({pool.normal<float>(bytes / 4, 50 + i), pool.get<float>(bytes / 4)});
        auto copies = [&](cudaStream_t s) {
            for (auto &b : buffers) CHECK(cudaMemcpyAsync(b.second, b.first, bytes, cudaMemcpyDeviceToDevice, s));
        };
        report.row("copy of 16.8 MB", timer.graph(copies), 2. * bytes, layers);
    }
    report.write(path);
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "all";
    allow_shared_memory<__nv_bfloat16>();
    allow_shared_memory<__half>();
    allow_shared_memory<float>();
    Checks checks;
    if (mode != "time") {
        check_small(checks);
        if (mode != "small") {
            check_all<__nv_bfloat16>(checks, "bf16");
            check_all<__half>(checks, "f16");
            check_all<float>(checks, "f32");
        }
        if (checks.finish()) return 1;
    }
    if (mode == "all" || mode == "time") time_all(argc > 2 ? argv[2] : nullptr);
    return 0;
}
