// The products of a step of many sequences, up to 64 or 128: a block multiplies all rows with 16 to 128 outputs of a weight by
// wgmma, whose rows they are. The copy engine fills a ring of chunks of 64 inputs; one warp asks it to, four multiply for each
// 64 rows.
//
// A block of in_proj has all inputs of its outputs. A block of x_proj and out_proj has a slice of the inputs, and those of a
// cluster the same outputs: each finishes some of the rows, and gets the others' sums of those. The order of a sum depends on
// the weight's shape alone.
#include "barrier.cuh"
#include "product.cuh"

// Hopper's own instructions: of other cards' code only the kernels' names are there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define STEP_RUN(run, T, rows, outputs) step::run<T, rows, outputs>(p)
namespace step {

constexpr int kChunk = 64, kChunkBytes = 2 * kChunk;

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// Only that all came here: what blocks of a cluster send one another is counted by barriers in shared memory.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
template <int kThreads> __device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// A box of a matrix, from this input and row on; zeros beyond its edges.
__device__ __forceinline__ void fetch_box(void *to, const CUtensorMap &map, int input, int row, uint64_t *barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(address(to)), "l"(&map), "r"(input), "r"(row), "r"(address(barrier)) : "memory");
}
// A matrix in shared memory whose rows are 128 bytes, as the copy engine left it with a swizzle of 128 bytes.
__device__ __forceinline__ uint64_t descriptor(const void *matrix) { return (uint64_t)((address(matrix) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// sum += 64 rows times 32 or 16 outputs, of 16 inputs.
#define STEP_WGMMA(type)                                                                                       \
    __device__ __forceinline__ void wgmma_32(float *d, uint64_t a, uint64_t b, type) {                         \
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." #type "." #type " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;" \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]) : "l"(a), "l"(b)); \
    }                                                                                                          \
    __device__ __forceinline__ void wgmma_16(float *d, uint64_t a, uint64_t b, type) {                         \
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." #type "." #type " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;" \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]) : "l"(a), "l"(b)); \
    }
struct f16 {};
struct bf16 {};
STEP_WGMMA(f16)
STEP_WGMMA(bf16)
template <class T> using Operand = std::conditional_t<std::is_same_v<T, __half>, f16, bf16>;

template <int kRows, int kOutputs, bool kSplit> struct Ring {
    static constexpr int kStages = step_many_stages(kRows, kOutputs, kSplit), kStage = step_many_stage(kRows, kOutputs);
};

// Outputs come in kParts parts, `outputs` apart from one another, of each of which a block has as many. Of every row four outputs
// of a part are finished by finish(part, output, row, sums, early(part, output, row), begin(output)). Early runs before the
// sums are known, begin before the kernel in front has ended, and if kSplit is not set early, too.
template <class T, int kRows, int kOutputs, int kParts, bool kSplit, class Begin, class Early, class Finish>
__device__ __forceinline__ void many_product(const CUtensorMap &weight, const CUtensorMap &activations, int rows, int inputs, int outputs, Begin begin, Early early, Finish finish) {
    extern __shared__ char unaligned[];
    constexpr int kStages = Ring<kRows, kOutputs, kSplit>::kStages, kStage = Ring<kRows, kOutputs, kSplit>::kStage, kPitch = kOutputs + 8, kOfPart = kOutputs / kParts, kMultipliers = 2 * kRows;
    char *const ring = unaligned + (1024 - address(unaligned) % 1024) % 1024;
    // [block that summed][row that this one finishes][output]; what other blocks send does not wait until the ring is free.
    float *const sums = reinterpret_cast<float *>(ring + (kSplit ? kStages * kStage : 0));
    __shared__ uint64_t s_full[kStages], s_empty[kStages], s_sums;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int splits = kSplit ? cluster_size() : 1, split = kSplit ? cluster_rank() : 0; // of the inputs
    const int first_output = blockIdx.x / splits * kOfPart;
    const int all = (inputs + kChunk - 1) / kChunk, slice = (all + splits - 1) / splits;
    const int first_chunk = min(split * slice, all), chunks = min(slice, all - first_chunk);
    const int box = (rows + 7) / 8 * 8; // step_many_box
    const int count = kRows / splits, first_row = split * count, last_row = min(rows, first_row + count); // finished here
    let_next_start();
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; i++) barrier_init(s_full + i, 1), barrier_init(s_empty + i, kMultipliers / 32);
        barrier_init(&s_sums, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        barrier_expect(&s_sums, kRows * kOutputs * 4);
    }
    __syncthreads();
    if constexpr (kSplit) cluster_arrive();

    if (warp == kMultipliers / 32) {
        auto fetch_weights = [&](int chunk) {
            uint64_t *const full = s_full + chunk % kStages;
            char *const to = ring + chunk % kStages * kStage + kRows * kChunkBytes;
            barrier_expect(full, (box + kOutputs) * kChunkBytes);
#pragma unroll
            for (int part = 0; part < kParts; part++) fetch_box(to + part * kOfPart * kChunkBytes, weight, (first_chunk + chunk) * kChunk, part * outputs + first_output, full);
        };
        auto fetch_rows = [&](int chunk) {
            fetch_box(ring + chunk % kStages * kStage, activations, (first_chunk + chunk) * kChunk, 0, s_full + chunk % kStages);
        };
        if (lane) return;
        for (int chunk = 0; chunk < min(kStages, chunks); chunk++) fetch_weights(chunk);
        wait_for_previous();
        for (int chunk = 0; chunk < min(kStages, chunks); chunk++) fetch_rows(chunk);
        for (int chunk = kStages; chunk < chunks; chunk++) {
            barrier_wait(s_empty + chunk % kStages, (chunk / kStages + 1) % 2);
            fetch_weights(chunk), fetch_rows(chunk);
        }
        return;
    }

    // A thread has the same four outputs of a part, of every row that it finishes.
    constexpr int kLanes = kOfPart / 4, kRowsAtOnce = kMultipliers / kLanes, kTimes = (kRows + kRowsAtOnce - 1) / kRowsAtOnce, kAtOnce = kTimes <= 6 ? kTimes : (kTimes + 1) / 2;
    using Before = decltype(early(0, 0, 0));
    const int output = first_output + (int)threadIdx.x % kLanes * 4, own_row = first_row + (int)threadIdx.x / kLanes;
    const bool mine = threadIdx.x < kRowsAtOnce * kLanes && output < outputs;
    auto prepare = [&](Before (&before)[kAtOnce], int part, int row) {
#pragma unroll
        for (int i = 0; i < kAtOnce; i++)
            if (mine && row + i * kRowsAtOnce < last_row) before[i] = early(part, output, row + i * kRowsAtOnce);
    };
    Before before[kAtOnce];
    if (!kSplit) prepare(before, 0, own_row);
    const auto begun = begin(mine ? output : first_output);
    if constexpr (kSplit) cluster_wait(); // all blocks are there, and what they send lands
    wait_for_previous();
    if (kSplit) prepare(before, 0, own_row);
    float sum[kOutputs / 2] = {};
    for (int chunk = 0; chunk < chunks; chunk++) {
        barrier_wait(s_full + chunk % kStages, chunk / kStages % 2);
        const char *const stage = ring + chunk % kStages * kStage;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < kChunk / 16; i++) {
            const uint64_t a = descriptor(stage + warp / 4 * (64 * kChunkBytes) + i * 32), b = descriptor(stage + kRows * kChunkBytes + i * 32);
#pragma unroll
            for (int j = 0; j < kOutputs / 32; j++) wgmma_32(sum + j * 16, a, b + j * (32 * kChunkBytes >> 4), Operand<T>{});
            if constexpr (kOutputs % 32) wgmma_16(sum + kOutputs / 32 * 16, a, b + kOutputs / 32 * (32 * kChunkBytes >> 4), Operand<T>{});
        }
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0) barrier_arrive(s_empty + chunk % kStages);
    }
#pragma unroll
    for (float &x : sum) asm volatile("" : "+f"(x)); // not read before
    meet<kMultipliers>(); // all are done with the ring
    float *const own = reinterpret_cast<float *>(ring); // [row][output]
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < kOutputs / 8; j++)
            *reinterpret_cast<float2 *>(own + (warp * 16 + half * 8 + lane / 4) * kPitch + j * 8 + lane % 4 * 2) = float2{sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]};
    meet<kMultipliers>();
    if constexpr (kSplit) {
        for (int i = threadIdx.x; i < kRows * kLanes; i += kMultipliers) {
            const int row = i / kLanes, at = i % kLanes * 4;
            send(row / count, sums + (split * count + row % count) * kPitch + at, *reinterpret_cast<const float4 *>(own + row * kPitch + at), &s_sums);
        }
        barrier_wait_for_cluster(&s_sums, 0);
    }

