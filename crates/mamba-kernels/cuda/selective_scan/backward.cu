// Selective scan, backward, 16 states a channel: all gradients, from the state that forward kept before every
// 64th token. With dh_t = C_t dy_t + e_{t+1} dh_{t+1}, e = exp(step A), q = e h_{t-1} dh:
//   du = D dy + step sum_n(B dh)     dstep = u sum_n(B dh) + sum_n(A q)     dA = sum_t step q
//   dB = sum_channels(step u dh)     dC = sum_channels(dy h)                 dy = dout silu(z)
//
// Launch                                   grid                                    block  dynamic shared memory
//   selective_scan_backward_local_*        (ceil(channels / 64), segment_count)    128    0
//   selective_scan_backward_carry          (ceil(channels / 32), 16, sequences)    32     0
//   selective_scan_backward_*              (ceil(channels / 64), segment_count)    128    kScanBackwardShared
//   selective_scan_reduce                  (ceil(tokens * 2 * states / 128)        128    0
//                                            + (states + 2) * ceil(channels / 128))
// local and carry (not with carry_inside) only where sequences are split. partials = ceil(channels / 64). reduce
// also ends generic.cu's backward. The kernel right behind local, and reduce behind backward, may be launched with
// programmatic stream serialization. Needs the same shapes and alignments as forward's tile kernel, and two elements'
// for the outputs.
//
// A warp is 16 channels (tile.cuh). Per 64 steps, from the last to the first:
//   1. forward from the kept state, leaving the state before every 4th step in a scratch that stays in the L2
//      (in shared memory it would cost the third block a multiprocessor);
//   2. 4 steps at a time from the last: e and h of all four in registers, then backwards through them.
// So every exponential is taken twice. Sums over a channel's states (y, B dh, A q) are tensor-core products that
// also hand step i to lane q = i; sums over channels (dB, dC) go through shared memory, then over the block's
// warps, then in a second kernel over blocks, always in one order.
#include "tile.cuh"

namespace scan {

constexpr int kChannels = 64, kThreads = 128, kWarps = 4, kTile = 4, kRows = 8;

struct BackwardShared {
    float4 b[kChunk][N / 4], c[kChunk][N / 4];
    struct Warp {
        float4 step[kRows][8];                // (step, step, step u, step u) of channels 2g, 2g+1
        float4 grad[kRows][8];                // (dy, dy, u, u)
        float4 rest[kRows][8];                // (softplus slope, slope, dz / y, dz / y)
        float4 sums[kTile][8][8];             // [step][g][dB quads, dC quads; halves swapped for odd g]
        float part[2][kRows][2 * N];
        float4 total[3][32];                  // dA, dD and dbias of the chunks done: two-level sums lose less
    } warp[kWarps];
};

static_assert(sizeof(BackwardShared) == kScanBackwardShared);

// delta_bias of the 4 channels that a lane converts.
__device__ __forceinline__ void load_bias(float (&bias)[4], const float *from, int channel, bool alive) {
#pragma unroll
    for (int i = 0; i < 4; i++) bias[i] = from && alive ? from[channel + i] : 0.f;
}

// Rows t0 .. t0+63 of b or c as f32; the whole block, no barrier.
template <class T>
__device__ __forceinline__ void load_states(float4 (&to)[kChunk][N / 4], const void *base, long long stride, int t0, int end) {
#pragma unroll
    for (int i = 0; i < kChunk * (N / 4) / kThreads; i++) {
        int k = threadIdx.x + i * kThreads, r = k / 4, c = k % 4;
        to[r][c] = widen<T>(load_if<Four<T>>(row<T>(base, stride, t0 + r) + 4 * c, t0 + r < end));
    }
}

template <class T> __device__ void backward(const ScanBackward &p) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    BackwardShared &s = *reinterpret_cast<BackwardShared *>(shared_bytes);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, E = p.channels;
    BackwardShared::Warp &w = s.warp[warp];
    const int warp_channel = blockIdx.x * kChannels + warp * 16, ch = warp_channel + 2 * g;
    const bool alive = ch < E;
    const Corner corner{E, ch, q, alive};
    const long long matrix = (long long)N * E;
    const ScanSegment seg = p.segments[blockIdx.y];

