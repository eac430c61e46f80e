//! safetensors files that are no model: adapters, a run's state.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{Found, Tensor, safetensors as reader};
use crate::atomic_file::write_atomically;
use crate::error::{Error, Result};

/// Writes f32 tensors, name, shape and values, atomically.
///
/// # Errors
/// `FILE_NOT_FOUND` (the folder), `DISK_FULL`, `IO_ERROR`.
pub(crate) fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, &[f32])]) -> Result<()> {
    let internal = |error: &dyn std::fmt::Display| Error::Internal { message: error.to_string() };
    let mut at = 0;
    let infos = tensors.iter().map(|(name, shape, values)| {
        let begin = at;
        at += 4 * values.len();
        (name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (begin, at) })
    });
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(about), infos.collect()).map_err(|error| internal(&error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| internal(&error))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut bytes = Vec::new();
        for (_, _, values) in tensors {
            for piece in values.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
                file.write_all(&bytes)?;
            }
        }
        Ok(())
    })
}

/// All tensors of a file, by their names; read, not mapped.
///
/// # Errors
/// `FILE_NOT_FOUND`, `CHECKPOINT_INVALID`, `TENSOR_DTYPE`, `IO_ERROR`.
pub(crate) fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    reader::read(path, false)?
        .into_iter()
        .map(|found| match found {
            Found::Tensor(tensor) => Ok((tensor.name.clone(), tensor)),
            Found::Unreadable { name, dtype } => Err(Error::TensorDtype { name, dtype }),
        })
        .collect()
}
