//! Writing a checkpoint in the official format, piece by piece: memory stays small whatever the model's size.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::safetensors::Quantized;
use super::{Checkpoint, Tensor};
use crate::atomic_file::write_atomically;
use crate::cpu::SharedMut;
use crate::cpu::threads::Threads;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Elements that a thread converts at a time.
const PIECE: usize = 1 << 18;

/// Writes `config.json`, `model.safetensors` and, where the checkpoint has one, `tokenizer.json` into a folder, each
/// atomically, under the official names. Matrices are written in `dtype`; A_log, D, biases, norms and the convolution
/// stay f32, as a load keeps them. Quantized matrices are U8 tensors of blocks ([`crate::quantize`]); the
/// file's metadata say so. `progress` gets the bytes written so far and in all, and may end it with an error.
///
/// # Errors
/// What reading and `progress` give; `DISK_FULL`, `IO_ERROR`, `DEVICE_UNAVAILABLE` (no thread).
pub fn save(
    checkpoint: &Checkpoint,
    folder: &Path,
    dtype: DType,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    save_as(Names::Official, checkpoint, folder, dtype, threads, progress)
}

/// Whose names a checkpoint is written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// `mamba_ssm`'s.
    Official,
    /// `transformers`': `MambaForCausalLM`, the checkpoints whose names end in `-hf`.
    HuggingFace,
}

impl Names {
    fn of(self, name: &str) -> String {
        match (self, name) {
            (Self::HuggingFace, "backbone.embedding.weight") => "backbone.embeddings.weight".into(),
            _ => name.into(),
        }
    }
}

/// [`save`] under the official names or those of `transformers`.
///
/// # Errors
/// As [`save`]; `CONFIG_INVALID` for a model that `transformers` does not have (LayerNorm).
pub fn save_as(
    names: Names,
    checkpoint: &Checkpoint,
    folder: &Path,
    dtype: DType,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let config = match names {
        Names::Official => checkpoint.config().to_official_json(),
        Names::HuggingFace => checkpoint.config().to_hugging_face_json()?,
    };
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let mut threads = Threads::new(threads)?;
    let mut quantized = Quantized::default();
    let plans: Vec<_> = checkpoint.tensors().map(|tensor| Plan::new(tensor, dtype, &mut quantized)).collect();
    let mut total = 0;
    let infos = plans.iter().map(|plan| {
        let (name, begin) = (names.of(&plan.tensor.name), total);
        total += plan.rows * plan.row_bytes;
        let (dtype, shape) = (plan.dtype, plan.shape.clone());
        (name, TensorInfo { dtype, shape, data_offsets: (begin, total) })
    });
    let internal = |error: &dyn std::fmt::Display| Error::Internal { message: error.to_string() };
    let mut metadata = quantized.to_metadata()?.unwrap_or_default();
    // transformers refuses a file that does not say so.
    metadata.insert("format".into(), "pt".into());
    let header = Metadata::new(Some(metadata), infos.collect()).map_err(|error| internal(&error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| internal(&error))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let path = folder.join("model.safetensors");
    let mut failure = None;
    let written = write_atomically(&path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let (mut done, total) = (0, total as u64);
        for plan in &plans {
            let mut step = |bytes: &[u8]| {
                done += bytes.len() as u64;
                progress(done, total)
            };
            if let Err(error) = plan.write(&mut threads, file, &mut step)? {
                failure = Some(error);
                return Err(std::io::Error::other("not written"));
            }
        }
        Ok(())
    });
    if let Some(error) = failure {
        return Err(error);
    }
    written?;
    if let Some(from) = checkpoint.tokenizer_path() {
        let tokenizer = std::fs::read(from).map_err(|error| Error::io("read", from, error))?;
        write_atomically(&folder.join("tokenizer.json"), |file| file.write_all(&tokenizer))?;
    }
    let config = format!("{config:#}\n");
    write_atomically(&folder.join("config.json"), |file| file.write_all(config.as_bytes()))
}

/// How a tensor is written: row by row, a vector as one row for each element.
struct Plan<'a> {
    tensor: &'a Tensor,
    kept: DType,
    dtype: Dtype,
    shape: Vec<usize>,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

impl<'a> Plan<'a> {
    fn new(tensor: &'a Tensor, dtype: DType, quantized: &mut Quantized) -> Self {
        let shape = tensor.shape.clone();
        let is_matrix = shape.len() == 2 && !tensor.name.ends_with("A_log");
        if let [rows, cols] = shape[..]
            && is_matrix
            && let kept = dtype.of_width(cols)
            && let Some(format) = kept.format()
        {
            let row_bytes = format.row_bytes(cols);
            quantized.insert(&tensor.name, format, [rows, cols]);
            return Self {
                tensor,
                kept,
                dtype: Dtype::U8,
                shape: vec![rows, row_bytes],
                rows,
                cols,
                row_bytes,
            };
        }
        let (kept, dtype, row_bytes) = match dtype {
            DType::BF16 if is_matrix => (DType::BF16, Dtype::BF16, 2),
            DType::F16 if is_matrix => (DType::F16, Dtype::F16, 2),
            _ => (DType::F32, Dtype::F32, 4),
        };
        Self { tensor, kept, dtype, shape, rows: tensor.elements(), cols: 1, row_bytes }
    }

    /// The outer error is the file's.
    fn write(
        &self,
        threads: &mut Threads,
        file: &mut dyn Write,
        progress: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> std::io::Result<Result<()>> {
        let piece = (PIECE / self.cols).max(1);
        let slab = piece * threads.count();
        let mut bytes = vec![0; slab.min(self.rows) * self.row_bytes];
        for first in (0..self.rows).step_by(slab) {
            let rows = slab.min(self.rows - first);
            let bytes = &mut bytes[..rows * self.row_bytes];
            let failure = Mutex::new(None);
            {
                let bytes = SharedMut::new(bytes);
                threads.run(rows.div_ceil(piece), &|i| {
                    let (from, rows) = (i * piece, piece.min(rows - i * piece));
                    // SAFETY: each task has rows of its own.
                    let bytes = unsafe { bytes.slice(from * self.row_bytes, rows * self.row_bytes) };
                    if let Err(error) = self.convert(first + from, rows, bytes) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
            if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Ok(Err(error));
            }
            file.write_all(bytes)?;
            if let Err(error) = progress(bytes) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn convert(&self, row: usize, rows: usize, bytes: &mut [u8]) -> Result<()> {
        fn each<const N: usize>(values: &[f32], bytes: &mut [u8], write: impl Fn(f32) -> [u8; N]) {
            let (elements, _) = bytes.as_chunks_mut::<N>();
            elements.iter_mut().zip(values).for_each(|(bytes, x)| *bytes = write(*x));
        }
        if let Some(format) = self.kept.format() {
            return self.tensor.read_blocks(format, row, rows, bytes);
        }
        let mut values = vec![0.0; rows];
        self.tensor.read_f32(row, &mut values)?;
        match self.kept {
            DType::BF16 => each(&values, bytes, |x| half::bf16::from_f32(x).to_le_bytes()),
            DType::F16 => each(&values, bytes, |x| half::f16::from_f32(x).to_le_bytes()),
            _ => each(&values, bytes, f32::to_le_bytes),
        }
        Ok(())
    }
}
