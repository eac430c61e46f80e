// Checks the selective-scan kernels against a float64 reference on the GPU, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/selective_scan.cu selective_scan/*.cu -o scan_check
//   ./scan_check            check, then time
//   ./scan_check check      check only         ./scan_check small   a few small cases (for compute-sanitizer)
//   ./scan_check time [json file, or -] [batch x channels x length, or all] [bf16 | f16 | f32]
// Every output is filled with NaN first, so that an unwritten element is seen. Inputs lie as in the model:
// z is the second half of in_proj's output, B and C are columns of x_proj's.
#include "harness.h"
#include "launch.h"
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

// ------------------------------------------------------------------------------------- reference
struct Reference { // f64 copies of the inputs and the results; [T, E], [T, N], [N, E], [sequences, N, E]
    const double *u, *delta, *z, *b, *c, *dy, *a, *d, *bias, *h0, *dlast;
    double *y, *last, *du, *ddelta, *dz, *db, *dc, *da, *dd, *dbias, *dh0, *history; // history [T + sequences, N, E]
    const int *cu_seqlens, *fresh;
    int E, N, softplus, backward;
};

__global__ void reference_scan(Reference r) {
    const int e = blockIdx.x * blockDim.x + threadIdx.x, seq = blockIdx.y, E = r.E, N = r.N;
    if (e >= E) return;
    const int begin = r.cu_seqlens[seq], end = r.cu_seqlens[seq + 1];
    auto step_of = [&](int t, double *slope) {
        double x = r.delta[(size_t)t * E + e] + (r.bias ? r.bias[e] : 0.);
        *slope = r.softplus ? 1. / (1. + exp(-x)) : 1.;
        return r.softplus ? (x > 0 ? x : 0) + log1p(exp(-fabs(x))) : x;
    };
    auto hist = [&](int t, int n) -> double & { return r.history[((size_t)(t + seq) * N + n) * E + e]; };
    for (int n = 0; n < N; n++) hist(begin, n) = r.h0 ? r.h0[((size_t)seq * N + n) * E + e] : 0.;
    for (int t = begin; t < end; t++) {
        const size_t i = (size_t)t * E + e;
        double slope, step = step_of(t, &slope), y = r.d ? r.d[e] * r.u[i] : 0.;
        for (int n = 0; n < N; n++) {
            double h = exp(step * r.a[(size_t)n * E + e]) * hist(t, n) + step * r.u[i] * r.b[(size_t)t * N + n];
            hist(t + 1, n) = h;
            y += h * r.c[(size_t)t * N + n];
        }
        if (r.backward && r.z) {
            double s = 1. / (1. + exp(-r.z[i]));
            r.dz[i] = r.dy[i] * y * s * (1. + r.z[i] * (1. - s));
        }
        r.y[i] = r.z ? y * r.z[i] / (1. + exp(-r.z[i])) : y;
    }
    for (int n = 0; n < N; n++) r.last[((size_t)seq * N + n) * E + e] = hist(end, n);
    if (!r.backward) return;
    double carry[256], da[256], dd = 0., dbias = 0.;
    for (int n = 0; n < N; n++) {
        carry[n] = r.dlast ? r.dlast[((size_t)seq * N + n) * E + e] : 0.;
        da[n] = 0.;
    }
    for (int t = end - 1; t >= begin; t--) {
        const size_t i = (size_t)t * E + e;
        double slope, step = step_of(t, &slope), dy = r.dy[i], s1 = 0., s2 = 0.;
        if (r.z) dy *= r.z[i] / (1. + exp(-r.z[i]));
        for (int n = 0; n < N; n++) {
            const size_t k = (size_t)t * N + n;
            const double a = r.a[(size_t)n * E + e], decay = exp(step * a), dh = carry[n] + r.c[k] * dy;
            atomicAdd(&r.dc[k], dy * hist(t + 1, n));
            atomicAdd(&r.db[k], step * r.u[i] * dh);
            s1 += dh * r.b[k];
            const double through = decay * hist(t, n) * dh;
            s2 += through * a;
            da[n] += step * through;
            carry[n] = decay * dh;
        }
        r.du[i] = step * s1 + (r.d ? r.d[e] * dy : 0.);
        r.ddelta[i] = (r.u[i] * s1 + s2) * slope;
        dd += dy * r.u[i];
        dbias += r.ddelta[i];
    }
    for (int n = 0; n < N; n++) {
        atomicAdd(&r.da[(size_t)n * E + e], da[n]);
        r.dh0[((size_t)seq * N + n) * E + e] = r.fresh[seq] ? 0. : carry[n];
    }
    atomicAdd(&r.dd[e], dd);
    atomicAdd(&r.dbias[e], dbias);
}

