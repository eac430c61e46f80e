// What begins with a norm: in_proj with the convolution's step, and the head. Every block normalizes all rows for
// itself: they come from the L2, and it spares a kernel.
#include "product.cuh"

namespace step {

// Sums of squares of 16 channels each, [d_model / 16][rows], into shared memory. `sums` are what out_proj left; without
// them, in a step's first layer, they are made anew, in the same order. All blocks read the same few lines, which the L2
// hands out one by one: so every line is asked for once a block.
template <class P> __device__ __forceinline__ void collect_sums(const P &p, float *to) {
    constexpr int kAtOnce = 4;
    const int count = p.d_model / 16 * p.rows;
    for (int first = threadIdx.x; first < count && p.sums; first += kAtOnce * kThreads) {
        float x[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) x[i] = __ldcg(p.sums + min(first + i * kThreads, count - 1));
#pragma unroll
        for (int i = 0; i < kAtOnce; i++)
            if (first + i * kThreads < count) to[first + i * kThreads] = x[i];
    }
    for (int i = threadIdx.x; i < count && !p.sums; i += kThreads) {
        const float *from = p.residual + (long long)(i % p.rows) * p.d_model + i / p.rows * 16;
        float part[16];
#pragma unroll
        for (int k = 0; k < 16; k += 4) {
            const float4 x = load_fresh(from + k);
            part[k] = __fmul_rn(x.x, x.x), part[k + 1] = __fmul_rn(x.y, x.y), part[k + 2] = __fmul_rn(x.z, x.z), part[k + 3] = __fmul_rn(x.w, x.w);
        }
        to[i] = sum_of_16(part);
    }
}

// finish(output, row, sum, early(output, row, exists)) is called for every element; early runs before the sums.
template <class T, int kTiles, class P, class Early, class Finish>
__device__ __forceinline__ void normalized_product(const P &p, int outputs, Early early, Finish finish) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Sums<kTiles> sums;
    __shared__ float s_scale[8 * kTiles];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m = threadIdx.x % 16, n = threadIdx.x / 16;
    const int tiles = (outputs + 15) / 16;
    let_next_start();
    Weights<T, kStepWide> weights{static_cast<const T *>(p.weight), outputs, p.d_model, 0, p.d_model, tiles, (int)gridDim.x, (int)blockIdx.x, 0, shared};
    const int chunks = weights.chunks();
    // The normalized rows as the products read them, [chunk][tile of rows][thread] of 16 bytes; then the norm's weight;
    // then the rows' sums.
    char *const hidden = shared + 8192 * min(kStepWide, chunks * ((tiles + (int)gridDim.x - 1) / (int)gridDim.x)); // step_ring
    float *const norm = reinterpret_cast<float *>(hidden + chunks * kTiles * 4096), *const squares = norm + p.d_model;
    auto place = [&](int row, int k) { // of input k of a row: what thread (k / 32 % 8, row % 8, k / 8 % 4) reads
        return reinterpret_cast<uint2 *>(hidden + ((k / 256 * kTiles + row / 8) * kThreads + k / 32 % 8 * 32 + row % 8 * 4 + k / 8 % 4) * 16 + k % 8 * 2);
    };
    for (int c = threadIdx.x * 4; c < p.d_model; c += kThreads * 4) copy_16(norm + c, p.norm + c, true); // with the first chunk
    auto mine = [&](int tile) { return n < p.rows && n < 8 * kTiles && tile * 16 + m < outputs; };
    auto before = early(blockIdx.x * 16 + m, n, mine(blockIdx.x)); // ahead of the weights: it would have to queue behind them
    weights.fill();
    for (int k = p.d_model + threadIdx.x * 4; k < chunks * 256; k += kThreads * 4)
        for (int row = 0; row < p.rows; row++) *place(row, k) = uint2{};
    wait_for_previous();

