// log_softmax at one target a row: a block a row, the logits read once, maximum and sum kept together. Bound by memory.
// params.h has the launch.
#include "../common/vector.cuh"
#include "params.h"

namespace logprobs {
using namespace vec;
constexpr int kThreads = 512, V = 4, kAhead = 4;

// sum = Σ exp(logit - max) of the logits seen so far.
struct Total {
    float max = -INFINITY, sum = 0.f;
    __device__ __forceinline__ void add(Total other) {
        const float both = fmaxf(max, other.max);
        if (both == -INFINITY) sum += other.sum; // nothing but logits of -inf and NaN: zero or NaN
        else sum = sum * expf(max - both) + other.sum * expf(other.max - both);
        max = both;
    }
};

template <bool kAligned> __device__ void run(const TokenLogprobs &p) {
    __shared__ Total s_total[kThreads / 32];
    const float *logits = p.logits + blockIdx.x * p.logits_stride;
    Total total;
    for (int at = threadIdx.x * V; at < p.vocabulary; at += kAhead * kThreads * V) {
        Vector<float, V> x[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            const int c = at + j * kThreads * V;
            if (kAligned && c >= p.vocabulary) x[j] = {};
            else x[j] = load<kAligned, V>(logits + c, p.vocabulary - c);
        }
        float max = total.max;
        auto exists = [&](int j, int i) { return at + j * kThreads * V + i < p.vocabulary; };
#pragma unroll
        for (int j = 0; j < kAhead; j++)
#pragma unroll
            for (int i = 0; i < V; i++)
                if (exists(j, i)) max = fmaxf(max, x[j][i]);
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < kAhead; j++)
#pragma unroll
            for (int i = 0; i < V; i++)
                if (exists(j, i) && x[j][i] != -INFINITY) sum += expf(x[j][i] - max);
        total.add({max, sum});
    }
    auto across = [&](Total &total) {
        for (int step = 16; step; step /= 2) {
            const Total other{__shfl_xor_sync(~0u, total.max, step), __shfl_xor_sync(~0u, total.sum, step)};
            total.add(other);
        }
    };
    across(total);
    if (threadIdx.x % 32 == 0) s_total[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    total = threadIdx.x < kThreads / 32 ? s_total[threadIdx.x] : Total{};
    across(total);
    if (threadIdx.x == 0) p.out[blockIdx.x] = logits[p.targets[blockIdx.x]] - total.max - logf(total.sum);
}

__device__ __forceinline__ void choose(const TokenLogprobs &p) {
    const bool wide = p.vocabulary % V == 0 && aligned<V>(p.logits, p.logits_stride);
    wide ? run<true>(p) : run<false>(p);
}

} // namespace logprobs

VECTOR_KERNEL(token_logprobs, TokenLogprobs, logprobs::kThreads, 2, logprobs::choose(p))
