// dt_proj, softplus, the scan's step and the gate: a block has 32 channels of up to 8 sequences, a warp 2 of the 16
// states. All that earlier kernels of the step do not write (weights, parameters, the slots' states) is on its way before
// the block waits for them.
#include "product.cuh"

namespace step {

template <class T> __device__ __forceinline__ void scan(const StepScan &p) {
    constexpr int kRows = 8, kMine = kStepStates / kWarps, kChunks = 2; // chunks of 32 of dt_rank's inputs that a warp has
    constexpr int kMaxRank = 256;
    __shared__ __align__(16) T s_dt[kRows][kMaxRank + 32];
    __shared__ float s_bc[kRows][2 * kStepStates];
    __shared__ float s_delta_parts[4][kRows][kStepChannels + 1];
    __shared__ float s_delta[kRows][kStepChannels], s_u[kRows][kStepChannels];
    __shared__ float s_y[kRows][kWarps][kStepChannels];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, E = p.channels;
    const int first_channel = blockIdx.x * kStepChannels, c = first_channel + lane, first_row = blockIdx.y * kRows, rows = min(kRows, p.rows - first_row);
    let_next_start();
    // dt_proj: warp w multiplies 16 of the channels (w % 2) with every fourth chunk (w / 2).
    const int tile = warp % 2, quarter = warp / 2;
    uint4 low[kChunks], high[kChunks];
    const T *weight = static_cast<const T *>(p.weight);
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
        const int k = (i * 4 + quarter) * 32 + lane % 4 * 8;
        low[i] = high[i] = uint4{};
        if (k < p.dt_rank) {
            low[i] = *reinterpret_cast<const uint4 *>(weight + (long long)(first_channel + tile * 16 + g) * p.dt_rank + k);
            high[i] = *reinterpret_cast<const uint4 *>(weight + (long long)(first_channel + tile * 16 + g + 8) * p.dt_rank + k);
        }
    }
    float h[kRows][kMine], a[kMine];
    long long place[kRows];
#pragma unroll
    for (int r = 0; r < kRows; r++) {
        place[r] = 0;
#pragma unroll
        for (int k = 0; k < kMine; k++) h[r][k] = 0.f;
        if (r >= rows) continue;
        place[r] = p.slots[first_row + r] * p.slot_stride + (long long)warp * kMine * E + c;
        if (p.fresh[first_row + r]) continue;
#pragma unroll
        for (int k = 0; k < kMine; k++) h[r][k] = p.ssm_state[place[r] + (long long)k * E];
    }
#pragma unroll
    for (int k = 0; k < kMine; k++) a[k] = p.a[(long long)(warp * kMine + k) * E + c] * kLog2e;
    const float bias = p.delta_bias[c], skip = p.d ? p.d[c] : 0.f;
    wait_for_previous();
    // From here warp w finishes sequence w.
    const int row = first_row + warp;
    float u = 0.f, z = 0.f;
    if (warp < rows) {
        u = load_fresh_one(static_cast<const T *>(p.u) + (long long)row * E + c);
        z = load_fresh_one(static_cast<const T *>(p.z) + row * p.z_stride + c);
    }
    const int width = p.dt_rank + 2 * kStepStates;
#pragma unroll 2
    for (int i = threadIdx.x; i < rows * width; i += kThreads) {
        const int r = i / width, j = i % width;
        const float x = __ldcg(p.dt_b_c + (long long)(first_row + r) * width + j);
        if (j < p.dt_rank) s_dt[r][j] = from_float<T>(x);
        else s_bc[r][j - p.dt_rank] = x;
    }
    __syncthreads();
    Sum sum;
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
        const int k = (i * 4 + quarter) * 32 + lane % 4 * 8;
        uint4 x{};
        if (k < p.dt_rank && g < rows) x = *reinterpret_cast<const uint4 *>(&s_dt[g][k]);
        multiply<T>(sum, low[i], high[i], x);
    }
    {
        float(&s)[kRows][kStepChannels + 1] = s_delta_parts[quarter];
        const int q = lane % 4;
        s[2 * q][tile * 16 + g] = sum[0], s[2 * q + 1][tile * 16 + g] = sum[1];
        s[2 * q][tile * 16 + g + 8] = sum[2], s[2 * q + 1][tile * 16 + g + 8] = sum[3];
    }
    __syncthreads();
    if (warp < rows) {
        float delta = bias;
        for (int i = 0; i < 4; i++) delta += s_delta_parts[i][warp][lane];
        s_delta[warp][lane] = softplus<T>(delta);
        s_u[warp][lane] = u;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; r++) {
        if (r >= rows) break;
        const float delta = s_delta[r][lane], input = delta * s_u[r][lane];
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < kMine; k++) {
            h[r][k] = fmaf(exp2_fast(delta * a[k]), h[r][k], input * s_bc[r][warp * kMine + k]);
            sum = fmaf(h[r][k], s_bc[r][kStepStates + warp * kMine + k], sum);
            __stcs(p.ssm_state + place[r] + (long long)k * E, h[r][k]);
        }
        s_y[r][warp][lane] = sum;
    }
    __syncthreads();
    if (warp >= rows) return;
    float y = 0.f;
    for (int w = 0; w < kWarps; w++) y += s_y[warp][w][lane];
    y = fmaf(skip, u, y) * z * reciprocal(1.f + exponential<T>(-z));
    static_cast<T *>(p.y)[(long long)row * E + c] = from_float<T>(y);
}

} // namespace step

extern "C" __global__ void __launch_bounds__(256, 2) step_scan_bf16(const __grid_constant__ StepScan p) { step::scan<__nv_bfloat16>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) step_scan_f16(const __grid_constant__ StepScan p) { step::scan<__half>(p); }
