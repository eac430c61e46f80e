// Selective scan, forward, 16 states a channel. Two kernels with one contract, and what time segments need:
//   selective_scan_forward_tile_*    many channels: 4 lanes a channel
//   selective_scan_forward_narrow_*  few channels: 8 lanes a channel
//   selective_scan_forward_local_*, selective_scan_forward_narrow_local_*
//                                    end state of each time segment from a zero state (the same loops without y)
//   selective_scan_forward_carry     chains those end states
// Nobody waits for the end state of a sequence's last segment: its row of segment_state takes the sequence's initial
// state, so that the main kernel never reads the slot into which one of its blocks writes the last state.
// Definition: crates/mamba/src/ops/selective_scan/reference.rs. All arithmetic in f32.
//
// Launch            grid                                    block  dynamic shared memory
//   tile, local     (ceil(channels / 64), segment_count)    128    scan_forward_tile_shared(size)
//   narrow, its     (ceil(channels / 8), segment_count)     128    0
//   local
//   carry           (ceil(channels / 32), 16, sequences)    32     0
// With split sequences: a local, carry (not with carry_inside), then tile or narrow; else one launch of those with
// segment_state null. Right behind local the main kernel may be launched with programmatic stream serialization.
// Needs: states == 16; channels a multiple of 16 bytes of the dtype; pointers and strides of u, delta, z, b, c
// multiples of 16 bytes, of y and the states two elements. Everything else goes to generic.cu.
#include "tile.cuh"

namespace scan {

// Operand B of products that only add up: the first four of k into column 2m, the last four into 2m + 1. g is the lane's.
struct Columns {
    float even[4], odd[4];
    __device__ __forceinline__ explicit Columns(int g) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
            even[m] = g == 2 * m ? 1.f : 0.f;
            odd[m] = g == 2 * m + 1 ? 1.f : 0.f;
        }
    }
};

// ------------------------------------------------------------------------------------------ tile
// A block is 4 warps, each 16 channels (tile.cuh). Stages of 16 steps: while one is scanned the next is converted (softplus once an element) and
// the one after it copied by cp.async; one barrier a stage.
// y = sum over states of C h is a tensor-core product. For bf16 h is operand A as it lies in the registers (rows are
// channels, k is states), C of eight steps is operand B (columns are steps); of the product for step i only
// column i is kept, and its lane q = i / 2 finishes that step. For f16 and f32, which that would not be exact enough for,
// a lane sums over its own four states in f32, and the product only adds up the four lanes: A is v and what the tensor
// core cuts off v, of two steps (k), B is ones where a step's column is. Both leave steps 2q and 2q+1 in lane q.

constexpr int kTileChannels = 64, kTileSteps = 16, kTileThreads = 128;

template <class T> struct TileShared {
    float4 x[2][kTileSteps][kTileChannels / 2]; // (step, step, step*u, step*u) of two channels
    float4 b[2][kTileSteps][N / 4];
    float4 c[2][kTileSteps][N / 4];
    T raw_u[3][kTileSteps][kTileChannels];
    T raw_delta[3][kTileSteps][kTileChannels];
    T raw_b[3][kTileSteps][N];
    T raw_c[3][kTileSteps][N];
};

static_assert(sizeof(TileShared<float>) == scan_forward_tile_shared(4) && sizeof(TileShared<__half>) == scan_forward_tile_shared(2));

