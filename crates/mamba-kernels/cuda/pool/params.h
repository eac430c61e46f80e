// The arguments of the pooling kernel, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in between)
// so that Rust repeats them with #[repr(C)].
//
// T tokens (all sequences of the call, packed one after the other), E channels. A row stride counts elements from one
// row to the next; within a row channels are contiguous. Any E, stride and alignment is right. Slots of different
// sequences differ.
//
// Launch            grid                                                  block  shared
//   pool_<dtype>    (ceil(E / pool_channels(size)), sequences)            256    0
// with `size` the dtype's bytes. Nothing to launch for no sequences.
#pragma once

constexpr int kPoolLanes = 8; // threads side by side; 32 groups of them take every 32nd token
constexpr int pool_channels(int size) { return kPoolLanes * 16 / size; }

// kind 1: row = (fresh ? 0 : row) + sum over the sequence's tokens; kind 2: row = the last token's; kind 0, or an empty
// sequence: the row is left alone. The row is that of the sequence's slot.
struct Pool {
    const void *hidden;    // dtype [T, E]
    float *out;            // [slots, E]
    const int *cu_seqlens; // [sequences + 1]
    const int *slots;      // [sequences]
    const int *fresh;      // [sequences]
    const int *kinds;      // [sequences]
    long long hidden_stride, out_stride;
    int channels;          // E
    int reserved;
};
