// From logits to tokens, one block a row: what crates/mamba/src/generate/sampler.rs does, and the same choice.
//
// Logits, weights (the same exponential, to the bit), order (larger logits first, of equal ones the lowest id) and
// draws are those of the CPU. Sums are not: the CPU adds f64 one after the other, this kernel in a tree (the draw) or
// as integers, units of 2^-43 (top_p). So the two may choose differently where the draw, or top_p, lies within 1e-8
// of the sum from the border between two tokens, and nowhere else. Every sum here has one order: the same logits
// give the same token, whatever else the batch holds.
//
// Nothing is sorted. What top_k and top_p keep is found by a radix select over the logits' bits: up to three times
// the row is read, and what could still be the border is counted (or weighed) in 2048 bins. Only logits that can be
// kept are counted at all: see `count_from` and `floor`.
#include "../selective_scan/common.cuh"
#include "params.h"
#include <cstdint>

namespace sampling {

constexpr int kWarps = kSampleThreads / 32;
constexpr int kBins = 2048;
constexpr float kHighest = 3.402823466e38f;
// Weights as integers: their order does not matter, and 2^20 of them fit. A weight's error is up to 2^-44.
constexpr float kUnit = 0x1p43f;
static_assert(kWarps == 32, "a warp holds one value of each warp");

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
// NaN counts as -infinity, +infinity as the largest number.
__device__ __forceinline__ float clean(float x) { return fminf(fmaxf(x, minus_infinity()), kHighest); }
// Bits that compare as f32's total order does.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits ^ ((int)bits < 0 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// e^x for x <= 0: `exp` of sampler.rs operation by operation, none of them fused, so equal to the bit.
__device__ __forceinline__ float exponential(float x) {
    const float round = 12582912.f, low = fmaxf(x, -87.f);
    const float shifted = __fadd_rn(__fmul_rn(low, 1.4426950408889634f), round), n = __fadd_rn(shifted, -round);
    const float r = __fadd_rn(__fadd_rn(low, -__fmul_rn(n, 0.6933594f)), __fmul_rn(n, 2.1219444e-4f));
    float p = 1.9875691e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0e-1f);
    const float power_of_two = __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
    const float e = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.f);
    return x < -87.f ? 0.f : __fmul_rn(e, power_of_two);
}

// The exponential unit's: a few units in the last place near zero. For the logarithm of a sum.
__device__ __forceinline__ float exp_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

// Philox4x32-10 as in philox.rs: the draw in [0, 1) of a seed and a position.
__device__ double uniform(unsigned long long seed, unsigned long long position) {
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0}, k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        if (round > 0) k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
        const uint32_t low0 = c[0] * 0xD2511F53u, high0 = __umulhi(c[0], 0xD2511F53u);
        const uint32_t low1 = c[2] * 0xCD9E8D57u, high1 = __umulhi(c[2], 0xCD9E8D57u);
        c[0] = high1 ^ c[1] ^ k[0];
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k[1];
        c[3] = low0;
    }
    const unsigned long long bits = (unsigned long long)c[1] << 32 | c[0];
    return (double)(bits >> 11) * 0x1p-53;
}