template <class T, bool kLocal> __device__ void forward_tile(const ScanForward &p) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    TileShared<T> &s = *reinterpret_cast<TileShared<T> *>(shared_bytes);
    const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, q = lane % 4;
    const int first_channel = blockIdx.x * kTileChannels, E = p.channels;
    const int ch = first_channel + warp * 16 + 2 * g;
    const bool alive = ch < E;
    const Corner corner{E, ch, q, alive};
    const long long matrix = (long long)N * E;
    const ScanSegment seg = p.segments[blockIdx.y];

    float a[2][4], h[2][4] = {}, delta_sum0 = 0.f, delta_sum1 = 0.f;
    if (kLocal && seg.last) {
        corner.load(h, initial_state(p, seg));
        corner.store(p.segment_state + blockIdx.y * matrix, h);
        return;
    }
    corner.load_decay(a, p.a);
    const float2 skip = load_pair(p.d, ch, alive && p.d);

    // The conversion's part of the stage: 4 channels of 2 rows, and 4 states of one row of B or C.
    const int part = tid % 16, part_row = tid / 16;
    float bias[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int c = first_channel + 4 * part + i;
        bias[i] = p.delta_bias && c < E ? p.delta_bias[c] : 0.f;
    }
    // A thread copies 16 bytes of u and of delta (f32: twice, 8 rows apart), and of one row of B or C.
    constexpr int kPer = 16 / sizeof(T), kCopies = sizeof(T) / 2, kRowStep = kTileSteps / kCopies, kHalf = kTileThreads / 2;
    const int copy_row = tid / (kTileChannels / kPer), copy_channel = tid % (kTileChannels / kPer) * kPer;
    const int copy_at = first_channel + copy_channel < E ? first_channel + copy_channel : 0;
    const int bc_row = tid % kHalf / (N / kPer), bc_at = tid % kHalf % (N / kPer) * kPer;
    const T *from_u = row<T>(p.u, p.u_stride, seg.begin + copy_row) + copy_at;
    const T *from_delta = row<T>(p.delta, p.delta_stride, seg.begin + copy_row) + copy_at;
    const T *from_bc = (tid < kHalf ? row<T>(p.b, p.b_stride, seg.begin + bc_row) : row<T>(p.c, p.c_stride, seg.begin + bc_row)) + bc_at;
    const long long bc_stride = tid < kHalf ? p.b_stride : p.c_stride;
    auto copy_stage = [&](int t0, int ring) { // in order of t0
#pragma unroll
        for (int i = 0; i < kCopies; i++) {
            const int r = copy_row + i * kRowStep;
            const bool valid = t0 + r < seg.end && first_channel + copy_channel < E;
            copy16(&s.raw_u[ring][r][copy_channel], from_u + i * kRowStep * p.u_stride, valid);
            copy16(&s.raw_delta[ring][r][copy_channel], from_delta + i * kRowStep * p.delta_stride, valid);
        }
        if (bc_row < kTileSteps) copy16(tid < kHalf ? &s.raw_b[ring][bc_row][bc_at] : &s.raw_c[ring][bc_row][bc_at], from_bc, t0 + bc_row < seg.end);
        from_u += kTileSteps * p.u_stride;
        from_delta += kTileSteps * p.delta_stride;
        from_bc += kTileSteps * bc_stride;
        copy_commit();
    };
    auto convert = [&](int t0, int ring, int buffer) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int r = part_row + 8 * k;
            const float4 u = widen<T>(*reinterpret_cast<const Four<T> *>(&s.raw_u[ring][r][4 * part]));
            const float4 x = widen<T>(*reinterpret_cast<const Four<T> *>(&s.raw_delta[ring][r][4 * part]));
            float step[4] = {x.x + bias[0], x.y + bias[1], x.z + bias[2], x.w + bias[3]};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                step[i] = select(p.softplus, softplus<T>(step[i]), step[i]);
                step[i] = select(t0 + r < seg.end, step[i], 0.f); // no step: the state stays
            }
            s.x[buffer][r][2 * part] = make_float4(step[0], step[1], step[0] * u.x, step[1] * u.y);
            s.x[buffer][r][2 * part + 1] = make_float4(step[2], step[3], step[2] * u.z, step[3] * u.w);
        }
        const int k = tid % 64, r = k / 4, c = k % 4;
        if (tid < 64) s.b[buffer][r][c] = widen<T>(*reinterpret_cast<const Four<T> *>(&s.raw_b[ring][r][4 * c]));
        else if (!kLocal) s.c[buffer][r][c] = widen<T>(*reinterpret_cast<const Four<T> *>(&s.raw_c[ring][r][4 * c]));
    };

    const float ungated = p.z ? 0.f : 1.f; // z is zero then
    const int z_stride = (int)p.z_stride, y_stride = (int)p.y_stride;
    const T *from_z = p.z ? row<T>(p.z, z_stride, seg.begin + 2 * q) + ch : nullptr;
    T *to_y = kLocal ? nullptr : row<T>(p.y, y_stride, seg.begin + 2 * q) + ch;
    const Columns columns(g); // of steps 2m and 2m+1
    int ring = 0; // of the stage being scanned
    if (seg.begin < seg.end) {
        copy_stage(seg.begin, 0);
        copy_wait();
        __syncthreads();
        copy_stage(seg.begin + kTileSteps, 1);
        convert(seg.begin, 0, 0);
    }
    if (!kLocal) {
        if (p.segment_state) wait_for_previous();
        corner.load(h, state_before(p, seg));
        if (p.segment_state && p.carry_inside) {
            const int first = p.first_segment[seg.sequence];
            corner.chain<8>(h, a, p.segment_state, p.segment_delta, first, 1, blockIdx.y - first);
        }
    }
    for (int t0 = seg.begin, buffer = 0; t0 < seg.end; t0 += kTileSteps, buffer ^= 1) {
        copy_wait();
        __syncthreads();
        const int ring1 = ring == 2 ? 0 : ring + 1, ring2 = ring1 == 2 ? 0 : ring1 + 1;
        if (t0 + 2 * kTileSteps < seg.end) copy_stage(t0 + 2 * kTileSteps, ring2);
        if (!kLocal && p.boundary_state && (t0 - seg.begin) % kChunk == 0)
            corner.store(p.boundary_state + (seg.chunk + (t0 - seg.begin) / kChunk) * matrix, h);

        Two<T> gate[2][2] = {}; // z of steps 8*half + 2q, +1
        if (!kLocal && p.z) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = 8 * (i / 2) + i % 2;
                gate[i / 2][i % 2] = load_if<Two<T>>(from_z + r * z_stride, t0 + r + 2 * q < seg.end && alive);
            }
            from_z += kTileSteps * z_stride;
        }
        const float4 *x = &s.x[buffer][0][warp * 8 + g], *b = &s.b[buffer][0][q];
        // The exponentials run one step ahead: the unit's latency is several times a step's instructions.
        float4 x_next = x[0];
        float e0[4], e1[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            e0[r] = exp2_fast(x_next.x * a[0][r]);
            e1[r] = exp2_fast(x_next.y * a[1][r]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 c8 = s.c[buffer][8 * half + g][q];
            float y[2][2]; // [channel][step] of steps 2q, 2q+1
            float v[2][2], sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int t = 8 * half + i;
                const float4 xv = x_next, bv = b[t * (N / 4)];
                const float bs[4] = {bv.x, bv.y, bv.z, bv.w};
                float n0[4], n1[4];
                if (t + 1 < kTileSteps) {
                    x_next = x[(t + 1) * (kTileChannels / 2)];
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        n0[r] = exp2_fast(x_next.x * a[0][r]);
                        n1[r] = exp2_fast(x_next.y * a[1][r]);
                    }
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    h[0][r] = fmaf(e0[r], h[0][r], xv.z * bs[r]);
                    h[1][r] = fmaf(e1[r], h[1][r], xv.w * bs[r]);
                    e0[r] = n0[r];
                    e1[r] = n1[r];
                }
                if (kLocal) {
                    delta_sum0 += xv.x;
                    delta_sum1 += xv.y;
                } else if constexpr (kExact<T>) {
                    const float4 cv = s.c[buffer][t][q];
#pragma unroll
                    for (int k = 0; k < 2; k++)
                        v[i % 2][k] = fmaf(h[k][3], cv.w, fmaf(h[k][2], cv.z, fmaf(h[k][1], cv.y, h[k][0] * cv.x)));
                    if (i % 2) {
                        mma(sum, v[0][0], v[0][1], v[1][0], v[1][1], columns.even[i / 2], columns.odd[i / 2]);
                        mma(sum, v[0][0] - cut(v[0][0]), v[0][1] - cut(v[0][1]), v[1][0] - cut(v[1][0]), v[1][1] - cut(v[1][1]), columns.even[i / 2], columns.odd[i / 2]);
                    }
                } else {
                    float product[4] = {0.f, 0.f, 0.f, 0.f};
                    mma(product, h[0][0], h[1][0], h[0][1], h[1][1], c8.x, c8.y);
                    mma(product, h[0][2], h[1][2], h[0][3], h[1][3], c8.z, c8.w);
                    if (q == i / 2) {
                        y[0][i % 2] = product[i % 2];
                        y[1][i % 2] = product[2 + i % 2];
                    }
                }
            }
            if (kExact<T>) y[0][0] = sum[0], y[0][1] = sum[1], y[1][0] = sum[2], y[1][1] = sum[3];
            if (!kLocal) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int r = 8 * half + 2 * q + i;
                    const float2 u = widen<T>(*reinterpret_cast<const Two<T> *>(&s.raw_u[ring][r][warp * 16 + 2 * g]));
                    constexpr float kScale = kExact<T> ? 1.f : kCutMean;
                    float v0 = fmaf(y[0][i], kScale, skip.x * u.x);
                    float v1 = fmaf(y[1][i], kScale, skip.y * u.y);
                    const float2 z = widen<T>(gate[half][i]);
                    v0 *= fmaf(z.x, sigmoid(z.x), ungated);
                    v1 *= fmaf(z.y, sigmoid(z.y), ungated);
                    store_if<T>(to_y + (8 * half + i) * y_stride, pair_of<T>(v0, v1), t0 + r < seg.end && alive);
                }
            }
            if (half == 1) convert(t0 + kTileSteps, ring1, buffer ^ 1); // past the last stage too: nobody reads that
        }
        to_y += kTileSteps * y_stride;
        ring = ring1;
    }
    if (kLocal) {
        let_next_start();
        corner.store(p.segment_state + blockIdx.y * matrix, h);
        if (alive && q == 0)
            *reinterpret_cast<float2 *>(p.segment_delta + (long long)blockIdx.y * E + ch) =
                make_float2(delta_sum0, delta_sum1);
    } else if (seg.last && p.last_state) {
        corner.store(state_slot(p.last_state, p.state_stride, seg.slot), h);
    }
}