    // State before every 4th step: [channel][lane] of this warp.
    float4 *scratch = reinterpret_cast<float4 *>(p.state_scratch) +
                      (((long long)blockIdx.y * gridDim.x + blockIdx.x) * kWarps + warp) * (kChunk / kTile * 64) + lane;

    float a[2][4], carry[2][4], da[2][4] = {}, dbias[2] = {}, dd[2] = {};
    {
        if (p.segment_state) wait_for_previous();
        const bool ready = p.segment_state && !p.carry_inside; // the carry kernel has been here
        const float *from = ready ? p.segment_state + blockIdx.y * matrix
                                  : state_slot(p.last_state_grad, p.state_stride, seg.slot);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            long long at = (long long)(4 * q + r) * E + ch;
            float2 av = load_pair(p.a, at, alive), cv = load_pair(from, at, alive && from);
            a[0][r] = av.x * kLog2e;
            a[1][r] = av.y * kLog2e;
            carry[0][r] = cv.x;
            carry[1][r] = cv.y;
        }
        if (p.segment_state && p.carry_inside) {
            const int last = p.first_segment[seg.sequence + 1] - 1;
            corner.chain<4>(carry, a, p.segment_state, p.segment_delta, last, -1, last - blockIdx.y);
        }
    }
    const float2 skip = load_pair(p.d, ch, alive && p.d);
    float even[kTile], odd[kTile]; // operand B that puts step i's two channels into columns 2i, 2i+1
#pragma unroll
    for (int i = 0; i < kTile; i++) {
        even[i] = g == 2 * i ? 1.f : 0.f;
        odd[i] = g == 2 * i + 1 ? 1.f : 0.f;
    }

    // The elementwise part of 8 rows: a lane converts 4 channels of one row.
    const int part = lane % 4, part_row = lane / 4, part_channel = warp_channel + 4 * part;
    const bool part_alive = part_channel < E;
    float bias[4];
    load_bias(bias, p.delta_bias, part_channel, part_alive);
    auto load = [&](const void *base, long long stride, int t, bool wanted = true) {
        return load_if<Four<T>>(row<T>(base, stride, t) + part_channel, wanted && part_alive && t < seg.end);
    };

    const int chunks = (seg.end - seg.begin + kChunk - 1) / kChunk;
    int buffer = 0;
#pragma unroll
    for (int i = 0; i < 3; i++) w.total[i][lane] = make_float4(0.f, 0.f, 0.f, 0.f);
    auto add_to_total = [&](int i, float &x, float &y, float &z, float &v) {
        float4 t = w.total[i][lane];
        w.total[i][lane] = make_float4(t.x + x, t.y + y, t.z + z, t.w + v);
        x = y = z = v = 0.f;
    };
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        const int t0 = seg.begin + chunk * kChunk, groups = (min(kChunk, seg.end - t0) + kRows - 1) / kRows;
        __syncthreads();
        load_states<T>(s.b, p.b, p.b_stride, t0, seg.end);
        load_states<T>(s.c, p.c, p.c_stride, t0, seg.end);

        // 1. Forward.
        float h[2][4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float2 v = load_pair(p.boundary_state, ((long long)(seg.chunk + chunk) * N + 4 * q + r) * E + ch, alive);
            h[0][r] = v.x;
            h[1][r] = v.y;
        }
        int t8 = t0 + (groups - 1) * kRows + part_row; // what part 2 begins with, in good time
        Four<T> in_u = load(p.u, p.u_stride, t8), in_delta = load(p.delta, p.delta_stride, t8);
        Four<T> in_z = load(p.z, p.z_stride, t8, p.z != nullptr), in_dy = load(p.dy, p.dy_stride, t8);
        Four<T> next_u = load(p.u, p.u_stride, t0 + part_row), next_delta = load(p.delta, p.delta_stride, t0 + part_row);
        __syncthreads();
        for (int group = 0; group < groups; group++) {
            const int t = t0 + group * kRows + part_row;
            float4 u = widen<T>(next_u), x = widen<T>(next_delta);
            if (group + 1 < groups) {
                next_u = load(p.u, p.u_stride, t + kRows);
                next_delta = load(p.delta, p.delta_stride, t + kRows);
            }
            float step[4] = {x.x + bias[0], x.y + bias[1], x.z + bias[2], x.w + bias[3]};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                step[i] = select(p.softplus, softplus<T>(step[i]), step[i]);
                step[i] = select(t < seg.end, step[i], 0.f); // no step: the state stays
            }
            __syncwarp();
            w.step[part_row][2 * part] = make_float4(step[0], step[1], step[0] * u.x, step[1] * u.y);
            w.step[part_row][2 * part + 1] = make_float4(step[2], step[3], step[2] * u.z, step[3] * u.w);
            __syncwarp();
