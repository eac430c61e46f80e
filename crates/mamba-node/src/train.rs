//! Training on a thread of its own, and what is done with its results.

use std::path::{Path, PathBuf};

use mamba::DType;
use mamba::engine::Cancel;
use mamba::train::adapter;
use mamba::train::run::{Progress, RunConfig, RunEvent, RunResult, Started, run};
use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, caught, spawn, to_js};
use crate::model::NativeJob;

/// What `train`'s callback gets: any number of the others, then one `finished` (or an error).
#[napi(discriminant = "type", discriminant_case = "lowercase", object_from_js = false)]
pub enum NativeTrainEvent {
    Preparing {
        tokens: f64,
    },
    Started {
        step: f64,
        steps: f64,
        parameters: f64,
        trained: f64,
        steps_per_epoch: f64,
        device: &'static str,
    },
    /// JSON of a line of progress.jsonl.
    Progress {
        json: String,
    },
    Saved {
        step: f64,
        path: String,
    },
    Finished {
        /// As of `Progress`.
        json: String,
        model: Option<String>,
        hugging_face: Option<String>,
        adapter: Option<String>,
        classifier: Option<String>,
        curve: String,
    },
}

fn json(progress: &Progress) -> mamba::Result<String> {
    serde_json::to_string(progress).map_err(|error| mamba::Error::Internal { message: error.to_string() })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn event(event: RunEvent) -> mamba::Result<NativeTrainEvent> {
    Ok(match event {
        RunEvent::Preparing { tokens } => NativeTrainEvent::Preparing { tokens: tokens as f64 },
        RunEvent::Started(Started { step, steps, parameters, trained, steps_per_epoch, device }) => {
            NativeTrainEvent::Started {
                step: step as f64,
                steps: steps as f64,
                parameters: parameters as f64,
                trained: trained as f64,
                steps_per_epoch: steps_per_epoch as f64,
                device,
            }
        }
        RunEvent::Progress(progress) => NativeTrainEvent::Progress { json: json(&progress)? },
        RunEvent::Saved { step, path } => NativeTrainEvent::Saved { step: step as f64, path: shown(&path) },
    })
}

fn finished(result: RunResult) -> mamba::Result<NativeTrainEvent> {
    let path = |path: Option<PathBuf>| path.as_deref().map(shown);
    Ok(NativeTrainEvent::Finished {
        json: json(&result.last)?,
        model: path(result.model),
        hugging_face: path(result.hugging_face),
        adapter: path(result.adapter),
        classifier: path(result.classifier),
        curve: shown(&result.curve),
    })
}

/// Runs what a configuration (JSON) says.
#[napi(catch_unwind)]
pub fn train(
    config: String,
    #[napi(ts_arg_type = "NativeCallback<NativeTrainEvent>")] on_event: Function<
        '_,
        NativeTrainEvent,
        UnknownReturnValue,
    >,
) -> Result<NativeJob> {
    let config = RunConfig::from_json(&config).map_err(to_js)?;
    let callback = Callback::new(&on_event, ())?;
    let cancel = Cancel::default();
    let job = NativeJob::new(cancel.clone());
    spawn("mamba-train", move || {
        let result = caught(|| {
            run(&config, &cancel, &mut |happened| {
                if !callback.call(event(happened)) {
                    cancel.cancel();
                }
            })
        });
        callback.call(result.and_then(finished));
    })?;
    Ok(job)
}

/// Writes the model at `base` with the adapter merged into it into `out`.
#[napi(catch_unwind)]
pub fn merge_adapter(
    base: String,
    adapter: String,
    out: String,
    dtype: Option<String>,
    #[napi(ts_arg_type = "NativeCallback<null>")] on_done: Function<'_, Option<bool>, UnknownReturnValue>,
) -> Result<()> {
    let dtype = dtype.as_deref().map(DType::parse).transpose().map_err(to_js)?;
    let threads = mamba::cpu::threads::count(None).map_err(to_js)?;
    let callback = Callback::new(&on_done, ())?;
    spawn("mamba-merge", move || {
        let result = caught(|| adapter::merge(base.as_ref(), adapter.as_ref(), out.as_ref(), dtype, threads));
        callback.call(result.map(|()| None));
    })
}