template <class X> __device__ __forceinline__ X warp_sum(X x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
// To a sum that lies in two words: shared memory adds 32 bits by itself, 64 only in a loop of its own.
__device__ __forceinline__ void add(uint2 *to, unsigned long long amount) {
    const uint32_t low = (uint32_t)amount, before = atomicAdd(&to->x, low);
    const uint32_t high = (uint32_t)(amount >> 32) + (before + low < before);
    if (high) atomicAdd(&to->y, high);
}
__device__ __forceinline__ unsigned long long value(uint2 sum) { return (unsigned long long)sum.y << 32 | sum.x; }
// Inclusive sum over the lanes up to this one.
template <class X> __device__ __forceinline__ X warp_scan(X x, int lane) {
    for (int d = 1; d < 32; d *= 2) {
        const X below = __shfl_up_sync(~0u, x, d);
        if (lane >= d) x += below;
    }
    return x;
}

// One row of logits. A warp has a run of ids, in pieces of 128, and of each piece a lane has four neighbours; f is
// called by all lanes of the warp.
struct Row {
    float *logits;
    int vocab;
    bool aligned;
    int begin, end; // the warp's ids

    __device__ Row(const Sampling &p, int warp)
        : logits(p.logits + blockIdx.x * p.stride), vocab(p.vocab), aligned((unsigned long long)logits % 16 == 0) {
        *this = run_of(warp);
    }
    __device__ Row run_of(int warp) const {
        Row row = *this;
        const int run = (vocab + kWarps * 128 - 1) / (kWarps * 128) * 128;
        row.begin = min(warp * run, vocab), row.end = min(row.begin + run, vocab);
        return row;
    }
    __device__ float operator[](int id) const { return clean(logits[id]); }
    __device__ void load(int id, float (&x)[4]) const {
        if (aligned && id + 3 < end) {
            const float4 v = *reinterpret_cast<const float4 *>(logits + id);
            x[0] = clean(v.x), x[1] = clean(v.y), x[2] = clean(v.z), x[3] = clean(v.w);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = id + j < end ? clean(logits[id + j]) : minus_infinity();
        }
    }
    // f(id, four logits); past the end they are -infinity.
    template <class F> __device__ __forceinline__ void pieces(int lane, F f) const {
        constexpr int kAhead = 4; // loads in flight
        for (int base = begin; base < end; base += 128 * kAhead) {
            float x[kAhead][4];
#pragma unroll
            for (int k = 0; k < kAhead; k++) load(base + 128 * k + lane * 4, x[k]);
#pragma unroll
            for (int k = 0; k < kAhead; k++)
                if (base + 128 * k < end) f(base + 128 * k + lane * 4, x[k]);
        }
    }
};

struct Best {
    float value; // the largest logit
    int id;      // its lowest id
};
__device__ __forceinline__ Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }
__device__ __forceinline__ Best warp_best(Best best) {
    for (int d = 16; d; d /= 2) best = better(best, Best{__shfl_xor_sync(~0u, best.value, d), __shfl_xor_sync(~0u, best.id, d)});
    return best;
}

struct Shared {
    uint2 bins[kBins];
    double sums[kWarps];
    unsigned long long integers[kWarps];
    Best best[kWarps];
    uint32_t keys[kWarps];
    int ties[kWarps], heavy[kWarps], hits[kWarps];
    unsigned long long found_above, found_through; // sums before and after the bin that the target lies in
    int found_bin;
    float raw;
};

// Sum over the block, in every thread.
template <class X> __device__ X block_sum(X x, X *shared, int warp, int lane) {
    x = warp_sum(x);
    __syncthreads(); // whoever still reads the last sum
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    return warp_sum(shared[lane]);
}
__device__ Best block_best(Best best, Shared &s, int warp, int lane) {
    best = warp_best(best);
    __syncthreads();
    if (lane == 0) s.best[warp] = best;
    __syncthreads();
    return warp_best(s.best[lane]);
}

