// The arguments of the log-probability kernel, passed by value. Plain C layout (all fields 8- or 4-byte, no padding in
// between) so that Rust repeats them with #[repr(C)]. Any vocabulary, stride and alignment is right.
//
// Launch               grid     block  shared
//   token_logprobs     count    512    0
// Nothing to launch for count = 0.
#pragma once

// out[i] = log_softmax(logits[i])[targets[i]] = logit[target] - max - log(sum of exp(logit - max)).
struct TokenLogprobs {
    const float *logits;      // [count, vocabulary]; row i at logits + i * logits_stride
    const int *targets;       // [count]
    float *out;               // [count]
    long long logits_stride;
    int vocabulary;
    int reserved;
};
