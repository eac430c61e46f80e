// The arguments of the optimizer's kernels, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in
// between) so that Rust repeats them with #[repr(C)]. Elements are those of flat buffers: all tensors end to end.
//
// Launch                     grid                       block   dynamic shared memory
//   gradient_norm            (kNormBlocks)              256     0
//   gradient_norm_finish     (1)                        256     0
//   adamw_<bf16 or f32>      (any number of blocks)     256     0
//   rounded_copy             (any number of blocks)     256     0
#pragma once

constexpr int kNormBlocks = 1024; // partial sums: a constant, so that the sum does not depend on the card

// norm = sqrt(sum of squares), summed in f64.
struct GradientNorm {
    const float *gradients; // [count], at a multiple of 16 bytes
    double *partial;        // [kNormBlocks]
    float *norm;            // [1]
    long long count;        // a multiple of 4
};

// m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p = keep p - step_size m / (sqrt(v) root_scale + eps), where
// g = gradient * min(1, clip / (norm + 1e-6)), and keep only for the first `decayed` elements. Nothing is changed where the
// norm is not finite. The first `copied` elements are also written to `copies`, in bf16 rounded as optimizer.cu says.
struct Adamw {
    float *params, *m, *v;  // [count]
    const float *gradients; // [count]
    void *copies;           // bf16 or f32 [copied]
    const float *norm;      // [1]
    long long count, decayed, copied; // multiples of 4
    float step_size, root_scale, keep, beta1, rest1, beta2, rest2, eps;
    float clip;             // infinite: never
    int reserved;
};

// Elements `begin` to `begin + count`, multiples of 4, of the same copies.
struct RoundedCopy {
    const float *params;
    void *copies; // bf16
    long long begin, count;
};
