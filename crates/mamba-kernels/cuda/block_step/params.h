// The arguments of the fused decode step, passed by value. Plain C layout (fields of 8 or 4 bytes, before them the copy engine's
// maps of 128; no padding in between).
//
// One token of each of R sequences: row i of every activation belongs to sequence i. Four kernels a layer (for many sequences
// behind the norm's), and one for the head, each launched with programmatic stream serialization behind the one before. The step's first kernel, the
// embedding's, is launched plainly; so what an earlier step wrote, the slots' states and lists, is there before any of
// these begins, and may be read before wait_for_previous. "dtype" is the type of the kernel's instance: __nv_bfloat16 or
// __half; in <kernel>_<dtype>_<tiles> up to 8 * tiles rows are computed (by a block, in step_x_proj, which takes any
// number of rows, as step_scan does). Compute capability 9.0 and later.
//
// Launch                          grid                         block  dynamic shared memory
//   step_in_proj_<dtype>_<tiles>  (step_blocks(2E, ...))       256    step_norm_shared(...)
//   step_x_proj_<dtype>_<tiles>   (ceil(W / 16), kStepSplits,  256    8192 * kStepShort
//                                  ceil(R / (8 * tiles)))
//   step_scan_<dtype>             (E / 32, ceil(R / 8))        256    0
//   step_scan_many_<dtype>        (E / 64, ..._rows(...))      256    step_scan_many_shared(...)
//   step_out_proj_<dtype>_<tiles> (ceil(d_model / 16))         256    step_ring(kStepDeep, step_chunks(E))
//   step_head_<dtype>_<tiles>     (step_blocks(vocab, ...))    256    step_norm_shared(...)
// And for many sequences, of rows that are normalized already, on 9.0 alone; room = step_many_room(R); tile =
// step_many_tile(outputs, splits, ...), of x_proj 16; splits 1 in in_proj, kStepSplits in x_proj, kStepManySplits in
// out_proj, in clusters of so many blocks in x:
//   step_{in,x,out}_proj_<room>_<dtype>_<tile>  (splits * ceil(outputs / tile))  2 * room + 32  step_many_shared(room, tile, splits > 1)
#pragma once
#include <cuda.h>

// Chunks of 32 inputs that a warp has under way, 8192 bytes of shared memory each.
constexpr int kStepWide = 12;  // in_proj, head
constexpr int kStepDeep = 10; // out_proj
constexpr int kStepShort = 3; // x_proj
constexpr int kStepSplits = 8; // blocks that share x_proj's inputs: a cluster
constexpr int kStepStates = 16; // N
constexpr int kStepChannels = 32; // of a block of the scan
constexpr int kStepManyChannels = 64; // and of that for many sequences
constexpr int kStepFew = 8; // sequences that the kernels for few are fastest for
constexpr int kStepManyRows = 128; // of the products for many sequences
constexpr int kStepManySplits = 4; // blocks that share out_proj's inputs then

// Bytes of a ring of so many chunks; `chunks` are what a warp reads in all.
constexpr int step_ring(int depth, int chunks) {
    return 8192 * (chunks < depth ? chunks : depth);
}
// Chunks of a warp in a tile of 16 outputs.
constexpr int step_chunks(int inputs) {
    return (inputs + 255) / 256;
}
// Blocks of kernels that normalize first: a tile each, where two of them on a multiprocessor suffice.
constexpr int step_blocks(int outputs, int multiprocessors) {
    const int tiles = (outputs + 15) / 16;
    return tiles <= 2 * multiprocessors ? tiles : multiprocessors;
}
// Bytes of shared memory of the scan for many sequences: dt_proj's weights, A, parts of delta, dt, B and C of two times 8
// sequences.
constexpr int step_scan_many_shared(int dt_rank) {
    return (dt_rank + 31) / 32 * 4096 + 16 * 4 * kStepManyChannels + 4 * 8 * 4 * (kStepManyChannels + 8) + 2 * 8 * 4 * (dt_rank + 2 * kStepStates);
}
// Rows of blocks of that scan: those that a multiprocessor holds two of, at most one for each 8 sequences.
constexpr int step_scan_many_rows(int channels, int rows, int multiprocessors) {
    const int wanted = 2 * multiprocessors * kStepManyChannels / channels;
    const int groups = (rows + 7) / 8;
    return wanted < 1 ? 1 : wanted < groups ? wanted : groups;
}
// Outputs of a block of the products for many sequences: so many that there is a block for each multiprocessor.
constexpr int step_many_tile(int outputs, int splits, int multiprocessors) {
    const int wanted = (outputs * splits + multiprocessors - 1) / multiprocessors;
    return wanted <= 16 ? 16 : wanted <= 32 ? 32 : wanted <= 48 ? 48 : wanted <= 64 ? 64 : wanted <= 80 ? 80 : 128;
}
// Rows that a block of theirs has room for.
constexpr int step_many_room(int rows) {
    return rows <= 64 ? 64 : kStepManyRows;
}
// Rows of a box of activations.
constexpr int step_many_box(int rows) {
    return (rows + 7) / 8 * 8;
}
// Bytes of a chunk of 64 inputs of a tile and of all rows, of sums that other blocks send (is_split 1, else 0), of all; how many
// chunks are under way. A multiprocessor has room for two such blocks of 64 rows, for one of 128.
constexpr int step_many_stage(int room, int tile) {
    return 128 * (room + tile);
}
constexpr int step_many_sums(int room, int tile, int is_split) {
    return 4 * room * (tile + 8) * is_split;
}
constexpr int step_many_stages(int room, int tile, int is_split) {
    return (113000 * (room / 64) - step_many_sums(room, tile, is_split)) / step_many_stage(room, tile);
}
constexpr int step_many_shared(int room, int tile, int is_split) {
    return step_many_stages(room, tile, is_split) * step_many_stage(room, tile) + step_many_sums(room, tile, is_split) + 1024;
}
// Bytes of shared memory of kernels that normalize first: the ring, the normalized rows, the norm's weight, and the rows'
// sums of squares.
constexpr int step_norm_shared(int tiles, int channels, int outputs, int blocks) {
    const int of_block = ((outputs + 15) / 16 + blocks - 1) / blocks;
    return step_ring(kStepWide, of_block * step_chunks(channels)) + step_chunks(channels) * 4096 * tiles + 4 * channels + 2 * tiles * channels;
}

