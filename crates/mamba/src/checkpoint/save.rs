//! Writing a checkpoint in the official format.

use std::path::Path;

use safetensors::Dtype;

use super::{Checkpoint, Tensor};
use crate::atomic_file::write_atomically;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Writes `config.json` and `model.safetensors` into a folder, each atomically, under the official names.
/// Matrices are written in `dtype`; A_log, D, biases and norms stay f32, as the official code keeps them.
///
/// # Errors
/// What reading gives; `DISK_FULL`, `IO_ERROR`.
pub fn save(checkpoint: &Checkpoint, folder: &Path, dtype: DType) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let views = checkpoint
        .tensors()
        .map(|tensor| {
            let dtype = if is_matrix(tensor) { dtype } else { DType::F32 };
            let values = tensor.to_vec()?;
            let bytes: Vec<u8> = match dtype {
                DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                DType::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
                DType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            };
            Ok((tensor.name.clone(), Owned { dtype, shape: tensor.shape.clone(), bytes }))
        })
        .collect::<Result<Vec<_>>>()?;
    let path = folder.join("model.safetensors");
    let bytes = safetensors::serialize(views, None)
        .map_err(|error| Error::CheckpointInvalid { path: path.clone(), reason: error.to_string() })?;
    write_atomically(&path, |file| file.write_all(&bytes))?;
    let config = format!("{:#}\n", checkpoint.config().to_official_json());
    write_atomically(&folder.join("config.json"), |file| file.write_all(config.as_bytes()))
}

fn is_matrix(tensor: &Tensor) -> bool {
    tensor.shape.len() >= 2 && !tensor.name.ends_with("A_log")
}

struct Owned {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for Owned {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes[..]).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
