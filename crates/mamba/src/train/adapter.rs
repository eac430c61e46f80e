//! Adapters on the disk.
//!
//! LoRA in the files of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`, tensors
//! `base_model.model.backbone.layers.N.mixer.in_proj.lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank];
//! `PeftModel.from_pretrained` takes the folder. A learned initial state, which PEFT has not, is
//! `adapter_config.json` with `"peft_type": "MAMBA_INITIAL_STATE"` and the tensor `initial_state`: per layer
//! conv_state [d_conv − 1, d_inner], then ssm_state [d_state, d_inner].

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::objective::HEAD;
use super::run::{AdapterConfig, ObjectiveConfig, PoolingConfig, projection};
use super::{Projection, TrainBackend, Trainer};
use crate::atomic_file::write_atomically;
use crate::checkpoint::{
    Checkpoint, OpenOptions, Tensor, read_tensors, save as save_checkpoint, write_tensors,
};
use crate::config::Config;
use crate::dtype::DType;
use crate::error::{Error, Result};

const PREFIX: &str = "base_model.model.";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const INITIAL_STATE: &str = "MAMBA_INITIAL_STATE";

/// A matrix's low-rank addition: `W + scale · B · A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// [rank, in], row-major.
    pub a: Vec<f32>,
    /// [out, rank], row-major.
    pub b: Vec<f32>,
}

/// What an adapter changes.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterKind {
    /// Matrices.
    Lora {
        /// Inner dimension.
        rank: usize,
        /// alpha / rank (alpha / √rank where the file says so).
        scale: f32,
        /// For each layer, in the order of [`Projection::ALL`]; `None`: that matrix stays as it is.
        layers: Vec<[Option<LowRank>; 4]>,
    },
    /// The state that every text begins from; all layers' end to end.
    State(Vec<f32>),
}

/// An adapter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What it changes.
    pub kind: AdapterKind,
    path: PathBuf,
}

/// Number of elements of a sequence's whole state.
fn state_elements(config: &Config) -> usize {
    config.n_layer * config.d_inner * (config.d_conv - 1 + config.d_state)
}

impl Adapter {
    /// Reads an adapter's folder and checks that it fits the model.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`, `ADAPTER_INVALID`, `ADAPTER_MISMATCH`, `IO_ERROR`.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let file = folder.join(CONFIG);
        let invalid = |reason: String| Error::AdapterInvalid { path: file.clone(), reason };
        let text = std::fs::read_to_string(&file).map_err(|error| match Error::io("read", &file, error) {
            Error::FileNotFound { path, .. } => {
                Error::FileNotFound { path, expected: "expected an adapter's folder".into() }
            }
            other => other,
        })?;
        let fields: Value =
            serde_json::from_str(&text).map_err(|error| invalid(format!("not JSON ({error})")))?;
        let weights = folder.join(WEIGHTS);
        let tensors = read_tensors(&weights).map_err(|error| match error {
            Error::CheckpointInvalid { path, reason } => Error::AdapterInvalid { path, reason },
            Error::TensorDtype { name, dtype } => {
                Error::AdapterInvalid { path: weights.clone(), reason: format!("`{name}` is {dtype}") }
            }
            other => other,
        })?;
        let kind = match &fields["peft_type"] {
            Value::String(kind) if kind == "LORA" => lora(&fields, &tensors, config, &file, &weights)?,
            Value::String(kind) if kind == INITIAL_STATE => {
                let expected = state_elements(config);
                let state = tensors.get("initial_state");
                let state = state.ok_or_else(|| Error::AdapterInvalid {
                    path: weights.clone(),
                    reason: "no tensor `initial_state`".into(),
                })?;
                if state.elements() != expected {
                    return Err(mismatch("the initial state", state.elements(), expected));
                }
                AdapterKind::State(state.to_vec()?)
            }
            other => return Err(invalid(format!("`peft_type` is {other}, expected \"LORA\""))),
        };
        Ok(Self { kind, path: folder.to_path_buf() })
    }

    /// The model with the adapter in its matrices: `W + scale · B · A`, in f32.
    ///
    /// # Errors
    /// `ADAPTER_INVALID` for an initial state, which no matrix can hold; what reading the checkpoint gives.
    pub fn merged(&self, base: &Checkpoint) -> Result<Checkpoint> {
        let AdapterKind::Lora { rank, scale, layers } = &self.kind else {
            let reason = "a learned initial state cannot be merged into weights".into();
            return Err(Error::AdapterInvalid { path: self.path.clone(), reason });
        };
        let config = base.config();
        let mut tensors: Vec<Tensor> = Vec::new();
        for tensor in base.tensors() {
            let Some((layer, which)) = matrix(&tensor.name) else {
                tensors.push(tensor.clone());
                continue;
            };
            let Some(Some(LowRank { a, b })) = layers.get(layer).map(|layer| &layer[which]) else {
                tensors.push(tensor.clone());
                continue;
            };
            let [_, inputs] = Projection::ALL[which].shape(config);
            let mut values = tensor.to_vec()?;
            for (row, b) in values.chunks_exact_mut(inputs).zip(b.chunks_exact(*rank)) {
                for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
                }
            }
            tensors.push(Tensor::from_memory(&tensor.name, tensor.shape.clone(), values));
        }
        let merged = Checkpoint::from_memory(config.clone(), tensors)?;
        Ok(merged.with_tokenizer(base.tokenizer_path().map(Path::to_path_buf)))
    }
}

