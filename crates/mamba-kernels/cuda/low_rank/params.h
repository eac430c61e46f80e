// What adapters add to the product of one matrix in a decode step: the kernels' arguments, passed by value, and the table
// that they read. Plain C layout (all fields 8- or 4-byte, no padding in between) so that Rust repeats them with
// #[repr(C)].
//
// R rows, each with an adapter or none: out[r] += B (A x[r]) with its adapter's A [rank, K] and B [N, rank], both
// row-major without gaps, B scaled. A x is summed and kept in f32, B A x added to `out` in f32 and rounded once. A row
// without an adapter, or whose adapter has nothing here, stays as it is. Its bits depend on no other row. "dtype" is the
// type of the kernel's instance: __nv_bfloat16, __half or float.
//
// Any rank, K, N, stride and alignment is right. Fast where rows of A, B and x are whole vectors of 16 bytes (the kernels
// see to that themselves).
//
// Launch                       grid                          block             dynamic shared memory
//   low_rank_down_<dtype>      (ranks, R)                    kLowRankDown      0
//   low_rank_up_<dtype>        (ceil(N / kLowRankUp), R)     kLowRankUp        0
//   low_rank_up_wide_<dtype>   the same, for an f32 `out` beside bf16 or f16
// Both with programmatic stream serialization, up behind down. Nothing to launch for R = 0.
#pragma once

constexpr int kLowRankDown = 128; // threads that share one element of A x
constexpr int kLowRankUp = 128;   // outputs of a block, one a thread

// An adapter's matrices.
struct LowRank {
    const void *a; // dtype [rank, K]
    const void *b; // dtype [N, rank]
    int rank;      // 0: it leaves this matrix alone
    int reserved;
};

struct LowRankStep {
    const LowRank *table;  // [count]
    const int *adapters;   // [R]: each row's place in the table; any other number: none
    const void *x;         // dtype [R, K]
    float *low;            // [R, ranks], scratch: A x
    void *out;             // [R, N]; not x
    long long x_stride, out_stride; // elements
    int count;
    int ranks;             // the greatest rank of the table
    int inputs;            // K
    int outputs;           // N
};
