// The arguments of the sampling kernel, passed by value, and the array of rows that it reads. Plain C layout (all
// fields 8- or 4-byte, no padding in between) so that Rust repeats them with #[repr(C)].
//
// Launch                 grid      block            dynamic shared memory
//   sampling_choose_f32  (rows)    kSampleThreads   0
#pragma once

constexpr int kSampleThreads = 1024;

// How one row's token is chosen: crates/mamba/src/generate/sampler.rs says what each option does, in which order.
// Values are those that `SamplerOptions::validate` accepts.
struct SampleRow {
    unsigned long long seed;
    unsigned long long position;  // of the token in its sequence
    const int *window;            // [window_length]: the last tokens of the context, in any order
    const int *bias_ids;          // [bias_count], no id twice
    const float *bias;            // [bias_count]
    float *changed;               // [window_length + bias_count], scratch
    int window_length;            // 0 where nothing is penalized
    int bias_count;
    float temperature;            // 0: the largest logit
    float top_p;
    float min_p;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    unsigned top_k;               // 0: off
    int reserved;
};

struct Sampling {
    float *logits;         // [rows, vocab]; bias and penalties are left in them
    const SampleRow *rows; // [rows]
    int *counts;           // [rows, vocab], zero before and after; null where no row has a window
    int *token;            // [rows]: the chosen id; -1: every logit is NaN or -infinity (LOGITS_NOT_FINITE)
    float *logprob;        // [rows]: of that token by the logits as given; NaN with -1
    long long stride;      // elements from a row of logits to the next
    int vocab;             // 1 to 2^20
    int reserved;
};
