// The arguments of the element by element kernels of training, passed by value. Plain C layout (all fields 8- or 4-byte,
// no padding in between) so that Rust repeats them with #[repr(C)].
//
// Launch                     grid                      block   dynamic shared memory
//   convert_rows_<dtype>     (any number of blocks)    256     0
//   combine                  (any number of blocks)    256     0
//   sum_rows_<dtype>         (ceil(cols / 32))         256     0
#pragma once

// to = from, or to += from; a from_stride of 0 repeats one row.
struct ConvertRows {
    const float *from;  // [rows, cols]
    void *to;           // dtype [rows, cols]
    long long from_stride, to_stride;
    long long count;    // rows * cols
    int cols;
    int add;
};

constexpr int kNegativeExp = 0; // to = -exp(from)
constexpr int kMultiply = 1;    // to *= from
constexpr int kAdd = 2;         // to += from

struct Combine {
    const float *from; // [count]
    float *to;         // [count]
    long long count;
    int operation;
    int reserved;
};

// out[col] = sum over rows of x, in order of eight interleaved parts.
struct SumRows {
    const void *x;  // dtype [rows, cols]
    float *out;     // [cols]
    long long stride;
    int rows;
    int cols;
};
