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
    put(sum, s_delta_parts[quarter], tile * 16);
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

// The same for many sequences, to the bit: a block has 64 channels, a warp a sequence of every eight, a lane two channels with
// all of their states. Blocks walk through the sequences, and the next ones' states are on their way meanwhile.
template <class T> __device__ __forceinline__ void scan_many(const StepScan &p) {
    constexpr int kRows = 8, kStates = kStepStates, kChannels = kStepManyChannels, kParts = 4;
    extern __shared__ __align__(128) char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, E = p.channels, rank = p.dt_rank;
    const int first_channel = blockIdx.x * kChannels, c = first_channel + 2 * lane;
    const int width = rank + 2 * kStates, chunks = (rank + 31) / 32, groups = (p.rows + kRows - 1) / kRows, step = gridDim.y;
    // dt_proj's weights as their lanes read them, [chunk][tile of 16 channels][half][lane]; A; delta's parts; dt, B and C twice.
    uint4 *const weights = reinterpret_cast<uint4 *>(shared);
    float *const s_a = reinterpret_cast<float *>(weights + chunks * 4 * 64);
    float(*const parts)[kRows][kChannels + 8] = reinterpret_cast<float(*)[kRows][kChannels + 8]>(s_a + kStates * kChannels);
    float *const s_inputs = reinterpret_cast<float *>(parts + kParts);
    let_next_start();
    // Warp w multiplies 16 of the channels (w % 4) with two parts of dt_rank: each fourth chunk from w / 4, and w / 4 + 2, on.
    const int tile = warp % 4;
    const T *const weight = static_cast<const T *>(p.weight) + (long long)(first_channel + tile * 16 + g) * rank;
    for (int chunk = warp / 4; chunk < chunks; chunk += 2) {
        const int k = chunk * 32 + lane % 4 * 8;
        uint4 *const to = weights + (chunk * 4 + tile) * 64 + lane;
        copy_16(to, weight + (k < rank ? k : 0), k < rank);
        copy_16(to + 32, weight + 8 * rank + (k < rank ? k : 0), k < rank);
    }
    for (int i = threadIdx.x; i < kStates * kChannels / 4; i += kThreads)
        copy_16(s_a + i * 4, p.a + (long long)(i / (kChannels / 4)) * E + first_channel + i % (kChannels / 4) * 4, true);
    copy_commit();

    float2 h[kStates], next_h[kStates];
    auto place = [&](int row) { return p.ssm_state + p.slots[row] * p.slot_stride + c; };
    auto fetch_states = [&](int group) {
        const int row = group * kRows + warp;
        const bool there = group < groups && row < p.rows && !p.fresh[row];
        const float *const from = place(there ? row : 0);
#pragma unroll
        for (int n = 0; n < kStates; n++) {
            next_h[n] = float2{};
            if (there) next_h[n] = *reinterpret_cast<const float2 *>(from + (long long)n * E);
        }
    };
    auto fetch_inputs = [&](int group, int half) { // rows are neighbours, and so are all of their values
        if (group < groups) {
            const int count = min(kRows, p.rows - group * kRows) * width;
            for (int i = threadIdx.x * 4; i < count; i += kThreads * 4)
                copy_16(s_inputs + half * kRows * width + i, p.dt_b_c + (long long)group * kRows * width + i, true);
        }
        copy_commit();
    };
    Two<T> next_u{}, next_z{};
    auto fetch_row = [&](int group) {
        const int row = group * kRows + warp;
        if (group >= groups || row >= p.rows) return;
        next_u = __ldcg(reinterpret_cast<const Two<T> *>(static_cast<const T *>(p.u) + (long long)row * E + c));
        next_z = __ldcg(reinterpret_cast<const Two<T> *>(static_cast<const T *>(p.z) + row * p.z_stride + c));
    };
    int group = blockIdx.y, half = 0;
    fetch_states(group);
    const float2 bias = *reinterpret_cast<const float2 *>(p.delta_bias + c);
    const float2 skip = p.d ? *reinterpret_cast<const float2 *>(p.d + c) : float2{};
    wait_for_previous();
    fetch_inputs(group, 0);
    fetch_row(group);
    for (; group < groups; group += step, half ^= 1) {
        const int row = group * kRows + warp, rows = min(kRows, p.rows - group * kRows);
#pragma unroll
        for (int n = 0; n < kStates; n++) h[n] = next_h[n];
        const float2 u = widen<T>(next_u), z = widen<T>(next_z);
        fetch_states(group + step);
        fetch_row(group + step);
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        fetch_inputs(group + step, half ^ 1);
        const float *const inputs = s_inputs + half * kRows * width;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int part = warp / 4 + 2 * i;
            Sum sum;
            for (int chunk = part; chunk < chunks; chunk += kParts) {
                const int k = chunk * 32 + lane % 4 * 8;
                uint4 x{};
                if (k < rank && g < rows) {
                    const float4 v = *reinterpret_cast<const float4 *>(inputs + g * width + k), w = *reinterpret_cast<const float4 *>(inputs + g * width + k + 4);
                    x = uint4{word<T>(v.x, v.y), word<T>(v.z, v.w), word<T>(w.x, w.y), word<T>(w.z, w.w)};
                }
                const uint4 *const from = weights + (chunk * 4 + tile) * 64 + lane;
                multiply<T>(sum, from[0], from[32], x);
            }
            put(sum, parts[part], tile * 16);
        }
        __syncthreads();
        if (warp < rows) {
            float2 delta = bias;
#pragma unroll
            for (int i = 0; i < kParts; i++) {
                const float2 part = *reinterpret_cast<const float2 *>(&parts[i][warp][2 * lane]);
                delta.x += part.x, delta.y += part.y;
            }
            delta.x = softplus<T>(delta.x), delta.y = softplus<T>(delta.y);
            const float2 input{delta.x * u.x, delta.y * u.y};
            const float *const b = inputs + warp * width + rank, *const to_y = b + kStates;
            float *const to = place(row);
            float2 y{}, sum{};
#pragma unroll
            for (int n = 0; n < kStates; n++) {
                const float2 a = *reinterpret_cast<const float2 *>(s_a + n * kChannels + 2 * lane);
                h[n].x = fmaf(exp2_fast(delta.x * (a.x * kLog2e)), h[n].x, input.x * b[n]);
                h[n].y = fmaf(exp2_fast(delta.y * (a.y * kLog2e)), h[n].y, input.y * b[n]);
                // Two by two, as the warps of the kernel for few sequences do.
                sum = n % 2 ? float2{fmaf(h[n].x, to_y[n], sum.x), fmaf(h[n].y, to_y[n], sum.y)} : float2{fmaf(h[n].x, to_y[n], 0.f), fmaf(h[n].y, to_y[n], 0.f)};
                if (n % 2) y.x += sum.x, y.y += sum.y;
                __stcs(reinterpret_cast<float2 *>(to + (long long)n * E), h[n]);
            }
            y.x = fmaf(skip.x, u.x, y.x) * z.x * reciprocal(1.f + exponential<T>(-z.x));
            y.y = fmaf(skip.y, u.y, y.y) * z.y * reciprocal(1.f + exponential<T>(-z.y));
            *reinterpret_cast<uint32_t *>(static_cast<T *>(p.y) + (long long)row * E + c) = word<T>(y.x, y.y);
        }
    }
}

} // namespace step

extern "C" __global__ void __launch_bounds__(256, 2) step_scan_bf16(const __grid_constant__ StepScan p) { step::scan<__nv_bfloat16>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) step_scan_f16(const __grid_constant__ StepScan p) { step::scan<__half>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) step_scan_many_bf16(const __grid_constant__ StepScan p) { step::scan_many<__nv_bfloat16>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) step_scan_many_f16(const __grid_constant__ StepScan p) { step::scan_many<__half>(p); }
