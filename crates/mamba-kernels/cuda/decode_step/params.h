// The arguments of the decode-step kernels, passed by value. Plain C layout (all fields 8- or 4-byte, no padding
// in between) so that Rust repeats them with #[repr(C)].
//
// One token of each of S sequences: row i of every activation belongs to sequence i. E channels, N states a
// channel. A row stride counts elements from one row to the next; within a row elements are contiguous. "dtype" is
// the type of the kernel's instance: __nv_bfloat16, __half or float. Slots of different sequences differ.
//
// Any E, stride and alignment is right. Fast where E and the strides are multiples of 4 and rows begin at a
// multiple of four elements (the kernels see to that themselves).
//
// Launch                 grid                                    block   dynamic shared memory
//   conv_step_<dtype>    (ceil(E / kConvStepChannels), S)        128     0
//   scan_step_<dtype>    (ceil(E / kScanStepChannels), any)      128     0
// scan_step's block y takes the sequences y, y + gridDim.y, ...; the result does not depend on gridDim.y, which is
// best scan_step_rows(...). Nothing to launch for S = 0.
#pragma once

constexpr int kConvStepChannels = 512; // of one block
constexpr int kScanStepChannels = 128;

// Blocks in y for a device with so many multiprocessors: two rounds of what runs at once (4 blocks on each), every
// block with as many sequences.
constexpr int scan_step_rows(int sequences, int channels, int multiprocessors) {
    const int columns = (channels + kScanStepChannels - 1) / kScanStepChannels;
    const int rows = 8 * multiprocessors > columns ? 8 * multiprocessors / columns : 1;
    const int of_each = (sequences + rows - 1) / rows;
    return (sequences + of_each - 1) / of_each;
}

// The causal convolution's step: out = SiLU(bias + sum over k of weight[k] * window[k]), the window being the slot's
// d_conv - 1 inputs, oldest first, then x; the slot's window moves on by one.
struct ConvStep {
    const void *x;       // dtype [S, E]
    void *out;           // dtype [S, E]; may be x
    const float *weight; // [d_conv, E]
    const float *bias;   // [E] or null
    float *state;        // slot s: state + s * slot_stride, [d_conv - 1, E]
    const int *slots;    // [S]
    const int *fresh;    // [S]; not 0: begins at zero, the slot's content is not read
    long long x_stride, out_stride, slot_stride;
    int channels;        // E
    int d_conv;          // 1 to 8
};

// The selective scan's step: h = exp(step * A) * h + step * B * u, y = (C h + D u) * SiLU(z).
struct ScanStep {
    const void *u, *delta, *z; // dtype [S, E]; z may be null: no gate
    const void *b, *c;         // dtype [S, N]
    void *y;                   // dtype [S, E]; may be u or z
    const float *a;            // [N, E], negative
    const float *d;            // [E] or null
    const float *delta_bias;   // [E] or null
    float *state;              // slot s: state + s * slot_stride, [N, E]
    const int *slots;          // [S]
    const int *fresh;          // [S]
    long long u_stride, delta_stride, z_stride, b_stride, c_stride, y_stride, slot_stride;
    int sequences;             // S
    int channels;              // E
    int states;                // N, 1 to 256
    int softplus;              // 1: step = softplus(delta + delta_bias), 0: step = delta + delta_bias
};
