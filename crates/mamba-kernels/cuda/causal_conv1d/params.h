// The arguments of the causal convolution's kernels, passed by value. Plain C layout (all fields 8- or 4-byte, no
// padding in between) so that Rust repeats them with #[repr(C)].
//
// T tokens (all sequences of the call, packed one after the other), E channels. A row stride counts elements from one
// token's row to the next; within a row channels are contiguous. "dtype" is the type of the kernel's instance:
// __nv_bfloat16, __half or float. Slots of different sequences differ.
//
// Any E, stride and alignment is right. Fast where d_conv is 2, 3 or 4 and rows begin at multiples of four
// elements; the kernels see to that themselves.
//
// Launch                             block  shared  grid
//   causal_conv1d_forward_<dtype>    128    0       (ceil(E / 512), conv_blocks(T, sequences, block_tokens))
//   causal_conv1d_backward_<dtype>   256    0       (ceil(E / 128), conv_blocks(T, sequences, block_tokens))
//   causal_conv1d_reduce             256    0       ceil((d_conv + 1) * E / 32), after backward
// Nothing to launch for no sequences; conv_blocks must stay below 65536, so at most some 40000 sequences a launch.
#pragma once

constexpr int kConvChannels = 4; // of a thread
// Tokens of a block (block_tokens): few where that makes too few blocks. Backward's sums depend on it, nothing else does.
constexpr int conv_forward_tokens(int tokens) { return 16 + tokens / 65536; }
constexpr int conv_backward_tokens(int tokens) { return tokens < 8192 ? 256 : 1024; } // an eighth for each warp
// Blocks in y: each sequence has enough for its tokens, and one where it is empty.
constexpr int conv_blocks(int tokens, int sequences, int block_tokens) { return tokens / block_tokens + sequences; }

// out_t = SiLU(bias + sum over k of weight[k] * x_(t - (d_conv - 1) + k)). Inputs before a sequence's first come from
// its slot, which gets the sequence's last d_conv - 1 inputs, oldest first.
struct ConvForward {
    const void *x;         // dtype [T, E]
    void *out;             // dtype [T, E]; not x
    const float *weight;   // [d_conv, E]
    const float *bias;     // [E] or null
    float *state;          // slot s: state + s * slot_stride, [d_conv - 1, E]; null: begins at zero, no last state
    const int *cu_seqlens; // [sequences + 1]
    const int *slots;      // [sequences]; not read where state is null
    const int *fresh;      // [sequences], likewise; not 0: begins at zero, the slot's content is not read
    long long x_stride, out_stride, slot_stride;
    int sequences;
    int channels;          // E
    int d_conv;            // 1 to 16
    int block_tokens;      // any number from 16 on
};

// The gradients of all inputs, given those of out and of the last state. The pre-activations are computed again. Sums over
// tokens are made in two stages, in one order: by blocks (`partial`), then over blocks.
struct ConvBackward {
    const void *x;                 // dtype [T, E]
    const void *d_out;             // dtype [T, E]
    void *d_x;                     // dtype [T, E]; neither x nor d_out
    const float *weight;           // [d_conv, E]
    const float *bias;             // [E] or null
    const float *initial_state;    // as state in forward, before it ran; null: zero
    const float *last_state_grad;  // slots likewise; null: zero
    float *initial_state_grad;     // slots likewise; zero for sequences that began fresh; null: not wanted
    float *partial;                // [partials, d_conv + 1, E]
    float *d_weight;               // [d_conv, E]
    float *d_bias;                 // [E] or null
    const int *cu_seqlens;         // [sequences + 1]
    const int *slots;              // [sequences]; not read where all three states are null
    const int *fresh;              // [sequences], likewise
    long long x_stride, d_out_stride, d_x_stride, slot_stride;
    int sequences;
    int channels;                  // E
    int d_conv;                    // 1 to 16
    int block_tokens;              // a multiple of 8, from 128 on
    int partials;                  // conv_blocks(T, sequences, block_tokens)
    int reserved;
};
