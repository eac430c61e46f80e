//! Loading a model on a thread of its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mamba::engine::{Cancel, Device, LoadOptions};
use mamba::{DType, Error, Mamba};
use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, caught, spawn, to_js};
use crate::model::{Handle, NativeJob, NativeModel};

/// Of `Mamba.load`; what is left out has the core's default.
#[napi(object, object_to_js = false)]
pub struct NativeLoadOptions {
    /// `auto`, `cpu`, `cuda`.
    pub device: Option<String>,
    /// `f32`, `bf16`, `f16`, `q8_0`, `q4_k`.
    pub dtype: Option<String>,
    /// Threads that compute.
    pub threads: Option<u32>,
    /// Map the weights file.
    pub mmap: Option<bool>,
    /// Refuse NaN and infinity.
    pub validate: Option<bool>,
    /// Path of a tokenizer.json.
    pub tokenizer: Option<String>,
    /// Only size-independent kernels.
    pub deterministic: Option<bool>,
    /// State slots.
    pub max_batch: Option<u32>,
    /// Requests that may wait or run.
    pub queue_limit: Option<u32>,
    /// Milliseconds that prompts may hold up a stream.
    pub max_stall: Option<u32>,
    /// Bytes of the prefix cache; 0: none.
    pub prefix_cache: Option<f64>,
    /// Adapters that requests may choose.
    pub adapters: Option<Vec<NativeAdapter>>,
}

/// An adapter's name and its folder.
#[napi(object, object_to_js = false)]
pub struct NativeAdapter {
    pub name: String,
    pub path: String,
}

impl NativeLoadOptions {
    fn into_core(self) -> mamba::Result<LoadOptions> {
        let default = LoadOptions::default();
        Ok(LoadOptions {
            dtype: self.dtype.as_deref().map(DType::parse).transpose()?,
            device: match self.device.as_deref() {
                None | Some("auto") => Device::Auto,
                Some("cpu") => Device::Cpu,
                Some("cuda") => Device::Cuda,
                Some(other) => {
                    return Err(Error::option("device", format!("`{other}`"), "`auto`, `cpu` or `cuda`"));
                }
            },
            threads: self.threads.map(|count| count as usize),
            mmap: self.mmap.unwrap_or(default.mmap),
            validate: self.validate.unwrap_or(default.validate),
            tokenizer: self.tokenizer.map(PathBuf::from),
            deterministic: self.deterministic.unwrap_or(default.deterministic),
            max_batch: self.max_batch.map_or(default.max_batch, |count| count as usize),
            queue_limit: self.queue_limit.map_or(default.queue_limit, |count| count as usize),
            max_stall: self.max_stall.map_or(default.max_stall, |ms| Duration::from_millis(ms.into())),
            prefix_cache: self.prefix_cache.map_or(default.prefix_cache, |bytes| bytes as u64),
            adapters: self
                .adapters
                .unwrap_or_default()
                .into_iter()
                .map(|NativeAdapter { name, path }| (name, PathBuf::from(path)))
                .collect(),
            ..default
        })
    }
}

/// How far a load has come.
#[napi(object, object_from_js = false)]
pub struct NativeLoadProgress {
    /// `validate` or `weights`.
    pub stage: &'static str,
    /// Bytes dealt with.
    pub loaded_bytes: f64,
    /// Bytes in all.
    pub total_bytes: f64,
}

/// `None`: the model is there.
type Progress = Option<NativeLoadProgress>;

/// Loads a model. `on_event` is called with progress and at last with the model, or with an error.
#[napi(catch_unwind)]
pub fn load(
    path: String,
    options: NativeLoadOptions,
    #[napi(ts_arg_type = "NativeCallback<NativeLoadProgress | NativeModel>")] on_event: Function<
        '_,
        Either<NativeLoadProgress, NativeModel>,
        UnknownReturnValue,
    >,
) -> Result<NativeJob> {
    let options = options.into_core().map_err(to_js)?;
    // Not sent through the queue: what is still in it when a worker ends is never dropped, and a model is large.
    let loaded = Arc::new(Mutex::new(None::<Handle>));
    let arrived = loaded.clone();
    let callback = Callback::with(&on_event, move |value: Progress, env| match value {
        Some(progress) => Ok(Either::A(progress)),
        None => match arrived.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(handle) => Ok(Either::B(NativeModel::new(handle, &env)?)),
            None => Err(napi::Error::from_reason("the model was delivered twice")),
        },
    })?;
    let cancel = Cancel::default();
    let job = NativeJob::new(cancel.clone());
    spawn("mamba-load", move || {
        let result = caught(|| {
            Mamba::load(path.as_ref(), &options, &cancel, &mut |progress| {
                let there = callback.call(Ok(Some(NativeLoadProgress {
                    stage: progress.stage,
                    loaded_bytes: progress.loaded_bytes as f64,
                    total_bytes: progress.total_bytes as f64,
                })));
                if !there {
                    cancel.cancel();
                }
            })
        });
        callback.call(result.map(|model| {
            *loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Handle::new(model));
            None
        }));
    })?;
    Ok(job)
}