// ---------------------------------------------------------------------------------------- buffers
__host__ __device__ inline float uniform(uint64_t i, uint64_t seed) { // [0, 1), splitmix64
    uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return (float)((x ^ (x >> 31)) >> 40) / 16777216.f;
}
enum class Fill { normal, positive, a, bias, slow_bias, delta };
template <class T> __global__ void fill(T *to, size_t count, uint64_t seed, Fill kind, int E) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        float x = uniform(i, seed);
        if (kind == Fill::normal) x = (x + uniform(i, seed + 1) + uniform(i, seed + 2) + uniform(i, seed + 3) - 2.f) * 1.7f;
        else if (kind == Fill::positive) x *= 0.3f;
        else if (kind == Fill::a) x = -(float)(i / E + 1) * (0.5f + x); // as S4D-real initialises it, n + 1, and half around
        else if (kind == Fill::delta) x = -1.f + 0.5f * x;              // as in the reference vectors
        else if (kind == Fill::bias) x *= 0.5f;
        else x = logf(expm1f(expf(logf(1e-3f) + x * logf(100.f))));     // softplus(bias) spread over 1e-3 .. 1e-1
        to[i] = (T)x;
    }
}
template <class T> __global__ void widen(const T *from, long long stride, double *to, int rows, int columns) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)rows * columns; i += (size_t)gridDim.x * blockDim.x)
        to[i] = (double)(float)from[i / columns * stride + i % columns];
}

struct Pool { // device memory that goes with the case
    std::vector<void *> all;
    template <class X> X *get(size_t count) {
        void *p;
        CHECK(cudaMalloc(&p, std::max<size_t>(1, count) * sizeof(X)));
        CHECK(cudaMemset(p, 0xff, std::max<size_t>(1, count) * sizeof(X))); // NaN
        all.push_back(p);
        return (X *)p;
    }
    ~Pool() { for (void *p : all) cudaFree(p); }
};

struct Shape {
    std::vector<int> lengths;
    int E, N;
    bool softplus = true, gate = true, skip = true, bias = true, initial = false, last = false;
    bool slow = false; // steps as a new model has them, 1e-3 to 1e-1: states that last for thousands of tokens
    int lead = 0; // elements before B in its row: x_proj's dt_rank
    bool in_place = false; // the last state replaces the initial one
    bool fresh = false;    // every second sequence begins at zero, its slot holding something else
};

struct Result { std::string name; double error, bound; };

template <class X> std::vector<double> host(const X *p, size_t count) {
    std::vector<X> v(count);
    CHECK(cudaMemcpy(v.data(), p, count * sizeof(X), cudaMemcpyDeviceToHost));
    return std::vector<double>(v.begin(), v.end());
}

