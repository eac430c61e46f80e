// Checks the cross-entropy kernels against f64, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/cross_entropy.cu cross_entropy/*.cu -o cross_entropy_check
//   ./cross_entropy_check            check, then time
//   ./cross_entropy_check small      a few small cases (for compute-sanitizer)
//   ./cross_entropy_check time [json file]
#include "harness.h"
#include "../cross_entropy/params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using namespace harness;

#define CROSS_ENTROPY_DECLARE(T, name)                                                                         \
    extern "C" __global__ void cross_entropy_loss_##name(const __grid_constant__ CrossEntropy);                \
    template <> struct Kernel<T> { static constexpr void (*loss)(CrossEntropy) = cross_entropy_loss_##name; };
template <class T> struct Kernel;
CROSS_ENTROPY_DECLARE(__nv_bfloat16, bf16)
CROSS_ENTROPY_DECLARE(__half, f16)
CROSS_ENTROPY_DECLARE(float, f32)

template <class T> void launch(const CrossEntropy &p, int rows, cudaStream_t stream) {
    Kernel<T>::loss<<<rows, cross_entropy_threads(sizeof(T)), 0, stream>>>(p);
    CHECK(cudaGetLastError());
}

// `lead` elements before the first row and after each; `scale` of the logits, around `offset`.
template <class T>
void check(Checks &checks, const std::string &label, int rows, int vocab, int lead, float logit_scale, float offset, float z_loss = 0.f) {
    Pool pool;
    checks.begin();
    const long long stride = vocab + lead;
    const size_t elements = lead + rows * stride;
    const std::vector<T> given = fetch(pool.normal<T>(elements, 5, logit_scale, offset), elements);
    std::vector<int> targets;
    for (int r = 0; r < rows; r++) targets.push_back(r % 4 == 2 ? -1 : r % 4 == 3 ? vocab - 1 : (int)(uniform(r, 77) * vocab));
    const float scale = 0.37f;
    T *logits = pool.of(given);
    CrossEntropy p{};
    p.logits = logits + lead, p.targets = pool.of(targets), p.loss = pool.get<float>(rows), p.stride = stride, p.vocab = vocab;
    p.gradient = 1, p.scale = scale, p.z_loss = z_loss;
    launch<T>(p, rows, 0);
    const auto loss = wide(fetch(p.loss, rows));
    const auto after = fetch(logits, elements);

    std::vector<double> exact_loss, exact_gradient, gradient;
    bool gaps = true, ignored = true;
    for (int r = 0; r < rows; r++) {
        const T *row = &given[lead + r * stride], *mine = &after[lead + r * stride];
        double largest = -INFINITY, sum = 0;
        for (int i = 0; i < vocab; i++) largest = std::max(largest, (double)(float)row[i]);
        for (int i = 0; i < vocab; i++) sum += std::exp((double)(float)row[i] - largest);
        const bool counts = targets[r] >= 0;
        const double log_sum = largest + std::log(sum), z = z_loss;
        exact_loss.push_back(counts ? log_sum - (double)(float)row[targets[r]] + z * log_sum * log_sum : 0.);
        for (int i = 0; i < vocab; i++) {
            const double softmax = std::exp((double)(float)row[i] - largest) / sum;
            exact_gradient.push_back(counts ? (double)scale * (softmax * (1 + 2 * z * log_sum) - (i == targets[r])) : 0.);
            gradient.push_back((double)(float)mine[i]);
            ignored = ignored && (counts || (float)mine[i] == 0.f);
        }
        ignored = ignored && (counts || loss[r] == 0.);
        if (r + 1 < rows) gaps = gaps && std::memcmp(mine + vocab, row + vocab, lead * sizeof(T)) == 0;
    }
    checks.error("loss", relative(loss, exact_loss), 5e-7);
    checks.error("gradient", relative(gradient, exact_gradient), bound<T>(exact_gradient));
    checks.holds("ignored rows are zero", ignored);
    checks.holds("gaps untouched", gaps && std::memcmp(&after[0], &given[0], lead * sizeof(T)) == 0);

    // Again: the same bits; without a gradient: the same losses, the logits as they were.
    T *again = pool.of(given);
    CrossEntropy q = p;
    q.logits = again + lead, q.loss = pool.get<float>(rows);
    launch<T>(q, rows, 0);
    const auto second = fetch(again, elements);
    checks.holds("same bits", std::memcmp(&second[0], &after[0], elements * sizeof(T)) == 0 && wide(fetch(q.loss, rows)) == loss);
    T *kept = pool.of(given);
    q.logits = kept + lead, q.loss = pool.get<float>(rows), q.gradient = 0;
    launch<T>(q, rows, 0);
    const auto third = fetch(kept, elements);
    checks.holds("logits kept", std::memcmp(&third[0], &given[0], elements * sizeof(T)) == 0 && wide(fetch(q.loss, rows)) == loss);
    // What is no number is not hidden; -infinity is the logit of what cannot be.
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 3; k++) {
        std::vector<T> other = given;
        const int at = vocab - 1 - (targets[0] == vocab - 1);
        if (at < 0) continue;
        other[lead + at] = (T)bad[k];
        q.logits = pool.of(other) + lead;
        launch<T>(q, 1, 0);
        const float loss_of_bad = fetch(q.loss, 1)[0];
        checks.holds("NaN and infinity seen", k < 2 ? std::isnan(loss_of_bad) : std::isfinite(loss_of_bad));
    }
    checks.end(label);
}

