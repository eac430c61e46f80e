//! A run's folder:
//!
//! | file | holds |
//! |---|---|
//! | `run.json` | the format's version, and the configuration that the run was begun with |
//! | `data.tokens` | the tokens ([`crate::train::data::TokenFile`]) |
//! | `examples.sha256` | what tells other examples from those that it was begun with |
//! | `tokenizer.json` | the tokenizer, where there is one |
//! | `checkpoints/step-N/` | `state.json`: the version and counters; `state.safetensors`: parameters, both moments, carried states |
//! | `progress.jsonl` | a line a step |
//! | `loss.svg` | the curve |
//! | `model/`, `model-hf/`, `adapter/` | the result |
//!
//! A checkpoint is a folder that appears by a rename when all of it is on the disk, so that it is whole or not there.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::RunConfig;
use crate::atomic_file::{sync_folder, write_atomically};
use crate::checkpoint::{read_tensors, write_tensors};
use crate::error::{Error, Result};
use crate::train::{Layout, TrainState};

const FORMAT: &str = "node-mamba-run/1";

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// What a checkpoint holds besides tensors.
#[derive(Deserialize, Serialize)]
struct Counters {
    format: String,
    step: u64,
    updates: u64,
    skipped: u64,
    /// Seconds of training so far.
    seconds: f64,
}

impl RunFolder {
    /// Begins a run in a folder.
    ///
    /// # Errors
    /// `RUN_INVALID` where there is one already, or checkpoints of one; `IO_ERROR`, `DISK_FULL`.
    pub fn begin(config: &RunConfig) -> Result<Self> {
        let path = config.out.clone();
        if path.join("run.json").exists() {
            let reason = "there is a run in it already; resume it, or choose another folder".into();
            return Err(Error::RunInvalid { path, reason });
        }
        let checkpoints = path.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(|error| Error::io("create", &checkpoints, error))?;
        let folder = Self { path };
        // They are of another run, which this one would take for its own.
        match folder.checkpoints()?.pop() {
            None => Ok(folder),
            Some((step, newest)) => {
                let reason = format!(
                    "it is missing, though there are checkpoints (`{}`, after step {step}): put it back, or choose \
                     another folder",
                    newest.display()
                );
                Err(folder.invalid(&folder.join("run.json"), reason))
            }
        }
    }

    /// Writes down what was begun: from now on the run can be resumed.
    ///
    /// # Errors
    /// `IO_ERROR`, `DISK_FULL`.
    pub fn write_config(&self, config: &RunConfig) -> Result<()> {
        self.write_json("run.json", &json!({ "format": FORMAT, "config": config }))
    }