// The first id of a run at which the running sum of weights, `before` at its beginning, exceeds `target`; where it
// does not (the sum having been rounded otherwise), the last id that weighs anything. `rank` is the number of `tie`
// keys before the run. Warps take the run's pieces in turn; then the one that it happens in looks closely.
template <class F> // weight(logit, how many ties come before it)
__device__ int find(const Row &run, Shared &s, double before, int rank, double target, int warp, int lane, F weight, uint32_t tie) {
    int last = -1;
    for (int first = run.begin; first < run.end; first += 128 * kWarps) {
        const int id = first + 128 * warp + 4 * lane;
        float x[4], w[4];
        run.load(id, x);
        int tied = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) tied += key_of(x[j]) == tie && id + j < run.end;
        const int tied_up_to = warp_scan(tied, lane);
        __syncthreads();
        if (lane == 31) s.ties[warp] = tied_up_to;
        __syncthreads();
        const int all_ties = warp_scan(s.ties[lane], lane);
        int mine = rank + (warp == 0 ? 0 : __shfl_sync(~0u, all_ties, warp - 1)) + tied_up_to - tied;
        double of_lane = 0.;
        int hit = -1, heavy = -1;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] = id + j < run.end ? weight(x[j], mine) : 0.f;
            mine += key_of(x[j]) == tie;
            of_lane += (double)w[j];
            if (w[j] > 0.f) heavy = id + j;
        }
        const double scanned = warp_scan(of_lane, lane);
        heavy = __reduce_max_sync(~0u, heavy);
        if (lane == 31) s.sums[warp] = scanned, s.heavy[warp] = heavy;
        __syncthreads();
        const double pieces = warp_scan(s.sums[lane], lane);
        double at = before + (warp == 0 ? 0. : __shfl_sync(~0u, pieces, warp - 1));
        const double of_lanes_before = __shfl_up_sync(~0u, scanned, 1);
        if (lane > 0) at += of_lanes_before;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            at += (double)w[j];
            if (w[j] > 0.f && at > target && hit < 0) hit = id + j;
        }
        const unsigned hits = __ballot_sync(~0u, hit >= 0);
        hit = hits ? __shfl_sync(~0u, hit, __ffs(hits) - 1) : 0x7fffffff;
        if (lane == 0) s.hits[warp] = hit;
        __syncthreads();
        hit = __reduce_min_sync(~0u, s.hits[lane]);
        last = max(last, __reduce_max_sync(~0u, s.heavy[lane]));
        if (hit != 0x7fffffff) return hit;
        before += __shfl_sync(~0u, pieces, 31);
        rank += __shfl_sync(~0u, all_ties, 31);
    }
    return last;
}

// What is kept: all keys above `key`, and of those equal to it the first `ties`.
struct Border {
    uint32_t key;
    unsigned long long ties;
};
constexpr Border kEverything{0, ~0ull};

// Where the measures of the largest keys first sum to `target` (at least 1): of the border's key itself, `rest` is
// missing to it. kEverything where all of them do not.
struct Found {
    uint32_t key;
    unsigned long long rest;
};
// measure(logit, key), 0 for what does not count; nothing outside lowest .. highest does (lowest > 0).
template <class F>
__device__ Found select(const Row &row, Shared &s, unsigned long long target, uint32_t lowest, uint32_t highest, int warp, int lane, F measure) {
    unsigned long long above = 0;
    while (true) {
        const int shift = max(0, 21 - __clz(highest - lowest)); // bins of 2^shift keys
        for (int i = threadIdx.x; i < kBins; i += kSampleThreads) s.bins[i] = uint2{};
        if (threadIdx.x == 0) s.found_bin = -1;
        __syncthreads();
        row.pieces(lane, [&](int id, const float(&x)[4]) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t key = key_of(x[j]);
                if (key < lowest || key > highest || id + j >= row.end) continue;
                const unsigned long long amount = measure(x[j], key);
                if (amount) add(&s.bins[(key - lowest) >> shift], amount);
            }
        });
        __syncthreads();
        // A thread has two bins; sums run from the largest keys down.
        const int high = kBins - 1 - 2 * threadIdx.x;
        const unsigned long long first = value(s.bins[high]), second = value(s.bins[high - 1]);
        const unsigned long long scanned = warp_scan(first + second, lane);
        if (lane == 31) s.integers[warp] = scanned;
        __syncthreads();
        const unsigned long long before = above + warp_sum(lane < warp ? s.integers[lane] : 0ull) + scanned - first - second;
        const unsigned long long between = before + first, after = between + second;
        if (before < target && target <= between) s.found_bin = high, s.found_above = before, s.found_through = between;
        else if (between < target && target <= after) s.found_bin = high - 1, s.found_above = between, s.found_through = after;
        __syncthreads();
        const int bin = s.found_bin;
        above = s.found_above;
        const unsigned long long through = s.found_through;
        __syncthreads(); // before the next round changes them
        if (bin < 0) return {0, ~0ull};
        lowest += (uint32_t)bin << shift;
        if (through == target) return {lowest - 1, 0}; // the whole bin
        if (shift == 0) return {lowest, target - above};
        highest = lowest + ((1u << shift) - 1);
    }
}