// ---------------------------------------------------------------------------------------- narrow
// A block is 8 channels: warps 0 and 1 scan four channels each, 8 lanes a channel, 2 states a lane; warps 2 and 3 load,
// convert, and finish y (skip, gate, store). Stages of 32 steps in two buffers: while one is scanned the next is
// converted and the one before finished. All lies by state or channel, so that one 16-byte read serves 4 steps.
// y: v = C h of four steps is operand A (rows are g, k is q); operand B is zeros and ones that sum over q and put
// each four steps into a lane of their own; a shuffle adds the two rows of a channel.

constexpr int kNarrowChannels = 8, kNarrowSteps = 32, kNarrowScanThreads = 64, kNarrowThreads = 128;

// Rows are padded: the 8 rows that a quarter-warp reads lie in 8 different bank groups, and the two that a warp writes
// at once in different halves of the banks.
constexpr int kNarrowRow = kNarrowSteps + 4;
template <class T> struct alignas(16) NarrowShared {
    float step[kNarrowChannels][kNarrowRow];
    float input[kNarrowChannels][kNarrowRow]; // step * u
    float y[kNarrowChannels][kNarrowRow];
    struct {
        Two<T> bc[8][kNarrowRow]; // (B, C)
        Two<T> padding[16];
    } states[2];
};
template <class T> struct alignas(16) FourTwice { Four<T> v[2]; };
template <class T> struct alignas(16) TwoFourTimes { Two<T> v[4]; };

