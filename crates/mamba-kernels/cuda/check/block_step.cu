// Checks the fused decode step's kernels against f64, each on what it was really given, then times a whole step of the
// published shapes: all layers, each with weights and states of its own, and the head, in one CUDA graph.
//   nvcc -gencode=arch=compute_90a,code=sm_90a -O3 -std=c++17 check/block_step.cu block_step/*.cu -o block_step_check
//   ./block_step_check [all | check | small | time] [json file]
#include "../block_step/params.h"
#include "matrix.h"

using namespace harness;

#define STEP_DECLARE(name, P)                                                                                  \
    extern "C" __global__ void name##_bf16_1(const __grid_constant__ P);                                       \
    extern "C" __global__ void name##_bf16_2(const __grid_constant__ P);                                       \
    extern "C" __global__ void name##_f16_1(const __grid_constant__ P);                                        \
    extern "C" __global__ void name##_f16_2(const __grid_constant__ P);
STEP_DECLARE(step_in_proj, StepInProj)
STEP_DECLARE(step_head, StepHead)
STEP_DECLARE(step_x_proj, StepXProj)
STEP_DECLARE(step_out_proj, StepOutProj)
#define STEP_DECLARE_MANY(name, P, room, tile)                                                                 \
    extern "C" __global__ void name##_##room##_bf16_##tile(const __grid_constant__ P);                         \
    extern "C" __global__ void name##_##room##_f16_##tile(const __grid_constant__ P);
#define STEP_DECLARE_TILES(name, P, room)                                                                      \
    STEP_DECLARE_MANY(name, P, room, 16) STEP_DECLARE_MANY(name, P, room, 32) STEP_DECLARE_MANY(name, P, room, 48) \
    STEP_DECLARE_MANY(name, P, room, 64) STEP_DECLARE_MANY(name, P, room, 80) STEP_DECLARE_MANY(name, P, room, 128)
STEP_DECLARE_TILES(step_in_proj, StepInProjMany, 64)
STEP_DECLARE_TILES(step_in_proj, StepInProjMany, 128)
STEP_DECLARE_TILES(step_out_proj, StepProductMany, 64)
STEP_DECLARE_TILES(step_out_proj, StepProductMany, 128)
STEP_DECLARE_MANY(step_x_proj, StepProductMany, 64, 16)
STEP_DECLARE_MANY(step_x_proj, StepProductMany, 128, 16)
extern "C" __global__ void step_scan_bf16(const __grid_constant__ StepScan);
extern "C" __global__ void step_scan_f16(const __grid_constant__ StepScan);
extern "C" __global__ void step_scan_many_bf16(const __grid_constant__ StepScan);
extern "C" __global__ void step_scan_many_f16(const __grid_constant__ StepScan);