struct Choice {
    int token;     // -1: every logit is NaN or -infinity
    float logprob; // of thread 0 alone
};

// `survey` is what the kernel of that name found of the row, or null.
__device__ Choice sample(const Sampling &p, const SampleRow &options, const float *survey) {
    __shared__ Shared s;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Row row(p, warp);

    // The largest logit and log sum exp of the logits as given.
    Best best{minus_infinity(), 0x7fffffff};
    auto look = [&](int id, const float(&x)[4]) { // whether there is a larger one
        const float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        if (most <= best.value) return false;
        best = {most, id + (x[0] == most ? 0 : x[1] == most ? 1 : x[2] == most ? 2 : 3)};
        return true;
    };
    Best largest;
    float of_part = minus_infinity(), sum = 0.f; // what this thread has of it
    if (survey) {
        of_part = survey[3 * lane], sum = survey[3 * lane + 2];
        largest = warp_best({of_part, __float_as_int(survey[3 * lane + 1])});
    } else {
        row.pieces(lane, [&](int id, const float(&x)[4]) {
            const float before = best.value;
            if (look(id, x)) sum *= exp_fast(before - best.value);
            if (best.value > minus_infinity())
                sum += exp_fast(x[0] - best.value) + exp_fast(x[1] - best.value) + exp_fast(x[2] - best.value) + exp_fast(x[3] - best.value);
        });
        of_part = best.value;
        largest = block_best(best, s, warp, lane);
    }
    if (largest.value == minus_infinity()) return {-1, __int_as_float(0x7fc00000)};
    const double share = of_part > minus_infinity() ? (double)sum * exp((double)of_part - (double)largest.value) : 0.;
    const double log_sum_exp = (double)largest.value + log(survey ? warp_sum(share) : block_sum(share, s.sums, warp, lane));

    // Bias, then penalties, in f64; `changed` keeps the logits as they were, -infinity for none.
    const bool penalizes = options.window_length > 0 && (options.repetition_penalty != 1.f || options.frequency_penalty != 0.f ||
                                                         options.presence_penalty != 0.f);
    auto in_vocabulary = [&](int id) { return id >= 0 && id < p.vocab; };
    auto change = [&](int id, auto by) {
        const float before = in_vocabulary(id) ? row[id] : minus_infinity();
        if (before > minus_infinity()) row.logits[id] = (float)fmin(fmax(by((double)before), -(double)kHighest), (double)kHighest);
        return before;
    };
    float *const changed_by_penalty = options.changed, *const changed_by_bias = options.changed + options.window_length;
    for (int i = threadIdx.x; i < options.bias_count; i += kSampleThreads)
        changed_by_bias[i] = change(options.bias_ids[i], [&](double x) { return x + (double)options.bias[i]; });
    if (penalizes) {
        int *counts = p.counts + (long long)blockIdx.x * p.vocab;
        for (int i = threadIdx.x; i < options.window_length; i += kSampleThreads)
            if (in_vocabulary(options.window[i])) atomicAdd(&counts[options.window[i]], 1);
        __syncthreads(); // counts, and the biased logits
        for (int i = threadIdx.x; i < options.window_length; i += kSampleThreads) {
            const int id = options.window[i], count = in_vocabulary(id) ? atomicExch(&counts[id], 0) : 0;
            // One of the equal tokens gets the count.
            changed_by_penalty[i] = count == 0 ? minus_infinity() : change(id, [&](double x) {
                x = x > 0. ? x / (double)options.repetition_penalty : x * (double)options.repetition_penalty;
                x = __dadd_rn(x, -__dmul_rn((double)count, (double)options.frequency_penalty));
                return __dadd_rn(x, -(double)options.presence_penalty);
            });
        }
    }
    if (penalizes || options.bias_count > 0) {
        __syncthreads();
        best = {minus_infinity(), 0x7fffffff};
        row.pieces(lane, look);
        largest = block_best(best, s, warp, lane);
    }

    int token = largest.id;
    if (options.temperature != 0.f) {
        const float temperature = options.temperature;
        auto weight_of = [&](float x) {
            const float below = __fadd_rn(x, -largest.value);
            return exponential(temperature == 1.f ? below : __fdiv_rn(below, temperature));
        };
        // A logit below this weighs less than `weight`; it spares most exponentials.
        auto lowest_of = [&](double weight) {
            return __double2float_rd((double)largest.value + (double)temperature * (log(fmax(weight, 1e-38)) - 1e-3));
        };
        auto integer = [&](float weight) { return __float2ull_rn(weight * kUnit); };

        const uint32_t highest = key_of(largest.value + 0.f); // -0 becomes 0, which may be there, too
        Border border = kEverything;
        double floor = 0.; // the smallest weight kept
        if (options.top_k > 0 && options.top_k < (unsigned)p.vocab) {
            // As many groups of threads as top_k, or more, each have a logit from `count_from` on.
            uint32_t count_from = key_of(minus_infinity());
            if (options.top_k <= (unsigned)kSampleThreads) {
                if (survey && !penalizes && options.bias_count == 0) row.pieces(lane, look); // nobody did yet
                uint32_t key = key_of(best.value);
                for (int lanes = 1; lanes < 32 && (unsigned)(kSampleThreads / (2 * lanes)) >= options.top_k; lanes *= 2)
                    key = max(key, __shfl_xor_sync(~0u, key, lanes));
                key = __reduce_min_sync(~0u, key);
                if (lane == 0) s.keys[warp] = key;
                __syncthreads();
                count_from = __reduce_min_sync(~0u, s.keys[lane]);
            }
            const Found found = select(row, s, options.top_k, count_from, highest, warp, lane, [](float, uint32_t) { return 1ull; });
            border = {found.key, found.rest};
        }
        if (options.top_p < 1.f) {
            unsigned long long total = 0, tie = 0; // tie: the weight of a token at the border
            float lowest = lowest_of(0x1p-45);     // what is less than half a unit
            row.pieces(lane, [&](int, const float(&x)[4]) { // what is past the end weighs nothing
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (key_of(x[j]) > border.key && x[j] >= lowest) total += integer(weight_of(x[j]));
            });
            total = block_sum(total, s.integers, warp, lane);
            const unsigned long long without_ties = total;
            if (border.key > 0) {
                tie = integer(weight_of(logit_of(border.key)));
                total += tie * border.ties;
            } else {
                // All tokens less likely than (1 - top_p) / n have less than 1 - top_p together.
                floor = (double)total / (double)kUnit * (1. - (double)options.top_p) / p.vocab;
            }
            const unsigned long long mass = max(1ull, (unsigned long long)ceil((double)total * (double)options.top_p));
            if (mass > without_ties && border.key > 0) {
                border.ties = (mass - without_ties + tie - 1) / tie;
            } else {
                const uint32_t outside = border.key;
                lowest = fmaxf(lowest, lowest_of(floor));
                const Found found = select(row, s, mass, max(outside + 1, key_of(lowest)), highest, warp, lane, [&](float x, uint32_t) {
                    const float weight = weight_of(x);
                    return (double)weight >= floor ? integer(weight) : 0ull;
                });
                tie = integer(weight_of(logit_of(found.key)));
                border = {found.key, found.key > 0 && found.rest > 0 ? (found.rest + tie - 1) / tie : found.rest};
            }
        }
        floor = fmax(floor, (double)options.min_p);
        const float lowest = lowest_of(floor);
        auto kept = [&](float weight) { return weight > 0.f && (double)weight >= floor; };

        // The draw, in order of ids: which warp's run it falls into, then where in it.
        double weights = 0.;
        int ties = 0;
        row.pieces(lane, [&](int, const float(&x)[4]) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t key = key_of(x[j]);
                ties += key == border.key;
                if (key <= border.key || x[j] < lowest) continue;
                const float weight = weight_of(x[j]);
                if (kept(weight)) weights += (double)weight;
            }
        });
        weights = warp_sum(weights), ties = warp_sum(ties);
        __syncthreads(); // whoever still reads the last sums
        if (lane == 0) s.sums[warp] = weights, s.ties[warp] = ties;
        __syncthreads();
        // From here on lane i of each warp has what belongs to warp i.
        const float tie_weight = border.key > 0 ? weight_of(logit_of(border.key)) : 0.f;
        const int ties_before = warp_scan(s.ties[lane], lane) - s.ties[lane];
        const unsigned long long left = border.ties > (unsigned)ties_before ? border.ties - ties_before : 0;
        const double run = s.sums[lane] + (kept(tie_weight) ? (double)min(left, (unsigned long long)s.ties[lane]) * (double)tie_weight : 0.);
        const double up_to = warp_scan(run, lane);
        const double target = uniform(options.seed, options.position) * __shfl_sync(~0u, up_to, 31);
        const unsigned past = __ballot_sync(~0u, up_to > target);
        if (past != 0) {
            const int chosen = __ffs(past) - 1;
            const double before = chosen == 0 ? 0. : __shfl_sync(~0u, up_to, chosen - 1);
            token = find(row.run_of(chosen), s, before, __shfl_sync(~0u, ties_before, chosen), target, warp, lane, [&](float x, int rank) {
                const uint32_t key = key_of(x);
                if (key < border.key || x < lowest || (key == border.key && (unsigned)rank >= border.ties)) return 0.f;
                const float weight = weight_of(x);
                return kept(weight) ? weight : 0.f;
            }, border.key);
        }
    }

    // Its logit as given.
    if (threadIdx.x == 0) s.raw = row[token];
    __syncthreads();
    if (penalizes)
        for (int i = threadIdx.x; i < options.window_length; i += kSampleThreads)
            if (options.window[i] == token && changed_by_penalty[i] > minus_infinity()) s.raw = changed_by_penalty[i];
    __syncthreads(); // bias came before penalties
    for (int i = threadIdx.x; i < options.bias_count; i += kSampleThreads)
        if (options.bias_ids[i] == token && changed_by_bias[i] > minus_infinity()) s.raw = changed_by_bias[i];
    __syncthreads();
    return {token, (float)((double)s.raw - log_sum_exp)};
}