// What in_proj's outputs become: rows 0 to E of its weight give x, from which u = SiLU(bias + sum over k of conv_weight[k] *
// window[k]) is written, the window being the slot's d_conv - 1 inputs, then x; rows E to 2E give z.
struct StepConvolution {
    void *u;                 // dtype [R, E]
    void *z;                 // dtype [R, E], rows z_stride apart
    const float *conv_weight; // [d_conv, E]
    const float *conv_bias;  // [E] or null
    float *conv_state;       // slot s: conv_state + s * slot_stride, [d_conv - 1, E]
    const int *slots;        // [R]
    const int *fresh;        // [R]; not 0: begins at zero, the slot's content is not read
    long long slot_stride, z_stride;
};

// RMSNorm and in_proj.
struct StepInProj {
    const void *weight;      // dtype [2E, d_model]
    const float *residual;   // [R, d_model]
    const float *norm;       // [d_model]
    const float *sums;       // [d_model / 16, R]: of each 16 channels the sum of squares, or null in the first layer
    StepConvolution to;
    int rows;                // R
    int d_model;             // a multiple of 16
    int channels;            // E, a multiple of 32
    int d_conv;              // 2 to 4
    float eps;
    int reserved;
};

// in_proj of normalized rows.
struct StepInProjMany {
    CUtensorMap weight;      // dtype [2E, d_model] in boxes of [tile / 2, 64], swizzled by 128 bytes
    CUtensorMap hidden;      // dtype [R, d_model] in boxes of [step_many_box(R), 64]
    StepConvolution to;
    int rows, d_model, channels, d_conv;
};

// x_proj, which writes f32, and out_proj, which adds to the f32 residual.
struct StepProductMany {
    CUtensorMap weight;      // dtype [outputs, inputs] in boxes of [tile, 64], swizzled by 128 bytes
    CUtensorMap activations; // dtype [R, inputs] in boxes of [step_many_box(R), 64]
    float *out;              // [R, outputs]
    int rows, inputs, outputs;
    int reserved;
};

// RMSNorm and the head: logits = norm(residual) * weight^T.
struct StepHead {
    const void *weight;    // dtype [vocab, d_model]
    const float *residual; // [R, d_model]
    const float *norm;     // [d_model]
    const float *sums;     // as above
    float *logits;         // [R, vocab]
    int rows;
    int d_model;
    int vocab;
    float eps;
};

// dt, B and C.
struct StepXProj {
    const void *weight; // dtype [W, E]
    const void *u;      // dtype [R, E]
    float *dt_b_c;      // [R, W]
    int rows, inputs, outputs; // R, E, W = dt_rank + 2N
    int reserved;
};

// dt_proj, softplus, the scan's step and the gate: h = exp(step * A) * h + step * B * u, y = (C h + D u) * SiLU(z).
struct StepScan {
    const void *weight;      // dtype [E, dt_rank]: dt_proj
    const float *dt_b_c;     // [R, dt_rank + 2N]
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
    int reserved;
};

// out_proj, added to the residual.
struct StepOutProj {
    const void *weight; // dtype [d_model, E]
    const void *y;      // dtype [R, E]
    float *residual;    // [R, d_model]
    float *sums;        // [d_model / 16, R]: of each 16 channels of the new residual the sum of squares
    int rows, inputs, outputs;
    int reserved;
};