template <class T, bool kLocal> __device__ void forward_narrow(const ScanForward &p) {
    __shared__ NarrowShared<T> shared[2];
    const int E = p.channels;
    const ScanSegment seg = p.segments[blockIdx.y];
    const int stages = kLocal && seg.last ? 0 : (seg.end - seg.begin + kNarrowSteps - 1) / kNarrowSteps;

    if (threadIdx.x >= kNarrowScanThreads) {
        const int tid = threadIdx.x - kNarrowScanThreads, step = tid / 2, part = tid % 2;
        const int ch = blockIdx.x * kNarrowChannels + 4 * part;
        const bool alive = ch < E;
        const int at = alive ? ch : 0;
        float bias[4], skip[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            bias[j] = p.delta_bias && alive ? p.delta_bias[ch + j] : 0.f;
            skip[j] = p.d && alive ? p.d[ch + j] : 0.f;
        }
        const float ungated = p.z ? 0.f : 1.f; // z is zero then
        // Of the stage converted next, and of the one finished next (u once more: registers are scarcer than the L2).
        Four<T> u, delta, u_late, z_late = {};
        FourTwice<T> b, c = {};
        auto token = [&](int k) { return seg.begin + k * kNarrowSteps + step; };
        auto channels = [&](const void *base, long long stride, int t) {
            return *reinterpret_cast<const Four<T> *>(row<T>(base, (int)stride, t) + at);
        };
        auto load = [&](int k) {
            const int t = min(token(k), seg.end - 1);
            u = channels(p.u, p.u_stride, t);
            delta = channels(p.delta, p.delta_stride, t);
            b = *reinterpret_cast<const FourTwice<T> *>(row<T>(p.b, (int)p.b_stride, t) + 8 * part);
            if (!kLocal) c = *reinterpret_cast<const FourTwice<T> *>(row<T>(p.c, (int)p.c_stride, t) + 8 * part);
        };
        auto load_late = [&](int k) {
            const int t = min(token(k), seg.end - 1);
            u_late = channels(p.u, p.u_stride, t);
            if (p.z) z_late = channels(p.z, p.z_stride, t);
        };
        auto convert = [&](int k) {
            NarrowShared<T> &s = shared[k % 2];
            const bool valid = token(k) < seg.end;
            const float4 d = widen<T>(delta), uf = widen<T>(u);
            const float in[4] = {uf.x, uf.y, uf.z, uf.w};
            float x[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[j] += bias[j];
                x[j] = select(valid, select(p.softplus, softplus<T>(x[j]), x[j]), 0.f); // no step: the state stays
                s.step[4 * part + j][step] = x[j];
                s.input[4 * part + j][step] = x[j] * in[j];
            }
            auto &bc = s.states[part].bc;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bc[4 * i][step] = Packed<T>::template zip<0>(b.v[i], c.v[i]);
                bc[4 * i + 1][step] = Packed<T>::template zip<1>(b.v[i], c.v[i]);
                bc[4 * i + 2][step] = Packed<T>::template zip<2>(b.v[i], c.v[i]);
                bc[4 * i + 3][step] = Packed<T>::template zip<3>(b.v[i], c.v[i]);
            }
        };
        auto finish = [&](int k) {
            const float4 u4 = widen<T>(u_late), z4 = widen<T>(z_late);
            const float uf[4] = {u4.x, u4.y, u4.z, u4.w}, zf[4] = {z4.x, z4.y, z4.z, z4.w};
            float y[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                y[j] = fmaf(skip[j], uf[j], shared[k % 2].y[4 * part + j][step]) * fmaf(zf[j], sigmoid(zf[j]), ungated);
            T *to = row<T>(p.y, (int)p.y_stride, token(k)) + ch;
            const bool valid = token(k) < seg.end && alive;
            store_if<T>(to, pair_of<T>(y[0], y[1]), valid);
            store_if<T>(to + 2, pair_of<T>(y[2], y[3]), valid);
        };
        if (stages > 0) {
            load(0);
            convert(0);
            load(1);
        }
        if (!kLocal && p.segment_state) wait_for_previous();
#pragma unroll 2
        for (int k = 0; k <= stages; k++) { // stage k is scanned now
            __syncthreads();
            if (!kLocal && k > 0) finish(k - 1);
            if (!kLocal && k < stages) load_late(k);
            if (k + 1 < stages) {
                convert(k + 1);
                load(k + 2);
            }
        }
        return;
    }

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int local = 4 * warp + lane / 8, state = lane % 8, ch = blockIdx.x * kNarrowChannels + local; // and state + 8
    const bool alive = ch < E;
    const long long stride = (long long)N * E;
    const long long at[2] = {(long long)state * E + ch, (long long)(state + 8) * E + ch};
    if (!kLocal && p.segment_state) wait_for_previous();
    const float *init = !kLocal ? state_before(p, seg) : seg.last ? initial_state(p, seg) : nullptr;
    float a[2], h[2], delta_sum = 0.f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        a[r] = alive ? p.a[at[r]] * kLog2e : 0.f;
        h[r] = init && alive ? init[at[r]] : 0.f;
        if (!kLocal && p.segment_state && p.carry_inside && alive)
            for (int i = p.first_segment[seg.sequence]; i < blockIdx.y; i++)
                h[r] = fmaf(exp2_fast(a[r] * p.segment_delta[(long long)i * E + ch]), h[r], p.segment_state[i * stride + at[r]]);
    }
    auto store_state = [&](float *to) { // [N, E]
        if (alive) to[at[0]] = h[0], to[at[1]] = h[1];
    };
    const Columns columns(g); // so the sums of steps 4m .. 4m+3 come to lane q = m
    for (int k = 0; k <= stages; k++) {
        __syncthreads();
        if (k == stages) break;
        NarrowShared<T> &s = shared[k % 2];
        if (!kLocal && p.boundary_state && k % (kChunk / kNarrowSteps) == 0)
            store_state(p.boundary_state + ((long long)seg.chunk + k / (kChunk / kNarrowSteps)) * stride);
        const float *steps = s.step[local], *inputs = s.input[local];
        const Two<T> *bc0 = s.states[0].bc[state], *bc1 = s.states[1].bc[state];
        // Four steps at a time, the next four's reads and exponentials ahead.
        float4 step[2], input[2];
        TwoFourTimes<T> bc[2][2];
        float e[2][2][4];
        auto read = [&](int m) {
            step[m % 2] = *reinterpret_cast<const float4 *>(steps + 4 * m);
            input[m % 2] = *reinterpret_cast<const float4 *>(inputs + 4 * m);
            bc[m % 2][0] = *reinterpret_cast<const TwoFourTimes<T> *>(bc0 + 4 * m);
            bc[m % 2][1] = *reinterpret_cast<const TwoFourTimes<T> *>(bc1 + 4 * m);
        };
        auto exponentials = [&](int m) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                e[m % 2][r][0] = exp2_fast(step[m % 2].x * a[r]);
                e[m % 2][r][1] = exp2_fast(step[m % 2].y * a[r]);
                e[m % 2][r][2] = exp2_fast(step[m % 2].z * a[r]);
                e[m % 2][r][3] = exp2_fast(step[m % 2].w * a[r]);
            }
        };
        read(0);
        exponentials(0);
        float sum[4];