template <class T> struct Case {
    Shape shape;
    Pool pool;
    std::vector<int> cu{0}, slots, fresh; // sequence s lies in slot 2 (sequences - s) - 1: others lie between
    long long state_stride;
    int tokens, sequences, lead;
    size_t elements;
    T *u, *delta, *xz, *xp, *y, *dy, *du, *ddelta, *dz;
    float *a, *d = nullptr, *bias = nullptr, *h0 = nullptr, *dlast = nullptr, *last, *dh0, *boundary, *db, *dc, *da, *dd, *dbias;
    ScanSegment *segments;
    int *first_segment;
    float *segment_state, *segment_delta, *state_scratch, *bc_partial, *a_partial, *d_partial, *bias_partial;
    size_t chunks = 0;

    explicit Case(Shape s, uint64_t seed = 1) : shape(s) {
        for (int n : s.lengths) cu.push_back(cu.back() + n), chunks += ceil_div(n, 64);
        tokens = cu.back();
        sequences = (int)s.lengths.size();
        for (int i = 0; i < sequences; i++) slots.push_back(2 * (sequences - i) - 1), fresh.push_back(s.fresh && i % 2);
        state_stride = (long long)s.E * s.N + 6 * s.E; // other things lie beside the state
        lead = s.lead ? s.lead : ceil_div(s.E, 512) * 16;
        elements = (size_t)tokens * s.E;
        const size_t en = (size_t)s.E * s.N, segs = sequences + chunks;
        auto random = [&](auto *p, size_t n, int k, Fill f) { fill<<<512, 256>>>(p, n, seed * 1000 + 10 * k, f, s.E); };
        u = pool.get<T>(elements), delta = pool.get<T>(elements), dy = pool.get<T>(elements);
        xz = pool.get<T>(2 * elements), xp = pool.get<T>((size_t)tokens * row_xp());
        y = pool.get<T>(elements), du = pool.get<T>(elements), ddelta = pool.get<T>(elements), dz = pool.get<T>(2 * elements);
        random(u, elements, 1, Fill::normal), random(delta, elements, 2, !s.softplus ? Fill::positive : s.slow ? Fill::normal : Fill::delta);
        random(xz, 2 * elements, 3, Fill::normal), random(xp, (size_t)tokens * row_xp(), 4, Fill::normal), random(dy, elements, 5, Fill::normal);
        a = pool.get<float>(en), random(a, en, 6, Fill::a);
        if (s.skip) d = pool.get<float>(s.E), random(d, s.E, 7, Fill::normal);
        if (s.bias) bias = pool.get<float>(s.E), random(bias, s.E, 8, !s.softplus ? Fill::positive : s.slow ? Fill::slow_bias : Fill::bias);
        if (s.initial) h0 = pool.get<float>(slot_elements()), restore_initial();
        if (s.last) dlast = pool.get<float>(slot_elements()), random(dlast, slot_elements(), 10, Fill::normal);
        last = s.in_place ? h0 : pool.get<float>(slot_elements());
        dh0 = pool.get<float>(slot_elements()), boundary = pool.get<float>(en * chunks);
        db = pool.get<float>((size_t)tokens * s.N), dc = pool.get<float>((size_t)tokens * s.N);
        da = pool.get<float>(en), dd = pool.get<float>(s.E), dbias = pool.get<float>(s.E);
        segments = pool.get<ScanSegment>(segs), first_segment = pool.get<int>(sequences + 1);
        segment_state = pool.get<float>(en * segs), segment_delta = pool.get<float>(s.E * segs);
        state_scratch = pool.get<float>(segs * ceil_div(s.E, 64) * 16384);
        bc_partial = pool.get<float>((size_t)std::max(ceil_div(s.E, 64), 32) * tokens * 2 * s.N);
        a_partial = pool.get<float>(en * segs), d_partial = pool.get<float>(s.E * segs), bias_partial = pool.get<float>(s.E * segs);
        CHECK(cudaDeviceSynchronize());
    }
    size_t slot_elements() const { return 2 * (size_t)state_stride * sequences; }
    void restore_initial() { // in a fresh sequence's slot lies NaN, which must not be read
        fill<<<512, 256>>>(h0, slot_elements(), 990, Fill::normal, shape.E);
        for (int s = 0; s < sequences; s++)
            if (fresh[s]) CHECK(cudaMemset(h0 + slots[s] * state_stride, 0xff, (size_t)shape.E * shape.N * sizeof(float)));
    }
    // The [sequences, N, E] states in the slots of p; zero for fresh sequences where asked.
    std::vector<double> states(const float *p, bool zero_fresh = false) const {
        const size_t en = (size_t)shape.E * shape.N;
        std::vector<double> all = host(p, slot_elements()), mine(en * sequences);
        for (int s = 0; s < sequences; s++)
            if (!(zero_fresh && fresh[s])) std::copy_n(&all[slots[s] * state_stride], en, &mine[en * s]);
        return mine;
    }
    // What lies between the states of the call, which no kernel may touch.
    std::vector<double> between_states(const float *p) const {
        std::vector<double> all = host(p, slot_elements());
        for (int s = 0; s < sequences; s++) std::fill_n(&all[slots[s] * state_stride], (size_t)shape.E * shape.N, 0.);
        return all;
    }
    int row_xp() const { return lead + 2 * shape.N; }

    int plan_segments(ScanPlan plan, ScanSegment *to, bool *split, bool *inside) {
        auto list = cut(cu, slots, fresh, plan);
        CHECK(cudaMemcpy(to, list.data(), list.size() * sizeof(ScanSegment), cudaMemcpyHostToDevice));
        auto first = first_segments(list);
        CHECK(cudaMemcpy(first_segment, first.data(), first.size() * sizeof(int), cudaMemcpyHostToDevice));
        *split = is_split(list), *inside = carry_inside(first);
        return (int)list.size();
    }
    ScanForward forward(ScanPlan plan, bool keep) {
        ScanForward p{};
        bool split, inside;
        p.segment_count = plan_segments(plan, segments, &split, &inside);
        p.segments = segments, p.first_segment = first_segment;
        p.u = u, p.delta = delta, p.z = shape.gate ? xz + shape.E : nullptr, p.b = xp + lead, p.c = xp + lead + shape.N, p.y = y;
        p.a = a, p.d = d, p.delta_bias = bias, p.initial_state = h0, p.last_state = last, p.boundary_state = keep ? boundary : nullptr;
        p.segment_state = split ? segment_state : nullptr, p.segment_delta = segment_delta;
        p.u_stride = p.delta_stride = p.y_stride = shape.E, p.z_stride = 2 * shape.E, p.b_stride = p.c_stride = row_xp(), p.state_stride = state_stride;
        p.channels = shape.E, p.states = shape.N, p.softplus = shape.softplus, p.carry_inside = inside;
        return p;
    }
    ScanBackward backward(ScanPlan plan) {
        ScanForward f = forward(plan, true);
        ScanBackward p{};
        p.u = f.u, p.delta = f.delta, p.z = f.z, p.b = f.b, p.c = f.c, p.dy = dy, p.du = du, p.ddelta = ddelta;
        p.dz = shape.gate ? dz + shape.E : nullptr;
        p.a = a, p.d = d, p.delta_bias = bias, p.boundary_state = boundary, p.last_state_grad = dlast, p.initial_state_grad = dh0;
        p.segment_state = f.segment_state, p.segment_delta = segment_delta, p.state_scratch = state_scratch, p.bc_partial = bc_partial;
        p.a_partial = a_partial, p.d_partial = d_partial, p.bias_partial = bias_partial;
        p.db = db, p.dc = dc, p.da = da, p.dd = d ? dd : nullptr, p.dbias = bias ? dbias : nullptr, p.segments = segments, p.first_segment = first_segment;
        p.u_stride = f.u_stride, p.delta_stride = f.delta_stride, p.z_stride = f.z_stride, p.b_stride = f.b_stride, p.c_stride = f.c_stride;
        p.dy_stride = p.du_stride = p.ddelta_stride = shape.E, p.dz_stride = 2 * shape.E, p.db_stride = p.dc_stride = shape.N, p.state_stride = state_stride;
        p.tokens = tokens, p.segment_count = f.segment_count, p.channels = shape.E, p.states = shape.N, p.softplus = shape.softplus, p.carry_inside = f.carry_inside;
        p.partials = plan.path == ScanPath::generic ? std::min(32, ceil_div(shape.E, generic_channels(shape.N))) : ceil_div(shape.E, 64);
        return p;
    }
};

