//! Writing a checkpoint in the official format.

use std::path::Path;

use safetensors::Dtype;

use super::safetensors::Quantized;
use super::{Checkpoint, Tensor};
use crate::atomic_file::write_atomically;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Writes `config.json` and `model.safetensors` into a folder, each atomically, under the official names.
/// Matrices are written in `dtype`; A_log, D, biases, norms and, unless `dtype` is a float's, the convolution stay
/// f32. Quantized matrices are U8 tensors of blocks ([`crate::quantize`]); the file's metadata say so.
///
/// # Errors
/// What reading gives; `DISK_FULL`, `IO_ERROR`.
pub fn save(checkpoint: &Checkpoint, folder: &Path, dtype: DType) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let mut quantized = Quantized::default();
    let views = checkpoint
        .tensors()
        .map(|tensor| Ok((tensor.name.clone(), Owned::new(tensor, dtype, &mut quantized)?)))
        .collect::<Result<Vec<_>>>()?;
    let path = folder.join("model.safetensors");
    let bytes = safetensors::serialize(views, quantized.to_metadata()?)
        .map_err(|error| Error::CheckpointInvalid { path: path.clone(), reason: error.to_string() })?;
    write_atomically(&path, |file| file.write_all(&bytes))?;
    let config = format!("{:#}\n", checkpoint.config().to_official_json());
    write_atomically(&folder.join("config.json"), |file| file.write_all(config.as_bytes()))
}

struct Owned {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Owned {
    fn new(tensor: &Tensor, dtype: DType, quantized: &mut Quantized) -> Result<Self> {
        let is_matrix = tensor.shape.len() >= 2 && !tensor.name.ends_with("A_log");
        let dtype = if is_matrix { dtype } else { DType::F32 };
        if let [rows, cols] = tensor.shape[..]
            && let Some(format) = dtype.of_width(cols).format()
        {
            let mut bytes = vec![0; rows * format.row_bytes(cols)];
            tensor.read_blocks(format, 0, rows, &mut bytes)?;
            quantized.insert(&tensor.name, format, [rows, cols]);
            return Ok(Self { dtype: Dtype::U8, shape: vec![rows, format.row_bytes(cols)], bytes });
        }
        let values = tensor.to_vec()?;
        let (dtype, bytes) = match dtype {
            DType::BF16 => {
                (Dtype::BF16, values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect())
            }
            DType::F16 => {
                (Dtype::F16, values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect())
            }
            DType::F32 | DType::Q8_0 | DType::Q4K => {
                (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        Ok(Self { dtype, shape: tensor.shape.clone(), bytes })
    }
}

impl safetensors::View for Owned {
    fn dtype(&self) -> Dtype {
        self.dtype
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