#pragma unroll
        for (int m = 0; m < kNarrowSteps / 4; m++) {
            if (m + 1 < kNarrowSteps / 4) {
                read(m + 1);
                exponentials(m + 1);
            }
            const float in[4] = {input[m % 2].x, input[m % 2].y, input[m % 2].z, input[m % 2].w};
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 first = widen<T>(bc[m % 2][0].v[i]), second = widen<T>(bc[m % 2][1].v[i]); // B, C
                h[0] = fmaf(e[m % 2][0][i], h[0], in[i] * first.x);
                h[1] = fmaf(e[m % 2][1][i], h[1], in[i] * second.x);
                v[i] = fmaf(h[1], second.y, h[0] * first.y);
            }
            if (kLocal) {
                delta_sum += (step[m % 2].x + step[m % 2].y) + (step[m % 2].z + step[m % 2].w);
                continue;
            }
            if (m % 4 == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
            mma(sum, v[0], v[1], v[2], v[3], columns.even[m % 4], columns.odd[m % 4]);
            if (kExact<T>) mma(sum, v[0] - cut(v[0]), v[1] - cut(v[1]), v[2] - cut(v[2]), v[3] - cut(v[3]), columns.even[m % 4], columns.odd[m % 4]);
            if (m % 4 < 3) continue;
            // sum: steps 4q + 0, 2, 1, 3 over four states of row g's; now over the two rows of the channel, each of
            // which keeps two steps.
            constexpr float kScale = kExact<T> ? 1.f : kCutMean;
            const bool upper = g & 1;
            float y0 = upper ? sum[1] : sum[0], y1 = upper ? sum[3] : sum[2];
            y0 += __shfl_xor_sync(~0u, upper ? sum[0] : sum[1], 4);
            y1 += __shfl_xor_sync(~0u, upper ? sum[2] : sum[3], 4);
            *reinterpret_cast<float2 *>(s.y[local] + 16 * (m / 4) + 4 * q + 2 * upper) = make_float2(y0 * kScale, y1 * kScale);
        }
    }
    if (kLocal) {
        let_next_start();
        store_state(p.segment_state + (long long)blockIdx.y * stride);
        if (alive && state == 0) p.segment_delta[(long long)blockIdx.y * E + ch] = delta_sum;
    } else if (seg.last && p.last_state) {
        store_state(state_slot(p.last_state, p.state_stride, seg.slot));
    }
}

