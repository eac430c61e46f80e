// The arguments of the cross-entropy kernel, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in
// between) so that Rust repeats them with #[repr(C)].
//
// Launch                          grid     block                                  dynamic shared memory
//   cross_entropy_loss_<dtype>    (rows)   cross_entropy_threads(size of dtype)   0
// <dtype> is that of the logits: bf16, f16 or f32. Whoever has the logits of a large vocabulary in pieces calls it for
// each piece: rows are independent. Rows that begin at a multiple of 16 bytes are read 16 bytes at a time.
#pragma once

// So many that the rows in work fit in the L2 together.
constexpr int cross_entropy_threads(int size) { return size == 4 ? 1024 : 512; }

struct CrossEntropy {
    void *logits;       // dtype [rows, vocab]; replaced by scale * their gradient where `gradient` is set
    const int *targets; // [rows], 0 to vocab - 1, or negative: ignored
    float *loss;        // [rows]: log sum exp(logits) - logit of the target; 0 where ignored
    long long stride;   // elements from a row of logits to the next
    int vocab;
    int gradient;       // 1: logits become scale * (softmax - one at the target), or 0 where ignored
    float scale;        // of the sum of the losses in what is minimised: 1 / rows for a mean
    float z_loss;       // times (log sum exp)^2 is added to each loss
};
