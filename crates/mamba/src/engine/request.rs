//! What can be asked of a model and what it answers. Every request is one [`Task`] with one callback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::Session;
use crate::error::Error;
use crate::generate::SamplerOptions;

/// Text, or the token ids that stand for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Tokenized by the model's tokenizer before it is queued, never on the caller's thread.
    Text(String),
    /// Taken as they are; each must be below the model's (padded) vocabulary.
    Ids(Vec<u32>),
}

impl Input {
    /// Bytes that are to be tokenized.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ids(_) => 0,
        }
    }
}

/// Flags that end a request within one engine step, or let it rest. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    cancelled: AtomicBool,
    paused: AtomicBool,
}

impl Cancel {
    /// Asks the request to end; it answers with [`Error::Aborted`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Whether a generation is to rest, since its consumer does not keep up. It gives its slot to others within one
    /// step (a few tokens may still come) and waits for one again when it may go on.
    pub fn pause(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Release);
    }

    /// What [`Cancel::pause`] said last.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }
}

/// How urgent a request is. Of slots that become free, and of what a step computes of prompts, one that is `High` gets
/// four times as much as one that is `Normal`, and that four times as much as one that is `Low`: none starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Someone is waiting.
    High,
    /// As most.
    #[default]
    Normal,
    /// Has time.
    Low,
}

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its share, relative to the others'.
    #[must_use]
    pub fn weight(self) -> u64 {
        match self {
            Self::High => 16,
            Self::Normal => 4,
            Self::Low => 1,
        }
    }

    /// The time from one of its turns to the next, where nobody else had one.
    pub(super) fn stride(self) -> u64 {
        16 / self.weight()
    }
}

/// Whose a request is, and how urgent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Requests of the same user share one turn among the users of a priority. `None`: the request has its own.
    pub user: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// The name of the adapter that it runs with, of those that the model was loaded with. `None`: none.
    pub adapter: Option<String>,
}

/// How text is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// At most so many new tokens (at least 1).
    pub max_tokens: usize,
    /// How each token is chosen (its `seed` is replaced by the one below).
    pub sampler: SamplerOptions,
    /// Key of the random draws. `None`: a session's own seed, or a new one.
    pub seed: Option<u64>,
    /// Generation ends before the first of these strings; none of it is emitted.
    pub stop: Vec<String>,
    /// Generation ends at these ids (besides the model's own end-of-text ids); their text is not emitted.
    pub stop_tokens: Vec<u32>,
    /// Do not end at the model's end-of-text ids.
    pub ignore_eos: bool,
    /// Send an [`Event::Token`] for each token; otherwise only the final [`Output::Generated`].
    pub stream: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampler: SamplerOptions::default(),
            seed: None,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            stream: false,
        }
    }
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens of the hidden state after the final norm.
    #[default]
    Mean,
    /// The hidden state after the last token.
    Last,
}

/// How texts are embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Mean or last.
    pub pooling: Pooling,
    /// Scale each vector to length 1 (after truncation to `dimensions`).
    pub normalize: bool,
    /// Keep the first so many components; `None` keeps all `d_model`.
    pub dimensions: Option<usize>,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: Pooling::Mean, normalize: true, dimensions: None }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub enum Task {
    /// Continue a prompt from a zero state.
    Generate {
        /// At least one token.
        prompt: Input,
        /// How.
        options: GenerateOptions,
    },
    /// Continue a session; it keeps what was generated.
    Continue {
        /// At least one token must have been appended before.
        session: Session,
        /// How.
        options: GenerateOptions,
    },
    /// Put text into a session's context.
    Append {
        /// The session; unchanged if the request fails or is cancelled.
        session: Session,
        /// May be empty (then nothing happens).
        input: Input,
    },
    /// Logits of a text.
    Forward {
        /// At least one token.
        input: Input,
        /// Of every position, or of the last one only.
        all: bool,
    },
    /// Log-probability of each token given those before it.
    Score {
        /// At least two tokens.
        input: Input,
    },
    /// Keep the state after a text, so that prompts which begin with its tokens need not compute it
    /// ([`super::LoadOptions::prefix_cache`]).
    CachePrefix {
        /// At least one token.
        input: Input,
    },
    /// One vector per text.
    Embed {
        /// Each at least one token; may be an empty list.
        inputs: Vec<Input>,
        /// How.
        options: EmbedOptions,
    },
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Text that became certain with this token; empty while a character or a possible stop string is
    /// incomplete. Concatenated over the events it is the whole text.
    pub text: String,
    /// The id.
    pub token: u32,
    /// Natural logarithm of the token's probability under the model (before penalties and temperature).
    pub logprob: f32,
    /// The `logprobs` most probable ids, best first, with their log-probabilities.
    pub top: Vec<(u32, f32)>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_tokens` were generated.
    Length,
    /// A stop string or stop token, or the model's end of text.
    Stop,
}

impl FinishReason {
    /// `length` or `stop`, as OpenAI's API names them.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Stop => "stop",
        }
    }
}

/// Tokens and time of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt (for a session: not those of earlier calls).
    pub prompt_tokens: usize,
    /// How many of them were not computed, as the state after them was in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens that were generated.
    pub completion_tokens: usize,
    /// Seconds from admission to the first token.
    pub prefill_seconds: f64,
    /// Seconds from the first token to the last.
    pub decode_seconds: f64,
}

/// The result of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Of [`Task::Generate`] and [`Task::Continue`].
    Generated {
        /// The whole text.
        text: String,
        /// The ids, a stop token included.
        tokens: Vec<u32>,
        /// Of each token, in the same order.
        logprobs: Vec<f32>,
        /// Why it ended.
        finish_reason: FinishReason,
        /// Counts and times.
        usage: Usage,
    },
    /// Of [`Task::CachePrefix`].
    Cached {
        /// Tokens of this input.
        tokens: usize,
    },
    /// Of [`Task::Append`].
    Appended {
        /// Tokens of this input.
        tokens: usize,
    },
    /// Of [`Task::Forward`].
    Logits {
        /// Number of positions (1 for the last only).
        rows: usize,
        /// Row-major [rows, vocab].
        data: Vec<f32>,
    },
    /// Of [`Task::Score`].
    Scores {
        /// All ids of the input.
        ids: Vec<u32>,
        /// Log-probability of `ids[1..]`, each given those before it.
        logprobs: Vec<f32>,
    },
    /// Of [`Task::Embed`].
    Embeddings {
        /// Components of each vector.
        dimensions: usize,
        /// Row-major [inputs, dimensions], in the order of the inputs.
        data: Vec<f32>,
        /// Tokens of all inputs together.
        tokens: usize,
    },
}

/// What a request's callback gets: any number of tokens, then exactly one of `Done` and `Failed`.
#[derive(Debug)]
pub enum Event {
    /// A token of a streamed generation.
    Token(TokenEvent),
    /// The result; nothing follows.
    Done(Output),
    /// The error; nothing follows.
    Failed(Error),
}
