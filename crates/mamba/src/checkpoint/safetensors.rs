//! safetensors: one file, or shards with an index.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::Found;
use super::tensor::{Source, Stored, Tensor};
use crate::error::{Error, Result};
use crate::quantize::Format;

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// All tensors of a file, under their own names.
pub(super) fn read(path: &Path, mmap: bool) -> Result<Vec<Found>> {
    let source = Source::open(path, mmap)?;
    let invalid = |reason: String| Error::CheckpointInvalid { path: path.into(), reason };
    if source.len < 8 {
        return Err(invalid(format!("{} bytes long, expected at least 8", source.len)));
    }
    let header = source.with(0, 8, |bytes| bytes.try_into().map(u64::from_le_bytes))?;
    let header = header.map_err(|_| invalid("no header".into()))?;
    if header > MAX_HEADER || header > source.len - 8 {
        let len = source.len;
        return Err(invalid(format!(
            "its header claims {header} bytes, the file has {len} (and 100 MB is the limit)"
        )));
    }
    // Deserializing checks types, sizes, overlaps and gaps.
    let metadata: Metadata = source
        .with(8, header as usize, |bytes| serde_json::from_slice(bytes))?
        .map_err(|error| invalid(format!("its header is malformed: {error}")))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if source.len != expected {
        return Err(invalid(format!("{} bytes long, its header says {expected}", source.len)));
    }
    let quantized = Quantized::read(&metadata).map_err(invalid)?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let mut shape = info.shape.clone();
        let stored = match info.dtype {
            safetensors::Dtype::U8 if let Some(blocks) = quantized.of(&name) => {
                shape = blocks.check(&name, &shape).map_err(invalid)?;
                Stored::Quantized(blocks.format)
            }
            safetensors::Dtype::F64 => Stored::F64,
            safetensors::Dtype::F32 => Stored::F32,
            safetensors::Dtype::F16 => Stored::F16,
            safetensors::Dtype::BF16 => Stored::BF16,
            other => {
                tensors.push(Found::Unreadable { name, dtype: format!("{other:?}") });
                continue;
            }
        };
        let offset = 8 + header + info.data_offsets.0 as u64;
        let tensor = Tensor::in_file(name, shape, Arc::clone(&source), offset, stored)?;
        tensors.push(Found::Tensor(tensor));
    }
    Ok(tensors)
}

/// The shard files that an index names, as paths in its folder.
pub(super) fn shards(index: &Path) -> Result<Vec<std::path::PathBuf>> {
    let invalid = |reason: String| Error::CheckpointInvalid { path: index.into(), reason };
    let text = std::fs::read_to_string(index).map_err(|error| Error::io("read", index, error))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| invalid(format!("not JSON: {error}")))?;
    let map = value["weight_map"].as_object().ok_or_else(|| invalid("no `weight_map`".into()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let folder = index.parent().unwrap_or(Path::new(""));
    names
        .into_iter()
        .map(|name| {
            // Only plain names: an index must not lead out of its folder.
            if name.contains(['/', '\\', ':', '\0']) || name == ".." || name == "." || name.is_empty() {
                return Err(invalid(format!(
                    "names the shard `{name}`, expected a file name in its own folder"
                )));
            }
            Ok(folder.join(name))
        })
        .collect()
}

/// Which tensors hold blocks ([`crate::quantize`]), and of what shape their weights are: the entry `quantization` of
/// a file's metadata, JSON `{ name: { format, shape } }`. The tensors themselves are U8 [rows, bytes of a row].
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Quantized(std::collections::BTreeMap<String, Blocks>);

#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Blocks {
    #[serde(with = "format_name")]
    format: Format,
    shape: [usize; 2],
}

impl Quantized {
    const KEY: &str = "quantization";

    pub fn insert(&mut self, name: &str, format: Format, shape: [usize; 2]) {
        self.0.insert(name.into(), Blocks { format, shape });
    }

    /// What a file's metadata say of them; nothing where no tensor is quantized.
    pub fn to_metadata(&self) -> Result<Option<std::collections::HashMap<String, String>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let json =
            serde_json::to_string(self).map_err(|error| Error::Internal { message: error.to_string() })?;
        Ok(Some([(Self::KEY.to_owned(), json)].into()))
    }

    fn read(metadata: &Metadata) -> Result<Self, String> {
        match metadata.metadata().as_ref().and_then(|entries| entries.get(Self::KEY)) {
            Some(json) => serde_json::from_str(json)
                .map_err(|error| format!("its metadata `{}` are malformed: {error}", Self::KEY)),
            None => Ok(Self::default()),
        }
    }

    fn of(&self, name: &str) -> Option<&Blocks> {
        self.0.get(name)
    }
}

impl Blocks {
    /// The weights' shape, if the bytes are as many as it takes.
    fn check(&self, name: &str, bytes: &[usize]) -> Result<Vec<usize>, String> {
        let [rows, cols] = self.shape;
        // A width that no tensor has, so that what follows cannot overflow.
        let row_bytes = if cols < 1 << 40 { self.format.row_bytes(cols) } else { 0 };
        if bytes == [rows, row_bytes] {
            Ok(vec![rows, cols])
        } else {
            Err(format!(
                "tensor `{name}` has {bytes:?} bytes, expected {:?} for {:?}",
                [rows, row_bytes],
                self.shape
            ))
        }
    }
}

mod format_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::dtype::DType;
    use crate::quantize::Format;

    pub fn serialize<S: Serializer>(format: &Format, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match format {
            Format::Q8_0 => DType::Q8_0.name(),
            Format::Q4K => DType::Q4K.name(),
        })
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Format, D::Error> {
        let name = String::deserialize(deserializer)?;
        let format = DType::parse(&name).ok().and_then(DType::format);
        format.ok_or_else(|| serde::de::Error::custom(format!("format `{name}`, expected `q8_0` or `q4_k`")))
    }
}
