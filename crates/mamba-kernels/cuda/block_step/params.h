// The arguments of the fused decode step, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in
// between).
//
// One token of each of R sequences: row i of every activation belongs to sequence i. Four kernels a layer, and one for
// the head, each launched with programmatic stream serialization behind the one before (the step's first kernel, the
// embedding's, is launched plainly; so what an earlier step wrote, the slots' states and lists, is there before any of
// these begins, and may be read before wait_for_previous). "dtype" is the type of the kernel's instance:
// __nv_bfloat16 or __half; in <kernel>_<dtype>_<tiles> up to 8 * tiles rows are computed.
//
// Launch                          grid                                          block  dynamic shared memory
//   step_in_proj_<dtype>_<tiles>  (any, best one or two a multiprocessor)       256    step_norm_shared(...)
//   step_x_proj_<dtype>_<tiles>   (ceil(W / 16), splits)                        256    step_stream_shared(kStepShort, tiles)
//   step_scan_<dtype>             (E / 32, ceil(R / 8))                         256    0
//   step_out_proj_<dtype>_<tiles> (ceil(d_model / 16))                          256    step_stream_shared(kStepDeep, tiles)
//   step_head_<dtype>_<tiles>     as in_proj                                    256    step_norm_shared(...)
#pragma once

constexpr int kStepDeep = 8;   // chunks of 32 inputs that a warp has under way
constexpr int kStepShort = 2;
constexpr int kStepSplit = 512; // inputs of a block of x_proj
constexpr int kStepStates = 16; // N
constexpr int kStepChannels = 32; // of a block of the scan

// Bytes of shared memory of kernels that normalize first: the weights' ring, and the normalized rows.
constexpr int step_norm_shared(int rows, int channels) { // rows are padded so that eight of them lie in different banks
    return kStepDeep * 8192 + rows * (2 * channels + 64);
}
// Of the others: the ring of weights and activations.
constexpr int step_stream_shared(int depth, int tiles) {
    return depth * (8192 + 4096 * tiles);
}

// RMSNorm, in_proj, and of x the convolution's step: rows 0 to E of the weight give x, from which u = SiLU(bias + sum
// over k of conv_weight[k] * window[k]) is written, the window being the slot's d_conv - 1 inputs, then x; rows E to 2E
// give z.
struct StepInProj {
    const void *weight;      // dtype [2E, d_model]
    const float *residual;   // [R, d_model]
    const float *norm;       // [d_model]
    void *u;                 // dtype [R, E]
    void *z;                 // dtype [R, E], rows z_stride apart
    const float *conv_weight; // [d_conv, E]
    const float *conv_bias;  // [E] or null
    float *conv_state;       // slot s: conv_state + s * slot_stride, [d_conv - 1, E]
    const int *slots;        // [R]
    const int *fresh;        // [R]; not 0: begins at zero, the slot's content is not read
    long long slot_stride, z_stride;
    int rows;                // R
    int d_model;
    int channels;            // E, a multiple of 32
    int d_conv;              // 2 to 4
    float eps;
    int ahead;               // tiles of 16 outputs that a block asks the L2 for, beyond its ring, before it begins
};

// RMSNorm and the head: logits = norm(residual) * weight^T.
struct StepHead {
    const void *weight;    // dtype [vocab, d_model]
    const float *residual; // [R, d_model]
    const float *norm;     // [d_model]
    float *logits;         // [R, vocab]
    int rows;
    int d_model;
    int vocab;
    int ahead;
    float eps;
    int reserved;
};

// dt, B and C, unfinished: block (i, s) of the grid sums kStepSplit inputs. Whoever reads them adds up the splits.
struct StepXProj {
    const void *weight; // dtype [W, E]
    const void *u;      // dtype [R, E]
    float *partial;     // [splits, R, W]
    int rows, inputs, outputs;
    int reserved;
};

// dt_proj, softplus, the scan's step and the gate: h = exp(step * A) * h + step * B * u, y = (C h + D u) * SiLU(z).
struct StepScan {
    const void *weight;      // dtype [E, dt_rank]: dt_proj
    const float *partial;    // [splits, R, dt_rank + 2N] of dt, B, C
    const void *u;           // dtype [R, E]
    const void *z;           // dtype [R, E], rows z_stride apart
    void *y;                 // dtype [R, E]
    const float *a;          // [N, E], negative
    const float *d;          // [E] or null
    const float *delta_bias; // [E]
    float *ssm_state;        // slot s: ssm_state + s * slot_stride, [N, E]
    const int *slots;        // [R]
    const int *fresh;        // [R]
    long long slot_stride, z_stride;
    int rows;                // R
    int channels;            // E
    int dt_rank;             // a multiple of 8, at most 256
    int splits;
};

// out_proj, added to the residual.
struct StepOutProj {
    const void *weight; // dtype [d_model, E]
    const void *y;      // dtype [R, E]
    float *residual;    // [R, d_model]
    int rows, inputs, outputs;
    int reserved;
};
