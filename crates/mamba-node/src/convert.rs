//! Between JavaScript's values and the core's.

use mamba::Error;
use mamba::engine::{
    EmbedOptions, GenerateOptions, Input, Output, Pooling, Priority, Standing, TokenEvent, Usage,
};
use mamba::generate::SamplerOptions;
use napi::bindgen_prelude::*;
use napi::sys;
use napi_derive::napi;

/// Text or ids.
pub type NativeInput = Either<String, Uint32Array>;

pub fn input(value: NativeInput) -> Input {
    match value {
        Either::A(text) => Input::Text(text),
        Either::B(ids) => Input::Ids(ids.to_vec()),
    }
}

/// A vector that JavaScript gets as a typed array of its own. Copied: memory that JavaScript does not own
/// cannot be transferred to another thread, and Electron refuses it.
macro_rules! copied {
    ($name:ident, $item:ty, $slice:ident) => {
        pub struct $name(pub Vec<$item>);

        impl ToNapiValue for $name {
            unsafe fn to_napi_value(env: sys::napi_env, value: Self) -> napi::Result<sys::napi_value> {
                let slice = $slice::copy_from(&Env::from_raw(env), &value.0)?;
                // SAFETY: `env` is the caller's, and `slice` was just made in it.
                unsafe { ToNapiValue::to_napi_value(env, slice) }
            }
        }
    };
}
copied!(Floats, f32, Float32ArraySlice);
copied!(Ids, u32, Uint32ArraySlice);
copied!(Bytes, u8, Uint8ArraySlice);

/// Whose a request is, and how urgent.
#[napi(object, object_to_js = false)]
#[derive(Default)]
pub struct NativeStanding {
    pub user: Option<String>,
    /// `high`, `normal` (where nothing is said), `low`.
    pub priority: Option<String>,
    /// One of the model's adapters, by name.
    pub adapter: Option<String>,
}

impl NativeStanding {
    pub fn into_core(self) -> mamba::Result<Standing> {
        let priority = match self.priority.as_deref() {
            Some("high") => Priority::High,
            None | Some("normal") => Priority::Normal,
            Some("low") => Priority::Low,
            Some(other) => {
                return Err(Error::option("priority", format!("`{other}`"), "`high`, `normal` or `low`"));
            }
        };
        Ok(Standing { user: self.user, priority, adapter: self.adapter })
    }
}

/// How text is generated; TypeScript fills in every default.
#[napi(object, object_to_js = false)]
pub struct NativeGenerateOptions {
    pub max_tokens: u32,
    pub temperature: f64,
    pub top_k: u32,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub frequency_penalty: f64,
    pub presence_penalty: f64,
    pub penalty_window: u32,
    /// An integer that a double holds exactly.
    pub seed: Option<f64>,
    pub logit_bias_ids: Uint32Array,
    pub logit_bias: Float32Array,
    pub stop: Vec<String>,
    pub stop_tokens: Uint32Array,
    pub ignore_eos: bool,
    pub logprobs: u32,
    pub stream: bool,
    pub standing: NativeStanding,
}

impl From<NativeGenerateOptions> for GenerateOptions {
    fn from(options: NativeGenerateOptions) -> Self {
        Self {
            max_tokens: options.max_tokens as usize,
            sampler: SamplerOptions {
                temperature: options.temperature as f32,
                top_k: options.top_k,
                top_p: options.top_p as f32,
                min_p: options.min_p as f32,
                repetition_penalty: options.repetition_penalty as f32,
                frequency_penalty: options.frequency_penalty as f32,
                presence_penalty: options.presence_penalty as f32,
                penalty_window: options.penalty_window as usize,
                seed: 0, // the one below counts
                logit_bias: std::iter::zip(options.logit_bias_ids.iter(), options.logit_bias.iter())
                    .map(|(id, bias)| (*id, *bias))
                    .collect(),
                logprobs: options.logprobs as usize,
            },
            seed: options.seed.map(|seed| seed as u64),
            stop: options.stop,
            stop_tokens: options.stop_tokens.to_vec(),
            ignore_eos: options.ignore_eos,
            stream: options.stream,
        }
    }
}

