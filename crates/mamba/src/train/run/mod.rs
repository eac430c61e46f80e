//! A training run from its data to its result, in a folder of its own: prepared, trained, looked at, saved, resumed.

mod config;
mod curve;
mod folder;
mod memory;

pub use config::{
    AdapterConfig, BatchConfig, CheckpointConfig, DecayConfig, DistillLoss, ObjectiveConfig, OptimizerConfig,
    PoolingConfig, Precision, RunConfig, ScheduleConfig, TokenizerConfig, ValidationConfig,
};
pub use curve::{Point, svg};
pub use folder::RunFolder;

pub(crate) use config::projection;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::atomic_file::write_atomically;
use crate::checkpoint::{self, Checkpoint, Names};
use crate::config::Config;
use crate::cpu::memory::allocated;
use crate::cpu::{Cpu, threads};
use crate::dtype::DType;
use crate::engine::Cancel;
use crate::error::{Error, Result};
use crate::exit;
use crate::text::Tokenizer;
use crate::train::adapter;
use crate::train::data::{self, Layout, Order, TokenFile, TokenizerKind, prepare, split, train_tokenizer};
use crate::train::objective::{Examples, Language, Texts, Validation};
use crate::train::{Start, StepReport, TrainBackend, TrainOptions, Trainer};

/// The token that begins documents, where the tokenizer has it.
const BEGIN: &str = "<|endoftext|>";

/// What happens in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum RunEvent {
    /// The data are being tokenized: so many tokens so far.
    Preparing {
        /// Tokens.
        tokens: u64,
    },
    /// Training begins, or goes on.
    Started(Started),
    /// A step is done.
    Progress(Progress),
    /// The run was saved: it can be resumed from here.
    Saved {
        /// Steps done.
        step: u64,
        /// The checkpoint's folder.
        path: PathBuf,
    },
}

/// What a run begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// Steps done already, in an earlier part of the run.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The model's parameters.
    pub parameters: u64,
    /// Those that are trained, with those that an adapter or a head adds.
    pub trained: u64,
    /// Steps of an epoch, where the objective has epochs.
    pub steps_per_epoch: u64,
    /// `cpu` or `cuda`.
    pub device: &'static str,
}

/// A step of a run: a line of `progress.jsonl`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// From 1.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Mean loss of the step, before its update; NaN is written as null.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients before clipping; null where it is not finite.
    pub grad_norm: Option<f64>,
    /// Whether the step was skipped, its gradients not being finite.
    pub skipped: bool,
    /// Of this step.
    pub tokens_per_second: f64,
    /// Bytes of the device's memory that training has in use; on a CPU, bytes that the process has.
    pub memory_bytes: Option<u64>,
    /// Seconds until the last step, at the mean speed so far.
    pub eta_seconds: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Loss on the held-out part, where this step was followed by a look.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss: Option<f64>,
    /// Part of the held-out texts that got the right label; of a classifier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_accuracy: Option<f64>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunResult {
    /// The last step.
    pub last: Progress,
    /// The trained model in the official format; not of an adapter.
    pub model: Option<PathBuf>,
    /// The same for `transformers`; not of a model that it does not have.
    pub hugging_face: Option<PathBuf>,
    /// The adapter.
    pub adapter: Option<PathBuf>,
    /// The classifier's head and labels.
    pub classifier: Option<PathBuf>,
    /// The loss curve.
    pub curve: PathBuf,
}

/// Runs, or resumes, what the configuration says. `events` may be slow: the run waits for it.
///
/// # Errors
/// `OPTION_INVALID`, `RUN_INVALID`, `RUN_MISMATCH`; about the data `DATA_EMPTY`, `DATA_INVALID`, `TOKEN_OUT_OF_RANGE`;
/// what loading a checkpoint and a tokenizer gives; `OUT_OF_MEMORY`, saying what fits; `DEVICE_UNAVAILABLE`;
/// `TRAINING_DIVERGED`; `ABORTED` after the run was saved; `DISK_FULL`, `IO_ERROR`: the last checkpoint is untouched.
pub fn run(config: &RunConfig, cancel: &Cancel, events: &mut dyn FnMut(RunEvent)) -> Result<RunResult> {
    let threads = threads::count(config.threads)?;
    let auto = match config.device.as_deref() {
        None | Some("auto") => true,
        Some("cpu" | "cuda") => false,
        Some(other) => return Err(Error::option("device", format!("`{other}`"), "`auto`, `cpu` or `cuda`")),
    };
    if config.device.as_deref() != Some("cpu") {
        #[cfg(feature = "cuda")]
        match gpu(config.precision) {
            Ok(_) => {
                return Run::new(config, cancel, &mut |config| gpu(config.precision), events)?.train(events);
            }
            Err(Error::DeviceUnavailable { .. } | Error::DeviceLost { .. }) if auto => {}
            Err(error) => return Err(error),
        }
        #[cfg(not(feature = "cuda"))]
        if !auto {
            return Err(Error::DeviceUnavailable {
                device: "cuda".into(),
                reason: "this binary was built without CUDA; expected `auto` or `cpu`".into(),
            });
        }
    }
    if config.precision == Precision::Bf16 {
        return Err(Error::option("precision", "`bf16` on a CPU", "`f32`, or a GPU"));
    }
    Run::new(config, cancel, &mut |_| Cpu::new(threads), events)?.train(events)
}

