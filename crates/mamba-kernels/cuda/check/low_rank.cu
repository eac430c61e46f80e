// Checks what adapters add to products against float64, then times it.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/low_rank.cu low_rank/*.cu -o low_rank_check; arguments: matrix.h
#include "../low_rank/params.h"
#include "matrix.h"
#include <array>

using namespace harness;

#define LOW_RANK_DECLARE(name) extern "C" __global__ void low_rank_##name(const __grid_constant__ LowRankStep);
LOW_RANK_DECLARE(down_bf16)
LOW_RANK_DECLARE(down_f16)
LOW_RANK_DECLARE(down_f32)
LOW_RANK_DECLARE(up_bf16)
LOW_RANK_DECLARE(up_f16)
LOW_RANK_DECLARE(up_f32)
LOW_RANK_DECLARE(up_wide_bf16)
LOW_RANK_DECLARE(up_wide_f16)
template <class T, class Out> struct Kernels;
#define LOW_RANK_TABLE(T, name, Out, up_name)                                                                  \
    template <> struct Kernels<T, Out> {                                                                       \
        static constexpr void (*down)(LowRankStep) = low_rank_down_##name, (*up)(LowRankStep) = low_rank_##up_name##_##name; \
    };
LOW_RANK_TABLE(__nv_bfloat16, bf16, __nv_bfloat16, up)
LOW_RANK_TABLE(__nv_bfloat16, bf16, float, up_wide)
LOW_RANK_TABLE(__half, f16, __half, up)
LOW_RANK_TABLE(__half, f16, float, up_wide)
LOW_RANK_TABLE(float, f32, float, up)

// As the launcher does it: each begins before the kernel in front has ended.
void launch_behind(void (*kernel)(LowRankStep), dim3 grid, int threads, cudaStream_t stream, const LowRankStep &p) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = threads, config.stream = stream, config.attrs = &attribute, config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, kernel, p));
}
template <class T, class Out> void launch(const LowRankStep &p, int rows, cudaStream_t stream = 0) {
    launch_behind(Kernels<T, Out>::down, dim3(p.ranks, rows), kLowRankDown, stream, p);
    launch_behind(Kernels<T, Out>::up, dim3(ceil_div(p.outputs, kLowRankUp), rows), kLowRankUp, stream, p);
}

// Adapters of these ranks beside a matrix [N, K]; 0: one that leaves it alone.
template <class T> struct Adapters {
    int K, N, greatest = 0;
    std::vector<int> ranks;
    std::vector<Values> a, b;
    Pool pool;
    LowRank *table;
    Adapters(int K, int N, const std::vector<int> &ranks) : K(K), N(N), ranks(ranks) {
        std::vector<LowRank> entries;
        auto upload = [&](const Values &v) {
            std::vector<T> narrow;
            for (double x : v) narrow.push_back((T)(float)x);
            return pool.of(narrow);
        };
        for (size_t i = 0; i < ranks.size(); i++) {
            const int rank = ranks[i];
            a.push_back(random_values<T>((size_t)rank * K, 10 + i, 1.f / std::sqrt((float)K)));
            b.push_back(random_values<T>((size_t)N * rank, 30 + i));
            entries.push_back({upload(a[i]), upload(b[i]), rank, 0});
            greatest = std::max(greatest, rank);
        }
        table = pool.of(entries);
    }
    // B A x, exactly.
    Values added(int which, const double *x) const {
        Values low(ranks[which]), out(N);
        for (int j = 0; j < ranks[which]; j++)
            for (int k = 0; k < K; k++) low[j] += a[which][(size_t)j * K + k] * x[k];
        for (int n = 0; n < N; n++)
            for (int j = 0; j < ranks[which]; j++) out[n] += b[which][(size_t)n * ranks[which] + j] * low[j];
        return out;
    }
};