#pragma unroll
    for (int part = 0; part < kParts; part++)
        for (int row = own_row; mine && row < last_row; row += kRowsAtOnce * kAtOnce) {
            if (part || row != own_row) prepare(before, part, row);
#pragma unroll
            for (int i = 0; i < kAtOnce; i++) {
                const int at = row + i * kRowsAtOnce;
                if (at >= last_row) continue;
                const float *const from = sums + (at - first_row) * kPitch + part * kOfPart + output - first_output;
                float4 x = *reinterpret_cast<const float4 *>(from);
                for (int s = 1; kSplit && s < splits; s++) {
                    const float4 y = *reinterpret_cast<const float4 *>(from + s * count * kPitch);
                    x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
                }
                finish(part, output, at, x, before[i], begun);
            }
        }
}

__device__ __forceinline__ float4 load_4(const float *from) { return *reinterpret_cast<const float4 *>(from); }
__device__ __forceinline__ void store_4(float *to, float4 x) { *reinterpret_cast<float4 *>(to) = x; }
__device__ __forceinline__ float4 fma_4(float4 a, float4 b, float4 c) { return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w)}; }
struct None {};

// Half of a block's outputs are channels of x, half the same ones of z, so that all blocks have as much of the convolution to do.
template <class T, int kRows, int kOutputs> __device__ __forceinline__ void in_proj_many(const StepInProjMany &p) {
    constexpr int kWidest = 4;
    struct Window {
        float4 input[kWidest - 1];
        float *state;
    };
    struct Convolution {
        float4 weight[kWidest], bias;
    };
    const int E = p.channels;
    many_product<T, kRows, kOutputs, 2, false>(
        p.weight, p.hidden, p.rows, p.d_model, E,
        [&](int c) {
            Convolution conv{};
#pragma unroll
            for (int k = 0; k < kWidest; k++)
                if (k < p.d_conv) conv.weight[k] = load_4(p.to.conv_weight + (long long)k * E + c);
            if (p.to.conv_bias) conv.bias = load_4(p.to.conv_bias + c);
            return conv;
        },
        [&](int half, int c, int row) {
            Window w{};
            if (half) return w;
            w.state = p.to.conv_state + p.to.slots[row] * p.to.slot_stride + c;
            if (!p.to.fresh[row])
#pragma unroll
                for (int k = 0; k < kWidest - 1; k++)
                    if (k < p.d_conv - 1) w.input[k] = load_4(w.state + (long long)k * E);
            return w;
        },
        [&](int half, int c, int row, float4 x, const Window &w, const Convolution &conv) {
            if (half) {
                *reinterpret_cast<uint2 *>(static_cast<T *>(p.to.z) + row * p.to.z_stride + c) = uint2{word<T>(x.x, x.y), word<T>(x.z, x.w)};
                return;
            }
            float4 sum = conv.bias;
#pragma unroll
            for (int k = 0; k < kWidest; k++) {
                if (k >= p.d_conv) continue;
                const float4 input = k == p.d_conv - 1 ? x : w.input[k < kWidest - 1 ? k : 0];
                sum = fma_4(conv.weight[k], input, sum);
                if (k > 0) store_4(w.state + (long long)(k - 1) * E, input);
            }
            auto silu = [](float x) { return x * reciprocal(1.f + exponential<T>(-x)); };
            *reinterpret_cast<uint2 *>(static_cast<T *>(p.to.u) + (long long)row * E + c) = uint2{word<T>(silu(sum.x), silu(sum.y)), word<T>(silu(sum.z), silu(sum.w))};
        });
}

