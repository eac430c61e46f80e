//! Weights in and out: safetensors in one file or in shards, `pytorch_model.bin`; official and Hugging Face
//! names. All files are taken for hostile: lengths are checked before anything is allocated or mapped.

mod names;
mod pickle;
mod pytorch;
mod raw;
mod safetensors;
mod save;
mod synthetic;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub(crate) use raw::{read_tensors, write_tensors};
pub use save::{Names, save, save_as};
pub(crate) use tensor::read_exact_at;
pub use tensor::{Stored, Tensor};

use crate::config::Config;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quantize::Format;

/// How a checkpoint is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Map the files. A mapped file that another process cuts short kills this one; without, it is an error.
    pub mmap: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { mmap: true }
    }
}

/// An open checkpoint: all tensors that its configuration calls for are there and have the right shapes.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    tensors: HashMap<String, Tensor>,
    tokenizer: Option<PathBuf>,
}

/// What a weights file holds under a name.
enum Found {
    Tensor(Tensor),
    /// Of a type that no weight has; an error only if the model needs it.
    Unreadable {
        name: String,
        dtype: String,
    },
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::Tensor(tensor) => &tensor.name,
            Self::Unreadable { name, .. } => name,
        }
    }
}

/// In this order of preference.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

impl Checkpoint {
    /// Opens a folder with `config.json` and weights, or a weights file with `config.json` beside it.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`, `CONFIG_INVALID`, `CHECKPOINT_INVALID`, `PICKLE_UNSAFE`, `TENSOR_MISSING`,
    /// `TENSOR_SHAPE`, `TENSOR_DTYPE`, `IO_ERROR`.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| match Error::io("read", path, error) {
            Error::FileNotFound { path, .. } => Error::FileNotFound {
                path,
                expected: "expected a checkpoint's folder or weights file".into(),
            },
            other => other,
        })?;
        let (folder, weights) = if metadata.is_dir() {
            let weights = WEIGHTS.iter().map(|name| path.join(name)).find(|file| file.is_file());
            let weights = weights.ok_or_else(|| Error::FileNotFound {
                path: path.join(WEIGHTS[0]),
                expected: format!("expected one of {} there", WEIGHTS.join(", ")),
            })?;
            (path, weights)
        } else {
            (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
        };
        let mut config = read_config(folder)?;
        let found = read_weights(&weights, options.mmap)?;
        let tensors = select(&mut config, found, &weights)?;
        let tokenizer = Some(folder.join("tokenizer.json")).filter(|file| file.is_file());
        Ok(Self { config, tensors, tokenizer })
    }

    /// A checkpoint of values in memory, under canonical names.
    ///
    /// # Errors
    /// `TENSOR_MISSING`, `TENSOR_SHAPE`.
    pub fn from_memory(mut config: Config, tensors: Vec<Tensor>) -> Result<Self> {
        let found = tensors.into_iter().map(Found::Tensor).collect();
        let tensors = select(&mut config, found, Path::new("memory"))?;
        Ok(Self { config, tensors, tokenizer: None })
    }

    /// A checkpoint of random weights of a trained model's scale: the same for the same seed.
    #[must_use]
    pub fn random(config: Config, seed: u64) -> Self {
        let tensors = synthetic::tensors(&config, seed);
        Self { config, tensors: tensors.into_iter().map(|t| (t.name.clone(), t)).collect(), tokenizer: None }
    }

    /// The same with another tokenizer.json, which [`save`] copies.
    #[must_use]
    pub fn with_tokenizer(self, path: Option<PathBuf>) -> Self {
        Self { tokenizer: path, ..self }
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A tensor by its canonical (official) name.
    ///
    /// # Errors
    /// `TENSOR_MISSING` for one that the configuration does not call for.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::TensorMissing {
            name: name.into(),
            expected: Vec::new(),
            path: PathBuf::from("the checkpoint"),
        })
    }

    /// All tensors, in the order of [`Config::tensors`].
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.config.tensors().into_iter().filter_map(|(name, _)| self.tensors.get(&name))
    }

    /// `tokenizer.json` beside the weights.
    #[must_use]
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// The type that the embedding, and so as a rule every matrix, is stored in (f64 counts as f32).
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self.tensors.get("backbone.embedding.weight").map(Tensor::stored) {
            Some(Stored::BF16) => DType::BF16,
            Some(Stored::F16) => DType::F16,
            Some(Stored::Quantized(Format::Q8_0)) => DType::Q8_0,
            Some(Stored::Quantized(Format::Q4K)) => DType::Q4K,
            Some(Stored::F64 | Stored::F32) | None => DType::F32,
        }
    }

    /// Tells models apart, whatever format they are stored in, and whether in f32 or bf16 (f16 rounds otherwise):
    /// SHA-256 of the configuration, of all
    /// names and shapes, and of up to 16 values of each tensor, rounded to bf16.
    ///
    /// # Errors
    /// What reading gives.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        const SAMPLES: usize = 16;
        let mut hash = Sha256::new();
        let mut config = self.config.to_official_json();
        if let Some(fields) = config.as_object_mut() {
            // What the formats state differently for the same model, and what does not change its numbers.
            for field in
                ["vocab_size", "pad_vocab_size_multiple", "residual_in_fp32", "bos_token_id", "eos_token_id"]
            {
                fields.remove(field);
            }
        }
        hash.update(config.to_string());
        for tensor in self.tensors() {
            hash.update(format!("{}{:?}", tensor.name, tensor.shape));
            let step = (tensor.elements() / SAMPLES).max(1);
            for at in (0..tensor.elements()).step_by(step).take(SAMPLES) {
                let mut value = [0.0];
                tensor.read_f32(at, &mut value)?;
                hash.update(half::bf16::from_f32(value[0]).to_le_bytes());
            }
        }
        Ok(hash.finalize().into())
    }

    /// Looks at every value. `progress` gets the number of elements of each piece done, and may end it.
    ///
    /// # Errors
    /// `TENSOR_NOT_FINITE` naming the first NaN or infinity; what reading and `progress` give.
    pub fn validate(&self, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        const PIECE: usize = 1 << 18;
        let mut values = vec![0.0; PIECE];
        for tensor in self.tensors() {
            for start in (0..tensor.elements()).step_by(PIECE) {
                let piece = &mut values[..PIECE.min(tensor.elements() - start)];
                tensor.read_f32(start, piece)?;
                if let Some(at) = piece.iter().position(|x| !x.is_finite()) {
                    let (name, value) = (tensor.name.clone(), piece[at]);
                    return Err(Error::TensorNotFinite { name, index: start + at, value });
                }
                progress(piece.len())?;
            }
        }
        Ok(())
    }
}

