//! What a run is told, as JSON. The field names are those of `train()` in TypeScript, which fills in what depends on
//! the machine (paths) and checks types before this does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::train::data::{Order, Sources};
use crate::train::{Decay, Projection, Schedule, TrainOptions, Trained};

/// A run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunConfig {
    /// The run's folder; made if it is not there.
    pub out: PathBuf,
    /// Go on where the run in that folder was, if there is one.
    #[serde(default)]
    pub resume: bool,
    /// A checkpoint to begin from.
    #[serde(default)]
    pub model: Option<PathBuf>,
    /// The shape of a new model, as an official config.json; `vocab_size` may be left to the tokenizer.
    #[serde(default)]
    pub config: Option<Value>,
    /// Default: the checkpoint's.
    #[serde(default)]
    pub tokenizer: Option<TokenizerConfig>,
    /// What to train on.
    pub data: Sources,
    /// What to learn from it.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// How much of it at a time.
    #[serde(default)]
    pub batch: BatchConfig,
    /// Steps of the run.
    pub steps: u64,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// What is held out, and how often it is looked at.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// Type of activations and of products; the parameters themselves and all sums are f32.
    #[serde(default)]
    pub precision: Precision,
    /// Train this instead of the whole model.
    #[serde(default)]
    pub adapter: Option<AdapterConfig>,
    /// When the run is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Compute activations again instead of keeping them.
    #[serde(default)]
    pub recompute: bool,
    /// Draws the first parameters, places in the data, the held-out part.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda`.
    #[serde(default)]
    pub device: Option<String>,
    /// Threads to compute on.
    #[serde(default)]
    pub threads: Option<usize>,
}

/// A tokenizer: a file, or how to make one from the data.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// A tokenizer.json.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// Byte-level byte-pair encoding.
    Bpe {
        /// Tokens in all.
        #[serde(rename = "vocabSize")]
        vocab_size: usize,
    },
    /// A token a character.
    Characters,
    /// A token a byte.
    Bytes,
}

/// What is learned.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum ObjectiveConfig {
    /// The next token.
    #[default]
    CausalLm,
    /// Texts that belong together get vectors that are alike (InfoNCE).
    Contrastive {
        /// How vectors are made.
        #[serde(default)]
        pooling: PoolingConfig,
        /// Similarities are divided by it.
        temperature: f64,
    },
    /// Texts get the vectors that the data give.
    Distill {
        /// How vectors are made.
        #[serde(default)]
        pooling: PoolingConfig,
        /// What is made small.
        loss: DistillLoss,
    },
    /// Texts get the labels that the data give.
    Classify {
        /// How vectors are made.
        #[serde(default)]
        pooling: PoolingConfig,
    },
}

impl ObjectiveConfig {
    /// Where its examples have their texts; `None`: it takes texts as they are.
    pub(super) fn fields(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::CausalLm => None,
            Self::Contrastive { .. } => Some(&["anchor", "positive", "negatives"]),
            Self::Distill { .. } | Self::Classify { .. } => Some(&["text"]),
        }
    }
}

/// See [`crate::engine::Pooling`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolingConfig {
    /// The mean over all tokens.
    #[default]
    Mean,
    /// The last token's.
    Last,
}

/// The distance to a given vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DistillLoss {
    /// 1 − cos.
    Cosine,
    /// Mean square of the differences.
    Mse,
}

/// How much data a step takes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Rows, or examples (pairs, texts with labels).
    pub size: usize,
    /// Tokens of a row; longer texts of examples are cut.
    pub length: usize,
    /// Batches that are computed one after the other for one step.
    pub accumulate: usize,
    /// In what order.
    pub order: Order,
    /// Tokens that are computed together, for examples; their batch may be far larger. `None`: size · length, at most
    /// 8192.
    pub tokens: Option<usize>,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { size: 8, length: 512, accumulate: 1, order: Order::Documents, tokens: None }
    }
}

/// AdamW's numbers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The greatest learning rate.
    pub lr: f64,
    /// β₁, β₂.
    pub betas: [f64; 2],
    /// Added under the root.
    pub eps: f64,
    /// Of tensors of two or more dimensions but A_log.
    pub weight_decay: f64,
    /// Norm that gradients are scaled down to; 0: none.
    pub clip: f64,
    /// Weight of (log Σ exp(logits))².
    pub z_loss: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, clip: 1.0, z_loss: 0.0 }
    }
}

/// The learning rate over the run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Steps until the full rate.
    pub warmup: u64,
    /// How it falls.
    pub decay: DecayConfig,
    /// What it falls to.
    pub min_lr: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { warmup: 0, decay: DecayConfig::Cosine, min_lr: 1e-5 }
    }
}

/// See [`Decay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayConfig {
    /// Not.
    Constant,
    /// In a straight line.
    Linear,
    /// By half a cosine.
    Cosine,
}

/// What is held out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Part of the data; 0: none.
    pub fraction: f64,
    /// Steps from one look to the next; 0: at the end only.
    pub every: u64,
    /// Batches that are looked at; the same ones each time.
    pub batches: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { fraction: 0.0, every: 0, batches: 16 }
    }
}

/// Type of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, on a GPU.
    Bf16,
}

/// A part that is trained in place of the model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum AdapterConfig {
    /// Low-rank matrices beside those of the model.
    Lora {
        /// Inner dimension.
        rank: usize,
        /// Scale, divided by the rank.
        alpha: f32,
        /// `in_proj`, `x_proj`, `dt_proj`, `out_proj`.
        targets: Vec<String>,
    },
    /// The state that every text begins from.
    State,
}

