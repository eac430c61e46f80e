//! Writing a checkpoint in another type, on a thread of its own.

use std::path::PathBuf;

use mamba::checkpoint::{Checkpoint, OpenOptions, save};
use mamba::engine::Cancel;
use mamba::{DType, Error};
use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, caught, spawn, to_js};
use crate::model::NativeJob;

/// Of `convert`; what is left out has the core's default.
#[napi(object, object_to_js = false)]
pub struct NativeConvertOptions {
    /// `f32`, `bf16`, `f16`, `q8_0`, `q4_k`.
    pub dtype: Option<String>,
    /// Threads that convert.
    pub threads: Option<u32>,
    /// Map the weights file.
    pub mmap: Option<bool>,
}

/// How far a conversion has come.
#[napi(object, object_from_js = false)]
pub struct NativeConvertProgress {
    /// Bytes written.
    pub written_bytes: f64,
    /// Bytes in all.
    pub total_bytes: f64,
}

/// Writes the checkpoint at `source` into `folder`. `on_event` is called with progress and at last with null, or
/// with an error.
#[napi(catch_unwind)]
pub fn convert(
    source: String,
    folder: String,
    options: NativeConvertOptions,
    #[napi(ts_arg_type = "NativeCallback<NativeConvertProgress | null>")] on_event: Function<
        '_,
        Option<NativeConvertProgress>,
        UnknownReturnValue,
    >,
) -> Result<NativeJob> {
    let dtype = options.dtype.as_deref().map(DType::parse).transpose().map_err(to_js)?;
    let threads = mamba::cpu::threads::count(options.threads.map(|count| count as usize)).map_err(to_js)?;
    let callback = Callback::new(&on_event, ())?;
    let cancel = Cancel::default();
    let job = NativeJob::new(cancel.clone());
    spawn("mamba-convert", move || {
        let result = caught(|| {
            let open = OpenOptions { mmap: options.mmap.unwrap_or(OpenOptions::default().mmap) };
            let checkpoint = Checkpoint::open(source.as_ref(), &open)?;
            let dtype = dtype.unwrap_or_else(|| checkpoint.dtype());
            save(&checkpoint, &PathBuf::from(folder), dtype, threads, &mut |written, total| {
                let there = callback.call(Ok(Some(NativeConvertProgress {
                    written_bytes: written as f64,
                    total_bytes: total as f64,
                })));
                if !there || cancel.is_cancelled() { Err(Error::Aborted) } else { Ok(()) }
            })
        });
        callback.call(result.map(|()| None));
    })?;
    Ok(job)
}
