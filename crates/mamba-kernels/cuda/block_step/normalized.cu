// What begins with a norm: in_proj with the convolution's step, and the head. Every block normalizes all rows for
// itself: they come from the L2, and it spares a kernel.
#include "product.cuh"

namespace step {

// Rows in shared memory: 16-byte pieces of eight rows at the same place lie in different banks two by two.
__device__ __forceinline__ int row_stride(int channels) { return channels + (channels % 64 ? 0 : 32); }

// finish(tile, m, n, sum) is called for every output tile * 16 + m and token n; early(tile, m, n) before the sums.
template <class T, int kTiles, class P, class Early, class Finish>
__device__ __forceinline__ void normalized_product(const P &p, int outputs, Early early, Finish finish) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Sums<kTiles> sums;
    T *const hidden = reinterpret_cast<T *>(shared + kStepDeep * 8192);
    const int stride = row_stride(p.d_model), lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    const int m = threadIdx.x % 16, n = threadIdx.x / 16;
    const int tiles = (outputs + 15) / 16;
    let_next_start();
    Weights<T, kStepDeep> weights{static_cast<const T *>(p.weight), outputs, p.d_model, 0, p.d_model, tiles, (int)gridDim.x, (int)blockIdx.x, 0, shared};
    weights.fill();
    weights.ask(p.ahead);
    wait_for_previous();
    normalize(hidden, stride, p.residual, p.norm, p.rows, p.d_model, p.eps);
    const int chunks = weights.chunks();
    int half = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, half ^= 1) {
        const bool mine = n < p.rows && n < 8 * kTiles && tile * 16 + m < outputs;
        const auto before = early(tile * 16 + m, n, mine);
        float acc[kTiles][4] = {};
        for (int i = 0; i < chunks; i++) {
            copy_wait_for<kStepDeep - 1>();
            const uint4 low = weights.low(), high = weights.high();
            const int k = (i * kWarps + warp) * 32 + lane % 4 * 8;
#pragma unroll
            for (int j = 0; j < kTiles; j++) {
                uint4 x{};
                if (j * 8 + g < p.rows && k < p.d_model) x = *reinterpret_cast<const uint4 *>(hidden + (j * 8 + g) * stride + k);
                multiply<T>(acc[j], low, high, x);
            }
            weights.copy_next(weights.slot), copy_commit();
            weights.slot = (weights.slot + 1) % kStepDeep;
        }
        const float sum = add_warps<kTiles>(sums, half, acc);
        if (mine) finish(tile * 16 + m, n, sum, before);
    }
}

template <class T, int kTiles> __device__ __forceinline__ void in_proj(const StepInProj &p) {
    constexpr int kWidest = 4;
    struct Window {
        float input[kWidest - 1], weight[kWidest], bias;
    };
    const int E = p.channels;
    normalized_product<T, kTiles>(
        p, 2 * E,
        [&](int c, int n, bool mine) {
            Window w{};
            if (!mine || c >= E) return w;
            const float *state = p.conv_state + p.slots[n] * p.slot_stride + c;
            const bool fresh = p.fresh[n] != 0;
#pragma unroll
            for (int k = 0; k < kWidest; k++) {
                if (k < p.d_conv - 1 && !fresh) w.input[k < kWidest - 1 ? k : 0] = state[(long long)k * E];
                if (k < p.d_conv) w.weight[k] = p.conv_weight[(long long)k * E + c];
            }
            if (p.conv_bias) w.bias = p.conv_bias[c];
            return w;
        },
        [&](int c, int n, float x, const Window &w) {
            if (c >= E) {
                static_cast<T *>(p.z)[n * p.z_stride + c - E] = from_float<T>(x);
                return;
            }
            float *state = p.conv_state + p.slots[n] * p.slot_stride + c;
            float sum = w.bias;
#pragma unroll
            for (int k = 0; k < kWidest; k++) {
                if (k >= p.d_conv) continue;
                const float input = k == p.d_conv - 1 ? x : w.input[k < kWidest - 1 ? k : 0];
                sum = fmaf(w.weight[k], input, sum);
                if (k > 0) state[(long long)(k - 1) * E] = input;
            }
            static_cast<T *>(p.u)[(long long)n * E + c] = from_float<T>(sum * reciprocal(1.f + exponential<T>(-sum)));
        });
}

template <class T, int kTiles> __device__ __forceinline__ void head(const StepHead &p) {
    struct Nothing {};
    normalized_product<T, kTiles>(
        p, p.vocab, [](int, int, bool) { return Nothing{}; },
        [&](int c, int n, float x, Nothing) { p.logits[(long long)n * p.vocab + c] = x; });
}

} // namespace step

STEP_KERNELS(step_in_proj, StepInProj, in_proj)
STEP_KERNELS(step_head, StepHead, head)