using harness::relative, harness::rounding, harness::Timer;

template <class T> bool check(const char *label, const Shape &shape, const std::vector<std::pair<std::string, ScanPlan>> &plans) {
    Case<T> c(shape, 7);
    Pool pool;
    const int E = shape.E, N = shape.N, rows = c.tokens;
    const size_t en = (size_t)E * N;
    auto wide = [&](auto *p, long long stride, int r, int columns) -> double * {
        if (!p) return nullptr;
        double *to = pool.get<double>((size_t)r * columns);
        widen<<<512, 256>>>(p, stride, to, r, columns);
        return to;
    };
    auto zeros = [&](size_t n) {
        double *p = pool.get<double>(n);
        CHECK(cudaMemset(p, 0, n * sizeof(double)));
        return p;
    };
    Reference r{};
    ScanForward f = c.forward(plans[0].second, true);
    r.u = wide(c.u, E, rows, E), r.delta = wide(c.delta, E, rows, E), r.z = wide((const T *)f.z, 2 * E, rows, E);
    r.b = wide((const T *)f.b, f.b_stride, rows, N), r.c = wide((const T *)f.c, f.c_stride, rows, N), r.dy = wide(c.dy, E, rows, E);
    r.a = wide(c.a, E, N, E), r.d = wide(c.d, E, 1, E), r.bias = wide(c.bias, E, 1, E);
    auto states = [&](const float *p) -> double * {
        if (!p) return nullptr;
        std::vector<double> v = c.states(p, p == c.h0);
        double *to = pool.get<double>(v.size());
        CHECK(cudaMemcpy(to, v.data(), v.size() * sizeof(double), cudaMemcpyHostToDevice));
        return to;
    };
    r.h0 = states(c.h0), r.dlast = states(c.dlast);
    r.y = zeros(c.elements), r.du = zeros(c.elements), r.ddelta = zeros(c.elements), r.dz = zeros(c.elements);
    r.last = zeros(en * c.sequences), r.dh0 = zeros(en * c.sequences), r.db = zeros((size_t)rows * N), r.dc = zeros((size_t)rows * N);
    r.da = zeros(en), r.dd = zeros(E), r.dbias = zeros(E), r.history = pool.get<double>((size_t)(rows + c.sequences) * en);
    int *cu = pool.get<int>(c.cu.size());
    CHECK(cudaMemcpy(cu, c.cu.data(), c.cu.size() * sizeof(int), cudaMemcpyHostToDevice));
    int *fresh = pool.get<int>(c.sequences);
    CHECK(cudaMemcpy(fresh, c.fresh.data(), c.sequences * sizeof(int), cudaMemcpyHostToDevice));
    r.cu_seqlens = cu, r.fresh = fresh, r.E = E, r.N = N, r.softplus = shape.softplus, r.backward = 1;
    reference_scan<<<dim3(ceil_div(E, 64), c.sequences), 64>>>(r);
    CHECK(cudaDeviceSynchronize());

    bool good = true;
    for (auto &[name, plan] : plans) {
        auto poison = [&](auto *p, size_t n) { CHECK(cudaMemset(p, 0xff, n * sizeof(*p))); };
        poison(c.y, c.elements), poison(c.du, c.elements), poison(c.ddelta, c.elements), poison(c.dz, 2 * c.elements);
        auto prepare = [&] { // the state that a call takes and replaces
            if (shape.in_place) c.restore_initial();
            else poison(c.last, c.slot_elements());
        };
        prepare();
        const std::vector<double> others = c.between_states(c.last);
        poison(c.dh0, c.slot_elements()), poison(c.boundary, en * c.chunks);
        poison(c.db, (size_t)rows * N), poison(c.dc, (size_t)rows * N), poison(c.da, en), poison(c.dd, E), poison(c.dbias, E);
        launch_forward<T>(c.forward(plan, true), plan.path, c.sequences, 0);
        CHECK(cudaDeviceSynchronize());
        ScanPlan back = plan.path == ScanPath::narrow ? ScanPlan{ScanPath::tile, plan.pieces, plan.shrinking} : plan;
        launch_backward<T>(c.backward(back), back.path, c.sequences, 0);
        CHECK(cudaDeviceSynchronize());

        const bool wide_type = sizeof(T) == 4;
        std::vector<Result> results;
        auto add = [&](const char *what, const std::vector<double> &x, const double *exact, bool in_t, double bound) {
            std::vector<double> e = host(exact, x.size());
            if (in_t && !wide_type) bound = 1.1 * rounding<T>(e) + 1e-7;
            else if (shape.slow) bound = 1e-5; // f32 decays near one, multiplied over thousands of steps
            results.push_back({what, relative(x, e), bound});
        };
        const double sums = wide_type ? 5e-7 : 2e-6;
        add("y", host(c.y, c.elements), r.y, true, 5e-7);
        add("last", c.states(c.last), r.last, false, 5e-7);
        add("du", host(c.du, c.elements), r.du, true, 5e-7);
        add("ddelta", host(c.ddelta, c.elements), r.ddelta, true, 5e-7);
        if (shape.gate) {
            std::vector<double> all = host(c.dz, 2 * c.elements), mine(c.elements);
            for (int t = 0; t < rows; t++) std::copy_n(&all[((size_t)2 * t + 1) * E], E, &mine[(size_t)t * E]);
            add("dz", mine, r.dz, true, 5e-7);
        }
        add("dB", host(c.db, (size_t)rows * N), r.db, false, sums);
        add("dC", host(c.dc, (size_t)rows * N), r.dc, false, sums);
        add("dA", host(c.da, en), r.da, false, sums);
        if (shape.skip) add("dD", host(c.dd, E), r.dd, false, sums);
        if (shape.bias) add("dbias", host(c.dbias, E), r.dbias, false, sums);
        add("dh0", c.states(c.dh0), r.dh0, false, sums);
        const std::vector<double> others_now = c.between_states(c.last);
        bool ok = std::memcmp(others.data(), others_now.data(), others.size() * sizeof(double)) == 0;
        std::string line = ok ? "" : " WROTE BETWEEN STATES";
        for (auto &x : results) {
            char text[64];
            bool fine = x.error <= x.bound;
            std::snprintf(text, sizeof text, " %s %.2e%s", x.name.c_str(), x.error, fine ? "" : "(!)");
            if (!fine) std::snprintf(text, sizeof text, " %s %.2e(> %.1e)", x.name.c_str(), x.error, x.bound);
            line += text;
            ok = ok && fine;
        }
        // The same call twice gives the same bits.
        auto bits = [&] {
            std::vector<double> all;
            for (auto &v : {host(c.y, c.elements), host(c.du, c.elements), host(c.ddelta, c.elements), host(c.db, (size_t)rows * N),
                            host(c.dc, (size_t)rows * N), host(c.da, en), c.states(c.last), c.states(c.dh0)})
                all.insert(all.end(), v.begin(), v.end());
            return all;
        };
        auto before = bits();
        prepare();
        launch_forward<T>(c.forward(plan, true), plan.path, c.sequences, 0);
        CHECK(cudaDeviceSynchronize());
        launch_backward<T>(c.backward(back), back.path, c.sequences, 0);
        CHECK(cudaDeviceSynchronize());
        auto after = bits();
        bool same = std::memcmp(before.data(), after.data(), before.size() * sizeof(double)) == 0;
        std::printf("%s %-26s %-10s%s%s\n", ok && same ? "ok  " : "FAIL", label, name.c_str(), line.c_str(), same ? "" : " NOT REPEATABLE");
        good = good && ok && same;
    }
    return good;
}

