// What the check programs share: random inputs, comparison with f64, timing, the JSON of results.
#pragma once
#include "cuda_check.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

namespace harness {

__host__ __device__ inline float uniform(uint64_t i, uint64_t seed) { // [0, 1), splitmix64
    uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return (float)((x ^ (x >> 31)) >> 40) / 16777216.f;
}
// About normal, variance 1 (nearly), times scale, around offset.
__host__ __device__ inline float normal(uint64_t i, uint64_t seed, float scale, float offset) {
    const float sum = uniform(i, seed) + uniform(i, seed + 1) + uniform(i, seed + 2) + uniform(i, seed + 3) - 2.f;
    return offset + scale * 1.7f * sum;
}
template <class T> __global__ void fill_normal(T *to, size_t count, uint64_t seed, float scale, float offset) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        to[i] = (T)normal(i, seed, scale, offset);
}

// Device memory that goes with its owner, NaN at first, so that an unwritten element is seen.
struct Pool {
    std::vector<void *> all;
    template <class X> X *get(size_t count) {
        void *p;
        CHECK(cudaMalloc(&p, std::max<size_t>(1, count) * sizeof(X)));
        CHECK(cudaMemset(p, 0xff, std::max<size_t>(1, count) * sizeof(X)));
        all.push_back(p);
        return (X *)p;
    }
    template <class T> T *normal(size_t count, uint64_t seed, float scale = 1.f, float offset = 0.f) {
        T *p = get<T>(count);
        fill_normal<<<512, 256>>>(p, count, seed * 16, scale, offset);
        CHECK(cudaGetLastError());
        return p;
    }
    template <class X> X *of(const std::vector<X> &v) {
        X *p = get<X>(v.size());
        CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(X), cudaMemcpyHostToDevice));
        return p;
    }
    Pool() = default;
    Pool(const Pool &) = delete;
    ~Pool() {
        for (void *p : all) cudaFree(p);
    }
};

template <class X> std::vector<X> fetch(const X *p, size_t count) {
    std::vector<X> v(count);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(v.data(), p, count * sizeof(X), cudaMemcpyDeviceToHost));
    return v;
}
template <class X> std::vector<double> wide(const std::vector<X> &v) {
    std::vector<double> w;
    for (const X &x : v) w.push_back((double)(float)x);
    return w;
}

// Relative L2; where the exact result is zero, the largest absolute value. NaN stays NaN.
inline double relative(const std::vector<double> &x, const std::vector<double> &exact) {
    double e = 0, n = 0, worst = 0;
    for (size_t i = 0; i < x.size(); i++) {
        e += (x[i] - exact[i]) * (x[i] - exact[i]);
        n += exact[i] * exact[i];
        worst = std::isnan(x[i]) ? x[i] : std::max(worst, std::fabs(x[i]));
    }
    return n > 0 ? std::sqrt(e / n) : worst;
}
// The error of rounding the exact result to T: what no kernel can beat.
template <class T> double rounding(const std::vector<double> &exact) {
    std::vector<double> r;
    for (double x : exact) r.push_back((double)(float)(T)(float)x);
    return relative(r, exact);
}
// What a result in T may be off: 5e-7 in f32, a tenth more than its rounding in 16 bits.
template <class T> double bound(const std::vector<double> &exact) { return sizeof(T) == 4 ? 5e-7 : 1.1 * rounding<T>(exact) + 1e-7; }

// One line a case.
struct Checks {
    bool good = true;
    bool line_good;
    std::string line;
    void begin() { line_good = true, line.clear(); }
    void error(const char *what, double error, double bound) {
        char text[96];
        const bool fine = error <= bound;
        std::snprintf(text, sizeof text, fine ? " %s %.2e" : " %s %.2e(> %.1e)", what, error, bound);
        line += text;
        line_good = line_good && fine;
    }
    void holds(const char *what, bool fine) {
        if (!fine) line += std::string(" NOT: ") + what;
        line_good = line_good && fine;
    }
    void end(const std::string &label) {
        std::printf("%s %-30s%s\n", line_good ? "ok  " : "FAIL", label.c_str(), line.c_str());
        good = good && line_good;
    }
    int finish() const {
        std::printf(good ? "all checks passed\n" : "CHECKS FAILED\n");
        return good ? 0 : 1;
    }
};