template <class T, class Out> void check(int rows, int K, int N, const std::vector<int> &ranks, int pad) {
    Case result(std::to_string(rows) + " x " + std::to_string(K) + " x " + std::to_string(N) + ", ranks to " +
                std::to_string(*std::max_element(ranks.begin(), ranks.end())) + ", pad " + std::to_string(pad) + " " + dtype_name<T>() +
                " to " + dtype_name<Out>());
    const Adapters<T> adapters(K, N, ranks);
    std::vector<int> of_rows; // one after the other, then none
    for (int r = 0; r < rows; r++) of_rows.push_back(r % ((int)ranks.size() + 1) == (int)ranks.size() ? -1 : r % ((int)ranks.size() + 1));
    const Values x = random_values<T>((size_t)rows * K, 1), before = random_values<Out>((size_t)rows * N, 2);
    Values exact = before;
    std::vector<char> changes(rows);
    for (int r = 0; r < rows; r++) {
        changes[r] = of_rows[r] >= 0 && ranks[of_rows[r]] > 0;
        if (!changes[r]) continue;
        const Values added = adapters.added(of_rows[r], &x[(size_t)r * K]);
        for (int n = 0; n < N; n++) exact[(size_t)r * N + n] += added[n];
    }
    Matrix<T> x_(rows, K, pad, pad % 2);
    Matrix<Out> out(rows, N, pad, pad % 2);
    Matrix<float> low(rows, adapters.greatest);
    Ints of_rows_(of_rows);
    x_.put(x);
    LowRankStep p{adapters.table, of_rows_.data, x_.data(), low.data(), out.data(), x_.stride, out.stride, (int)ranks.size(), adapters.greatest, K, N};
    Values got[2];
    bool gaps = true;
    for (Values &g : got) {
        low.poison(), out.put(before);
        launch<T, Out>(p, rows);
        CHECK(cudaDeviceSynchronize());
        g = out.get(&gaps);
    }
    Values changed, exact_changed;
    bool same = true;
    for (size_t i = 0; i < before.size(); i++) {
        if (changes[i / N]) changed.push_back(got[0][i]), exact_changed.push_back(exact[i]);
        else same = same && got[0][i] == before[i];
    }
    if (sizeof(Out) == 4) result.sums("sums", changed, exact_changed);
    else result.template result<Out>("sums", changed, exact_changed);
    result.require("rows without an adapter left alone", same);
    result.require("the gaps left alone", gaps);
    result.require("repeatable", same_bits(got[0], got[1]));
    // Each row by itself.
    bool alone = true;
    for (int r = 0; r < rows; r++) {
        low.poison(), out.put(before);
        LowRankStep one = p;
        one.adapters += r;
        one.x = x_.data() + r * x_.stride, one.out = out.data() + r * out.stride;
        launch<T, Out>(one, 1);
        CHECK(cudaDeviceSynchronize());
        const Values after = out.get();
        for (size_t i = 0; i < after.size(); i++) alone = alone && after[i] == ((int)(i / N) == r ? got[0] : before)[i];
    }
    result.require("a row alone as in company", alone);
}

template <class T, class Out> void check_types(bool small) {
    check<T, Out>(6, 72, 140, {8, 0, 3, 16}, 8);
    check<T, Out>(5, 13, 9, {1, 5}, 3);
    if (small) return;
    for (int rows : {1, 2, 17, 64}) check<T, Out>(rows, 768, 3072, {16, 8, 0, 64}, 0);
    for (int rank : {1, 2, 3, 4, 7, 8, 16, 24, 64, 65, 300}) {
        check<T, Out>(9, 1536, 80, {rank, 8}, 0);
        check<T, Out>(9, 48, 1536, {rank}, 32);
        check<T, Out>(9, 131, 257, {rank, 0, 16}, 5);
    }
    check<T, Out>(4, 5120, 2560, {16, 16}, 16);
    check<T, Out>(4, 1, 1, {2, 1}, 1);
}

// Of a decode step: what is added to the four products of each of 24 layers, in a graph. Every row has an adapter, of eight.
void time_all(Timer &timer, Report &report) {
    using T = __nv_bfloat16;
    const int layers = 24, adapters = 8;
    for (auto [d_model, d_inner, dt_rank] : std::vector<std::array<int, 3>>{{768, 1536, 48}, {2048, 4096, 128}, {2560, 5120, 160}})
        for (int rank : {8, 16, 64})
            for (int rows : {1, 8, 64}) {
                Pool pool;
                std::vector<int> of_rows;
                for (int r = 0; r < rows; r++) of_rows.push_back(r % adapters);
                const int *of_rows_ = pool.of(of_rows);
                float *low = pool.get<float>((size_t)rows * rank);
                std::vector<LowRankStep> steps;
                double bytes = 0;
                for (int layer = 0; layer < layers; layer++)
                    for (auto [K, N] : std::vector<std::pair<int, int>>{{d_model, 2 * d_inner}, {d_inner, dt_rank + 32}, {dt_rank, d_inner}, {d_inner, d_model}}) {
                        std::vector<LowRank> table;
                        for (int i = 0; i < adapters; i++) table.push_back({pool.normal<T>((size_t)rank * K, 1), pool.normal<T>((size_t)N * rank, 2), rank, 0});
                        steps.push_back({pool.of(table), of_rows_, pool.normal<T>((size_t)rows * K, 3), low, pool.normal<T>((size_t)rows * N, 4), K, N, adapters, rank, K, N});
                        bytes += sizeof(T) * ((double)std::min(rows, adapters) * rank * (K + N) + (double)rows * (K + 2 * N));
                    }
                auto run = [&](cudaStream_t s) {
                    for (const LowRankStep &p : steps) launch<T, T>(p, rows, s);
                };
                report.row("low_rank of a layer, d_model " + std::to_string(d_model) + ", rank " + std::to_string(rank) + ", rows " + std::to_string(rows),
                           timer.graph(run), bytes / layers, layers);
            }
}

int main(int argc, char **argv) {
    return run_program(
        argc, argv,
        [](bool small) {
            check_types<__nv_bfloat16, __nv_bfloat16>(small);
            check_types<__nv_bfloat16, float>(small);
            check_types<__half, __half>(small);
            check_types<__half, float>(small);
            check_types<float, float>(small);
        },
        time_all);
}
