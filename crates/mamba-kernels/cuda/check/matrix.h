// What the check programs of row-wise kernels share: matrices on the device with any stride, and cases that print a line.
#pragma once
#include "harness.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <memory>

namespace harness {

using Values = std::vector<double>;

inline int ceil_div(long long a, long long b) { return (int)((a + b - 1) / b); }

template <class T> const char *dtype_name();
template <> inline const char *dtype_name<float>() { return "f32"; }
template <> inline const char *dtype_name<__half>() { return "f16"; }
template <> inline const char *dtype_name<__nv_bfloat16>() { return "bf16"; }

template <class T> Values random_values(size_t count, uint64_t seed, float scale = 1.f, float offset = 0.f) { // as T holds them
    Values v(count);
    for (size_t i = 0; i < count; i++) v[i] = (double)(float)(T)normal(i, seed * 16, scale, offset);
    return v;
}

// A matrix on the device, rows `stride` elements apart, beginning `lead` elements behind an aligned address. All of it is
// NaN until it is written.
template <class T> struct Matrix {
    int rows, columns;
    long long stride, lead;
    size_t elements;
    T *base = nullptr;
    Matrix(int rows, int columns, int pad = 0, int lead = 0) : rows(rows), columns(columns), stride(columns + pad), lead(lead) {
        elements = rows ? lead + (rows - 1) * stride + columns : 0;
        CHECK(cudaMalloc(&base, std::max<size_t>(1, elements) * sizeof(T)));
        poison();
    }
    Matrix(const Matrix &) = delete;
    ~Matrix() { cudaFree(base); }
    T *data() const { return base + lead; }
    void poison() { CHECK(cudaMemset(base, 0xff, std::max<size_t>(1, elements) * sizeof(T))); }
    void randomize(uint64_t seed) { fill_normal<<<1024, 256>>>(base, elements, seed * 16, 1.f, 0.f); }
    void put(const Values &v) {
        std::vector<T> all(elements);
        CHECK(cudaMemcpy(all.data(), base, elements * sizeof(T), cudaMemcpyDeviceToHost));
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) all[lead + r * stride + c] = (T)(float)v[(size_t)r * columns + c];
        CHECK(cudaMemcpy(base, all.data(), elements * sizeof(T), cudaMemcpyHostToDevice));
    }
    // *gaps_kept becomes false where something between the rows is not as poison left it.
    Values get(bool *gaps_kept = nullptr) const {
        std::vector<T> all(elements);
        CHECK(cudaMemcpy(all.data(), base, elements * sizeof(T), cudaMemcpyDeviceToHost));
        Values v((size_t)rows * columns);
        std::vector<char> inside(elements);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                v[(size_t)r * columns + c] = (double)(float)all[lead + r * stride + c];
                inside[lead + r * stride + c] = 1;
            }
        T poison;
        std::memset(&poison, 0xff, sizeof poison);
        for (size_t i = 0; i < elements && gaps_kept; i++)
            if (!inside[i] && std::memcmp(&all[i], &poison, sizeof poison)) *gaps_kept = false;
        return v;
    }
};
struct Ints {
    int *data = nullptr;
    Ints(const std::vector<int> &v) {
        CHECK(cudaMalloc(&data, std::max<size_t>(1, v.size()) * sizeof(int)));
        CHECK(cudaMemcpy(data, v.data(), v.size() * sizeof(int), cudaMemcpyHostToDevice));
    }
    Ints(const Ints &) = delete;
    ~Ints() { cudaFree(data); }
};

// One case: prints its errors, and remembers whether any case so far was wrong.
struct Case {
    static inline bool all_good = true;
    static inline int count = 0;
    std::string label, line;
    bool good = true;
    explicit Case(std::string label) : label(std::move(label)) {}
    void within(const char *what, const Values &x, const Values &exact, double limit) {
        const double error = relative(x, exact);
        char text[96];
        const bool fine = x.size() == exact.size() && error <= limit;
        std::snprintf(text, sizeof text, fine ? " %s %.1e" : " %s %.2e(> %.1e)", what, error, limit);
        line += text;
        good = good && fine;
    }
    template <class T> void result(const char *what, const Values &x, const Values &exact) {
        within(what, x, exact, bound<T>(exact));
    }
    void sums(const char *what, const Values &x, const Values &exact) { within(what, x, exact, 2e-6); }
    void require(const char *what, bool holds) {
        if (!holds) line += std::string(" NOT ") + what;
        good = good && holds;
    }
    ~Case() {
        std::printf("%s %s%s\n", good ? "ok  " : "FAIL", label.c_str(), line.c_str());
        all_good = all_good && good;
        count++;
    }
};
inline bool same_bits(const Values &a, const Values &b) { return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(double)); }

// Times launches on several sets of buffers in turn, together far larger than the L2: none finds its inputs there, and each
// leaves as much there to be written as it found, as in a sequence of kernels. And one launch alone behind a flush, which
// leaves the whole L2 to be written during the launch.
inline int sets_for(double bytes) { return std::clamp((int)std::ceil(2e9 / bytes), 4, 64); }
template <class P, class F> void time_sets(Timer &timer, Report &report, const std::string &what, double bytes, const std::vector<P> &sets, F launch) {
    report.row(what, timer([&](cudaStream_t) {
        for (const P &p : sets) launch(p);
    }), bytes, (int)sets.size());
    report.row(what + ", alone", timer([&](cudaStream_t) { launch(sets[0]); }), bytes);
}

// program [all | check | small | time] [json file]: check, then time; the check only; a few small cases (for
// compute-sanitizer); times only.
inline int run_program(int argc, char **argv, const std::function<void(bool small)> &check, const std::function<void(Timer &, Report &)> &time) {
    const std::string mode = argc > 1 ? argv[1] : "all";
    if (mode != "time") {
        check(mode == "small");
        const bool good = Case::all_good && Case::count;
        std::printf(good ? "all %d checks passed\n" : "CHECKS FAILED (of %d)\n", Case::count);
        if (!good) return 1;
    }
    if (mode == "all" || mode == "time") {
        Timer timer;
        Report report(timer);
        time(timer, report);
        report.write(argc > 2 ? argv[2] : nullptr);
    }
    return 0;
}

} // namespace harness