#[cfg(feature = "cuda")]
fn gpu(precision: Precision) -> Result<crate::cuda::Cuda> {
    crate::cuda::Cuda::new(match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    })
}

/// What is learned from.
enum Task {
    Language(Language),
    Texts(Texts),
}

impl Task {
    fn step<B: TrainBackend>(
        &mut self,
        trainer: &mut Trainer<B>,
        number: u64,
    ) -> Result<(StepReport, usize)> {
        match self {
            Self::Language(language) => language.step(trainer, number),
            Self::Texts(texts) => texts.step(trainer, number),
        }
    }

    fn validate<B: TrainBackend>(&mut self, trainer: &mut Trainer<B>) -> Result<Option<Validation>> {
        match self {
            Self::Language(language) => language.validate(trainer),
            Self::Texts(texts) => texts.validate(trainer),
        }
    }

    fn per_epoch(&self, accumulate: usize) -> f64 {
        match self {
            Self::Language(language) => language.per_epoch() as f64 / accumulate as f64,
            Self::Texts(texts) => texts.per_epoch() as f64,
        }
    }
}

/// How much is computed together, by the field that says so: where that does not fit, the error names a value that does.
struct Extent {
    field: &'static str,
    value: usize,
    least: usize,
    /// Tokens and sequences at most, of each value.
    limits: Box<dyn Fn(usize) -> (usize, usize)>,
}

struct Run<'a, B: TrainBackend> {
    config: &'a RunConfig,
    cancel: &'a Cancel,
    folder: RunFolder,
    trainer: Trainer<B>,
    task: Task,
    labels: Vec<String>,
    /// Seconds of training in earlier parts.
    seconds: f64,
    points: Vec<Point>,
    log: File,
}