using Plans = std::vector<std::pair<std::string, ScanPlan>>;
const ScanPlan kTile1{ScanPath::tile, 1}, kNarrow1{ScanPath::narrow, 1}, kGeneric1{ScanPath::generic, 1};

bool check_small() {
    Plans fast{{"tile", kTile1}, {"tile/3", {ScanPath::tile, 3}}, {"narrow", kNarrow1}, {"narrow/3", {ScanPath::narrow, 3}}, {"generic", kGeneric1}};
    Shape packed{{5, 0, 64, 1, 130}, 72, 16};
    packed.initial = packed.last = packed.in_place = packed.fresh = true;
    Shape plain{{77, 3}, 24, 16, false, false, false, false};
    bool ok = check<__nv_bfloat16>("packed 72x16 bf16", packed, fast);
    ok &= check<float>("packed 72x16 f32", packed, fast);
    ok &= check<__nv_bfloat16>("plain 24x16 bf16", plain, fast);
    Shape odd{{9, 70}, 7, 5};
    odd.lead = 3, odd.initial = odd.last = odd.in_place = odd.fresh = true;
    ok &= check<__half>("7x5 f16", odd, {{"generic", kGeneric1}});
    return ok;
}

bool check_all() {
    bool ok = check_small();
    Plans fast{{"tile", kTile1}, {"tile/4", {ScanPath::tile, 4}}, {"tile/21", {ScanPath::tile, 21}}, {"tile/2 shrinking", {ScanPath::tile, 2, true}}, {"tile/5 shrinking", {ScanPath::tile, 5, true}}, {"narrow", kNarrow1}, {"narrow/3", {ScanPath::narrow, 3}}, {"narrow/21", {ScanPath::narrow, 21}}};
    for (int length : {1, 7, 64, 65, 513}) {
        Shape s{{length, length}, 256, 16};
        std::string label = "2x256x" + std::to_string(length);
        ok &= check<__nv_bfloat16>((label + " bf16").c_str(), s, fast);
        ok &= check<__half>((label + " f16").c_str(), s, fast);
        ok &= check<float>((label + " f32").c_str(), s, fast);
    }
    Shape plain{{257, 257}, 128, 16, false, false, false, false};
    ok &= check<__nv_bfloat16>("plain 2x128x257 bf16", plain, fast);
    ok &= check<float>("plain 2x128x257 f32", plain, fast);
    Shape packed{{300, 0, 1, 64, 129, 1300}, 200, 16};
    packed.initial = packed.last = true;
    ok &= check<__nv_bfloat16>("packed 200 bf16", packed, fast);
    ok &= check<__half>("packed 200 f16", packed, fast);
    ok &= check<float>("packed 200 f32", packed, fast);
    packed.in_place = packed.fresh = true;
    ok &= check<__nv_bfloat16>("in place 200 bf16", packed, fast);
    ok &= check<float>("in place 200 f32", packed, fast);
    packed.slow = true;
    ok &= check<__nv_bfloat16>("packed 200 slow bf16", packed, fast);
    ok &= check<float>("packed 200 slow f32", packed, fast);
    for (int n : {1, 2, 8, 16, 33, 64, 100, 256}) {
        Shape s{{70, 0, 131}, 21, n};
        s.lead = 5, s.initial = s.last = s.in_place = s.fresh = true;
        std::string label = "packed 21 N " + std::to_string(n);
        ok &= check<__nv_bfloat16>((label + " bf16").c_str(), s, {{"generic", kGeneric1}});
        ok &= check<float>((label + " f32").c_str(), s, {{"generic", kGeneric1}});
    }
    Shape middle{{2048}, 1024, 16};
    ok &= check<__nv_bfloat16>("1x1024x2048 bf16", middle, {{"tile", kTile1}, {"tile/16", {ScanPath::tile, 16}}, {"tile/5 shrinking", {ScanPath::tile, 5, true}}, {"narrow", kNarrow1}});
    return ok;
}