void check_small(Checks &checks) {
    check<__nv_bfloat16>(checks, "5 x 1000 bf16", 5, 1000, 0, 2, 0);
    check<float>(checks, "5 x 1001, odd f32", 5, 1001, 3, 2, 0);
    check<__half>(checks, "4 x 8203, odd f16", 4, 8203, 1, 2, 0);
    check<__nv_bfloat16>(checks, "5 x 1000, z-loss bf16", 5, 1000, 0, 2, 0, 0.1f);
}
template <class T> void check_all(Checks &checks, const std::string &name) {
    for (int vocab : {1, 2, 7, 8, 511, 4096, 50280, 128256}) {
        check<T>(checks, "9 x " + std::to_string(vocab) + " " + name, 9, vocab, 0, 3, 0);
        check<T>(checks, "9 x " + std::to_string(vocab) + ", odd " + name, 9, vocab, 3, 3, 0);
    }
    check<T>(checks, "600 x 50280 " + name, 600, 50280, 0, 2, 0);
    check<T>(checks, "9 x 50280, sharp " + name, 9, 50280, 8, 20, 0);
    check<T>(checks, "9 x 50280, far from zero " + name, 9, 50280, 0, 1, -300);
    for (float z_loss : {1e-4f, 0.1f}) check<T>(checks, "9 x 50280, z-loss " + name, 9, 50280, 0, 3, 0, z_loss);
}

template <class T> void time_one(Timer &timer, Report &report, const std::string &name, int rows, int vocab) {
    Pool pool;
    CrossEntropy p{};
    std::vector<int> targets;
    for (int r = 0; r < rows; r++) targets.push_back((int)(uniform(r, 78) * vocab));
    p.logits = pool.normal<T>((size_t)rows * vocab, 9, 2), p.targets = pool.of(targets), p.loss = pool.get<float>(rows);
    p.stride = p.vocab = vocab, p.gradient = 1, p.scale = 1.f / rows;
    const double bytes = (double)rows * vocab * sizeof(T);
    const std::string label = "cross_entropy " + name + " " + std::to_string(rows) + " x " + std::to_string(vocab);
    // The gradient of a gradient, and so on: other numbers, no other work.
    report.row(label, timer([&](cudaStream_t s) { launch<T>(p, rows, s); }), 2 * bytes);
    p.gradient = 0;
    report.row(label + ", loss alone", timer([&](cudaStream_t s) { launch<T>(p, rows, s); }), bytes);
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "all";
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
    if (mode == "all" || mode == "time") {
        Timer timer;
        Report report(timer);
        time_one<__nv_bfloat16>(timer, report, "bf16", 8192, 50280);
        time_one<__nv_bfloat16>(timer, report, "bf16", 1024, 50280);
        time_one<float>(timer, report, "f32", 4096, 50280);
        report.write(argc > 2 ? argv[2] : nullptr);
    }
    return 0;
}
