//! `pytorch_model.bin`: a zip archive of a pickle and of one stored file per storage (torch ≥ 1.6).

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::Found;
use super::pickle::{self, Id, Pickle, Refusal, Value};
use super::tensor::{Source, Stored, Tensor};
use crate::error::{Error, Result};

/// The pickle of a checkpoint is some hundred bytes per tensor.
const MAX_PICKLE: u64 = 256 << 20;

/// All tensors of a file, under their own names.
pub(super) fn read(path: &Path, mmap: bool) -> Result<Vec<Found>> {
    let source = Source::open(path, mmap)?;
    let invalid = |reason: String| Error::CheckpointInvalid { path: path.into(), reason };
    let mut archive = zip::ZipArchive::new(Cursor { source: &source, at: 0 }).map_err(|error| {
        invalid(format!("not a zip archive ({error}); files of torch before 1.6 must be saved again or converted to safetensors"))
    })?;
    let pickle_name = archive
        .file_names()
        .filter_map(|name| name.ok().map(std::borrow::Cow::into_owned))
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or_else(|| invalid("no data.pkl in the archive".into()))?;
    let prefix = pickle_name.strip_suffix("data.pkl").unwrap_or_default().to_owned();

    let (offset, len) = locate(&mut archive, &pickle_name, path)?;
    if len > MAX_PICKLE {
        return Err(invalid(format!("its data.pkl claims {len} bytes, expected at most {MAX_PICKLE}")));
    }
    let pickle = source.with(offset, len as usize, pickle::read)?.map_err(|refusal| match refusal {
        Refusal::Unsafe(global) => Error::PickleUnsafe { path: path.into(), global },
        Refusal::Malformed(reason) => invalid(reason),
    })?;
    let Value::Dict(dict) = pickle.get(pickle.root) else {
        return Err(invalid("it holds no dict of tensors".into()));
    };
    let mut dict = dict;
    // Training checkpoints nest the weights.
    for key in ["state_dict", "model"] {
        let nested =
            dict.iter().find(|(k, _)| pickle.text(*k) == Some(key)).map(|(_, value)| pickle.get(*value));
        if let Some(Value::Dict(nested)) = nested {
            dict = nested;
        }
    }

    let mut tensors = Vec::new();
    for (name, value) in dict {
        let (Some(name), Some(description)) = (pickle.text(*name), Description::of(&pickle, *value)) else {
            continue;
        };
        let invalid = |reason: &str| invalid(format!("tensor `{name}` {reason}"));
        let description = description.map_err(|reason| invalid(&reason))?;
        let stored = match &*description.storage_class {
            "torch.FloatStorage" => Stored::F32,
            "torch.HalfStorage" => Stored::F16,
            "torch.BFloat16Storage" => Stored::BF16,
            "torch.DoubleStorage" => Stored::F64,
            other => {
                tensors.push(Found::Unreadable { name: name.into(), dtype: other.to_owned() });
                continue;
            }
        };
        let mut expected = 1u64;
        for (size, stride) in description.shape.iter().zip(&description.strides).rev() {
            if *size > 1 && *stride != expected {
                return Err(invalid("is not contiguous; save it with `.contiguous()`"));
            }
            expected = expected.checked_mul(*size).ok_or_else(|| invalid("has an impossible shape"))?;
        }
        let (offset, len) = locate(&mut archive, &format!("{prefix}data/{}", description.key), path)?;
        let size = stored.bytes(1) as u64;
        let end = description.offset.checked_add(expected).and_then(|end| end.checked_mul(size));
        if end.is_none_or(|end| end > len) {
            let (at, shape) = (description.offset, &description.shape);
            return Err(invalid(&format!(
                "of shape {shape:?} at element {at} reaches beyond its storage of {len} bytes"
            )));
        }
        let shape = description.shape.iter().map(|n| *n as usize).collect();
        let offset = description.offset.checked_mul(size).and_then(|at| at.checked_add(offset));
        let offset = offset.ok_or_else(|| invalid("lies at an impossible offset"))?;
        tensors.push(Found::Tensor(Tensor::in_file(
            name.into(),
            shape,
            Arc::clone(&source),
            offset,
            stored,
        )?));
    }
    Ok(tensors)
}

/// Offset and length of an archive's member, which must be stored as it is.
fn locate(archive: &mut zip::ZipArchive<Cursor>, name: &str, path: &Path) -> Result<(u64, u64)> {
    let invalid = |reason: String| Error::CheckpointInvalid { path: path.into(), reason };
    let index = archive.index_for_name(name).ok_or_else(|| invalid(format!("no `{name}` in the archive")))?;
    let file = archive.by_index_raw(index).map_err(|error| invalid(format!("`{name}`: {error}")))?;
    if file.compression() != zip::CompressionMethod::Stored || file.encrypted() {
        return Err(invalid(format!("`{name}` is compressed or encrypted, expected stored as it is")));
    }
    let start = file.data_start().ok_or_else(|| invalid(format!("`{name}` has no data")))?;
    Ok((start, file.size()))
}

/// What a pickle says of a tensor.
struct Description {
    storage_class: String,
    key: String,
    offset: u64,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl Description {
    /// `None`: the value is no tensor.
    fn of(pickle: &Pickle, value: Id) -> Option<std::result::Result<Self, String>> {
        let call = |value: Id| match pickle.get(value) {
            Value::Call { global, arguments } => Some((pickle.global(*global)?, pickle.tuple(*arguments))),
            _ => None,
        };
        match call(value)? {
            // (storage, storage_offset, size, stride, requires_grad, backward_hooks)
            ("torch._utils._rebuild_tensor_v2", arguments) => Some(Self::from_arguments(pickle, arguments)),
            // (data, requires_grad, backward_hooks)
            ("torch._utils._rebuild_parameter", [tensor, ..]) => match call(*tensor)? {
                ("torch._utils._rebuild_tensor_v2", arguments) => {
                    Some(Self::from_arguments(pickle, arguments))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn from_arguments(pickle: &Pickle, arguments: &[Id]) -> std::result::Result<Self, String> {
        let unknown = || "is described in a way that torch does not write".to_owned();
        let [storage, offset, shape, strides, ..] = arguments else { return Err(unknown()) };
        let (Value::Persistent(storage), Value::Int(offset)) = (pickle.get(*storage), pickle.get(*offset))
        else {
            return Err(unknown());
        };
        // ('storage', class, key, location, elements)
        let [_, class, key, ..] = pickle.tuple(*storage) else { return Err(unknown()) };
        let (Some(class), Some(key)) = (pickle.global(*class), pickle.text(*key)) else {
            return Err(unknown());
        };
        let numbers = |tuple: Id| -> Option<Vec<u64>> {
            let number =
                |id: &Id| if let Value::Int(n) = pickle.get(*id) { u64::try_from(*n).ok() } else { None };
            pickle.tuple(tuple).iter().map(number).collect()
        };
        let described = (u64::try_from(*offset).ok(), numbers(*shape), numbers(*strides));
        let (Some(offset), Some(shape), Some(strides)) = described else {
            return Err("has a negative size, stride or offset".into());
        };
        if shape.len() != strides.len() || shape.len() > 8 {
            return Err(format!("has {} sizes and {} strides", shape.len(), strides.len()));
        }
        let storage_class = class.replace("torch.storage.", "torch.");
        Ok(Self { storage_class, key: key.into(), offset, shape, strides })
    }
}

/// Reads a [`Source`] as the zip crate wants it.
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.source.len.saturating_sub(self.at);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source
            .with(self.at, len, |bytes| buffer[..len].copy_from_slice(bytes))
            .map_err(std::io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