    /// The run in a folder; `None` where there is none.
    ///
    /// # Errors
    /// `RUN_INVALID`, `RUN_MISMATCH`, `IO_ERROR`.
    pub fn open(config: &RunConfig) -> Result<Option<Self>> {
        let folder = Self { path: config.out.clone() };
        let file = folder.path.join("run.json");
        if !file.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, error))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| folder.invalid(&file, format!("not JSON ({error})")))?;
        folder.check_format(&file, &value)?;
        config.check_same(&value["config"])?;
        // What a crash left half written.
        let checkpoints = folder.path.join("checkpoints");
        for entry in
            fs::read_dir(&checkpoints).map_err(|error| Error::io("read", &checkpoints, error))?.flatten()
        {
            if entry.file_name().to_string_lossy().starts_with('.') {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Some(folder))
    }

    fn invalid(&self, path: &Path, reason: String) -> Error {
        Error::RunInvalid { path: path.into(), reason }
    }

    fn check_format(&self, path: &Path, value: &Value) -> Result<()> {
        match &value["format"] {
            Value::String(format) if format == FORMAT => Ok(()),
            other => Err(self.invalid(path, format!("its format is {other}, expected \"{FORMAT}\""))),
        }
    }

    /// Examples are not copied into the folder, so they must be the same when it is resumed.
    ///
    /// # Errors
    /// `RUN_MISMATCH`, `RUN_INVALID`, `IO_ERROR`, `DISK_FULL`.
    pub fn check_examples(&self, hash: &[u8; 32], resumed: bool) -> Result<()> {
        let file = self.join("examples.sha256");
        let found: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        if !resumed {
            return write_atomically(&file, |out| out.write_all(found.as_bytes()));
        }
        let expected = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, error))?;
        match found == expected {
            true => Ok(()),
            false => Err(Error::RunMismatch { field: "data".into(), found, expected }),
        }
    }

    /// A file or folder in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let text = format!("{value:#}\n");
        write_atomically(&self.path.join(name), |file| file.write_all(text.as_bytes()))
    }

    /// Saves a checkpoint and removes all but the newest `keep`.
    ///
    /// # Errors
    /// `DISK_FULL`, `IO_ERROR`: what was there before stays.
    pub fn save(&self, layout: &Layout, state: &TrainState, seconds: f64, keep: usize) -> Result<PathBuf> {
        let checkpoints = self.path.join("checkpoints");
        let target = checkpoints.join(format!("step-{:08}", state.step));
        if target.exists() {
            return Ok(target);
        }
        let temporary = checkpoints.join(format!(".step-{:08}.tmp", state.step));
        let written = self.write(&temporary, layout, state, seconds).and_then(|()| {
            fs::rename(&temporary, &target).map_err(|error| Error::io("write", &target, error))
        });
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        sync_folder(&checkpoints)?;
        let all = self.checkpoints()?;
        for (_, old) in &all[..all.len().saturating_sub(keep)] {
            fs::remove_dir_all(old).map_err(|error| Error::io("remove", old, error))?;
        }
        Ok(target)
    }

    fn write(&self, folder: &Path, layout: &Layout, state: &TrainState, seconds: f64) -> Result<()> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let mut tensors = Vec::new();
        for (kind, group) in [
            ("parameter", &state.parameters),
            ("first_moment", &state.first_moments),
            ("second_moment", &state.second_moments),
        ] {
            for (parameter, values) in layout.parameters().iter().zip(group) {
                tensors.push((format!("{kind}.{}", parameter.name), vec![values.len()], &values[..]));
            }
        }
        for (i, values) in state.states.iter().enumerate() {
            tensors.push((format!("carried.{i}"), vec![values.len()], &values[..]));
        }
        write_tensors(&folder.join("state.safetensors"), &tensors)?;
        let counters = Counters {
            format: FORMAT.into(),
            step: state.step,
            updates: state.updates,
            skipped: state.skipped,
            seconds,
        };
        let text =
            serde_json::to_vec(&counters).map_err(|error| Error::Internal { message: error.to_string() })?;
        write_atomically(&folder.join("state.json"), |file| file.write_all(&text))
    }

    /// All checkpoints, oldest first.
    fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.path.join("checkpoints");
        let entries = fs::read_dir(&folder).map_err(|error| Error::io("read", &folder, error))?;
        let mut all: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        all.sort();
        Ok(all)
    }

    /// The newest checkpoint, and the seconds trained until then; `None` before the first.
    ///
    /// # Errors
    /// `RUN_INVALID`, `CHECKPOINT_INVALID`, `IO_ERROR`.
    pub fn newest(&self, layout: &Layout) -> Result<Option<(TrainState, f64)>> {
        let Some((_, folder)) = self.checkpoints()?.pop() else { return Ok(None) };
        let file = folder.join("state.json");
        let text = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, error))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| self.invalid(&file, format!("not JSON ({error})")))?;
        self.check_format(&file, &value)?;
        let counters: Counters =
            serde_json::from_value(value).map_err(|error| self.invalid(&file, error.to_string()))?;
        let file = folder.join("state.safetensors");
        let tensors = read_tensors(&file)?;
        let group = |kind: &str| -> Result<Vec<Vec<f32>>> {
            let trained = layout.parameters().iter().filter(|parameter| parameter.trained);
            trained
                .map(|parameter| {
                    let name = format!("{kind}.{}", parameter.name);
                    match tensors.get(&name) {
                        Some(tensor) if tensor.elements() == parameter.elements() => tensor.to_vec(),
                        Some(tensor) => {
                            let reason = format!(
                                "`{name}` has {} elements, expected {}",
                                tensor.elements(),
                                parameter.elements()
                            );
                            Err(self.invalid(&file, reason))
                        }
                        None => Err(self.invalid(&file, format!("no `{name}`"))),
                    }
                })
                .collect()
        };
        let states = (0..).map_while(|i| tensors.get(&format!("carried.{i}"))).map(|tensor| tensor.to_vec());
        let state = TrainState {
            step: counters.step,
            updates: counters.updates,
            skipped: counters.skipped,
            parameters: group("parameter")?,
            first_moments: group("first_moment")?,
            second_moments: group("second_moment")?,
            states: states.collect::<Result<_>>()?,
        };
        Ok(Some((state, counters.seconds)))
    }
}