__device__ void choose(const Sampling &p) {
    const Choice choice = sample(p, p.rows[blockIdx.x], nullptr);
    if (threadIdx.x == 0) p.token[blockIdx.x] = choice.token, p.logprob[blockIdx.x] = choice.logprob;
}

static_assert(kSurveyParts == 32, "a lane has a part");

// A part of a row: its largest logit and the sum of exponentials. Many blocks a row, as one alone is slow to read it.
__device__ void survey(const Decode &p) {
    constexpr int kSurveyWarps = kSurveyThreads / 32;
    __shared__ Best s_best[kSurveyWarps];
    __shared__ float s_sum[kSurveyWarps];
    if (!p.which && p.slots[p.first + blockIdx.y] == p.spare) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int run = (p.vocab + kSurveyParts * 4 - 1) / (kSurveyParts * 4) * 4, begin = min((int)blockIdx.x * run, p.vocab);
    const int end = min(begin + run, p.vocab);
    const float *const logits = p.logits + (long long)blockIdx.y * p.stride;
    const bool aligned = (unsigned long long)logits % 16 == 0;
    Best best{minus_infinity(), 0x7fffffff};
    float sum = 0.f;
    for (int id = begin + 4 * threadIdx.x; id < end; id += 4 * kSurveyThreads) {
        float x[4];
        if (aligned && id + 3 < end) {
            const float4 v = *reinterpret_cast<const float4 *>(logits + id);
            x[0] = clean(v.x), x[1] = clean(v.y), x[2] = clean(v.z), x[3] = clean(v.w);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = id + j < end ? clean(logits[id + j]) : minus_infinity();
        }
        const float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        if (most > best.value) {
            sum *= exp_fast(best.value - most);
            best = {most, id + (x[0] == most ? 0 : x[1] == most ? 1 : x[2] == most ? 2 : 3)};
        }
        if (best.value > minus_infinity())
            sum += exp_fast(x[0] - best.value) + exp_fast(x[1] - best.value) + exp_fast(x[2] - best.value) + exp_fast(x[3] - best.value);
    }
    auto rescaled = [](float sum, float from, float to) { return from > minus_infinity() ? sum * exp_fast(from - to) : 0.f; };
    const Best of_warp = warp_best(best);
    sum = warp_sum(rescaled(sum, best.value, of_warp.value));
    if (lane == 0) s_best[warp] = of_warp, s_sum[warp] = sum;
    __syncthreads();
    if (warp != 0) return;
    best = lane < kSurveyWarps ? s_best[lane] : Best{minus_infinity(), 0x7fffffff};
    const Best of_part = warp_best(best);
    sum = warp_sum(lane < kSurveyWarps ? rescaled(s_sum[lane], best.value, of_part.value) : 0.f);
    float *const out = p.survey + 3 * (kSurveyParts * (long long)blockIdx.y + blockIdx.x);
    if (lane == 0) out[0] = of_part.value, out[1] = __int_as_float(of_part.id), out[2] = sum;
}