/// How texts are embedded.
#[napi(object, object_to_js = false)]
pub struct NativeEmbedOptions {
    /// `mean` or `last`.
    pub pooling: String,
    pub normalize: bool,
    pub dimensions: Option<u32>,
}

impl NativeEmbedOptions {
    pub fn into_core(self) -> mamba::Result<EmbedOptions> {
        Ok(EmbedOptions {
            pooling: match &*self.pooling {
                "mean" => Pooling::Mean,
                "last" => Pooling::Last,
                other => return Err(Error::option("pooling", format!("`{other}`"), "`mean` or `last`")),
            },
            normalize: self.normalize,
            dimensions: self.dimensions.map(|count| count as usize),
        })
    }
}

/// A token of a streamed generation.
#[napi(object, object_from_js = false)]
pub struct NativeToken {
    pub text: String,
    pub token: u32,
    pub logprob: f64,
    #[napi(ts_type = "Uint32Array")]
    pub top_ids: Option<Ids>,
    #[napi(ts_type = "Float32Array")]
    pub top_logprobs: Option<Floats>,
}

/// What a request's callback gets: any number of `tokens` (there are some to take), then one of the others (or an error).
#[napi(discriminant = "type", discriminant_case = "lowercase", object_from_js = false)]
pub enum NativeEvent {
    Tokens,
    Generated {
        text: String,
        #[napi(ts_type = "Uint32Array")]
        tokens: Ids,
        #[napi(ts_type = "Float32Array")]
        logprobs: Floats,
        finish_reason: &'static str,
        prompt_tokens: u32,
        cached_tokens: u32,
        completion_tokens: u32,
        prefill_seconds: f64,
        decode_seconds: f64,
    },
    Appended {
        tokens: u32,
    },
    Cached {
        tokens: u32,
    },
    Logits {
        rows: u32,
        #[napi(ts_type = "Float32Array")]
        data: Floats,
    },
    Scores {
        #[napi(ts_type = "Uint32Array")]
        ids: Ids,
        #[napi(ts_type = "Float32Array")]
        logprobs: Floats,
    },
    Embeddings {
        dimensions: u32,
        #[napi(ts_type = "Float32Array")]
        data: Floats,
        tokens: f64,
    },
}

impl From<TokenEvent> for NativeToken {
    fn from(event: TokenEvent) -> Self {
        let TokenEvent { text, token, logprob, top } = event;
        let (ids, logprobs): (Vec<u32>, Vec<f32>) = top.into_iter().unzip();
        let some = !ids.is_empty();
        Self {
            text,
            token,
            logprob: f64::from(logprob),
            top_ids: some.then_some(Ids(ids)),
            top_logprobs: some.then_some(Floats(logprobs)),
        }
    }
}

impl From<Output> for NativeEvent {
    fn from(output: Output) -> Self {
        match output {
            Output::Generated { text, tokens, logprobs, finish_reason, usage } => {
                let Usage {
                    prompt_tokens,
                    cached_tokens,
                    completion_tokens,
                    prefill_seconds,
                    decode_seconds,
                } = usage;
                Self::Generated {
                    text,
                    tokens: Ids(tokens),
                    logprobs: Floats(logprobs),
                    finish_reason: finish_reason.name(),
                    prompt_tokens: prompt_tokens as u32,
                    cached_tokens: cached_tokens as u32,
                    completion_tokens: completion_tokens as u32,
                    prefill_seconds,
                    decode_seconds,
                }
            }
            Output::Cached { tokens } => Self::Cached { tokens: tokens as u32 },
            Output::Appended { tokens } => Self::Appended { tokens: tokens as u32 },
            Output::Logits { rows, data } => Self::Logits { rows: rows as u32, data: Floats(data) },
            Output::Scores { ids, logprobs } => Self::Scores { ids: Ids(ids), logprobs: Floats(logprobs) },
            Output::Embeddings { dimensions, data, tokens } => {
                Self::Embeddings { dimensions: dimensions as u32, data: Floats(data), tokens: tokens as f64 }
            }
        }
    }
}