struct Timer {
    cudaEvent_t a, b;
    void *flush;
    static constexpr size_t kFlush = 256 << 20;
    struct Sample { double median, low, high; }; // us; 10th and 90th percentile
    Timer() {
        CHECK(cudaEventCreate(&a));
        CHECK(cudaEventCreate(&b));
        CHECK(cudaMalloc(&flush, kFlush));
    }
    // The L2 is overwritten before each run.
    Sample operator()(const std::function<void(cudaStream_t)> &f, int runs = 21) {
        for (int i = 0; i < 3; i++) f(0);
        std::vector<double> us;
        for (int i = 0; i < runs; i++) {
            CHECK(cudaMemsetAsync(flush, i, kFlush, 0));
            CHECK(cudaEventRecord(a));
            f(0);
            CHECK(cudaEventRecord(b));
            CHECK(cudaEventSynchronize(b));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, a, b));
            us.push_back(1e3 * ms);
        }
        CHECK(cudaGetLastError());
        std::sort(us.begin(), us.end());
        return {us[runs / 2], us[runs / 10], us[runs - 1 - runs / 10]};
    }
    // The same for a CUDA graph of what f enqueues, which leaves no gaps between launches.
    Sample graph(const std::function<void(cudaStream_t)> &f, int runs = 21) {
        cudaStream_t stream;
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CHECK(cudaStreamCreate(&stream));
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        f(stream);
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&exec, graph, 0));
        Sample s = (*this)([&](cudaStream_t) { CHECK(cudaGraphLaunch(exec, 0)); }, runs);
        CHECK(cudaGraphExecDestroy(exec));
        CHECK(cudaGraphDestroy(graph));
        CHECK(cudaStreamDestroy(stream));
        return s;
    }
    // TB/s of a large copy, read and written.
    double copy_bandwidth() {
        const size_t bytes = 2ull << 30;
        Pool pool;
        char *x = (char *)pool.normal<float>(bytes / 4, 3), *y = pool.get<char>(bytes);
        const double us = (*this)([&](cudaStream_t s) { CHECK(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice, s)); }).median;
        return 2. * bytes / us / 1e6;
    }
};

// {"card": …, "driver": …, "date": …, "copy_tb_s": …, "rows": [{"what": …, "us": …, …}, …]}, also printed as a table.
struct Report {
    double copy;
    std::string json;
    explicit Report(Timer &timer) : copy(timer.copy_bandwidth()) {
        cudaDeviceProp device;
        int driver;
        char date[32], head[512];
        const std::time_t now = std::time(nullptr);
        CHECK(cudaGetDeviceProperties(&device, 0));
        CHECK(cudaDriverGetVersion(&driver));
        std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
        std::snprintf(head, sizeof head, "{\"card\":\"%s\",\"driver_api\":%d,\"date\":\"%s\",\"copy_tb_s\":%.3f,\"rows\":[", device.name, driver, date, copy);
        json = head;
        std::printf("%s, driver API %d, copy %.2f TB/s\nwhat | us (10..90 %%) | TB/s | of copy\n", device.name, driver, copy);
    }
    // `bytes` must move in s.median / `calls`.
    void row(const std::string &what, Timer::Sample s, double bytes, int calls = 1) {
        const double us = s.median / calls, rate = bytes / us / 1e6;
        char text[512];
        std::printf("%s | %.2f (%.2f..%.2f) | %.2f | %.0f %%\n", what.c_str(), us, s.low / calls, s.high / calls, rate, 100 * rate / copy);
        std::snprintf(text, sizeof text, "%s{\"what\":\"%s\",\"us\":%.3f,\"us_p10\":%.3f,\"us_p90\":%.3f,\"bytes\":%.0f,\"tb_s\":%.3f,\"of_copy\":%.3f}",
                      json.back() == '[' ? "" : ",", what.c_str(), us, s.low / calls, s.high / calls, bytes, rate, rate / copy);
        json += text;
        std::fflush(stdout);
    }
    void write(const char *path) const {
        if (!path) return;
        FILE *file = std::fopen(path, "w");
        if (!file) std::perror(path), std::exit(1);
        std::fputs((json + "]}\n").c_str(), file);
        std::fclose(file);
    }
};

} // namespace harness
