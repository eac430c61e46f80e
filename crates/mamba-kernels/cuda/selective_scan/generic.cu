// Selective scan for any shape: 1 to 256 states, any channel count, stride and alignment. Simple, not fast.
// `width` lanes (the power of two >= states, at most 32) share a channel; a lane owns states lane % width + 32 k,
// k < kPerLane = 1, 2, 4, 8 (the instance is the smallest with 32 kPerLane >= states).
//
// Launch                                    grid                              block   dynamic shared memory
//   selective_scan_generic_forward_*_K      (ceil(channels / (32 / width)),   32      0
//                                            segment_count)
//   selective_scan_generic_backward_*_K     (partials, segment_count)         32      64 * 32 * K * 4 bytes
// Sequences are not split (segment_state is null). Backward: block x walks the channel groups x, x + partials, ...
// and adds their dB and dC to its own row of bc_partial, which starts at zero: any partials >= 1 will do.
#include "common.cuh"

namespace scan {

__device__ __forceinline__ int lanes_a_channel(int states) {
    int width = 1;
    while (width < states && width < 32) width *= 2;
    return width;
}
__device__ __forceinline__ float sum_below(float x, int width) { // over the lanes of a channel
    for (int d = 1; d < width; d *= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
__device__ __forceinline__ float sum_from(float x, int width) { // over the channels of a warp
    for (int d = width; d < 32; d *= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
template <class T> __device__ __forceinline__ float at(const void *base, long long stride, long long t, int i) {
    return to_float(row<T>(base, stride, t)[i]);
}

template <class T, int kPerLane> __device__ void generic_forward(const ScanForward &p) {
    const int E = p.channels, N = p.states, width = lanes_a_channel(N), lane = threadIdx.x % width;
    const int ch = blockIdx.x * (32 / width) + threadIdx.x / width;
    const bool alive = ch < E;
    const int c = alive ? ch : 0;
    const ScanSegment seg = p.segments[blockIdx.y];
    const float bias = p.delta_bias ? p.delta_bias[c] : 0.f, skip = p.d ? p.d[c] : 0.f;
    const float *init = initial_state(p, seg);
    float a[kPerLane], h[kPerLane];
    bool has[kPerLane];
#pragma unroll
    for (int k = 0; k < kPerLane; k++) {
        int n = lane + 32 * k;
        has[k] = alive && n < N;
        a[k] = has[k] ? p.a[(long long)n * E + c] * kLog2e : 0.f;
        h[k] = has[k] && init ? init[(long long)n * E + c] : 0.f;
    }
    auto store = [&](float *to) { // [N, E]
#pragma unroll
        for (int k = 0; k < kPerLane; k++)
            if (has[k]) to[(long long)(lane + 32 * k) * E + c] = h[k];
    };
    for (int t = seg.begin; t < seg.end; t++) {
        if (p.boundary_state && (t - seg.begin) % kChunk == 0)
            store(p.boundary_state + (long long)(seg.chunk + (t - seg.begin) / kChunk) * N * E);
        const float u = at<T>(p.u, p.u_stride, t, c);
        float step = at<T>(p.delta, p.delta_stride, t, c) + bias, y = 0.f;
        if (p.softplus) step = softplus<T>(step);
#pragma unroll
        for (int k = 0; k < kPerLane; k++) {
            if (!has[k]) continue;
            const int n = lane + 32 * k;
            h[k] = fmaf(exp2_fast(step * a[k]), h[k], step * u * at<T>(p.b, p.b_stride, t, n));
            y = fmaf(h[k], at<T>(p.c, p.c_stride, t, n), y);
        }
        y = fmaf(skip, u, sum_below(y, width));
        if (p.z) {
            float z = at<T>(p.z, p.z_stride, t, c);
            y *= z * sigmoid(z);
        }
        if (alive && lane == 0) row<T>(p.y, p.y_stride, t)[c] = from_float<T>(y);
    }
    if (seg.last && p.last_state) store(state_slot(p.last_state, p.state_stride, seg.slot));
}

template <class T, int kPerLane> __device__ void generic_backward(const ScanBackward &p) {
    extern __shared__ float s_before[]; // [64 steps][kPerLane][32 lanes]: the state before each step
    const int E = p.channels, N = p.states, width = lanes_a_channel(N), lane = threadIdx.x % width;
    const int per_warp = 32 / width, groups = (E + per_warp - 1) / per_warp;
    const ScanSegment seg = p.segments[blockIdx.y];
    const float *last_grad = state_slot(p.last_state_grad, p.state_stride, seg.slot);
    float *partial = p.bc_partial + (long long)blockIdx.x * p.tokens * 2 * N;
    for (long long i = threadIdx.x; i < (long long)(seg.end - seg.begin) * 2 * N; i += 32)
        partial[(long long)seg.begin * 2 * N + i] = 0.f;
    __syncwarp();

    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        const int ch = group * per_warp + threadIdx.x / width;
        const bool alive = ch < E;
        const int c = alive ? ch : 0;
        const float bias = p.delta_bias ? p.delta_bias[c] : 0.f, skip = p.d ? p.d[c] : 0.f;
        float a[kPerLane], carry[kPerLane], da[kPerLane], da_chunk[kPerLane], dd = 0.f, dbias = 0.f; // carry: dL/dh from later steps
        bool has[kPerLane];
#pragma unroll
        for (int k = 0; k < kPerLane; k++) {
            int n = lane + 32 * k;
            has[k] = alive && n < N;
            a[k] = has[k] ? p.a[(long long)n * E + c] : 0.f;
            da[k] = da_chunk[k] = 0.f;
            carry[k] = has[k] && last_grad ? last_grad[(long long)n * E + c] : 0.f;
        }
        const int chunks = (seg.end - seg.begin + kChunk - 1) / kChunk;
        for (int chunk = chunks - 1; chunk >= 0; chunk--) {
            const int t0 = seg.begin + chunk * kChunk, count = min(kChunk, seg.end - t0);
            float h[kPerLane];
#pragma unroll
            for (int k = 0; k < kPerLane; k++)
                h[k] = has[k] ? p.boundary_state[((long long)(seg.chunk + chunk) * N + lane + 32 * k) * E + c] : 0.f;
            for (int i = 0; i < count; i++) {
                const float u = at<T>(p.u, p.u_stride, t0 + i, c);
                float step = at<T>(p.delta, p.delta_stride, t0 + i, c) + bias;
                if (p.softplus) step = softplus<T>(step);
#pragma unroll
                for (int k = 0; k < kPerLane; k++) {
                    s_before[(i * kPerLane + k) * 32 + threadIdx.x] = h[k];
                    if (has[k])
                        h[k] = fmaf(exp2_fast(step * a[k] * kLog2e), h[k],
                                    step * u * at<T>(p.b, p.b_stride, t0 + i, lane + 32 * k));
                }
            }
            for (int i = count - 1; i >= 0; i--) {
                const int t = t0 + i;
                const float u = at<T>(p.u, p.u_stride, t, c), dout = at<T>(p.dy, p.dy_stride, t, c);
                float step = at<T>(p.delta, p.delta_stride, t, c) + bias, slope = 1.f, dy = dout, dz_factor = 0.f;
                if (p.softplus) step = softplus<T>(step, slope);
                if (p.z) {
                    float z = at<T>(p.z, p.z_stride, t, c), s = sigmoid(z);
                    dy = dout * z * s;
                    dz_factor = dout * s * fmaf(z, 1.f - s, 1.f);
                }
                float y = 0.f, sum_b = 0.f, sum_a = 0.f; // over states: C h, B dh, A e h dh
#pragma unroll
                for (int k = 0; k < kPerLane; k++) {
                    const int n = lane + 32 * k;
                    float db = 0.f, dc = 0.f;
                    if (has[k]) {
                        const float b = at<T>(p.b, p.b_stride, t, n), cv = at<T>(p.c, p.c_stride, t, n);
                        const float before = s_before[(i * kPerLane + k) * 32 + threadIdx.x];
                        const float decay = exp2_fast(step * a[k] * kLog2e), now = fmaf(decay, before, step * u * b);
                        const float dh = fmaf(cv, dy, carry[k]), through = decay * dh * before;
                        y = fmaf(cv, now, y);
                        sum_b = fmaf(dh, b, sum_b);
                        sum_a = fmaf(through, a[k], sum_a);
                        da_chunk[k] = fmaf(step, through, da_chunk[k]);
                        carry[k] = decay * dh;
                        db = step * u * dh;
                        dc = dy * now;
                    }
                    db = sum_from(db, width);
                    dc = sum_from(dc, width);
                    if (threadIdx.x < width && n < N) {
                        partial[(long long)t * 2 * N + n] += db;
                        partial[(long long)t * 2 * N + N + n] += dc;
                    }
                }
                y = sum_below(y, width);
                sum_b = sum_below(sum_b, width);
                sum_a = sum_below(sum_a, width);
                const float ddelta = fmaf(u, sum_b, sum_a) * slope;
                dd = fmaf(dy, u, dd);
                dbias += ddelta;
                if (alive && lane == 0) {
                    row<T>(p.du, p.du_stride, t)[c] = from_float<T>(fmaf(skip, dy, step * sum_b));
                    row<T>(p.ddelta, p.ddelta_stride, t)[c] = from_float<T>(ddelta);
                    if (p.z) row<T>(p.dz, p.dz_stride, t)[c] = from_float<T>(dz_factor * fmaf(skip, u, y));
                }
            }
#pragma unroll
            for (int k = 0; k < kPerLane; k++) { // two-level sums lose less
                da[k] += da_chunk[k];
                da_chunk[k] = 0.f;
            }
        }
#pragma unroll
        for (int k = 0; k < kPerLane; k++) {
            if (!has[k]) continue;
            const int n = lane + 32 * k;
            p.a_partial[((long long)blockIdx.y * N + n) * E + c] = da[k];
            if (p.initial_state_grad) state_slot(p.initial_state_grad, p.state_stride, seg.slot)[(long long)n * E + c] = seg.fresh ? 0.f : carry[k];
        }
        if (alive && lane == 0) {
            p.d_partial[(long long)blockIdx.y * E + c] = dd;
            p.bias_partial[(long long)blockIdx.y * E + c] = dbias;
        }
    }
}

} // namespace scan

#define SCAN_GENERIC(T, name, K)                                                                               \
    SCAN_KERNEL(selective_scan_generic_forward_##name##_##K, ScanForward, 32, 1, (scan::generic_forward<T, K>(p))) \
    SCAN_KERNEL(selective_scan_generic_backward_##name##_##K, ScanBackward, 32, 1, (scan::generic_backward<T, K>(p)))
#define SCAN_GENERIC_TYPES(K)                                                                                  \
    SCAN_GENERIC(__nv_bfloat16, bf16, K)                                                                       \
    SCAN_GENERIC(__half, f16, K)                                                                               \
    SCAN_GENERIC(float, f32, K)
SCAN_GENERIC_TYPES(1)
SCAN_GENERIC_TYPES(2)
SCAN_GENERIC_TYPES(4)
SCAN_GENERIC_TYPES(8)
