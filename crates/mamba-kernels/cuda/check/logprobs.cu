// Checks log-probabilities against float64, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/logprobs.cu logprobs/*.cu -o logprobs_check; arguments: matrix.h
#include "../logprobs/params.h"
#include "matrix.h"

using namespace harness;

extern "C" __global__ void token_logprobs(const __grid_constant__ TokenLogprobs);

void launch(const TokenLogprobs &p, int count) {
    token_logprobs<<<count, 512>>>(p);
    CHECK(cudaGetLastError());
}

void check(int count, int vocabulary, int pad, float scale, bool masked) {
    Case result(std::to_string(count) + "x" + std::to_string(vocabulary) + " pad " + std::to_string(pad) + " scale " + std::to_string((int)scale) + (masked ? " masked" : ""));
    Values logits = random_values<float>((size_t)count * vocabulary, 1, scale), exact(count);
    std::vector<int> targets(count);
    for (int r = 0; r < count; r++) {
        double *row = &logits[(size_t)r * vocabulary];
        targets[r] = (int)(uniform(r, 3) * vocabulary);
        for (int c = 0; c < vocabulary && masked; c++) // all but every 97th
            if (c != targets[r] && (c + r) % 97) row[c] = -INFINITY;
        const double max = *std::max_element(row, row + vocabulary);
        double sum = 0.;
        for (int c = 0; c < vocabulary; c++) sum += std::exp(row[c] - max);
        exact[r] = row[targets[r]] - max - std::log(sum);
    }
    Matrix<float> logits_(count, vocabulary, pad, pad % 2), out(1, count);
    Ints targets_(targets);
    logits_.put(logits);
    const TokenLogprobs p{logits_.data(), targets_.data, out.data(), logits_.stride, vocabulary, 0};
    Values got[2];
    for (auto &g : got) {
        out.poison();
        launch(p, count);
        CHECK(cudaDeviceSynchronize());
        g = out.get();
    }
    result.result<float>("logprob", got[0], exact);
    result.require("repeatable", same_bits(got[0], got[1]));
}

// A NaN anywhere makes the row NaN, also where a thread sees nothing else but logits of -inf.
void check_nan(int vocabulary) {
    Case result("NaN of " + std::to_string(vocabulary));
    const int count = std::min(vocabulary, 600);
    Values logits((size_t)count * vocabulary, -INFINITY);
    std::vector<int> targets(count);
    for (int r = 0; r < count; r++) {
        targets[r] = (int)((size_t)r * vocabulary / count + vocabulary / 2) % vocabulary;
        logits[(size_t)r * vocabulary + targets[r]] = 1.;
        logits[(size_t)r * vocabulary + (size_t)r * vocabulary / count] = NAN;
    }
    Matrix<float> logits_(count, vocabulary), out(1, count);
    Ints targets_(targets);
    logits_.put(logits);
    launch({logits_.data(), targets_.data, out.data(), logits_.stride, vocabulary, 0}, count);
    CHECK(cudaDeviceSynchronize());
    bool all = true;
    for (double x : out.get()) all = all && std::isnan(x);
    result.require("NaN", all);
}

int main(int argc, char **argv) {
    return run_program(
        argc, argv,
        [](bool small) {
            check(3, 16, 0, 1.f, false);
            check(5, 257, 1, 3.f, false);
            check(3, 9000, 0, 3.f, true);
            check_nan(515);
            if (small) return;
            check_nan(8196);
            for (int vocabulary : {1, 2, 7, 2048, 8192, 8196, 50277, 50280})
                for (float scale : {1.f, 10.f, 1000.f})
                    for (bool masked : {false, true}) check(70, vocabulary, vocabulary % 4 ? 1 : 0, scale, masked);
        },
        [](Timer &timer, Report &report) {
            for (int count : {64, 2048}) {
                const int vocabulary = 50280;
                Matrix<float> logits(count, vocabulary), out(1, count);
                logits.randomize(1);
                Ints targets(std::vector<int>(count, 5));
                const TokenLogprobs p{logits.data(), targets.data, out.data(), vocabulary, vocabulary, 0};
                report.row("token_logprobs " + std::to_string(count) + "x" + std::to_string(vocabulary), timer([&](cudaStream_t) { launch(p, count); }), 4. * count * vocabulary);
            }
        });
}
