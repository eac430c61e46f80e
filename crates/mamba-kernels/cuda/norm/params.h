// The arguments of the norm kernels, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in between) so
// that Rust repeats them with #[repr(C)].
//
// T tokens, E = d_model channels. A row stride counts elements from one token's row to the next; within a row channels
// are contiguous. "dtype" is the type of the kernel's instance: __nv_bfloat16, __half or float. The residual stream is
// f32. Any E, stride and alignment is right; fast where rows begin at multiples of 16 bytes.
//
// Launch                    grid    block              shared
//   add_norm_forward_<dtype>   T    norm_threads(E)    0
// Nothing to launch for T = 0.
#pragma once

constexpr int kNormChannels = 8; // of a thread at a time
constexpr int norm_threads(int channels) {
    const int warps = (channels + 32 * kNormChannels - 1) / (32 * kNormChannels);
    return 32 * (warps < 1 ? 1 : warps > 32 ? 32 : warps);
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
    int channels;          // E
    int layer;
    float eps;
    int reserved;
};