/// Writes the model at `base` with an adapter merged into it, in the official format.
///
/// # Errors
/// What opening both and [`save_checkpoint`] give.
pub fn merge(base: &Path, adapter: &Path, out: &Path, dtype: Option<DType>, threads: usize) -> Result<()> {
    let base = Checkpoint::open(base, &OpenOptions::default())?;
    let merged = Adapter::open(adapter, base.config())?.merged(&base)?;
    save_checkpoint(&merged, out, dtype.unwrap_or(DType::F32), threads, &mut |_, _| Ok(()))
}

fn mismatch(what: &str, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
    Error::AdapterMismatch { what: what.into(), found: found.to_string(), expected: expected.to_string() }
}

/// The layer and projection of `backbone.layers.N.mixer.<projection>.weight`.
fn matrix(name: &str) -> Option<(usize, usize)> {
    let (layer, rest) = name.strip_prefix("backbone.layers.")?.split_once(".mixer.")?;
    let which = rest.strip_suffix(".weight")?;
    let which = Projection::ALL.iter().position(|projection| projection.name() == which)?;
    Some((layer.parse().ok()?, which))
}

fn lora(
    fields: &Value,
    tensors: &std::collections::HashMap<String, Tensor>,
    config: &Config,
    file: &Path,
    weights: &Path,
) -> Result<AdapterKind> {
    let invalid = |reason: String| Error::AdapterInvalid { path: file.into(), reason };
    let rank = fields["r"].as_u64().filter(|rank| (1..=1 << 16).contains(rank));
    let rank = rank.ok_or_else(|| invalid(format!("`r` is {}, expected the rank", fields["r"])))? as usize;
    let alpha = fields["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
    let alpha = alpha
        .ok_or_else(|| invalid(format!("`lora_alpha` is {}, expected a number", fields["lora_alpha"])))?;
    for (field, plain) in
        [("use_dora", json!(false)), ("bias", json!("none")), ("fan_in_fan_out", json!(false))]
    {
        if !fields[field].is_null() && fields[field] != plain {
            return Err(invalid(format!("`{field}` is {}, expected {plain}", fields[field])));
        }
    }
    let scale = match fields["use_rslora"].as_bool() {
        Some(true) => alpha / (rank as f64).sqrt(),
        _ => alpha / rank as f64,
    };
    let damaged = |reason: String| Error::AdapterInvalid { path: weights.into(), reason };
    let mut layers = vec![[const { None }; 4]; config.n_layer];
    let mut halves = std::collections::BTreeMap::new();
    for (name, tensor) in tensors {
        let parsed = name.strip_prefix(PREFIX).and_then(|name| {
            let (owner, half) = name.rsplit_once(".lora_")?;
            let (layer, which) = matrix(&format!("{owner}.weight"))?;
            let half = ["A.weight", "B.weight"].iter().position(|part| *part == half)?;
            Some((layer, which, half))
        });
        let (layer, which, half) = parsed.ok_or_else(|| {
            let expected = "backbone.layers.N.mixer.(in_proj|x_proj|dt_proj|out_proj).lora_(A|B).weight";
            damaged(format!("tensor `{name}` is not known, expected {PREFIX}{expected}"))
        })?;
        if layer >= config.n_layer {
            return Err(mismatch(
                &format!("the layer of `{name}`"),
                layer,
                format!("below {}", config.n_layer),
            ));
        }
        let [outputs, inputs] = Projection::ALL[which].shape(config);
        let expected = if half == 0 { [rank, inputs] } else { [outputs, rank] };
        if tensor.shape != expected {
            return Err(mismatch(
                &format!("`{name}`"),
                format!("{:?}", tensor.shape),
                format!("{expected:?}"),
            ));
        }
        halves.insert((layer, which, half), tensor.to_vec()?);
    }
    if halves.is_empty() {
        return Err(damaged("it holds no tensor".into()));
    }
    while let Some(((layer, which, _), values)) = halves.pop_first() {
        // In order, A comes before its B.
        let name = format!("backbone.layers.{layer}.mixer.{}", Projection::ALL[which].name());
        let b = halves
            .remove(&(layer, which, 1))
            .ok_or_else(|| damaged(format!("`{name}` has only one of A and B")))?;
        layers[layer][which] = Some(LowRank { a: values, b });
    }
    Ok(AdapterKind::Lora { rank, scale: scale as f32, layers })
}

/// Writes what a trainer has learned beside the model into a folder.
pub(super) fn save<B: TrainBackend>(
    trainer: &mut Trainer<B>,
    adapter: &AdapterConfig,
    base: Option<&Path>,
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let base = base.map(|path| path.display().to_string());
    let (about, names, prefix) = match adapter {
        AdapterConfig::Lora { rank, alpha, targets } => {
            for target in targets {
                projection(target)?;
            }
            let about = json!({
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": rank,
                "lora_alpha": alpha,
                "target_modules": targets,
                "lora_dropout": 0.0,
                "bias": "none",
                "fan_in_fan_out": false,
                "inference_mode": true,
            });
            let parameters = trainer.layout().parameters().iter();
            let names = parameters.filter(|parameter| parameter.name.contains(".lora_"));
            (
                about,
                names.map(|parameter| (parameter.name.clone(), parameter.shape.clone())).collect(),
                PREFIX,
            )
        }
        AdapterConfig::State => {
            let about = json!({ "peft_type": INITIAL_STATE, "base_model_name_or_path": base });
            let elements = state_elements(trainer.config());
            (about, vec![("initial_state".to_owned(), vec![elements])], "")
        }
    };
    let values = names.iter().map(|(name, _)| trainer.parameter(name)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> = std::iter::zip(names, &values)
        .map(|((name, shape), values)| (format!("{prefix}{name}"), shape, &values[..]))
        .collect();
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    let text = format!("{about:#}\n");
    write_atomically(&folder.join(CONFIG), |file| file.write_all(text.as_bytes()))
}

/// Writes a classifier's head: `classifier.json` (labels, in the order of the rows, and pooling) and
/// `classifier.safetensors` (`classifier.weight` [labels, d_model], `classifier.bias` [labels]).
pub(super) fn save_classifier<B: TrainBackend>(
    trainer: &mut Trainer<B>,
    objective: &ObjectiveConfig,
    labels: &[String],
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let [weight, bias] = [trainer.parameter(HEAD[0])?, trainer.parameter(HEAD[1])?];
    let d_model = trainer.config().d_model;
    let tensors = [
        (HEAD[0].to_owned(), vec![labels.len(), d_model], &weight[..]),
        (HEAD[1].to_owned(), vec![labels.len()], &bias[..]),
    ];
    write_tensors(&folder.join("classifier.safetensors"), &tensors)?;
    let pooling = match objective {
        ObjectiveConfig::Classify { pooling: PoolingConfig::Last } => "last",
        _ => "mean",
    };
    let text = format!(
        "{:#}\n",
        json!({ "format": "node-mamba-classifier/1", "labels": labels, "pooling": pooling })
    );
    write_atomically(&folder.join("classifier.json"), |file| file.write_all(text.as_bytes()))
}