// ----------------------------------------------------------------------------------------- timing

struct Row {
    int batch, channels, length;
    double official_forward, official_backward; // Gelem/s of mamba_ssm 2.3.2.post1 on an H100; 0: no figure
    std::vector<ScanPlan> forward, backward;    // the plans to time, the chosen one first
};

const char *name_of(ScanPlan p) {
    static char text[32];
    std::snprintf(text, sizeof text, "%s/%d%s", p.path == ScanPath::narrow ? "narrow" : "tile", p.pieces, p.shrinking ? " shrinking" : "");
    return text;
}

template <class T> void time_all(const char *json, const std::string &only) {
    const ScanPlan narrow{ScanPath::narrow, 1};
    auto cut_narrow = [](int n) { return ScanPlan{ScanPath::narrow, n}; };
    auto tile = [](int n) { return ScanPlan{ScanPath::tile, n}; };
    auto shrink = [](int n) { return ScanPlan{ScanPath::tile, n, true}; };
    std::vector<Row> rows{
        {8, 2048, 2048, 56, 14, {tile(1)}, {tile(1)}},
        {64, 1536, 512, 63, 15, {tile(1)}, {tile(1)}},
        {8, 5120, 4096, 59, 14, {tile(1)}, {tile(1)}},
        {1, 1024, 131072, 46, 12, {tile(49)}, {tile(98), tile(49)}},
        {1, 5120, 2048, 53, 12, {narrow, tile(4)}, {shrink(5), tile(16)}},
        {1, 1024, 2048, 40, 7, {tile(16), cut_narrow(5)}, {tile(16), tile(32)}},
        {1, 1024, 524288, 47, 0, {tile(49)}, {}},
    };
    cudaDeviceProp device;
    int driver;
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaDriverGetVersion(&driver));
    Timer timer;
    double copy = timer.copy_bandwidth();
    std::printf("%s, driver API %d, copy %.2f TB/s\n", device.name, driver, copy);
    std::string out = "{\"card\":\"" + std::string(device.name) + "\",\"dtype\":\"" + (std::is_same_v<T, float> ? "f32" : std::is_same_v<T, __half> ? "f16" : "bf16") + "\",\"copy_tb_s\":" + std::to_string(copy) + ",\"rows\":[";
    std::printf("batch x channels x length | plan | us (10..90 %%) | Gelem/s | graph us | Gelem/s | of official\n");
    for (size_t i = 0; i < rows.size(); i++) {
        Row &row = rows[i];
        const std::string label = std::to_string(row.batch) + "x" + std::to_string(row.channels) + "x" + std::to_string(row.length);
        if (only != "all" && only != label) continue;
        if (!std::is_same_v<T, __nv_bfloat16>) row.official_forward = row.official_backward = 0;
        Shape shape{std::vector<int>(row.batch, row.length), row.channels, 16};
        Case<T> c(shape, 11);
        char text[512];
        double best[3] = {};
        auto print = [&](const char *what, ScanPlan plan, Timer::Sample s, Timer::Sample g, double official, double *to) {
            double rate = c.elements / s.median / 1e3, graph_rate = c.elements / g.median / 1e3;
            std::printf("%dx%dx%d | %s %s | %.1f (%.1f..%.1f) | %.1f | %.1f | %.1f | %.2f\n", row.batch, row.channels, row.length, what, name_of(plan),
                        s.median, s.low, s.high, rate, g.median, graph_rate, official ? rate / official : 0.);
            std::snprintf(text, sizeof text,
                          "%s{\"shape\":[%d,%d,%d],\"what\":\"%s\",\"plan\":\"%s\",\"us\":%.2f,\"us_p10\":%.2f,\"us_p90\":%.2f,\"gelem_s\":%.2f,"
                          "\"graph_us\":%.2f,\"graph_gelem_s\":%.2f,\"official_gelem_s\":%.0f,\"ratio\":%.3f}",
                          out.back() == '[' ? "" : ",", row.batch, row.channels, row.length, what, name_of(plan), s.median, s.low, s.high, rate,
                          g.median, graph_rate, official, official ? rate / official : 0.);
            out += text;
            *to = std::max(*to, rate);
            std::fflush(stdout);
        };
        for (ScanPlan plan : row.forward)
            for (bool keep : {false, true}) {
                if (keep && row.backward.empty()) continue;
                ScanForward p = c.forward(plan, keep);
                auto f = [&](cudaStream_t s) { launch_forward<T>(p, plan.path, c.sequences, s); };
                auto sample = timer(f);
                print(keep ? "forward+keep" : "forward", plan, sample, timer.graph(f), row.official_forward, &best[keep]);
            }
        for (ScanPlan plan : row.backward) {
            ScanBackward p = c.backward(plan);
            auto f = [&](cudaStream_t s) { launch_backward<T>(p, plan.path, c.sequences, s); };
            auto sample = timer(f, 11);
            print("backward", plan, sample, timer.graph(f, 11), row.official_backward, &best[2]);
        }
        if (best[2] > 0) {
            double both = 1 / (1 / best[1] + 1 / best[2]), theirs = 1 / (1 / row.official_forward + 1 / row.official_backward);
            std::printf("%dx%dx%d | forward+backward, best plans | | %.1f | | | %.2f\n", row.batch, row.channels, row.length, both, row.official_forward ? both / theirs : 0.);
        }
    }
    out += "]}\n";
    if (json && std::strcmp(json, "-")) {
        FILE *file = std::fopen(json, "w");
        std::fputs(out.c_str(), file);
        std::fclose(file);
    }
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "all";
    allow_shared_memory<__nv_bfloat16>();
    allow_shared_memory<__half>();
    allow_shared_memory<float>();
    if (mode != "time") {
        bool ok = mode == "small" ? check_small() : check_all();
        std::printf(ok ? "all checks passed\n" : "CHECKS FAILED\n");
        if (!ok) return 1;
    }
    if (mode == "all" || mode == "time") {
        const std::string dtype = argc > 4 ? argv[4] : "bf16";
        const auto time = dtype == "f32" ? time_all<float> : dtype == "f16" ? time_all<__half> : time_all<__nv_bfloat16>;
        time(argc > 2 ? argv[2] : nullptr, argc > 3 ? argv[3] : "all");
    }
    return 0;
}