    // Pieces of four channels: a thread has the same ones of every row, kAtOnce of them under way.
    constexpr int kAtOnce = 8;
    struct Piece {
        int row = 0, k = threadIdx.x * 4;
        __device__ __forceinline__ void next(int rows) {
            if (++row == rows) row = 0, k += kThreads * 4;
        }
    } fetched, written;
    float4 x[kAtOnce];
    auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
            if (fetched.k < p.d_model) x[i] = load_fresh(p.residual + fetched.row * p.d_model + fetched.k);
            fetched.next(p.rows);
        }
    };
    fetch();
    collect_sums(p, squares);
    weights.wait();
    __syncthreads();
    for (int row = warp; row < p.rows; row += kWarps) {
        float sum = 0.f;
        for (int i = lane; i < p.d_model / 16; i += 32) sum += squares[i * p.rows + row];
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane == 0) s_scale[row] = rsqrtf(sum / p.d_model + p.eps);
    }
    __syncthreads();
    while (written.k < p.d_model) {
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
            if (written.k < p.d_model) {
                const float scale = s_scale[written.row];
                const float4 w = *reinterpret_cast<const float4 *>(norm + written.k);
                *place(written.row, written.k) = make_uint2(word<T>(x[i].x * scale * w.x, x[i].y * scale * w.y), word<T>(x[i].z * scale * w.z, x[i].w * scale * w.w));
            }
            written.next(p.rows);
        }
        fetch();
    }
    __syncthreads();

    const uint4 *const mine_of_hidden = reinterpret_cast<const uint4 *>(hidden) + threadIdx.x;
    int half = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, half ^= 1) {
        if (tile != blockIdx.x) before = early(tile * 16 + m, n, mine(tile));
        Sum acc[kTiles] = {};
        for (int i = 0; i < chunks; i++) {
            weights.wait();
            const uint4 low = weights.low(), high = weights.high();
#pragma unroll
            for (int j = 0; j < kTiles; j++) multiply<T>(acc[j], low, high, mine_of_hidden[(i * kTiles + j) * kThreads]);
            weights.next();
        }
        const float sum = add_warps<kTiles>(sums, half, acc);
        if (mine(tile)) finish(tile * 16 + m, n, sum, before);
    }
}

template <class T, int kTiles> __device__ __forceinline__ void in_proj(const StepInProj &p) {
    constexpr int kWidest = 4;
    struct Window {
        float input[kWidest - 1], weight[kWidest], bias;
    };
    const StepConvolution &to = p.to;
    const int E = p.channels;
    normalized_product<T, kTiles>(
        p, 2 * E,
        [&](int c, int n, bool mine) {
            Window w{};
            if (!mine || c >= E) return w;
            const float *state = to.conv_state + to.slots[n] * to.slot_stride + c;
            const bool fresh = to.fresh[n] != 0;
#pragma unroll
            for (int k = 0; k < kWidest; k++) {
                if (k < p.d_conv - 1 && !fresh) w.input[k < kWidest - 1 ? k : 0] = state[(long long)k * E];
                if (k < p.d_conv) w.weight[k] = to.conv_weight[(long long)k * E + c];
            }
            if (to.conv_bias) w.bias = to.conv_bias[c];
            return w;
        },
        [&](int c, int n, float x, const Window &w) {
            if (c >= E) {
                static_cast<T *>(to.z)[n * to.z_stride + c - E] = from_float<T>(x);
                return;
            }
            float *state = to.conv_state + to.slots[n] * to.slot_stride + c;
            float sum = w.bias;
#pragma unroll
            for (int k = 0; k < kWidest; k++) {
                if (k >= p.d_conv) continue;
                const float input = k == p.d_conv - 1 ? x : w.input[k < kWidest - 1 ? k : 0];
                sum = fmaf(w.weight[k], input, sum);
                if (k > 0) state[(long long)(k - 1) * E] = input;
            }
            static_cast<T *>(to.u)[(long long)n * E + c] = from_float<T>(sum * reciprocal(1.f + exponential<T>(-sum)));
        });
}

template <class T, int kTiles> __device__ __forceinline__ void head(const StepHead &p) {
    struct Nothing {};
    normalized_product<T, kTiles>(
        p, p.vocab, [](int, int, bool) { return Nothing{}; },
        [&](int c, int n, float x, Nothing) { p.logits[(long long)n * p.vocab + c] = x; });
}

} // namespace step

STEP_KERNELS(step_in_proj, StepInProj, in_proj, )
STEP_KERNELS(step_head, StepHead, head, )