// dt, B and C.
template <class T, int kRows, int kOutputs> __device__ __forceinline__ void x_proj_many(const StepProductMany &p) {
    many_product<T, kRows, kOutputs, 1, true>(
        p.weight, p.activations, p.rows, p.inputs, p.outputs, [](int) { return None{}; }, [](int, int, int) { return None{}; },
        [&](int, int c, int row, float4 x, None, None) { store_4(p.out + (long long)row * p.outputs + c, x); });
}

// Added to the residual.
template <class T, int kRows, int kOutputs> __device__ __forceinline__ void out_proj_many(const StepProductMany &p) {
    auto at = [&](int c, int row) { return p.out + (long long)row * p.outputs + c; };
    many_product<T, kRows, kOutputs, 1, true>(
        p.weight, p.activations, p.rows, p.inputs, p.outputs, [](int) { return None{}; }, [&](int, int c, int row) { return load_fresh(at(c, row)); },
        [&](int, int c, int row, float4 x, float4 before, None) { store_4(at(c, row), {before.x + x.x, before.y + x.y, before.z + x.z, before.w + x.w}); });
}

} // namespace step

#else
#define STEP_RUN(run, T, rows, outputs) __trap()
#endif

#define STEP_MANY(name, params, run, rows, outputs)                                                            \
    extern "C" __global__ void __launch_bounds__(2 * rows + 32, 128 / rows) name##_##rows##_bf16_##outputs(const __grid_constant__ params p) { STEP_RUN(run, __nv_bfloat16, rows, outputs); } \
    extern "C" __global__ void __launch_bounds__(2 * rows + 32, 128 / rows) name##_##rows##_f16_##outputs(const __grid_constant__ params p) { STEP_RUN(run, __half, rows, outputs); }
#define STEP_MANY_TILES(name, params, run, rows)                                                               \
    STEP_MANY(name, params, run, rows, 16)                                                                     \
    STEP_MANY(name, params, run, rows, 32)                                                                     \
    STEP_MANY(name, params, run, rows, 48)                                                                     \
    STEP_MANY(name, params, run, rows, 64)                                                                     \
    STEP_MANY(name, params, run, rows, 80)                                                                     \
    STEP_MANY(name, params, run, rows, 128)
STEP_MANY_TILES(step_in_proj, StepInProjMany, in_proj_many, 64)
STEP_MANY_TILES(step_in_proj, StepInProjMany, in_proj_many, 128)
STEP_MANY_TILES(step_out_proj, StepProductMany, out_proj_many, 64)
STEP_MANY_TILES(step_out_proj, StepProductMany, out_proj_many, 128)
STEP_MANY(step_x_proj, StepProductMany, x_proj_many, 64, 16)
STEP_MANY(step_x_proj, StepProductMany, x_proj_many, 128, 16)
