//! safetensors: one file, or shards with an index.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::Found;
use super::tensor::{Source, Stored, Tensor};
use crate::error::{Error, Result};

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
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let stored = match info.dtype {
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
        let tensor = Tensor::in_file(name, info.shape.clone(), Arc::clone(&source), offset, stored)?;
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