#pragma unroll
            for (int tile = 0; tile < kRows / kTile; tile++) {
                const int first = group * kRows + tile * kTile;
                scratch[first / kTile * 64] = make_float4(h[0][0], h[0][1], h[0][2], h[0][3]);
                scratch[first / kTile * 64 + 32] = make_float4(h[1][0], h[1][1], h[1][2], h[1][3]);
                if (tile == 1 && group + 1 == groups) break; // nobody needs the state after the last tile
                float e[kTile][2][4];
                float4 x4[kTile];
#pragma unroll
                for (int i = 0; i < kTile; i++) {
                    x4[i] = w.step[tile * kTile + i][g];
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        e[i][0][r] = exp2_fast(x4[i].x * a[0][r]);
                        e[i][1][r] = exp2_fast(x4[i].y * a[1][r]);
                    }
                }
#pragma unroll
                for (int i = 0; i < kTile; i++) {
                    const float4 b4 = s.b[first + i][q];
                    const float b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        h[0][r] = fmaf(e[i][0][r], h[0][r], x4[i].z * b[r]);
                        h[1][r] = fmaf(e[i][1][r], h[1][r], x4[i].w * b[r]);
                    }
                }
            }
        }

        // 2. Backward. Each lane reads back what it wrote.
        float4 kept0 = scratch[(groups * 2 - 1) * 64], kept1 = scratch[(groups * 2 - 1) * 64 + 32];
        for (int group = groups - 1; group >= 0; group--, buffer ^= 1, t8 -= kRows) {
            {
                float4 u4 = widen<T>(in_u), x4 = widen<T>(in_delta), z4 = widen<T>(in_z), o4 = widen<T>(in_dy);
                float u[4] = {u4.x, u4.y, u4.z, u4.w}, step[4] = {x4.x, x4.y, x4.z, x4.w}, z[4] = {z4.x, z4.y, z4.z, z4.w};
                float dy[4] = {o4.x, o4.y, o4.z, o4.w}, slope[4], dz[4];
#pragma unroll
                for (int i = 0; i < 4; i++) step[i] += bias[i];
                const int valid = t8 < seg.end, gated = p.z != nullptr;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float slope_here;
                    const float step_here = softplus<T>(step[i], slope_here);
                    step[i] = select(valid, select(p.softplus, step_here, step[i]), 0.f);
                    slope[i] = select(valid, select(p.softplus, slope_here, 1.f), 0.f); // no step, no gradient
                    const float sg = sigmoid(z[i]), o = dy[i] * sg;
                    dy[i] = select(gated, o * z[i], dy[i]);
                    dz[i] = o * fmaf(z[i], 1.f - sg, 1.f);
                }
                __syncwarp();
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int j = 2 * i, k = j + 1;
                    w.step[part_row][2 * part + i] = make_float4(step[j], step[k], step[j] * u[j], step[k] * u[k]);
                    w.grad[part_row][2 * part + i] = make_float4(dy[j], dy[k], u[j], u[k]);
                    w.rest[part_row][2 * part + i] = make_float4(slope[j], slope[k], dz[j], dz[k]);
                }
                __syncwarp();
            }
            if (group > 0) {
                const int t = t8 - kRows;
                in_u = load(p.u, p.u_stride, t);
                in_delta = load(p.delta, p.delta_stride, t);
                in_z = load(p.z, p.z_stride, t, p.z != nullptr);
                in_dy = load(p.dy, p.dy_stride, t);
            }