fn read_config(folder: &Path) -> Result<Config> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|error| match Error::io("read", &path, error) {
        Error::FileNotFound { path, .. } => {
            Error::FileNotFound { path, expected: "expected the model's config.json there".into() }
        }
        other => other,
    })?;
    let mut config = Config::from_json(&text)?;
    if config.eos_token_ids.is_empty()
        && let Ok(text) = std::fs::read_to_string(folder.join("generation_config.json"))
        && let Ok(generation) = serde_json::from_str::<serde_json::Value>(&text)
    {
        let ids = match &generation["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.clone(),
            one => vec![one.clone()],
        };
        let ids = ids.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        config.eos_token_ids.extend(ids);
    }
    Ok(config)
}

fn read_weights(path: &Path, mmap: bool) -> Result<Vec<Found>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".index.json") {
        let mut tensors = Vec::new();
        for shard in safetensors::shards(path)? {
            tensors.extend(read_weights(&shard, mmap)?);
        }
        return Ok(tensors);
    }
    if name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") {
        pytorch::read(path, mmap)
    } else if name.ends_with(".safetensors") {
        safetensors::read(path, mmap)
    } else {
        Err(Error::CheckpointInvalid {
            path: path.into(),
            reason: "unknown kind of file, expected .safetensors, .bin, .pt, .pth or an .index.json".into(),
        })
    }
}

/// Picks the tensors that the configuration calls for and checks their shapes; others are left out.
fn select(config: &mut Config, found: Vec<Found>, path: &Path) -> Result<HashMap<String, Tensor>> {
    let mut by_name: HashMap<String, Found> = HashMap::new();
    for found in found {
        let (own, name) = (found.name().to_owned(), names::canonical(found.name()));
        if by_name.insert(name.clone(), found).is_some() {
            let reason = format!("tensor `{own}` (`{name}`) is there twice");
            return Err(Error::CheckpointInvalid { path: path.into(), reason });
        }
    }
    // Files of the same model hold 50277, 50280 or 50288 rows; the embedding's own are what counts.
    if let Some(Found::Tensor(embedding)) = by_name.get("backbone.embedding.weight")
        && let [rows, _] = embedding.shape[..]
        && (config.vocab_size..config.vocab_size + 4096).contains(&rows)
    {
        config.padded_vocab_size = rows;
    }
    let mut tensors = HashMap::new();
    for (name, expected) in config.tensors() {
        match by_name.remove(&name) {
            None => return Err(Error::TensorMissing { name, expected, path: path.into() }),
            Some(Found::Unreadable { dtype, .. }) => return Err(Error::TensorDtype { name, dtype }),
            Some(Found::Tensor(tensor)) if tensor.shape != expected => {
                return Err(Error::TensorShape { name, expected, actual: tensor.shape });
            }
            Some(Found::Tensor(mut tensor)) => {
                tensor.name.clone_from(&name);
                tensors.insert(name, tensor);
            }
        }
    }
    // What is left of a model's own tensors would change its results: the configuration is another model's.
    if let Some(name) = by_name.keys().filter(|name| name.starts_with("backbone.")).min() {
        let reason = format!("it holds `{name}`, which its config.json does not call for");
        return Err(Error::CheckpointInvalid { path: path.into(), reason });
    }
    Ok(tensors)
}