/// When a run is saved.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps from one to the next; 0: at the end and when the run is aborted only.
    pub every: u64,
    /// How many are kept.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 500, keep: 2 }
    }
}

/// A matrix that takes an adapter, by its name.
pub(crate) fn projection(name: &str) -> Result<Projection> {
    Projection::ALL.into_iter().find(|projection| projection.name() == name).ok_or_else(|| {
        let expected = "`in_proj`, `x_proj`, `dt_proj` or `out_proj`";
        Error::option("adapter.targets", format!("`{name}`"), expected)
    })
}

impl RunConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// `OPTION_INVALID`, naming the field.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json)
            .map_err(|error| Error::option("config", format!("not usable ({error})"), "as documented"))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let positive = |field: &str, value: usize| match value {
            0 => Err(Error::option(field, 0, "at least 1")),
            _ => Ok(()),
        };
        positive("steps", self.steps as usize)?;
        positive("batch.size", self.batch.size)?;
        positive("batch.length", self.batch.length)?;
        positive("batch.accumulate", self.batch.accumulate)?;
        for (field, value, factor) in [
            ("batch.length", self.batch.length, self.batch.size),
            ("batch.accumulate", self.batch.accumulate, self.batch.size),
            ("batch.tokens", self.batch.tokens.unwrap_or(1), 1),
        ] {
            // Far beyond what any device computes at a time, and nothing that is made of it overflows.
            if value.checked_mul(factor).is_none_or(|product| product > 1 << 31) {
                let expected = "at most 2147483648 together with `batch.size`";
                return Err(Error::option(field, value, expected));
            }
        }
        positive("checkpoint.keep", self.checkpoint.keep)?;
        positive("validation.batches", self.validation.batches as usize)?;
        if !(0.0..1.0).contains(&self.validation.fraction) {
            return Err(Error::option("validation.fraction", self.validation.fraction, "from 0 to below 1"));
        }
        match (&self.model, &self.config) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => {
                return Err(Error::option("model", "missing", "a checkpoint to begin from, or `config`"));
            }
            (Some(_), Some(_)) => {
                return Err(Error::option("config", "given beside `model`", "one of the two"));
            }
        }
        if let (Some(_), None) = (&self.adapter, &self.model) {
            return Err(Error::option("adapter", "given without `model`", "a model that is trained already"));
        }
        if let (ObjectiveConfig::CausalLm, Some(tokens)) = (&self.objective, self.batch.tokens) {
            let expected = "nothing: a language model's batch is `batch.size` rows of `batch.length` tokens";
            return Err(Error::option("batch.tokens", tokens, expected));
        }
        if let ObjectiveConfig::Contrastive { temperature, .. } = self.objective
            && !(temperature.is_finite() && temperature > 0.0)
        {
            return Err(Error::option("objective.temperature", temperature, "a number above 0"));
        }
        Ok(())
    }

    /// What the trainer is told.
    ///
    /// # Errors
    /// `OPTION_INVALID`.
    pub(super) fn train_options(&self) -> Result<TrainOptions> {
        let OptimizerConfig { lr, betas, eps, weight_decay, clip, z_loss } = self.optimizer;
        let ScheduleConfig { warmup, decay, min_lr } = self.schedule;
        let decay = match decay {
            DecayConfig::Constant => Decay::Constant,
            DecayConfig::Linear => Decay::Linear,
            DecayConfig::Cosine => Decay::Cosine,
        };
        let trained = match &self.adapter {
            None => Trained::All,
            Some(AdapterConfig::State) => Trained::State,
            Some(AdapterConfig::Lora { rank, alpha, targets }) => Trained::Lora {
                rank: *rank,
                alpha: *alpha,
                targets: targets.iter().map(|name| projection(name)).collect::<Result<_>>()?,
            },
        };
        Ok(TrainOptions {
            trained,
            schedule: Schedule { lr, min_lr: min_lr.min(lr), warmup, steps: self.steps, decay },
            betas,
            eps,
            weight_decay,
            clip: (clip != 0.0).then_some(clip as f32),
            z_loss: z_loss as f32,
            recompute: self.recompute,
            ..TrainOptions::default()
        })
    }

    /// Compares with what a run was begun with, but for what may differ: where and how often, not what is computed.
    ///
    /// # Errors
    /// `RUN_MISMATCH`, naming the field.
    pub(super) fn check_same(&self, begun: &Value) -> Result<()> {
        const FREE: [&str; 6] = ["out", "resume", "checkpoint", "device", "threads", "model"];
        let now =
            serde_json::to_value(self).map_err(|error| Error::Internal { message: error.to_string() })?;
        let (Some(now), Some(begun)) = (now.as_object(), begun.as_object()) else { return Ok(()) };
        for (field, value) in now.iter().filter(|(field, _)| !FREE.contains(&field.as_str())) {
            let before = begun.get(field).unwrap_or(&Value::Null);
            if field == "data" {
                // The files are not read again: they may have been moved.
                continue;
            }
            if let Some((field, found, expected)) = difference(field, value, before) {
                return Err(Error::RunMismatch { field, found, expected });
            }
        }
        Ok(())
    }
}

/// The first place where two values differ.
fn difference(path: &str, now: &Value, before: &Value) -> Option<(String, String, String)> {
    match (now, before) {
        (Value::Object(now), Value::Object(before)) => now.iter().find_map(|(field, value)| {
            difference(&format!("{path}.{field}"), value, before.get(field).unwrap_or(&Value::Null))
        }),
        _ if now == before => None,
        _ => Some((path.into(), now.to_string(), before.to_string())),
    }
}