#pragma unroll 1
            for (int tile = kRows / kTile - 1; tile >= 0; tile--) {
                const int first = group * kRows + tile * kTile;
                const float4(*step)[8] = w.step + tile * kTile, (*grad)[8] = w.grad + tile * kTile;
                const float4(*rest)[8] = w.rest + tile * kTile;
                float decay[kTile][2][4], y[2];
                float state[kTile + 1][2][4] = {{{kept0.x, kept0.y, kept0.z, kept0.w}, {kept1.x, kept1.y, kept1.z, kept1.w}}};
                if (first > 0) {
                    kept0 = scratch[(first / kTile - 1) * 64];
                    kept1 = scratch[(first / kTile - 1) * 64 + 32];
                }
#pragma unroll
                for (int i = 0; i < kTile; i++) {
                    const float4 x4 = step[i][g];
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        decay[i][0][r] = exp2_fast(x4.x * a[0][r]);
                        decay[i][1][r] = exp2_fast(x4.y * a[1][r]);
                    }
                }
                const float4 c_column = s.c[first + g / 2][q]; // operand B: column g is step g / 2
#pragma unroll
                for (int i = 0; i < kTile; i++) {
                    const float4 x4 = step[i][g], b4 = s.b[first + i][q];
                    const float b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int r = 0; r < 4; r++)
                            state[i + 1][k][r] = fmaf(decay[i][k][r], state[i][k][r], (k ? x4.w : x4.z) * b[r]);
                    if constexpr (kExact<T>) {
                        const float4 c4 = s.c[first + i][q];
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            const float(&v)[4] = state[i + 1][k];
                            float sum = quad_sum(fmaf(v[3], c4.w, fmaf(v[2], c4.z, fmaf(v[1], c4.y, v[0] * c4.x))));
                            if (q == i) y[k] = sum;
                        }
                    } else {
                        float product[4] = {0.f, 0.f, 0.f, 0.f};
                        const float(&v)[4] = state[i + 1][0], (&v1)[4] = state[i + 1][1];
                        mma(product, v[0], v1[0], v[1], v1[1], c_column.x, c_column.y);
                        mma(product, v[2], v1[2], v[3], v1[3], c_column.z, c_column.w);
                        if (q == i) {
                            y[0] = product[0] * kCutMean;
                            y[1] = product[2] * kCutMean;
                        }
                    }
                }
                float sums[4] = {0.f, 0.f, 0.f, 0.f}; // of step q: sum B dh of both channels, then dstep
