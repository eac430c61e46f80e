// Products whose activations are read as they are: x_proj, its inputs split over blocks, and out_proj, which adds to the
// residual. Activations go through the warps' rings beside the weights.
#include "product.cuh"

namespace step {

template <class T, int kTiles, int kDepth, class Finish>
__device__ __forceinline__ void streamed_product(const void *weight, const void *activations, int rows, int inputs, int outputs, int begin, int end, Finish finish) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Sums<kTiles> sums;
    char *const ring = shared + kDepth * 8192;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    const T *const x = static_cast<const T *>(activations);
    let_next_start();
    Weights<T, kDepth> weights{static_cast<const T *>(weight), outputs, inputs, begin, end, (outputs + 15) / 16, 1 << 20, (int)blockIdx.x, 0, shared};
    weights.fill();
    auto copy_activations = [&](int chunk) {
        const int k = begin + (chunk * kWarps + warp) * 32 + lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            const bool valid = j * 8 + g < rows && k < end;
            copy_16(ring + ((chunk % kDepth) * kTiles + j) * 4096 + threadIdx.x * 16, valid ? x + (long long)(j * 8 + g) * inputs + k : x, valid);
        }
    };
    wait_for_previous();
#pragma unroll
    for (int i = 0; i < kDepth; i++) copy_activations(i), copy_commit();
    float acc[kTiles][4] = {};
    const int chunks = weights.chunks();
    for (int i = 0; i < chunks; i++) {
        copy_wait_for<kDepth - 1>();
        const uint4 low = weights.low(), high = weights.high();
#pragma unroll
        for (int j = 0; j < kTiles; j++)
            multiply<T>(acc[j], low, high, *reinterpret_cast<const uint4 *>(ring + (weights.slot * kTiles + j) * 4096 + threadIdx.x * 16));
        weights.copy_next(weights.slot), copy_activations(i + kDepth), copy_commit();
        weights.slot = (weights.slot + 1) % kDepth;
    }
    const int c = blockIdx.x * 16 + threadIdx.x % 16, n = threadIdx.x / 16;
    const float sum = add_warps<kTiles>(sums, 0, acc);
    if (n < rows && n < 8 * kTiles && c < outputs) finish(c, n, sum);
}

template <class T, int kTiles> __device__ __forceinline__ void x_proj(const StepXProj &p) {
    const int begin = blockIdx.y * kStepSplit, end = min(begin + kStepSplit, p.inputs);
    streamed_product<T, kTiles, kStepShort>(p.weight, p.u, p.rows, p.inputs, p.outputs, begin, end, [&](int c, int n, float sum) {
        p.partial[((long long)blockIdx.y * p.rows + n) * p.outputs + c] = sum;
    });
}

template <class T, int kTiles> __device__ __forceinline__ void out_proj(const StepOutProj &p) {
    streamed_product<T, kTiles, kStepDeep>(p.weight, p.y, p.rows, p.inputs, p.outputs, 0, p.inputs, [&](int c, int n, float sum) {
        float *at = p.residual + (long long)n * p.outputs + c;
        *at = __ldcg(at) + sum;
    });
}

} // namespace step

STEP_KERNELS(step_x_proj, StepXProj, x_proj)
STEP_KERNELS(step_out_proj, StepOutProj, out_proj)
