// The arguments of the kernel that a matrix product with a bias begins with, passed by value. Plain C layout (all
// fields 8- or 4-byte, no padding in between).
//
// Launch                grid                                              block   dynamic shared memory
//   bias_rows_<dtype>   (ceil(cols / 256), any number of rows of blocks)  256     0
#pragma once

// Every row of out becomes the bias, rounded to the dtype; the product is then added to it.
struct BiasRows {
    void *out;         // dtype [rows, cols]
    const float *bias; // [cols]
    long long out_stride; // elements from a row to the next
    int rows;
    int cols;
};