#pragma unroll
                for (int i = kTile - 1; i >= 0; i--) {
                    const float4 x4 = step[i][g], d4 = grad[i][g], b4 = s.b[first + i][q], c4 = s.c[first + i][q];
                    const float2 slope2 = *reinterpret_cast<const float2 *>(&rest[i][g]);
                    const float b[4] = {b4.x, b4.y, b4.z, b4.w}, c[4] = {c4.x, c4.y, c4.z, c4.w};
                    float db[4], dc[4], sum_b[2], dstep[2];
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const float st = k ? x4.y : x4.x, in = k ? x4.w : x4.z, dy = k ? d4.y : d4.x, u = k ? d4.w : d4.z;
                        float x1 = 0.f, x2 = 0.f;
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            const float dh = fmaf(c[r], dy, carry[k][r]);
                            x1 = r ? fmaf(dh, b[r], x1) : dh * b[r];
                            db[r] = k ? fmaf(in, dh, db[r]) : in * dh;
                            dc[r] = k ? fmaf(dy, state[i + 1][k][r], dc[r]) : dy * state[i + 1][k][r];
                            carry[k][r] = decay[i][k][r] * dh;
                            const float through = carry[k][r] * state[i][k][r];
                            x2 = r ? fmaf(through, a[k][r], x2) : through * a[k][r];
                            da[k][r] = fmaf(st, through, da[k][r]);
                        }
                        sum_b[k] = x1;
                        dstep[k] = fmaf(u, x1, kLn2 * x2);
                        dbias[k] = fmaf(k ? slope2.y : slope2.x, dstep[k], dbias[k]);
                    }
                    if constexpr (kExact<T>) {
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            float v0 = quad_sum(sum_b[k]), v1 = quad_sum(dstep[k]);
                            if (q == i) {
                                sums[k] = v0;
                                sums[2 + k] = v1;
                            }
                        }
                    } else {
                        mma(sums, sum_b[0], dstep[0], sum_b[1], dstep[1], even[i], odd[i]);
                    }
                    w.sums[i][g][4 * (g & 1) + q] = make_float4(db[0], db[1], db[2], db[3]);
                    w.sums[i][g][4 * (~g & 1) + q] = make_float4(dc[0], dc[1], dc[2], dc[3]);
                }
                {
                    constexpr float kScale = kExact<T> ? 1.f : kCutMean;
                    const float4 x4 = step[q][g], d4 = grad[q][g], r4 = rest[q][g];
                    const int t = t0 + first + q;
                    dd[0] = fmaf(d4.x, d4.z, dd[0]);
                    dd[1] = fmaf(d4.y, d4.w, dd[1]);
                    const bool valid = t < seg.end && alive;
                    store_if<T>(row<T>(p.du, p.du_stride, t) + ch,
                                pair_of<T>(fmaf(skip.x, d4.x, x4.x * (sums[0] * kScale)), fmaf(skip.y, d4.y, x4.y * (sums[1] * kScale))), valid);
                    store_if<T>(row<T>(p.ddelta, p.ddelta_stride, t) + ch, pair_of<T>(sums[2] * kScale * r4.x, sums[3] * kScale * r4.y), valid);
                    store_if<T>(row<T>(p.dz, p.dz_stride, t) + ch,
                                pair_of<T>(r4.z * fmaf(skip.x, d4.z, y[0]), r4.w * fmaf(skip.y, d4.w, y[1])), valid && p.dz);
                }
                __syncwarp();
                { // lane: step lane / 8, quad lane % 8 of (dB, dC)
                    const int i = lane / 8, quad = lane % 8;
                    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
                    for (int k = 0; k < 8; k++) {
                        float4 v = w.sums[i][k][quad ^ (4 * (k & 1))];
                        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
                    }
                    *reinterpret_cast<float4 *>(&w.part[buffer][tile * kTile + i][4 * quad]) = sum;
                }
                __syncwarp();
            }
            __syncthreads();
            { // 8 rows of dB and dC over the block's warps
                const int i = threadIdx.x / 16, k = 2 * (threadIdx.x % 16), t = t0 + group * kRows + i;
                float2 sum = make_float2(0.f, 0.f);
#pragma unroll
                for (int j = 0; j < kWarps; j++) {
                    float2 v = *reinterpret_cast<const float2 *>(&s.warp[j].part[buffer][i][k]);
                    sum.x += v.x, sum.y += v.y;
                }
                if (t < seg.end)
                    *reinterpret_cast<float2 *>(p.bc_partial + ((long long)blockIdx.x * p.tokens + t) * 2 * N + k) = sum;
            }
        }
        add_to_total(0, da[0][0], da[0][1], da[0][2], da[0][3]);
        add_to_total(1, da[1][0], da[1][1], da[1][2], da[1][3]);
        add_to_total(2, dd[0], dd[1], dbias[0], dbias[1]);
    }
    let_next_start();
    {
        const float4 t0 = w.total[0][lane], t1 = w.total[1][lane], t2 = w.total[2][lane];
        da[0][0] = t0.x, da[0][1] = t0.y, da[0][2] = t0.z, da[0][3] = t0.w;
        da[1][0] = t1.x, da[1][1] = t1.y, da[1][2] = t1.z, da[1][3] = t1.w;
        dd[0] = t2.x, dd[1] = t2.y, dbias[0] = t2.z, dbias[1] = t2.w;
    }
    if (seg.first && p.initial_state_grad && alive) { // apart from a_partial: together they disturb the loops above
        float *to = state_slot(p.initial_state_grad, p.state_stride, seg.slot) + 4LL * q * E + ch;
        for (int r = 0; r < 4; r++)
            *reinterpret_cast<float2 *>(to + (long long)r * E) =
                p.segments[blockIdx.y].fresh ? make_float2(0.f, 0.f) : make_float2(carry[0][r], carry[1][r]);
    }
    corner.store(p.a_partial + blockIdx.y * matrix, da);
    const float d0 = quad_sum(dd[0]), d1 = quad_sum(dd[1]), b0 = quad_sum(dbias[0]), b1 = quad_sum(dbias[1]);
    if (alive && q == 0) {
        *reinterpret_cast<float2 *>(p.d_partial + (long long)blockIdx.y * E + ch) = make_float2(d0, d1);
        *reinterpret_cast<float2 *>(p.bias_partial + (long long)blockIdx.y * E + ch) = make_float2(b0, b1);
    }
}

