// The arguments of the sampling kernel, passed by value, and the array of rows that it reads. Plain C layout (all
// fields 8- or 4-byte, no padding in between) so that Rust repeats them with #[repr(C)].
//
// Launch                 grid      block            dynamic shared memory
//   sampling_choose_f32  (rows)    kSampleThreads   0
//   sampling_survey_f32  (kSurveyParts, rows)    kSurveyThreads   0
//   sampling_decode_f32  (rows)    kSampleThreads   0, behind the survey with programmatic stream serialization
#pragma once

constexpr int kSampleThreads = 1024;
constexpr int kSurveyThreads = 256;
constexpr int kSurveyParts = 32; // of a row of logits, at most a warp's lanes

// What a row of the decode table has room for: tokens that are penalized, biased ids, ids that end a text.
constexpr int kDecodeWindow = 1024;
constexpr int kDecodeBias = 256;
constexpr int kDecodeStop = 32;
// 32-bit words of a row: the struct, then window, ids and values of the bias, stop ids, scratch for what is changed.
constexpr int kDecodeHeader = 24;
constexpr int kDecodeRow = kDecodeHeader + 2 * kDecodeWindow + 3 * kDecodeBias + kDecodeStop;
// Choices of a row that the host has not looked at yet, at most.
constexpr int kDecodeAhead = 4;

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

// A row of the decode table: how its tokens are chosen, and when it ends. It does not know where it lies, so that it may
// be copied to another row.
struct DecodeRow {
    unsigned long long seed;
    unsigned long long position; // of the next token in its sequence
    int slot;                    // where its state lies
    int left;                    // tokens that may still be chosen
    int hold;                    // not 0: after each token it waits until the host lets it go on
    int count;                   // tokens chosen so far
    int window_length;
    int window_size;             // 0 where nothing is penalized
    int window_next;             // where the next token is put
    int bias_count;
    int stop_count;
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    unsigned top_k;
};

// Chooses the next token of rows of the table and moves them on: the token becomes the row's id of the next step; a row
// that ends (a stop token, the length, no finite logit) is pointed at the spare slot, and so is one that holds.
struct Decode {
    float *logits;         // [rows, vocab]; bias and penalties are left in them
    int *table;            // [rows of the table, kDecodeRow]
    int *counts;           // [rows, vocab], zero before and after
    float *survey;         // [rows, kSurveyParts, 3], scratch: of each part the largest logit, its lowest id, the sum of exp(logit - largest)
    int *slots;            // of the table's rows; the spare one: nothing is chosen for the row
    int *ids;              // of the table's rows
    int *chosen;           // [slots, kDecodeAhead, 2]: token (-1: no finite logit) and bits of its logprob, for the host
    const int *which;      // [rows]: the table's row of each row of logits, whatever its slot; null: first, first + 1, ...
    long long stride;      // elements from a row of logits to the next
    int first;
    int vocab;             // 1 to 2^20
    int spare;
    int reserved;
};
