// The arguments of the selective-scan kernels, passed by value. Plain C layout (all fields 8- or 4-byte,
// no padding in between) so that Rust repeats them with #[repr(C)].
//
// Shapes: T tokens (all sequences of the call, packed one after the other), E channels, N states a channel.
// A row stride counts elements from one token's row to the next; within a row channels (or states) are
// contiguous. "dtype" is the type of the kernel's instance: __nv_bfloat16, __half or float.
// A sequence's state lies in a slot: [N, E] f32 at the pointer + slot * state_stride elements. No two sequences
// of a call share a slot.
#pragma once

// Dynamic shared memory, bytes; `size` is the dtype's.
constexpr int scan_forward_tile_shared(int size) { return 20480 + 7680 * size; }
constexpr int kScanBackwardShared = 51200;
constexpr int scan_generic_backward_shared(int states_a_lane) { return 8192 * states_a_lane; }

// Rows [begin, end) of one sequence that one block walks through in order. A sequence is one segment, or,
// where channels are few, several in order of time; each but the last is a multiple of 64 tokens long.
// An empty sequence is one segment with begin == end.
struct ScanSegment {
    int begin;
    int end;
    int sequence; // index into first_segment
    int slot;     // of initial_state and last_state, or of their gradients
    int chunk;    // row of boundary_state that holds the state before token `begin`
    int first;    // 1 for the sequence's first segment
    int last;     // 1 for the sequence's last segment
    int fresh;    // 1: the sequence begins at zero, whatever its slot holds (its gradient is zero then)
};

struct ScanForward {
    const void *u, *delta, *z;       // dtype [T, E]; z may be null: no gate
    const void *b, *c;               // dtype [T, N]
    void *y;                         // dtype [T, E]
    const float *a;                  // [N, E], negative
    const float *d, *delta_bias;     // [E] or null
    const float *initial_state;      // slots, or null: zero
    float *last_state;               // slots, or null; may be initial_state: the state is then replaced in place
    float *boundary_state;           // [chunks, N, E] or null: the state before every 64th token, for backward
    float *segment_state;            // [segments, N, E]; null where no sequence is split
    float *segment_delta;            // [segments, E], sum of the step sizes; likewise
    const ScanSegment *segments;
    const int *first_segment;        // [sequences + 1]: where each sequence's segments begin
    long long u_stride, delta_stride, z_stride, b_stride, c_stride, y_stride, state_stride;
    int segment_count;
    int channels;                    // E
    int states;                      // N
    int softplus;                    // 1: step = softplus(delta + delta_bias), 0: step = delta + delta_bias
    int carry_inside;                // 1: each block chains the segments before its own (at most 16), no carry kernel
    int reserved;
};

struct ScanBackward {
    const void *u, *delta, *z;       // as in forward
    const void *b, *c;
    const void *dy;                  // dtype [T, E]
    void *du, *ddelta, *dz;          // dtype [T, E]; dz null where z is
    const float *a, *d, *delta_bias;
    const float *boundary_state;     // [chunks, N, E] from forward
    const float *last_state_grad;    // slots, or null: zero
    float *initial_state_grad;       // slots, or null; not last_state_grad's memory
    float *segment_state;            // [segments, N, E]; null where no sequence is split
    float *segment_delta;            // [segments, E]
    float *state_scratch;            // selective_scan_backward_*: [segments, ceil(E / 64), 16384]
    float *bc_partial;               // [partials, T, 2N]: dB then dC of one block of channels
    float *a_partial;                // [segments, N, E]
    float *d_partial, *bias_partial; // [segments, E]
    float *db, *dc;                  // f32 [T, N], written by selective_scan_reduce,
    float *da;                       // [N, E], as are
    float *dd, *dbias;               // [E] or null
    const ScanSegment *segments;
    const int *first_segment;        // [sequences + 1], as in forward
    long long u_stride, delta_stride, z_stride, b_stride, c_stride, dy_stride;
    long long du_stride, ddelta_stride, dz_stride, db_stride, dc_stride, state_stride;
    long long tokens;                // T
    int segment_count;
    int channels;
    int states;
    int softplus;
    int partials;                    // rows of bc_partial
    int carry_inside;                // as in forward
};
