// The arguments of the kernels that copy rows by index and of the embedding's gradient, passed by value. Plain C layout (all fields 8- or 4-byte, no
// padding in between) so that Rust repeats them with #[repr(C)].
//
// Rows of E channels. A row stride counts elements from one row to the next; within a row channels are contiguous. Any
// E, stride and alignment is right; fast where rows begin at multiples of 16 bytes. Indices are not checked here.
//
// Launch                       grid                                                             block            shared
//   embedding_<dtype>          (ceil(E / gather_channels(4)), ceil(count / kGatherRows))        kGatherThreads   0
//   gather_<dtype>             (ceil(E / gather_channels(size)), ceil(count / kGatherRows))     kGatherThreads   0
//   embedding_backward         (ceil(E / gather_channels(4)), ceil(count / kEmbeddingTokens))     kGatherThreads   0
//   embedding_backward_join    likewise, after it
// with `size` the dtype's bytes. Nothing to launch for count = 0.
#pragma once

constexpr int kGatherThreads = 128;
constexpr int kGatherRows = 4; // of one block
constexpr int kEmbeddingTokens = 64; // of one block of embedding_backward
constexpr int gather_channels(int size) { return kGatherThreads * 16 / size; }

// out[i] = table[ids[i]]. embedding: from dtype to f32; gather: from dtype to dtype.
struct Gather {
    const void *table;     // dtype [rows, E]
    const int *ids;        // [count]
    void *out;             // f32 or dtype [count, E]; not table
    long long table_stride, out_stride;
    int count;
    int channels;          // E
};

// d_table[ids[t]] += d_out[t], in f32 and in the tokens' order. The host sorts: `order` holds the tokens by id, those of
// one id in their own order. Rows of no token are left as they are.
struct EmbeddingBackward {
    const float *d_out;    // [count, E]
    const int *ids;        // [count]
    const int *order;      // [count]
    float *d_table;        // [rows, E]
    float *partial;        // [2 * ceil(count / kEmbeddingTokens), E]
    long long d_out_stride, d_table_stride;
    int count;
    int channels;          // E
};
