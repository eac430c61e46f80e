// Checks rows by index and the embedding's gradient against the definition, then times them.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/embedding.cu embedding/*.cu -o embedding_check; arguments: matrix.h
#include "../embedding/params.h"
#include "matrix.h"
#include <numeric>

using namespace harness;

template <class T> struct Kernels;
#define DECLARE(T, name)                                                                                       \
    extern "C" __global__ void embedding_##name(const __grid_constant__ Gather);                               \
    extern "C" __global__ void gather_##name(const __grid_constant__ Gather);                                  \
    template <> struct Kernels<T> { static constexpr void (*embedding)(Gather) = embedding_##name, (*gather)(Gather) = gather_##name; };
DECLARE(__nv_bfloat16, bf16)
DECLARE(__half, f16)
DECLARE(float, f32)
extern "C" __global__ void embedding_backward(const __grid_constant__ EmbeddingBackward);
extern "C" __global__ void embedding_backward_join(const __grid_constant__ EmbeddingBackward);

// size: bytes of an element of the output.
void launch(void (*kernel)(Gather), const Gather &p, int size) {
    kernel<<<dim3(ceil_div(p.channels, gather_channels(size)), ceil_div(p.count, kGatherRows)), kGatherThreads>>>(p);
    CHECK(cudaGetLastError());
}
void launch(const EmbeddingBackward &p) {
    const dim3 grid(ceil_div(p.channels, gather_channels(4)), ceil_div(p.count, kEmbeddingTokens));
    embedding_backward<<<grid, kGatherThreads>>>(p);
    embedding_backward_join<<<grid, kGatherThreads>>>(p);
    CHECK(cudaGetLastError());
}
std::vector<int> order_of(const std::vector<int> &ids) {
    std::vector<int> order(ids.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
    return order;
}
// skew 1: evenly spread; larger: small ids more often, as words are.
std::vector<int> random_ids(int count, int rows, double skew, uint64_t seed) {
    std::vector<int> ids(count);
    for (int i = 0; i < count; i++) ids[i] = std::min(rows - 1, (int)(std::pow((double)uniform(i, seed), skew) * rows));
    return ids;
}

template <class T> void check_rows(int count, int E, int rows, int pad) {
    Case result("rows " + std::to_string(count) + "x" + std::to_string(E) + " of " + std::to_string(rows) + " pad " + std::to_string(pad) + " " + dtype_name<T>());
    const std::vector<int> ids = random_ids(count, rows, 2., 7);
    const Values table = random_values<T>((size_t)rows * E, 1);
    Values exact((size_t)count * E);
    for (int i = 0; i < count; i++) std::copy_n(&table[(size_t)ids[i] * E], E, &exact[(size_t)i * E]);
    Matrix<T> table_(rows, E, pad, pad % 2), same(count, E, pad, pad % 2);
    Matrix<float> wide(count, E, pad, pad % 2);
    Ints ids_(ids);
    table_.put(table);
    Gather p{table_.data(), ids_.data, wide.data(), table_.stride, wide.stride, count, E};
    launch(Kernels<T>::embedding, p, 4);
    p.out = same.data(), p.out_stride = same.stride;
    launch(Kernels<T>::gather, p, sizeof(T));
    CHECK(cudaDeviceSynchronize());
    bool gaps = true;
    result.require("the rows, in f32", same_bits(wide.get(&gaps), exact));
    result.require("the rows", same_bits(same.get(&gaps), exact));
    result.require("the gaps left alone", gaps);
}

void check_backward(int count, int E, int rows, double skew, int pad) {
    Case result("gradient " + std::to_string(count) + "x" + std::to_string(E) + " of " + std::to_string(rows) + " pad " + std::to_string(pad));
    const std::vector<int> ids = random_ids(count, rows, skew, 9);
    const Values d_out = random_values<float>((size_t)count * E, 1), before = random_values<float>((size_t)rows * E, 2);
    Values exact = before;
    std::vector<int> used(rows);
    for (int i = 0; i < count; i++) {
        used[ids[i]] = 1;
        for (int c = 0; c < E; c++) exact[(size_t)ids[i] * E + c] += d_out[(size_t)i * E + c];
    }
    Matrix<float> d_out_(count, E, pad, pad % 2), d_table(rows, E, pad, pad % 2), partial(2 * ceil_div(count, kEmbeddingTokens), E);
    Ints ids_(ids), order(order_of(ids));
    d_out_.put(d_out);
    const EmbeddingBackward p{d_out_.data(), ids_.data, order.data, d_table.data(), partial.data(), d_out_.stride, d_table.stride, count, E};
    Values got[2];
    bool gaps = true, others = true;
    for (auto &g : got) {
        d_table.put(before), partial.poison();
        launch(p);
        CHECK(cudaDeviceSynchronize());
        g = d_table.get(&gaps);
    }
    result.sums("d_table", got[0], exact);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < E && !used[r]; c++) others = others && got[0][(size_t)r * E + c] == before[(size_t)r * E + c];
    result.require("the other rows left alone", others);
    result.require("the gaps left alone", gaps);
    result.require("repeatable", same_bits(got[0], got[1]));
}

template <class T> void check_type(bool small) {
    check_rows<T>(5, 72, 9, 8);
    check_rows<T>(7, 13, 4, 3);
    if (small) return;
    for (int E : {1, 64, 768, 2050}) check_rows<T>(101, E, 300, E % 8 ? 1 : 0);
    check_rows<T>(1, 2048, 300, 0);
}
void check_all(bool small) {
    check_type<__nv_bfloat16>(small);
    check_type<__half>(small);
    check_type<float>(small);
    check_backward(200, 24, 3, 1., 0);
    check_backward(130, 13, 200, 2., 3);
    check_backward(64, 8, 1, 1., 0);
    if (small) return;
    for (int count : {1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 9001})
        for (int rows : {1, 2, 5, 300, 5000}) check_backward(count, 40, rows, 1., 0);
    check_backward(5000, 768, 50280, 4., 0);
    check_backward(5000, 770, 100, 3., 1);
}

int distinct(std::vector<int> ids) {
    std::sort(ids.begin(), ids.end());
    return (int)(std::unique(ids.begin(), ids.end()) - ids.begin());
}
// A table's row that several tokens have moves once.
template <class T> void time_shape(Timer &timer, Report &report, int tokens, int E, int rows) {
    std::vector<int> shuffled(tokens); // gather: every row once
    std::iota(shuffled.begin(), shuffled.end(), 0);
    for (int i = tokens - 1; i > 0; i--) std::swap(shuffled[i], shuffled[(int)(uniform(i, 77) * i)]);
    const std::vector<int> ids = random_ids(tokens, rows, 1., 5);
    Ints ids_(ids), shuffled_(shuffled);
    const double n = (double)tokens * E;
    std::vector<std::unique_ptr<Matrix<T>>> from, to, tables;
    std::vector<std::unique_ptr<Matrix<float>>> wide;
    std::vector<Gather> gathers, embeddings;
    for (int i = 0; i < sets_for(2 * n * sizeof(T)); i++) {
        from.push_back(std::make_unique<Matrix<T>>(tokens, E)), to.push_back(std::make_unique<Matrix<T>>(tokens, E));
        from[i]->randomize(1);
        gathers.push_back({from[i]->data(), shuffled_.data, to[i]->data(), E, E, tokens, E});
        if (i < 8) tables.push_back(std::make_unique<Matrix<T>>(rows, E)), tables[i]->randomize(2);
        wide.push_back(std::make_unique<Matrix<float>>(tokens, E));
        embeddings.push_back({tables[i % 8]->data(), ids_.data, wide[i]->data(), E, E, tokens, E});
    }
    const std::string shape = std::to_string(tokens) + "x" + std::to_string(E) + " " + dtype_name<T>();
    time_sets(timer, report, "cudaMemcpy of as much as gather " + shape, n * 2 * sizeof(T), gathers,
              [&](const Gather &p) { CHECK(cudaMemcpyAsync(p.out, p.table, (size_t)tokens * E * sizeof(T), cudaMemcpyDeviceToDevice)); });
    time_sets(timer, report, "gather " + shape, n * 2 * sizeof(T), gathers, [](const Gather &p) { launch(Kernels<T>::gather, p, sizeof(T)); });
    time_sets(timer, report, "embedding forward " + shape + " of " + std::to_string(rows), n * 4 + (double)distinct(ids) * E * sizeof(T), embeddings,
              [](const Gather &p) { launch(Kernels<T>::embedding, p, 4); });
}
void time_backward(Timer &timer, Report &report, int tokens, int E, int rows, double skew) {
    const std::vector<int> ids = random_ids(tokens, rows, skew, 5);
    Ints ids_(ids), order(order_of(ids));
    std::vector<std::unique_ptr<Matrix<float>>> d_out, d_table, partial;
    std::vector<EmbeddingBackward> sets;
    for (int i = 0; i < sets_for(4. * tokens * E); i++) {
        d_out.push_back(std::make_unique<Matrix<float>>(tokens, E)), d_table.push_back(std::make_unique<Matrix<float>>(rows, E));
        partial.push_back(std::make_unique<Matrix<float>>(2 * ceil_div(tokens, kEmbeddingTokens), E));
        d_out[i]->randomize(1), d_table[i]->randomize(2);
        sets.push_back({d_out[i]->data(), ids_.data, order.data, d_table[i]->data(), partial[i]->data(), E, E, tokens, E});
    }
    time_sets(timer, report, "embedding backward " + std::to_string(tokens) + "x" + std::to_string(E) + " of " + std::to_string(rows) + (skew > 1. ? " skewed" : ""),
              4. * tokens * E + 8. * distinct(ids) * E, sets, [](const EmbeddingBackward &p) { launch(p); });
}

int main(int argc, char **argv) {
    return run_program(argc, argv, check_all, [](Timer &timer, Report &report) {
        time_shape<__nv_bfloat16>(timer, report, 16384, 2048, 50280);
        time_shape<float>(timer, report, 16384, 2048, 50280);
        time_shape<__nv_bfloat16>(timer, report, 2048, 768, 50280);
        time_backward(timer, report, 16384, 2048, 50280, 1.);
        time_backward(timer, report, 16384, 2048, 50280, 4.);
        time_backward(timer, report, 65536, 768, 16, 1.);
    });
}
