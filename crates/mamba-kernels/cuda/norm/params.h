// The arguments of the norm kernels, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in between) so
// that Rust repeats them with #[repr(C)].
//
// T tokens, E = d_model channels. A row stride counts elements from one token's row to the next; within a row channels
// are contiguous. "dtype" is the type of the kernel's instance: __nv_bfloat16, __half or float. The residual stream is
// f32. Any E, stride and alignment is right; fast where rows begin at multiples of four
// elements.
//
// Launch                         grid                                      block               shared
//   add_norm_forward_<dtype>     1 to T, best norm_blocks(T)               norm_threads(E)     0
//   add_norm_backward_<dtype>    partials, 1 to T, best norm_partials      norm_threads(E)     0
//   add_norm_reduce              ceil(E / 32), twice that with d_bias      256                 0
// The sums over tokens depend on `partials`; nothing else depends on the grid. Nothing to launch for T = 0; the gradients
// of weight and bias are then left as they are.
#pragma once

constexpr int kNormChannels = 8; // of a thread at a time
constexpr int norm_threads(int channels) {
    const int warps = (channels + 32 * kNormChannels - 1) / (32 * kNormChannels);
    return 32 * (warps < 1 ? 1 : warps > 16 ? 16 : warps);
}
// A row a block while rows are few, then four, the next one's loads under way during the current one's sums.
constexpr int norm_blocks(int tokens) { return tokens < 2048 ? tokens : (tokens + 3) / 4; }
// As many blocks as a device with so many multiprocessors runs at once, or one a token.
constexpr int norm_partials(int tokens, int channels, int multiprocessors) {
    const int blocks = multiprocessors * (640 / norm_threads(channels));
    return tokens < blocks ? tokens : blocks;
}

// residual_out = residual + delta; out = (residual_out - mean) / sqrt(variance + eps) * weight + bias, where RMSNorm has
// a mean of 0 (`layer` 0) and LayerNorm the row's (`layer` 1).
struct NormForward {
    const void *delta;     // dtype [T, E] or null
    const float *residual; // [T, E]
    float *residual_out;   // [T, E], may be residual; null: not wanted
    void *out;             // dtype [T, E]
    const float *weight;   // [E]
    const float *bias;     // [E] or null
    long long delta_stride, residual_stride, residual_out_stride, out_stride;
    int tokens;            // T
    int channels;          // E
    int layer;
    float eps;
};

// The gradients, given that of out and that which reaches the residual stream from above. The mean and the variance are
// computed again, from the same read of the residual.
//   d_residual_out = d_residual + d norm / d residual; d_delta is the same, rounded.
struct NormBackward {
    const void *d_out;         // dtype [T, E]
    const float *residual;     // [T, E]: what was normalized, delta added
    const float *d_residual;   // [T, E], or null: zero
    float *d_residual_out;     // [T, E], may be d_residual
    void *d_delta;             // dtype [T, E] or null
    const float *weight;       // [E]
    float *partial;            // [partials, E], and where d_bias is wanted as much again
    float *d_weight, *d_bias;  // [E]; d_bias null: not wanted
    long long d_out_stride, residual_stride, d_residual_stride, d_residual_out_stride, d_delta_stride;
    int tokens;                // T
    int channels;              // E
    int partials;              // blocks of add_norm_backward
    int layer;
    float eps;
    int reserved;
};