template <class P> using Kernel = void (*)(P);
template <class T> struct Kernels;
#define STEP_TILES(name)  {name##_16, name##_32, name##_48, name##_64, name##_80, name##_128}
#define STEP_TABLE(T, name)                                                                                    \
    template <> struct Kernels<T> {                                                                            \
        static constexpr Kernel<StepInProj> in_proj[2] = {step_in_proj_##name##_1, step_in_proj_##name##_2};   \
        static constexpr Kernel<StepHead> head[2] = {step_head_##name##_1, step_head_##name##_2};              \
        static constexpr Kernel<StepXProj> x_proj[2] = {step_x_proj_##name##_1, step_x_proj_##name##_2};       \
        static constexpr Kernel<StepOutProj> out_proj[2] = {step_out_proj_##name##_1, step_out_proj_##name##_2}; \
        static constexpr Kernel<StepScan> scan = step_scan_##name, scan_many = step_scan_many_##name;          \
        static constexpr Kernel<StepInProjMany> in_proj_many[2][6] = {STEP_TILES(step_in_proj_64_##name), STEP_TILES(step_in_proj_128_##name)}; \
        static constexpr Kernel<StepProductMany> out_proj_many[2][6] = {STEP_TILES(step_out_proj_64_##name), STEP_TILES(step_out_proj_128_##name)}; \
        static constexpr Kernel<StepProductMany> x_proj_many[2][6] = {{step_x_proj_64_##name##_16}, {step_x_proj_128_##name##_16}}; \
    };
STEP_TABLE(__nv_bfloat16, bf16)
STEP_TABLE(__half, f16)

static int multiprocessors;
template <class P> void launch(Kernel<P> kernel, dim3 grid, int bytes, cudaStream_t stream, const P &p, bool behind = true, int cluster = 1, int threads = 256) {
    CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = behind;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster, attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = 1 + (cluster > 1);
    CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

// A row-major matrix as the copy engine takes it in boxes of so many rows and 64 columns.
static CUtensorMap boxes(CUtensorMapDataType type, const void *matrix, int rows, int columns, int box) {
    static void *encode = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (!encode) CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found));
    CUtensorMap map;
    const cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)columns * 2};
    const cuuint32_t extent[2] = {64, (cuuint32_t)box}, step[2] = {1, 1};
    const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(&map, type, 2, const_cast<void *>(matrix), size, stride, extent, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result) std::fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", (int)result), std::exit(1);
    return map;
}

struct Shape {
    const char *name;
    int d_model, channels, dt_rank, layers, vocab, d_conv = 4;
    bool conv_bias = true;
    int width() const { return dt_rank + 2 * kStepStates; }
};

// The weights of a layer.
template <class T> struct Layer {
    Pool pool;
    T *in_proj, *x_proj, *dt_proj, *out_proj;
    float *norm, *conv_weight, *conv_bias, *a, *d, *delta_bias;
    Layer(const Shape &s, int seed) {
        auto matrix = [&](int rows, int columns) { return pool.normal<T>((size_t)rows * columns, seed++, 1.f / std::sqrt((float)columns)); };
        const int E = s.channels;
        in_proj = matrix(2 * E, s.d_model), x_proj = matrix(s.width(), E), dt_proj = matrix(E, s.dt_rank), out_proj = matrix(s.d_model, E);
        norm = pool.normal<float>(s.d_model, seed++, 0.2f, 1.f);
        conv_weight = pool.normal<float>(s.d_conv * E, seed++, 0.5f);
        conv_bias = s.conv_bias ? pool.normal<float>(E, seed++, 0.5f) : nullptr;
        a = pool.normal<float>(kStepStates * E, seed++, 0.5f, -3.f);
        d = pool.normal<float>(E, seed++, 0.5f, 1.f);
        delta_bias = pool.normal<float>(E, seed++, 0.5f, -2.f);
    }
};

// What goes from kernel to kernel, for R rows.
template <class T> struct Step {
    Shape s;
    int rows;
    Pool pool;
    float *residual, *dt_b_c, *logits, *sums;
    T *hidden, *u, *xz, *y;
    int *slots, *fresh;
    Step(const Shape &s, int rows, const std::vector<int> &slots_, const std::vector<int> &fresh_) : s(s), rows(rows) {
        residual = pool.normal<float>((size_t)rows * s.d_model, 5, 2.f);
        dt_b_c = pool.get<float>((size_t)rows * s.width());
        sums = pool.get<float>((size_t)rows * s.d_model / 16);
        logits = pool.get<float>((size_t)rows * s.vocab);
        hidden = pool.get<T>((size_t)rows * s.d_model);
        u = pool.get<T>((size_t)rows * s.channels), y = pool.get<T>((size_t)rows * s.channels), xz = pool.get<T>((size_t)rows * 2 * s.channels);
        slots = pool.of(slots_), fresh = pool.of(fresh_);
    }
    int tiles() const { return std::min(2, ceil_div(rows, 8)); }
    StepConvolution convolution(const Layer<T> &l, float *state, long long slot) const { return {u, xz + s.channels, l.conv_weight, l.conv_bias, state, slots, fresh, slot, 2 * s.channels}; }
    StepInProj in_proj(const Layer<T> &l, float *state, long long slot, bool first = true) const {
        return {l.in_proj, residual, l.norm, first ? nullptr : sums, convolution(l, state, slot), rows, s.d_model, s.channels, s.d_conv, 1e-5f, 0};
    }
    StepXProj x_proj(const Layer<T> &l) const { return {l.x_proj, u, dt_b_c, rows, s.channels, s.width(), 0}; }
    StepScan scan(const Layer<T> &l, float *state, long long slot) const {
        return {l.dt_proj, dt_b_c, u, xz + s.channels, y, l.a, l.d, l.delta_bias, state, slots, fresh, slot, 2 * s.channels, rows, s.channels, s.dt_rank, 0};
    }
    StepOutProj out_proj(const Layer<T> &l) const { return {l.out_proj, y, residual, sums, rows, s.channels, s.d_model, 0}; }
    void run_in(const StepInProj &p, cudaStream_t stream, bool behind = true) const {
        const int n = step_blocks(2 * s.channels, multiprocessors);
        launch(Kernels<T>::in_proj[tiles() - 1], n, step_norm_shared(tiles(), s.d_model, 2 * s.channels, n), stream, p, behind);
    }
    void run_x(const StepXProj &p, cudaStream_t stream) const {
        launch(Kernels<T>::x_proj[tiles() - 1], dim3(ceil_div(s.width(), 16), kStepSplits, ceil_div(rows, 8 * tiles())), 8192 * kStepShort, stream, p);
    }
    void run_scan(const StepScan &p, cudaStream_t stream) const {
        if (rows > kStepFew && s.channels % kStepManyChannels == 0)
            launch(Kernels<T>::scan_many, dim3(s.channels / kStepManyChannels, step_scan_many_rows(s.channels, rows, multiprocessors)), step_scan_many_shared(s.dt_rank), stream, p);
        else launch(Kernels<T>::scan, dim3(s.channels / 32, ceil_div(rows, 8)), 0, stream, p);
    }
    void run_out(const StepOutProj &p, cudaStream_t stream) const {
        launch(Kernels<T>::out_proj[tiles() - 1], ceil_div(s.d_model, 16), step_ring(kStepDeep, step_chunks(s.channels)), stream, p);
    }
    // For many sequences, of normalized rows.
    int room() const { return step_many_room(rows); }
    int out_tile() const { return step_many_tile(s.d_model, kStepManySplits, multiprocessors); }
    static constexpr auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    StepInProjMany in_proj_many(const Layer<T> &l, float *state, long long slot) const {
        const int tile = step_many_tile(2 * s.channels, 1, multiprocessors);
        return {boxes(type, l.in_proj, 2 * s.channels, s.d_model, tile / 2), boxes(type, hidden, rows, s.d_model, step_many_box(rows)), convolution(l, state, slot), rows, s.d_model, s.channels, s.d_conv};
    }
    StepProductMany product_many(const T *weight, int outputs, int inputs, const T *from, float *to, int tile) const {
        return {boxes(type, weight, outputs, inputs, tile), boxes(type, from, rows, inputs, step_many_box(rows)), to, rows, inputs, outputs, 0};
    }
    StepProductMany x_proj_many(const Layer<T> &l) const { return product_many(l.x_proj, s.width(), s.channels, u, dt_b_c, 16); }
    StepProductMany out_proj_many(const Layer<T> &l) const { return product_many(l.out_proj, s.d_model, s.channels, y, residual, out_tile()); }
    template <class P> void run_many(const Kernel<P> (&kernels)[2][6], int outputs, int tile, int splits, const P &p, cudaStream_t stream) const {
        launch(kernels[room() / 128][tile == 128 ? 5 : tile / 16 - 1], splits * ceil_div(outputs, tile), step_many_shared(room(), tile, splits > 1), stream, p, true, splits, 2 * room() + 32);
    }
    void run_in_many(const StepInProjMany &p, cudaStream_t stream) const { run_many(Kernels<T>::in_proj_many, 2 * s.channels, step_many_tile(2 * s.channels, 1, multiprocessors), 1, p, stream); }
    void run_x_many(const StepProductMany &p, cudaStream_t stream) const { run_many(Kernels<T>::x_proj_many, s.width(), 16, kStepSplits, p, stream); }
    void run_out_many(const StepProductMany &p, cudaStream_t stream) const { run_many(Kernels<T>::out_proj_many, s.d_model, out_tile(), kStepManySplits, p, stream); }
    void run_head(const T *weight, const float *norm, cudaStream_t stream, bool behind = true) const {
        const StepHead p{weight, residual, norm, sums, logits, rows, s.d_model, s.vocab, 1e-5f};
        const int n = step_blocks(s.vocab, multiprocessors);
        launch(Kernels<T>::head[tiles() - 1], n, step_norm_shared(tiles(), s.d_model, s.vocab, n), stream, p, behind);
    }
};

// x [rows, inputs] times weight [outputs, inputs] transposed.
Values product(const Values &x, const Values &weight, int rows, int inputs, int outputs) {
    Values out((size_t)rows * outputs);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) {
            double sum = 0;
            for (int i = 0; i < inputs; i++) sum += x[(size_t)r * inputs + i] * weight[(size_t)o * inputs + i];
            out[(size_t)r * outputs + o] = sum;
        }
    return out;
}
template <class T> Values normalized(const Values &residual, const Values &norm, int rows, int d_model) {
    Values hidden(residual.size());
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < d_model; i++) sum += residual[r * d_model + i] * residual[r * d_model + i];
        for (int i = 0; i < d_model; i++) hidden[r * d_model + i] = (double)(float)(T)(float)(residual[r * d_model + i] / std::sqrt(sum / d_model + 1e-5) * norm[i]);
    }
    return hidden;
}
double silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<float> narrow_of(const Values &v) { return {v.begin(), v.end()}; }

// f32 results of products: sums in f32. Those of a norm's output: where an element lies next to the middle of two values
// of T, it may be rounded the other way.
constexpr double kSum = 2e-6, kNormSum = 1e-4;

// x_proj and the scan, given u and z; y.
template <class T>
Values check_between(Case &c, const Step<T> &step, const Layer<T> &layer, float *state, long long slot, const std::vector<int> &slots, const std::vector<int> &fresh, const Values &u, const Values &z, bool many) {
    const Shape &s = step.s;
    const int E = s.channels, rows = step.rows, window = s.d_conv - 1;
    const size_t states = slot * (*std::max_element(slots.begin(), slots.end()) + 1);
    Values expected = wide(fetch(state, states));
    many ? step.run_x_many(step.x_proj_many(layer), 0) : step.run_x(step.x_proj(layer), 0);
    const Values dt_b_c = wide(fetch(step.dt_b_c, (size_t)rows * s.width()));
    c.within("dt, B, C", dt_b_c, product(u, wide(fetch(layer.x_proj, (size_t)s.width() * E)), rows, E, s.width()), kSum);

    step.run_scan(step.scan(layer, state + window * E, slot), 0);
    Values dt, y;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < s.dt_rank; i++) dt.push_back((double)(float)(T)(float)dt_b_c[(size_t)r * s.width() + i]);
    const Values delta = product(dt, wide(fetch(layer.dt_proj, (size_t)E * s.dt_rank)), rows, s.dt_rank, E);
    const Values a = wide(fetch(layer.a, kStepStates * E)), d = wide(fetch(layer.d, E)), bias = wide(fetch(layer.delta_bias, E));
    for (int r = 0; r < rows; r++)
        for (int e = 0; e < E; e++) {
            const double step = std::log1p(std::exp(delta[(size_t)r * E + e] + bias[e])), input = u[(size_t)r * E + e];
            double sum = d[e] * input;
            for (int n = 0; n < kStepStates; n++) {
                double &h = expected[slots[r] * slot + (window + n) * E + e];
                h = std::exp(step * a[n * E + e]) * (fresh[r] ? 0 : h) + step * input * dt_b_c[(size_t)r * s.width() + s.dt_rank + n];
                sum += h * dt_b_c[(size_t)r * s.width() + s.dt_rank + kStepStates + n];
            }
            y.push_back(sum * silu(z[(size_t)r * E + e]));
        }
    const Values y_found = wide(fetch(step.y, (size_t)rows * E));
    c.result<T>("y", y_found, y);
    c.within("ssm_state", wide(fetch(state, states)), expected, kNormSum); // dt is rounded to T
    return y_found;
}

// u and z.
template <class T> std::pair<Values, Values> halves(const Step<T> &step) {
    const size_t E = step.s.channels;
    const Values xz = wide(fetch(step.xz, step.rows * 2 * E));
    Values z;
    for (int r = 0; r < step.rows; r++) z.insert(z.end(), xz.begin() + (2 * r + 1) * E, xz.begin() + (2 * r + 2) * E);
    return {wide(fetch(step.u, step.rows * E)), z};
}

// What in_proj and the convolution's step left of normalized rows; `before` are all slots. u and z.
template <class T>
std::pair<Values, Values> check_in_proj(Case &c, const Step<T> &step, const Layer<T> &layer, const Values &hidden, const float *state, const Values &before, long long slot, const std::vector<int> &slots, const std::vector<int> &fresh, double limit) {
    const Shape &s = step.s;
    const int E = s.channels, rows = step.rows, window = s.d_conv - 1;
    const Values xz = product(hidden, wide(fetch(layer.in_proj, (size_t)2 * E * s.d_model)), rows, s.d_model, 2 * E);
    const Values conv_weight = wide(fetch(layer.conv_weight, s.d_conv * E)), conv_bias = s.conv_bias ? wide(fetch(layer.conv_bias, E)) : Values(E);
    Values u, z, expected = before;
    for (int r = 0; r < rows; r++)
        for (int e = 0; e < E; e++) {
            double *at = &expected[slots[r] * slot + e], sum = conv_bias[e];
            std::vector<double> inputs;
            for (int k = 0; k < window; k++) inputs.push_back(fresh[r] ? 0 : at[k * E]);
            inputs.push_back(xz[(size_t)r * 2 * E + e]);
            for (int k = 0; k < s.d_conv; k++) sum += inputs[k] * conv_weight[k * E + e];
            for (int k = 0; k < window; k++) at[k * E] = inputs[k + 1];
            u.push_back(silu(sum));
            z.push_back(xz[(size_t)r * 2 * E + E + e]);
        }
    const auto [u_found, z_found] = halves(step);
    const Values all = wide(fetch(step.xz, (size_t)rows * 2 * E));
    Values x_untouched;
    for (int r = 0; r < rows; r++) x_untouched.insert(x_untouched.end(), all.begin() + (size_t)2 * r * E, all.begin() + (size_t)(2 * r + 1) * E);
    c.result<T>("u", u_found, u), c.result<T>("z", z_found, z);
    c.require("x's half left alone", std::all_of(x_untouched.begin(), x_untouched.end(), [](double x) { return std::isnan(x); }));
    c.within("conv_state", wide(fetch(state, before.size())), expected, limit);
    return {u_found, z_found};
}

// The residual after out_proj.
template <class T> Values check_out_proj(Case &c, const Step<T> &step, const Layer<T> &layer, const Values &y, const Values &residual) {
    const Shape &s = step.s;
    Values sum = product(y, wide(fetch(layer.out_proj, (size_t)s.d_model * s.channels)), step.rows, s.channels, s.d_model);
    for (size_t i = 0; i < sum.size(); i++) sum[i] += residual[i];
    const Values found = wide(fetch(step.residual, sum.size()));
    c.within("residual", found, sum, kSum);
    return found;
}

// The kernels for many sequences, of normalized rows.
template <class T> void check_many(const Shape &s, int rows) {
    Case c(std::string(s.name) + " " + dtype_name<T>() + " many rows " + std::to_string(rows));
    const int E = s.channels;
    std::vector<int> slots, fresh;
    for (int r = 0; r < rows; r++) slots.push_back(rows - r), fresh.push_back(r % 5 == 2);
    const long long slot = (long long)(s.d_conv - 1 + kStepStates) * E + 8;
    Layer<T> layer(s, 100);
    Step<T> step(s, rows, slots, fresh);
    Pool pool;
    float *state = pool.normal<float>(slot * (rows + 1), 9);
    step.hidden = pool.normal<T>((size_t)rows * s.d_model, 11);
    const Values before = wide(fetch(state, slot * (rows + 1))), residual = wide(fetch(step.residual, (size_t)rows * s.d_model));
    const bool all = rows <= kStepManyRows; // else what lies between in_proj and out_proj
    if (all) step.run_in_many(step.in_proj_many(layer, state, slot), 0);
    else step.u = pool.normal<T>((size_t)rows * E, 12), step.xz = pool.normal<T>((size_t)rows * 2 * E, 13);
    const auto [u, z] = all ? check_in_proj(c, step, layer, wide(fetch(step.hidden, (size_t)rows * s.d_model)), state, before, slot, slots, fresh, kSum) : halves(step);
    const Values y = check_between(c, step, layer, state, slot, slots, fresh, u, z, all), states = wide(fetch(state, before.size()));
    if (all) step.run_out_many(step.out_proj_many(layer), 0);
    const Values after = all ? check_out_proj(c, step, layer, y, residual) : residual;

    // The last row alone.
    const size_t r = rows - 1;
    Step<T> alone(s, 1, {slots[r]}, {fresh[r]});
    alone.hidden = step.hidden + r * s.d_model;
    CHECK(cudaMemcpy(state, narrow_of(before).data(), before.size() * 4, cudaMemcpyHostToDevice));
    const std::vector<float> own(residual.begin() + r * s.d_model, residual.end());
    CHECK(cudaMemcpy(alone.residual, own.data(), own.size() * 4, cudaMemcpyHostToDevice));
    if (!all) alone.u = step.u + r * E, alone.xz = step.xz + r * 2 * E;
    if (all) alone.run_in_many(alone.in_proj_many(layer, state, slot), 0), alone.run_x_many(alone.x_proj_many(layer), 0);
    else alone.run_x(alone.x_proj(layer), 0);
    alone.run_scan(alone.scan(layer, state + (s.d_conv - 1) * E, slot), 0);
    c.require("a row alone the same", same_bits(wide(fetch(alone.y, E)), Values(y.begin() + r * E, y.end())));
    if (all) alone.run_out_many(alone.out_proj_many(layer), 0);
    c.require("its residual the same", same_bits(wide(fetch(alone.residual, s.d_model)), Values(after.begin() + r * s.d_model, after.end())));
    const Values states_alone = wide(fetch(state, before.size()));
    c.require("its state the same", std::equal(states_alone.begin() + slots[r] * slot, states_alone.begin() + (slots[r] + 1) * slot, states.begin() + slots[r] * slot));
}

template <class T> void check(const Shape &s, int rows) {
    Case c(std::string(s.name) + " " + dtype_name<T>() + " rows " + std::to_string(rows));
    const int E = s.channels, window = s.d_conv - 1, slot_count = rows + 2;
    std::vector<int> slots, fresh;
    for (int r = 0; r < rows; r++) slots.push_back((r * 7 + 1) % slot_count), fresh.push_back(r % 3 == 2);
    if (slot_count % 7 == 0)
        for (int r = 0; r < rows; r++) slots[r] = slot_count - 1 - r;
    const long long slot = (long long)(window + kStepStates) * E + 8;
    Layer<T> layer(s, 100);
    Step<T> step(s, rows, slots, fresh);
    Pool pool;
    float *state = pool.normal<float>(slot * slot_count, 9);
    const Values before = wide(fetch(state, slot * slot_count)), residual = wide(fetch(step.residual, (size_t)rows * s.d_model));

    step.run_in(step.in_proj(layer, state, slot), 0);
    const Values hidden = normalized<T>(residual, wide(fetch(layer.norm, s.d_model)), rows, s.d_model);
    const auto [u_found, z_found] = check_in_proj(c, step, layer, hidden, state, before, slot, slots, fresh, kNormSum);
    const Values y_found = check_between(c, step, layer, state, slot, slots, fresh, u_found, z_found, false);
    const Values after = wide(fetch(state, slot * slot_count));
    step.run_out(step.out_proj(layer), 0);
    const Values new_residual = check_out_proj(c, step, layer, y_found, residual);

    const Pool head;
    T *weight = pool.normal<T>((size_t)s.vocab * s.d_model, 77, 1.f / std::sqrt((float)s.d_model));
    step.run_head(weight, layer.norm, 0);
    const Values last = normalized<T>(new_residual, wide(fetch(layer.norm, s.d_model)), rows, s.d_model);
    c.within("logits", wide(fetch(step.logits, (size_t)rows * s.vocab)), product(last, wide(fetch(weight, (size_t)s.vocab * s.d_model)), rows, s.d_model, s.vocab), kNormSum);

    // The sums that out_proj left, and those made anew, normalize alike.
    step.run_in(step.in_proj(layer, state, slot, true), 0);
    const Values u_first = wide(fetch(step.u, (size_t)rows * E));
    CHECK(cudaMemcpy(state, narrow_of(after).data(), after.size() * 4, cudaMemcpyHostToDevice));
    step.run_in(step.in_proj(layer, state, slot, false), 0);
    c.require("sums as out_proj's", same_bits(u_first, wide(fetch(step.u, (size_t)rows * E))));

    // One row alone has the bits that it has in company.
    if (rows > 1) {
        const int r = rows - 1;
        Step<T> alone(s, 1, {slots[r]}, {fresh[r]});
        float *again = pool.get<float>(before.size());
        CHECK(cudaMemcpy(again, narrow_of(before).data(), before.size() * 4, cudaMemcpyHostToDevice));
        std::vector<float> own(residual.begin() + (size_t)r * s.d_model, residual.begin() + (size_t)(r + 1) * s.d_model);
        CHECK(cudaMemcpy(alone.residual, own.data(), own.size() * 4, cudaMemcpyHostToDevice));
        alone.run_in(alone.in_proj(layer, again, slot), 0), alone.run_x(alone.x_proj(layer), 0);
        alone.run_scan(alone.scan(layer, again + window * E, slot), 0), alone.run_out(alone.out_proj(layer), 0);
        alone.run_head(weight, layer.norm, 0);
        auto last_row = [&](const float *p, int columns) { return wide(fetch(p + (size_t)r * columns, columns)); };
        c.require("a row alone the same", same_bits(wide(fetch(alone.residual, s.d_model)), last_row(step.residual, s.d_model)) &&
                                              same_bits(wide(fetch(alone.logits, s.vocab)), last_row(step.logits, s.vocab)));
        const Values state_alone = wide(fetch(again, before.size()));
        c.require("its state the same", std::equal(state_alone.begin() + slots[r] * slot, state_alone.begin() + (slots[r] + 1) * slot, after.begin() + slots[r] * slot));
    }
}

void check_all(bool small) {
    const Shape odd{"odd", 144, 96, 24, 1, 84, 3, false}, tiny{"130m/4", 192, 384, 16, 1, 500};
    for (int rows : {1, 3, 8, 9, 16}) check<__nv_bfloat16>(odd, rows), check<__half>(odd, rows);
    check<__half>(tiny, 5);
    for (int rows : {5, 17, 64, 70, 128, 130}) check_many<__nv_bfloat16>(odd, rows), check_many<__half>(tiny, rows);
    if (small) return;
    const Shape narrow{"130m", 768, 1536, 48, 1, 1000}, wide{"2.8b", 2560, 5120, 160, 1, 1000}, seven{"7b", 4096, 8192, 256, 1, 100};
    for (int rows : {1, 2, 8, 16}) check<__half>(narrow, rows), check<__nv_bfloat16>(narrow, rows);
    check<__half>(wide, 2), check<__nv_bfloat16>(seven, 1);
    check_many<__half>(narrow, 64), check_many<__nv_bfloat16>(wide, 20), check_many<__half>(wide, 130), check_many<__half>(seven, 33), check_many<__half>(wide, 100), check_many<__nv_bfloat16>(seven, 128);
}

template <class T> void time_shape(Timer &timer, Report &report, const Shape &s, const std::vector<int> &batches) {
    std::vector<std::unique_ptr<Layer<T>>> layers;
    for (int i = 0; i < s.layers; i++) layers.push_back(std::make_unique<Layer<T>>(s, 1000 + 16 * i));
    Pool pool;
    T *head = pool.normal<T>((size_t)s.vocab * s.d_model, 77, 1.f / std::sqrt((float)s.d_model));
    const int E = s.channels;
    const long long slot = (long long)(s.d_conv - 1 + kStepStates) * E * s.layers;
    const double weights = 2. * (s.layers * ((double)3 * E * s.d_model + (double)E * (s.width() + s.dt_rank)) + (double)s.vocab * s.d_model);
    for (int rows : batches) {
        std::vector<int> slots, fresh(rows);
        for (int r = 0; r < rows; r++) slots.push_back(r);
        Step<T> step(s, rows, slots, fresh);
        Pool own;
        float *state = own.normal<float>(slot * rows, 9);
        const bool few = rows <= 16, many = rows >= 16 && rows <= kStepManyRows;
        enum { kIn = 1, kX = 2, kScan = 4, kOut = 8, kHead = 16, kInMany = 32, kXMany = 64, kOutMany = 128 };
        auto all = [&](cudaStream_t stream, int which) {
            for (int i = 0; i < s.layers; i++) {
                const Layer<T> &l = *layers[i];
                float *conv = state + (long long)i * (s.d_conv - 1 + kStepStates) * E;
                if (which & kIn) step.run_in(step.in_proj(l, conv, slot, i == 0 && which != kIn), stream, i > 0 || which == kIn);
                if (which & kInMany) step.run_in_many(step.in_proj_many(l, conv, slot), stream);
                if (which & kX) step.run_x(step.x_proj(l), stream);
                if (which & kXMany) step.run_x_many(step.x_proj_many(l), stream);
                if (which & kScan) step.run_scan(step.scan(l, conv + (s.d_conv - 1) * E, slot), stream);
                if (which & kOut) step.run_out(step.out_proj(l), stream);
                if (which & kOutMany) step.run_out_many(step.out_proj_many(l), stream);
            }
            if (which & kHead) step.run_head(head, layers[0]->norm, stream);
        };
        const double state_bytes = 8. * slot * rows, E_d = (double)E;
        const std::string label = std::string(s.name) + " " + dtype_name<T>() + ", rows " + std::to_string(rows) + ", ";
        auto row = [&](const char *what, int which, double bytes, int calls) { report.row(label + what, timer.graph([&](cudaStream_t stream) { all(stream, which); }), bytes, calls); };
        if (few) row("step", kIn | kX | kScan | kOut | kHead, weights + state_bytes, 1);
        // Of rows that are normalized already, without the head.
        if (many) row("many, a layer", kInMany | kXMany | kScan | kOutMany, (weights - 2. * s.vocab * s.d_model + state_bytes) / s.layers, s.layers);
        if (rows != batches[0] && rows < 16) continue;
        const double in_bytes = 4 * E_d * s.d_model + rows * E_d * (s.d_conv - 1) * 8, x_bytes = 2 * E_d * s.width(), out_bytes = 2 * E_d * s.d_model;
        if (few) row("in_proj", kIn, in_bytes, s.layers);
        if (many) row("many, in_proj", kInMany, in_bytes, s.layers);
        row("x_proj", kX, x_bytes, s.layers);
        if (many) row("many, x_proj", kXMany, x_bytes, s.layers);
        row("scan", kScan, 2 * E_d * s.dt_rank + rows * E_d * kStepStates * 8, s.layers);
        if (few) row("out_proj", kOut, out_bytes, s.layers);
        if (many) row("many, out_proj", kOutMany, out_bytes, s.layers);
        if (few) row("head", kHead, 2. * s.vocab * s.d_model, 1);
    }
}

void time_all(Timer &timer, Report &report) {
    const std::vector<int> rows = {1, 2, 4, 8, 16, 32, 64, 128};
    time_shape<__half>(timer, report, {"130m", 768, 1536, 48, 24, 50280}, rows);
    time_shape<__half>(timer, report, {"1.4b", 2048, 4096, 128, 48, 50280}, rows);
    time_shape<__half>(timer, report, {"2.8b", 2560, 5120, 160, 64, 50280}, rows);
}

int main(int argc, char **argv) {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    multiprocessors = device.multiProcessorCount;
    return run_program(argc, argv, check_all, time_all);
}
