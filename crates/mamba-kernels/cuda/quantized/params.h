// The layout of quantized weights, and the arguments of the kernels that read them, passed by value. Plain C layout (all
// fields 8- or 4-byte, no padding in between).
//
// A weight [N, K] is N rows of `row_bytes`, a multiple of 16: first the weights of all inputs, `weight_bytes` of them, a
// multiple of 64; then their scales. What a warp takes at a time is 64 bytes of 16 rows: a lane 16 bytes of each of two
// rows. These are 8 neighbouring inputs of each group of 32 that shares a scale, so that one load of activations (16 bytes)
// serves each of them, and no lane needs what another one loads. Inputs beyond K, up to whole pieces, weigh nothing.
//
// q8_0: 64 inputs are 64 bytes. Input i of a row is byte q8_0_weight(i), the weight plus 128; it is that weight times the
// f16 at byte q8_0_scale(K, i / 32).
// q4_K: 128 inputs are 64 bytes. Input i is the four bits from bit q4_k_weight(i) on, q; the weight is d * scale * q -
// d_min * min, with scale and min the bytes at q4_k_scale(K, i / 32) and behind it, d and d_min the f16 at
// q4_k_d(K, i / 256) and behind it.
//
// Launch                                   grid                                        block                 dynamic shared
//   quantized_product_<format>_<out>_<t>   (ceil(N / 16), ceil(rows / (8 * t)))        256                   quantized_shared(...)
//   quantized_rows_<format>_<out>          (ceil(K / kQuantizedRowInputs), any number) kQuantizedRowThreads  0
// with <out> the type of `out`, f16 or f32, and t = 1 or 2 tiles of 8 rows. A launch has at most 65535 blocks in y.
// Compute capability 8.0 and later.
#pragma once
#include "../block_step/params.h"

// Chunks of 64 bytes of 16 rows that a warp of the product has under way: 8192 bytes of shared memory a block each.
constexpr int kQuantizedDepth = 6;
constexpr int kQuantizedRowThreads = 128;
constexpr int kQuantizedRowInputs = 8 * kQuantizedRowThreads; // of a block of quantized_rows

constexpr int q8_0_weight_bytes(int inputs) { return (inputs + 63) / 64 * 64; }
constexpr int q8_0_weight(int i) { return i / 64 * 64 + i / 8 % 4 * 16 + i / 32 % 2 * 8 + i % 8; }
constexpr int q8_0_scale(int inputs, int group) { return q8_0_weight_bytes(inputs) + 2 * group; }
constexpr int q8_0_row_bytes(int inputs) { return (q8_0_scale(inputs, q8_0_weight_bytes(inputs) / 32) + 15) / 16 * 16; }

constexpr int q4_k_weight_bytes(int inputs) { return (inputs + 255) / 256 * 128; }
constexpr int q4_k_weight(int i) { return (i / 128 * 64 + i / 8 % 4 * 16 + i / 32 % 4 * 4) * 8 + i % 2 * 16 + i % 8 / 2 * 4; }
constexpr int q4_k_scale(int inputs, int group) { return q4_k_weight_bytes(inputs) + 2 * group; }
constexpr int q4_k_d(int inputs, int block) { return q4_k_scale(inputs, q4_k_weight_bytes(inputs) / 16) + 4 * block; }
constexpr int q4_k_row_bytes(int inputs) { return (q4_k_d(inputs, q4_k_weight_bytes(inputs) / 128) + 15) / 16 * 16; }

// Bytes from one row's scales to the next in shared memory: an odd number of 16s, so that eight rows lie in eight banks.
constexpr int quantized_scale_stride(int row_bytes, int weight_bytes) {
    const int pieces = (row_bytes - weight_bytes) / 16;
    return (pieces / 2 * 2 + 1) * 16;
}
// Bytes of shared memory of a product: the ring of weights, and with it 16 rows' scales.
constexpr int quantized_ring(int weight_bytes) { return step_ring(kQuantizedDepth, step_chunks(weight_bytes / 2)); }
constexpr int quantized_shared(int row_bytes, int weight_bytes) {
    return quantized_ring(weight_bytes) + 16 * quantized_scale_stride(row_bytes, weight_bytes);
}

// out = x * weight^T + bias. A row's result does not depend on how many there are.
struct QuantizedProduct {
    const void *weight; // [N] rows
    const void *x;      // f16 [rows, K]; fast where rows begin at multiples of 16 bytes
    const float *bias;  // [N] or null
    void *out;          // [rows, N]; not x
    long long x_stride, out_stride; // elements
    int rows;
    int inputs;         // K
    int outputs;        // N
    int row_bytes, weight_bytes;
    int ring_bytes;     // quantized_ring(weight_bytes)
    int scale_stride;   // quantized_scale_stride(row_bytes, weight_bytes)
    int reserved;
};

// out[i] = row ids[i] of the weight, or without ids row first + i.
struct QuantizedRows {
    const void *weight;
    const int *ids;     // [count] or null; not checked here
    void *out;          // [count, K]
    long long out_stride; // elements
    int first, count;
    int inputs;         // K
    int row_bytes, weight_bytes;
    int reserved;
};