// The gradient that leaves each segment at its front if none enters at its end, and the sum of its step sizes.
template <class T> __device__ void backward_local(const ScanBackward &p) {
    __shared__ float4 c[kChunk][N / 4];
    __shared__ float4 x[kWarps][kRows][8]; // (step, step, dy, dy) of channels 2g, 2g+1
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, E = p.channels;
    const int warp_channel = blockIdx.x * kChannels + warp * 16, ch = warp_channel + 2 * g;
    const bool alive = ch < E;
    const Corner corner{E, ch, q, alive};
    const long long matrix = (long long)N * E;
    const ScanSegment seg = p.segments[blockIdx.y];
    if (seg.first) return; // nothing waits for it
    float a[2][4], carry[2][4] = {}, sum[2] = {};
    corner.load_decay(a, p.a);
    const int part = lane % 4, part_row = lane / 4, part_channel = warp_channel + 4 * part;
    const bool part_alive = part_channel < E;
    float bias[4];
    load_bias(bias, p.delta_bias, part_channel, part_alive);
    auto load = [&](const void *base, long long stride, int t, bool wanted = true) {
        return load_if<Four<T>>(row<T>(base, stride, t) + part_channel, wanted && part_alive && t < seg.end);
    };
    for (int chunk = (seg.end - seg.begin - 1) / kChunk; chunk >= 0; chunk--) {
        const int t0 = seg.begin + chunk * kChunk, groups = (min(kChunk, seg.end - t0) + kRows - 1) / kRows;
        int t = t0 + (groups - 1) * kRows + part_row;
        // Two groups ahead.
        Four<T> in_delta = load(p.delta, p.delta_stride, t), in_dy = load(p.dy, p.dy_stride, t);
        Four<T> in_z = load(p.z, p.z_stride, t, p.z != nullptr);
        Four<T> next_delta = load(p.delta, p.delta_stride, t - kRows, groups > 1);
        Four<T> next_dy = load(p.dy, p.dy_stride, t - kRows, groups > 1);
        Four<T> next_z = load(p.z, p.z_stride, t - kRows, groups > 1 && p.z);
        __syncthreads();
        load_states<T>(c, p.c, p.c_stride, t0, seg.end);
        __syncthreads();
#pragma unroll 2
        for (int group = groups - 1; group >= 0; group--, t -= kRows) {
            float4 x4 = widen<T>(in_delta), z4 = widen<T>(in_z), o4 = widen<T>(in_dy);
            float step[4] = {x4.x, x4.y, x4.z, x4.w}, z[4] = {z4.x, z4.y, z4.z, z4.w}, dy[4] = {o4.x, o4.y, o4.z, o4.w};
            in_delta = next_delta, in_dy = next_dy, in_z = next_z;
            next_delta = load(p.delta, p.delta_stride, t - 2 * kRows, group > 1);
            next_dy = load(p.dy, p.dy_stride, t - 2 * kRows, group > 1);
            next_z = load(p.z, p.z_stride, t - 2 * kRows, group > 1 && p.z);
            const int gated = p.z != nullptr;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                step[i] += bias[i];
                step[i] = select(p.softplus, softplus<T>(step[i]), step[i]);
                step[i] = select(t < seg.end, step[i], 0.f);
                dy[i] = select(gated, dy[i] * z[i] * sigmoid(z[i]), dy[i]);
            }
            __syncwarp();
            x[warp][part_row][2 * part] = make_float4(step[0], step[1], dy[0], dy[1]);
            x[warp][part_row][2 * part + 1] = make_float4(step[2], step[3], dy[2], dy[3]);
            __syncwarp();
#pragma unroll
            for (int i = kRows - 1; i >= 0; i--) {
                const float4 v = x[warp][i][g], c4 = c[group * kRows + i][q];
                const float cv[4] = {c4.x, c4.y, c4.z, c4.w};
                sum[0] += v.x;
                sum[1] += v.y;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    carry[0][r] = exp2_fast(v.x * a[0][r]) * fmaf(cv[r], v.z, carry[0][r]);
                    carry[1][r] = exp2_fast(v.y * a[1][r]) * fmaf(cv[r], v.w, carry[1][r]);
                }
            }
        }
    }
    let_next_start();
    corner.store(p.segment_state + blockIdx.y * matrix, carry);
    if (alive && q == 0)
        *reinterpret_cast<float2 *>(p.segment_delta + (long long)blockIdx.y * E + ch) = make_float2(sum[0], sum[1]);
}