static_assert(sizeof(DecodeRow) <= 4 * kDecodeHeader, "a row's struct has room");

__device__ void decode(const Decode &p) {
    __shared__ SampleRow options;
    __shared__ Sampling sampling;
    const int at = p.which ? p.which[blockIdx.x] : p.first + blockIdx.x;
    if (!p.which && p.slots[at] == p.spare) return;
    int *const words = p.table + (long long)at * kDecodeRow;
    DecodeRow &row = *reinterpret_cast<DecodeRow *>(words);
    int *const window = words + kDecodeHeader, *const bias_ids = window + kDecodeWindow;
    float *const bias = reinterpret_cast<float *>(bias_ids + kDecodeBias);
    const int *const stop = bias_ids + 2 * kDecodeBias;
    if (threadIdx.x == 0) {
        options.seed = row.seed, options.position = row.position;
        options.window = window, options.window_length = row.window_length;
        options.bias_ids = bias_ids, options.bias = bias, options.bias_count = row.bias_count;
        options.changed = bias + kDecodeBias + kDecodeStop;
        options.temperature = row.temperature, options.top_p = row.top_p, options.min_p = row.min_p, options.top_k = row.top_k;
        options.repetition_penalty = row.repetition_penalty;
        options.frequency_penalty = row.frequency_penalty, options.presence_penalty = row.presence_penalty;
        sampling.logits = p.logits, sampling.counts = p.counts, sampling.stride = p.stride, sampling.vocab = p.vocab;
    }
    __syncthreads();
    early::wait_for_previous();
    const Choice choice = sample(sampling, options, p.survey + 3 * kSurveyParts * (long long)blockIdx.x);
    if (threadIdx.x != 0) return;
    int *const chosen = p.chosen + 2 * (row.slot * kDecodeAhead + row.count % kDecodeAhead);
    chosen[0] = choice.token, chosen[1] = __float_as_int(choice.logprob);
    row.count++, row.position++, row.left--;
    bool ends = choice.token < 0 || row.left <= 0;
    for (int i = 0; i < row.stop_count; i++) ends |= stop[i] == choice.token;
    if (choice.token >= 0) p.ids[at] = choice.token;
    if (row.window_size > 0) {
        window[row.window_next] = choice.token;
        row.window_next = (row.window_next + 1) % row.window_size;
        row.window_length = min(row.window_length + 1, row.window_size);
    }
    p.slots[at] = ends || row.hold ? p.spare : row.slot;
}

} // namespace sampling

extern "C" __global__ void __launch_bounds__(kSampleThreads, 1) sampling_choose_f32(const __grid_constant__ Sampling p) { sampling::choose(p); }
extern "C" __global__ void __launch_bounds__(kSurveyThreads) sampling_survey_f32(const __grid_constant__ Decode p) { sampling::survey(p); }
extern "C" __global__ void __launch_bounds__(kSampleThreads, 1) sampling_decode_f32(const __grid_constant__ Decode p) { sampling::decode(p); }
