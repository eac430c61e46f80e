// Products whose activations are read as they are: x_proj, its inputs split over a cluster, and out_proj, which adds to
// the residual.
#include "barrier.cuh"
#include "product.cuh"

namespace step {

// The sum over inputs `begin` to `end` for output blockIdx.x * 16 + thread % 16 and row thread / 16, where there is such a
// row. before() runs while the block waits, after() once what the kernels in front wrote is there.
template <class T, int kTiles, int kDepth, class Before, class After>
__device__ __forceinline__ float plain_product(const void *weight, const void *activations, int rows, int inputs, int outputs, int begin, int end, Before before, After after) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Sums<kTiles> sums;
    constexpr int kAtOnce = 8 / kTiles; // chunks of activations that are on their way
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    const T *const x = static_cast<const T *>(activations);
    let_next_start();
    Weights<T, kDepth> weights{static_cast<const T *>(weight), outputs, inputs, begin, end, (outputs + 15) / 16, 1 << 20, (int)blockIdx.x, 0, shared};
    weights.fill();
    before();
    wait_for_previous();
    const int chunks = weights.chunks();
    Sum acc[kTiles] = {};
    for (int first = 0; first < chunks; first += kAtOnce) {
        uint4 part[kAtOnce][kTiles];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++)
#pragma unroll
            for (int j = 0; j < kTiles; j++) {
                const int k = begin + ((first + i) * kWarps + warp) * 32 + lane % 4 * 8;
                part[i][j] = uint4{};
                if (j * 8 + g < rows && k < end) part[i][j] = load_fresh_16(x + (long long)(j * 8 + g) * inputs + k);
            }
        if (first == 0) after();
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
            if (first + i >= chunks) break;
            weights.wait();
            const uint4 low = weights.low(), high = weights.high();
#pragma unroll
            for (int j = 0; j < kTiles; j++) multiply<T>(acc[j], low, high, part[i][j]);
            weights.next();
        }
    }
    return add_warps<kTiles>(sums, 0, acc);
}

// The blocks of a cluster each sum a part of the inputs for the same 16 outputs and send it to the first one, which adds
// them up in order. They do not wait for it: what they send counts as bytes at its barrier. blockIdx.z has the rows from
// blockIdx.z * 8 * kTiles on.
template <class T, int kTiles> __device__ __forceinline__ void x_proj(const StepXProj &p) {
#if __CUDA_ARCH__ >= 900
    __shared__ float s_parts[kStepSplits][8 * kTiles][16];
    __shared__ uint64_t s_barrier;
    const int first_row = blockIdx.z * 8 * kTiles, rows = p.rows - first_row;
    const int slice = (p.inputs + 32 * kStepSplits - 1) / (32 * kStepSplits) * 32, rank = blockIdx.y;
    const int begin = min(rank * slice, p.inputs), end = min(begin + slice, p.inputs);
    if (threadIdx.x == 0 && rank == 0) {
        barrier_init(&s_barrier, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        barrier_expect(&s_barrier, sizeof(s_parts));
    }
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    const float sum = plain_product<T, kTiles, kStepShort>(
        p.weight, static_cast<const T *>(p.u) + (long long)first_row * p.inputs, rows, p.inputs, p.outputs, begin, end, [] { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }, [] {});
    const int c = blockIdx.x * 16 + threadIdx.x % 16, n = threadIdx.x / 16;
    if (n < 8 * kTiles) send(0, &s_parts[rank][n][c % 16], sum, &s_barrier);
    if (rank || n >= rows || n >= 8 * kTiles || c >= p.outputs) return;
    barrier_wait_for_cluster(&s_barrier, 0);
    float all = 0.f;
    for (int i = 0; i < kStepSplits; i++) all += s_parts[i][n][c % 16];
    p.dt_b_c[(long long)(first_row + n) * p.outputs + c] = all;
#endif
}

template <class T, int kTiles> __device__ __forceinline__ void out_proj(const StepOutProj &p) {
    const int c = blockIdx.x * 16 + threadIdx.x % 16, n = threadIdx.x / 16;
    const bool mine = n < p.rows && n < 8 * kTiles; // as for all 16 lanes of the row: d_model is a multiple of 16
    float *const at = p.residual + (long long)n * p.outputs + c;
    float x = 0.f;
    const float sum = plain_product<T, kTiles, kStepDeep>(p.weight, p.y, p.rows, p.inputs, p.outputs, 0, p.inputs, [] {}, [&] {
        if (mine) x = __ldcg(at);
    });
    x += sum;
    float square = __fmul_rn(x, x);
#pragma unroll
    for (int step = 8; step; step /= 2) square += __shfl_xor_sync(~0u, square, step);
    if (!mine) return;
    *at = x;
    if (c % 16 == 0) p.sums[(long long)blockIdx.x * p.rows + n] = square;
}

} // namespace step

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define STEP_CLUSTER __cluster_dims__(1, kStepSplits, 1)
#else
#define STEP_CLUSTER // these cards have none, and do not run these kernels
#endif
STEP_KERNELS(step_x_proj, StepXProj, x_proj, STEP_CLUSTER)
STEP_KERNELS(step_out_proj, StepOutProj, out_proj, )