// Block (channels, state, sequence): turns what leaves each segment alone into what enters it from its end.
__device__ void backward_carry(const ScanBackward &p) {
    const int ch = blockIdx.x * 32 + threadIdx.x, E = p.channels;
    if (ch >= E) return;
    const long long at = (long long)blockIdx.y * E + ch;
    const float a = p.a[at] * kLog2e;
    const long long stride = (long long)N * E;
    const int begin = p.first_segment[blockIdx.z], end = p.first_segment[blockIdx.z + 1];
    const float *from = state_slot(p.last_state_grad, p.state_stride, p.segments[begin].slot);
    float carry = from ? from[at] : 0.f;
    constexpr int kBatch = 8; // loads in flight
    for (int i0 = end - 1; i0 >= begin; i0 -= kBatch) {
        float local[kBatch], delta[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            const bool valid = i0 - k > begin; // nobody waits for the first one's front
            local[k] = valid ? p.segment_state[(i0 - k) * stride + at] : 0.f;
            delta[k] = valid ? p.segment_delta[(long long)(i0 - k) * E + ch] : 0.f;
        }
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            if (i0 - k >= begin) p.segment_state[(i0 - k) * stride + at] = carry;
            carry = fmaf(exp2_fast(a * delta[k]), carry, local[k]);
        }
    }
}

// Sums of the partial results, a thread an element, any N: dB and dC over the blocks of channels in the first
// ceil(T 2N / 128) blocks; dA, dD and dbias over the segments in the rest, (N + 2) ceil(E / 128).
__device__ void reduce(const ScanBackward &p) {
    wait_for_previous();
    const int N = p.states, E = p.channels;
    const long long count = p.tokens * 2 * N, bc_blocks = (count + 127) / 128;
    if (blockIdx.x < bc_blocks) {
        const long long i = blockIdx.x * 128LL + threadIdx.x;
        if (i >= count) return;
        float sum = 0.f;
#pragma unroll 16
        for (int k = 0; k < p.partials; k++) sum += p.bc_partial[k * count + i];
        const long long t = i / (2 * N);
        const int n = (int)(i - t * 2 * N);
        if (n < N) p.db[t * p.db_stride + n] = sum;
        else p.dc[t * p.dc_stride + n - N] = sum;
        return;
    }
    const int block = (int)(blockIdx.x - bc_blocks), n = block % (N + 2), ch = block / (N + 2) * 128 + threadIdx.x;
    if (ch >= E) return;
    const float *from = n < N ? p.a_partial + (long long)n * E : n == N ? p.d_partial : p.bias_partial;
    float *to = n < N ? p.da + (long long)n * E : n == N ? p.dd : p.dbias;
    const long long stride = n < N ? (long long)N * E : E;
    if (!to) return;
    float sum = 0.f;
#pragma unroll 8
    for (int k = 0; k < p.segment_count; k++) sum += from[k * stride + ch];
    to[ch] = sum;
}

} // namespace scan

#define SCAN_BACKWARD(T, name)                                                                                 \
    SCAN_KERNEL(selective_scan_backward_##name, ScanBackward, scan::kThreads, 3, (scan::backward<T>(p)))       \
    SCAN_KERNEL(selective_scan_backward_local_##name, ScanBackward, scan::kThreads, 4, (scan::backward_local<T>(p)))
SCAN_BACKWARD(__nv_bfloat16, bf16)
SCAN_BACKWARD(__half, f16)
SCAN_BACKWARD(float, f32)
SCAN_KERNEL(selective_scan_backward_carry, ScanBackward, 32, 1, (scan::backward_carry(p)))
SCAN_KERNEL(selective_scan_reduce, ScanBackward, 128, 1, (scan::reduce(p)))