impl<'a, B: TrainBackend> Run<'a, B> {
    fn new(
        config: &'a RunConfig,
        cancel: &'a Cancel,
        backend: &mut dyn FnMut(&RunConfig) -> Result<B>,
        events: &mut dyn FnMut(RunEvent),
    ) -> Result<Self> {
        let begun = if config.resume { RunFolder::open(config)? } else { None };
        let resumed = begun.is_some();
        let folder = begun.map_or_else(|| RunFolder::begin(config), Ok)?;
        let base = match &config.model {
            Some(path) => Some(Checkpoint::open(path, &checkpoint::OpenOptions { mmap: false })?),
            None => None,
        };
        let tokenizer = tokenizer(config, base.as_ref(), &folder, resumed)?;
        let model = shape(config, base.as_ref(), tokenizer.as_ref())?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_fits(model.padded_vocab_size)?;
        }
        let size = config.batch.size * config.batch.accumulate;
        let mut options = config.train_options()?;
        let (task, labels, extent) = match &config.objective {
            ObjectiveConfig::CausalLm => {
                let path = folder.join("data.tokens");
                let begin = tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_to_id(BEGIN));
                let file = if resumed {
                    TokenFile::open(&path)?
                } else {
                    let mut told = 0;
                    prepare(
                        &config.data,
                        tokenizer.as_ref(),
                        begin,
                        model.vocab_size,
                        &path,
                        &mut |tokens| {
                            if tokens - told >= 1 << 20 {
                                told = tokens;
                                events(RunEvent::Preparing { tokens });
                            }
                            if cancel.is_cancelled() { Err(Error::Aborted) } else { Ok(()) }
                        },
                    )?
                };
                file.verify()?;
                if file.vocab_size() > model.padded_vocab_size {
                    let error =
                        format!("its vocabulary is {}, the model's {}", file.vocab_size(), model.vocab_size);
                    return Err(Error::DataInvalid { path, reason: error });
                }
                let (train, held_out) = split(&file, config.validation.fraction, config.seed);
                let BatchConfig { size: rows, length, accumulate, order, .. } = config.batch;
                let layout = Layout { rows, length, order, seed: config.seed };
                let batches = config.validation.batches;
                let language =
                    Language::new(&Arc::new(file), &train, &held_out, layout, accumulate, batches)?;
                let limits = move |rows| {
                    let layout = Layout { rows, ..layout };
                    (rows * length, Language::max_sequences(&train, &held_out, layout))
                };
                let extent = Extent { field: "batch.size", value: rows, least: 1, limits: Box::new(limits) };
                (Task::Language(language), Vec::new(), extent)
            }
            objective => {
                let BatchConfig { length, tokens, .. } = config.batch;
                let d_model = model.d_model;
                let vocab = model.padded_vocab_size;
                let examples =
                    Examples::read(&config.data, objective, tokenizer.as_ref(), length, vocab, d_model)?;
                folder.check_examples(&examples.hash, resumed)?;
                let labels = examples.labels.clone();
                let ValidationConfig { fraction, batches, .. } = config.validation;
                let texts = Texts::new(objective.clone(), examples, size, fraction, batches, config.seed);
                options.extra = texts.extra(model.d_model);
                let extent = Extent {
                    field: "batch.tokens",
                    value: tokens.unwrap_or((size * length).min(8192)).max(length),
                    least: length,
                    limits: Box::new(|tokens| (tokens, tokens.min(256))),
                };
                (Task::Texts(texts), labels, extent)
            }
        };
        let start = match &base {
            Some(base) => Start::Checkpoint(base, config.seed),
            None => Start::Seed(config.seed),
        };
        let mut trainer = trainer(config, &model, start, &options, &extent, backend)?;
        if !resumed {
            folder.write_config(config)?;
        }
        let mut seconds = 0.0;
        if resumed && let Some((state, before)) = folder.newest(trainer.layout())? {
            trainer.restore(&state)?;
            seconds = before;
        }
        let (points, log) = history(&folder, trainer.steps())?;
        let elements = |trained: bool| -> u64 {
            let parameters = trainer.layout().parameters().iter();
            parameters
                .filter(|parameter| !trained || parameter.trained)
                .map(|parameter| parameter.elements() as u64)
                .sum()
        };
        events(RunEvent::Started(Started {
            step: trainer.steps(),
            steps: config.steps,
            parameters: model.parameter_count() as u64,
            trained: elements(true),
            steps_per_epoch: task.per_epoch(config.batch.accumulate).ceil() as u64,
            device: trainer.backend().name(),
        }));
        Ok(Self { config, cancel, folder, trainer, task, labels, seconds, points, log })
    }

    fn train(mut self, events: &mut dyn FnMut(RunEvent)) -> Result<RunResult> {
        let begun = Instant::now();
        let first = self.trainer.steps();
        let steps = self.config.steps;
        let per_epoch = self.task.per_epoch(self.config.batch.accumulate);
        let due = |step: u64, every: u64| (every > 0 && step.is_multiple_of(every)) || step == steps;
        let mut last = None;
        for number in first..steps {
            if self.cancel.is_cancelled() {
                self.save(begun, events)?;
                self.draw()?;
                return Err(Error::Aborted);
            }
            let started = Instant::now();
            let work = exit::at_work();
            let (report, tokens) = self.task.step(&mut self.trainer, number)?;
            let took = started.elapsed().as_secs_f64();
            let validation = match due(report.step, self.config.validation.every) {
                true => self.task.validate(&mut self.trainer)?,
                false => None,
            };
            drop(work);
            let seconds = begun.elapsed().as_secs_f64();
            let progress = Progress {
                step: report.step,
                steps,
                epoch: report.step as f64 / per_epoch,
                loss: Some(report.loss).filter(|loss| loss.is_finite()),
                lr: report.lr,
                grad_norm: Some(f64::from(report.grad_norm)).filter(|norm| norm.is_finite()),
                skipped: report.skipped,
                tokens_per_second: tokens as f64 / took.max(1e-9),
                memory_bytes: self.trainer.memory_in_use().or_else(memory::resident),
                eta_seconds: seconds / (report.step - first) as f64 * (steps - report.step) as f64,
                seconds: self.seconds + seconds,
                validation_loss: validation.map(|validation| validation.loss),
                validation_accuracy: validation.and_then(|validation| validation.accuracy),
            };
            let line = serde_json::to_string(&progress)
                .map_err(|error| Error::Internal { message: error.to_string() })?;
            let path = self.folder.join("progress.jsonl");
            writeln!(self.log, "{line}").map_err(|error| Error::io("write", path, error))?;
            self.points.push(point(&progress));
            events(RunEvent::Progress(progress.clone()));
            last = Some(progress);
            if due(report.step, self.config.checkpoint.every) {
                // A skipped step has changed nothing, so that its checkpoint would only push out those from before whatever
                // went wrong.
                if !report.skipped || report.step == steps {
                    self.save(begun, events)?;
                }
                self.draw()?;
            }
        }
        let last = match last {
            Some(last) => last,
            // It was done before; the last line says how.
            None => read_history(&self.folder)?.pop().ok_or_else(|| Error::RunInvalid {
                path: self.folder.join("progress.jsonl"),
                reason: "no step is written down in it".into(),
            })?,
        };
        let _work = exit::at_work(); // until the trainer is dropped, too
        self.finish(last)
    }

    fn save(&mut self, begun: Instant, events: &mut dyn FnMut(RunEvent)) -> Result<()> {
        let state = {
            let _work = exit::at_work();
            self.trainer.state()?
        };
        let seconds = self.seconds + begun.elapsed().as_secs_f64();
        let path = self.folder.save(self.trainer.layout(), &state, seconds, self.config.checkpoint.keep)?;
        events(RunEvent::Saved { step: state.step, path });
        Ok(())
    }

    fn draw(&self) -> Result<()> {
        let picture = svg(&self.points);
        write_atomically(&self.folder.join("loss.svg"), |file| file.write_all(picture.as_bytes()))
    }

    /// Writes the result down.
    fn finish(mut self, last: Progress) -> Result<RunResult> {
        self.draw()?;
        let mut result = RunResult {
            last,
            model: None,
            hugging_face: None,
            adapter: None,
            classifier: None,
            curve: self.folder.join("loss.svg"),
        };
        match &self.config.adapter {
            Some(adapter) => {
                let path = self.folder.join("adapter");
                adapter::save(&mut self.trainer, adapter, self.config.model.as_deref(), &path)?;
                result.adapter = Some(path);
            }
            None => {
                let tokenizer = Some(self.folder.join("tokenizer.json")).filter(|path| path.is_file());
                let checkpoint = self.trainer.checkpoint()?.with_tokenizer(tokenizer);
                let dtype = match self.config.precision {
                    Precision::F32 => DType::F32,
                    Precision::Bf16 => DType::BF16,
                };
                let threads = threads::count(self.config.threads)?;
                for (names, folder, path) in [
                    (Names::Official, "model", &mut result.model),
                    (Names::HuggingFace, "model-hf", &mut result.hugging_face),
                ] {
                    let folder = self.folder.join(folder);
                    match checkpoint::save_as(names, &checkpoint, &folder, dtype, threads, &mut |_, _| Ok(()))
                    {
                        Ok(()) => *path = Some(folder),
                        // transformers has no such model.
                        Err(Error::ConfigInvalid { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        if !self.labels.is_empty() {
            let path = self.folder.join("classifier");
            adapter::save_classifier(&mut self.trainer, &self.config.objective, &self.labels, &path)?;
            result.classifier = Some(path);
        }
        Ok(result)
    }
}

/// A trainer; where it does not fit into memory, the error says what does.
fn trainer<B: TrainBackend>(
    config: &RunConfig,
    model: &Config,
    start: Start,
    options: &TrainOptions,
    extent: &Extent,
    backend: &mut dyn FnMut(&RunConfig) -> Result<B>,
) -> Result<Trainer<B>> {
    let carried = config.objective == ObjectiveConfig::CausalLm && config.batch.order == Order::Carried;
    let mut attempt = |value: usize| {
        let (max_tokens, max_sequences) = (extent.limits)(value);
        let backend = backend(config)?;
        let on_cpu = backend.name() == "cpu";
        let (before, available) = (allocated(), memory::available());
        let options = TrainOptions { max_tokens, max_sequences, ..options.clone() };
        let mut trainer = Trainer::new(backend, model.clone(), start, options)?;
        if !on_cpu {
            trainer.warm_up(carried)?;
        }
        let asked = u64::try_from(allocated() - before).unwrap_or(0) + trainer.bytes_to_come(carried);
        match available.filter(|available| on_cpu && asked > *available) {
            Some(free) => Err(Error::OutOfMemory { bytes: asked, what: "training".into(), free: Some(free) }),
            None => Ok(trainer),
        }
    };
    let Extent { field, mut value, least, .. } = *extent;
    let (bytes, what, free) = match attempt(value) {
        Err(Error::OutOfMemory { bytes, what, free }) => (bytes, what, free),
        other => return other,
    };
    while value > least {
        value = (value / 2).max(least);
        if attempt(value).is_ok() {
            let what = format!("{what} (`{field}` is {}; {value} fits)", extent.value);
            return Err(Error::OutOfMemory { bytes, what, free });
        }
    }
    let hint = if options.recompute { "" } else { ", or `recompute`" };
    let what = format!("{what} (not even a `{field}` of {least} fits: take a smaller `batch.length`{hint})");
    Err(Error::OutOfMemory { bytes, what, free })
}

/// The tokenizer of a run, which is copied or made into its folder.
fn tokenizer(
    config: &RunConfig,
    base: Option<&Checkpoint>,
    folder: &RunFolder,
    resumed: bool,
) -> Result<Option<Tokenizer>> {
    enum From<'a> {
        File(&'a Path),
        Data(TokenizerKind),
    }
    let path = folder.join("tokenizer.json");
    let from = match &config.tokenizer {
        Some(TokenizerConfig::File { path }) => Some(From::File(path)),
        Some(TokenizerConfig::Bpe { vocab_size }) => {
            Some(From::Data(TokenizerKind::Bpe { vocab_size: *vocab_size }))
        }
        Some(TokenizerConfig::Characters) => Some(From::Data(TokenizerKind::Characters)),
        Some(TokenizerConfig::Bytes) => Some(From::Data(TokenizerKind::Bytes)),
        None => match base {
            Some(base) => base.tokenizer_path().map(From::File),
            None => {
                let formats = config.data.formats()?;
                if formats.iter().all(|(_, format)| *format == data::Format::Fasta) {
                    Some(From::Data(TokenizerKind::Characters))
                } else if formats.iter().any(|(_, format)| format.has_text()) {
                    let expected = "a file, `bpe`, `characters` or `bytes`, for a new model's texts";
                    return Err(Error::option("tokenizer", "missing", expected));
                } else {
                    None
                }
            }
        },
    };
    match from {
        // The run has one since it was begun, even if its model came without.
        _ if resumed && path.is_file() => {}
        None => return Ok(None),
        Some(_) if resumed => {}
        Some(From::File(file)) => {
            let bytes = std::fs::read(file).map_err(|error| Error::io("read", file, error))?;
            // What is no tokenizer is refused before it is copied.
            Tokenizer::from_bytes(&bytes, file)?;
            write_atomically(&path, |out| out.write_all(&bytes))?;
        }
        Some(From::Data(kind)) => {
            let fields = config.objective.fields();
            train_tokenizer(kind, &path, &mut |take| config.data.texts(fields, take))?;
        }
    }
    Tokenizer::from_file(&path).map(Some)
}

/// The model's shape.
fn shape(config: &RunConfig, base: Option<&Checkpoint>, tokenizer: Option<&Tokenizer>) -> Result<Config> {
    if let Some(base) = base {
        return Ok(base.config().clone());
    }
    let mut value = config.config.clone().unwrap_or_else(|| json!({}));
    if let Some(fields) = value.as_object_mut()
        && !fields.contains_key("vocab_size")
        && !fields.contains_key("hidden_size")
    {
        let formats = config.data.formats()?;
        let vocab_size = match tokenizer {
            Some(tokenizer) => tokenizer.max_id() as usize + 1,
            None if formats.iter().all(|(_, format)| *format == data::Format::Wav) => data::wav::VOCABULARY,
            None => {
                return Err(Error::option(
                    "config.vocab_size",
                    "missing",
                    "the number of tokens, of raw ids",
                ));
            }
        };
        fields.insert("vocab_size".into(), Value::from(vocab_size));
    }
    let mut model = Config::from_json(&value.to_string())?;
    if model.eos_token_ids.is_empty() {
        model.eos_token_ids.extend(tokenizer.and_then(|tokenizer| tokenizer.token_to_id(BEGIN)));
    }
    Ok(model)
}

fn point(progress: &Progress) -> Point {
    Point {
        step: progress.step,
        loss: progress.loss.unwrap_or(f64::NAN),
        validation: progress.validation_loss,
    }
}

/// The lines of `progress.jsonl`; what a crash left of a last one is left out.
fn read_history(folder: &RunFolder) -> Result<Vec<Progress>> {
    let path = folder.join("progress.jsonl");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// What was written down of steps that are done, and the file to go on in.
fn history(folder: &RunFolder, steps: u64) -> Result<(Vec<Point>, File)> {
    let mut lines = read_history(folder)?;
    lines.retain(|progress| progress.step <= steps);
    let path = folder.join("progress.jsonl");
    write_atomically(&path, |file| {
        lines.iter().try_for_each(|line| writeln!(file, "{}", serde_json::to_string(line)?))
    })?;
    let log =
        OpenOptions::new().append(true).open(&path).map_err(|error| Error::io("write", &path, error))?;
    Ok((lines.iter().map(point).collect(), log))
}
