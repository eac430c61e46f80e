// Checks pooling against float64, then times it.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/pool.cu pool/*.cu -o pool_check; arguments: matrix.h
#include "../pool/params.h"
#include "matrix.h"

using harness::Case, harness::Values, harness::Matrix, harness::Ints, harness::Timer, harness::Report; // its Pool is not the kernel's
using namespace std::string_literals;

template <class T> struct Kernels;
#define DECLARE(T, name)                                                                                       \
    extern "C" __global__ void pool_##name(const __grid_constant__ Pool);                                      \
    template <> struct Kernels<T> { static constexpr void (*pool)(Pool) = pool_##name; };
DECLARE(__nv_bfloat16, bf16)
DECLARE(__half, f16)
DECLARE(float, f32)

template <class T> void launch(const Pool &p, int sequences) {
    Kernels<T>::pool<<<dim3(harness::ceil_div(p.channels, pool_channels(sizeof(T))), sequences), 256>>>(p);
    CHECK(cudaGetLastError());
}

template <class T> void check(const std::vector<int> &lengths, int E, int pad) {
    const int sequences = (int)lengths.size(), slot_count = 2 * sequences;
    std::vector<int> cu{0}, slots, fresh, kinds;
    for (int i = 0; i < sequences; i++) {
        cu.push_back(cu.back() + lengths[i]);
        slots.push_back(2 * (sequences - i) - 1);
        fresh.push_back(i % 2);
        kinds.push_back((i + 1) % 3);
    }
    const int tokens = cu.back();
    Case result(std::to_string(tokens) + "x" + std::to_string(E) + " in " + std::to_string(sequences) + " pad " + std::to_string(pad) + " " + harness::dtype_name<T>());
    const Values hidden = harness::random_values<T>((size_t)tokens * E, 1), before = harness::random_values<float>((size_t)slot_count * E, 2);
    Values exact = before, last = before, unread = before;
    std::vector<int> summed(slot_count);
    for (int s = 0; s < sequences; s++) {
        if (!kinds[s] || !lengths[s]) continue;
        double *row = &exact[(size_t)slots[s] * E];
        if (fresh[s] || kinds[s] == 2) std::fill_n(&unread[(size_t)slots[s] * E], E, NAN), std::fill_n(row, E, 0.);
        summed[slots[s]] = kinds[s] == 1;
        for (int t = kinds[s] == 1 ? cu[s] : cu[s + 1] - 1; t < cu[s + 1]; t++)
            for (int c = 0; c < E; c++) row[c] += hidden[(size_t)t * E + c];
    }
    Matrix<T> hidden_(tokens, E, pad, pad % 2);
    Matrix<float> out(slot_count, E, pad);
    Ints cu_(cu), slots_(slots), fresh_(fresh), kinds_(kinds);
    hidden_.put(hidden);
    const Pool p{hidden_.data(), out.data(), cu_.data, slots_.data, fresh_.data, kinds_.data, hidden_.stride, out.stride, E, 0};
    Values got[2];
    bool gaps = true, same = true;
    for (auto &g : got) {
        out.put(unread);
        launch<T>(p, sequences);
        CHECK(cudaDeviceSynchronize());
        g = out.get(&gaps);
    }
    Values sums, exact_sums;
    for (int slot = 0; slot < slot_count; slot++)
        for (int c = 0; c < E; c++) {
            const size_t at = (size_t)slot * E + c;
            if (summed[slot]) sums.push_back(got[0][at]), exact_sums.push_back(exact[at]);
            else same = same && got[0][at] == exact[at];
        }
    result.sums("sums", sums, exact_sums);
    result.require("exact where nothing is summed", same);
    result.require("the gaps left alone", gaps);
    result.require("repeatable", harness::same_bits(got[0], got[1]));
}

template <class T> void check_type(bool small) {
    check<T>({5, 0, 1, 70, 300, 2}, 72, 8);
    check<T>({17, 3, 1, 130, 4}, 13, 3);
    if (small) return;
    for (int E : {1, 64, 768, 2050}) check<T>({1, 2, 3, 0, 0, 0, 127, 128, 129, 5000, 1300, 16}, E, E % 8 ? 1 : 0);
}

template <class T> void time_shape(Timer &timer, Report &report, int batch, int length, int E) {
    const int tokens = batch * length;
    Matrix<T> hidden(tokens, E);
    Matrix<float> out(batch, E);
    hidden.randomize(1), out.randomize(2);
    std::vector<int> cu, slots, ones(batch, 1);
    for (int i = 0; i <= batch; i++) cu.push_back(i * length), slots.push_back(i);
    Ints cu_(cu), slots_(slots), ones_(ones);
    const Pool p{hidden.data(), out.data(), cu_.data, slots_.data, ones_.data, ones_.data, E, E, E, 0};
    report.row("pool "s + std::to_string(batch) + "x" + std::to_string(length) + "x" + std::to_string(E) + " " + harness::dtype_name<T>(),
               timer([&](cudaStream_t) { launch<T>(p, batch); }), (double)tokens * E * sizeof(T) + 4. * batch * E);
}

int main(int argc, char **argv) {
    return harness::run_program(
        argc, argv,
        [](bool small) {
            check_type<__nv_bfloat16>(small);
            check_type<__half>(small);
            check_type<float>(small);
        },
        [](Timer &timer, Report &report) {
            time_shape<__nv_bfloat16>(timer, report, 8, 2048, 2048);
            time_shape<__nv_bfloat16>(timer, report, 64, 256, 2048);
            time_shape<__nv_bfloat16>(timer, report, 1, 4096, 768);
        });
}