// ----------------------------------------------------------------------------------------- carry
// Block (channels, state, sequence): turns the local end states in segment_state into incoming states.
__device__ void forward_carry(const ScanForward &p) {
    const int ch = blockIdx.x * 32 + threadIdx.x, E = p.channels;
    if (ch >= E) return;
    const long long at = (long long)blockIdx.y * E + ch;
    const float a = p.a[at] * kLog2e;
    const long long stride = (long long)N * E;
    const int end = p.first_segment[blockIdx.z + 1];
    float h = p.segment_state[(end - 1) * stride + at]; // the initial state, as the local kernel left it
    constexpr int kBatch = 8; // loads in flight
    for (int i0 = p.first_segment[blockIdx.z]; i0 < end; i0 += kBatch) {
        float local[kBatch], delta[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            const bool valid = i0 + k < end - 1; // nobody waits for the last one's end
            local[k] = valid ? p.segment_state[(i0 + k) * stride + at] : 0.f;
            delta[k] = valid ? p.segment_delta[(long long)(i0 + k) * E + ch] : 0.f;
        }
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            if (i0 + k < end) p.segment_state[(i0 + k) * stride + at] = h;
            h = fmaf(exp2_fast(a * delta[k]), h, local[k]);
        }
    }
}

} // namespace scan

// narrow: 5 blocks a multiprocessor, so that 5120 channels run at once; f32 needs more registers.
#define SCAN_FORWARD(T, name, narrow_blocks)                                                                   \
    SCAN_KERNEL(selective_scan_forward_tile_##name, ScanForward, scan::kTileThreads, 3,                         \
                (scan::forward_tile<T, false>(p)))                                                             \
    SCAN_KERNEL(selective_scan_forward_local_##name, ScanForward, scan::kTileThreads, 3,                        \
                (scan::forward_tile<T, true>(p)))                                                              \
    SCAN_KERNEL(selective_scan_forward_narrow_##name, ScanForward, scan::kNarrowThreads, narrow_blocks,        \
                (scan::forward_narrow<T, false>(p)))                                                           \
    SCAN_KERNEL(selective_scan_forward_narrow_local_##name, ScanForward, scan::kNarrowThreads, narrow_blocks,  \
                (scan::forward_narrow<T, true>(p)))
SCAN_FORWARD(__nv_bfloat16, bf16, 5)
SCAN_FORWARD(__half, f16, 5)
SCAN_FORWARD(float, f32, 4)
SCAN_KERNEL(selective_scan_forward_carry, ScanForward, 32, 1, (scan::forward_carry(p)))
