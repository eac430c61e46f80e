//! One engine a model, on a thread of its own, generic over the backend: a bounded queue, state slots,
//! admission and retirement at every step, chunked prefill, decoding of all running sequences together.
//! Generation, sessions, scores and embeddings are its clients; there is no other way to the model.

mod decode;
mod generation;
mod intake;
mod output;
mod pace;
mod prefix;
mod queue;
mod request;
mod schedule;
mod sequence;
mod session;
mod share;
mod slot;
mod stats;
mod texts;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;

pub use request::{
    Cancel, EmbedOptions, Event, FinishReason, GenerateOptions, Input, Output, Pooling, Priority, Standing,
    Task, TokenEvent, Usage,
};
pub use session::Session;
pub use stats::{Percentiles, PrefixCacheStats, Stats};

use self::intake::Job;
use self::queue::{Owner, Place};
use self::stats::Meter;
use self::worker::{Message, Worker};
use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::Config;
use crate::cpu::{Cpu, threads};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exit;
use crate::generate::SessionSnapshot;
use crate::model::{Model, StateSpec};
use crate::text::Tokenizer;

/// Threads of a model that only turn text into tokens.
const MAX_TEXT_THREADS: usize = 4;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best that is there: a GPU, or else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Type that the matrices are kept in; `None`: as stored in the checkpoint.
    pub dtype: Option<DType>,
    /// Where it runs.
    pub device: Device,
    /// Threads to compute on, 1 to 1024; `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// Map the weights file instead of reading it.
    pub mmap: bool,
    /// Look for NaN and infinity in the weights.
    pub validate: bool,
    /// Another tokenizer than the checkpoint's.
    pub tokenizer: Option<PathBuf>,
    /// Only size-independent kernels, so that results are equal to the bit in any batch. On a CPU this leaves
    /// out the tile unit, which only serves bf16 weights; f32 and f16 are always so. On a GPU products are computed 64
    /// rows at a time, scans are never cut in time, and there is no kernel for decode steps ([`crate::cuda`]).
    pub deterministic: bool,
    /// Sequences that are computed together, 1 to 4096: the number of state slots.
    pub max_batch: usize,
    /// Requests that may wait or run at a time.
    pub queue_limit: usize,
    /// Tokens that a step computes at most, over all sequences (and at least `max_batch`), 1 to 65536; `None`: 512 on a
    /// CPU, 8192 on a GPU.
    pub prefill_chunk: Option<usize>,
    /// While someone reads a stream, a step takes on no more of others' prompts than fits into this time, by the speed
    /// that the engine has measured (but at least 16 tokens), 1 ms to 1 h.
    pub max_stall: Duration,
    /// Bytes of states (and paths to them) that are kept after the beginnings that prompts share; 0: none. At least
    /// one state must fit. On a GPU up to `max_batch` of the states lie in its memory, the others in the host's.
    pub prefix_cache: u64,
    /// Adapters that requests may choose, by name: their folders.
    pub adapters: Vec<(String, PathBuf)>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            device: Device::Auto,
            threads: None,
            mmap: true,
            validate: false,
            tokenizer: None,
            deterministic: false,
            max_batch: 32,
            queue_limit: 1024,
            prefill_chunk: None,
            max_stall: Duration::from_millis(100),
            prefix_cache: 0,
            adapters: Vec::new(),
        }
    }
}

impl LoadOptions {
    fn check(&self) -> Result<()> {
        let within = |option, value: usize, max: usize| match (1..=max).contains(&value) {
            true => Ok(()),
            false => Err(Error::option(option, value, &format!("1 to {max}"))),
        };
        threads::count(self.threads)?;
        within("maxBatch", self.max_batch, 4096)?;
        within("queueLimit", self.queue_limit, 1 << 20)?;
        within("maxStall", self.max_stall.as_millis() as usize, 3_600_000)?;
        self.prefill_chunk.map_or(Ok(()), |chunk| within("prefillChunk", chunk, 1 << 16))
    }
}

impl LoadOptions {
    /// How many states of the prefix cache lie in the device's own memory, if it has any.
    fn kept_on_device(&self, info: &ModelInfo, has_own_memory: bool) -> Result<usize> {
        let Self { prefix_cache, max_batch, .. } = *self;
        if (1..info.state_bytes).contains(&prefix_cache) {
            let expected = format!("0 (off), or at least the {} bytes of one state", info.state_bytes);
            return Err(Error::option("prefixCache.bytes", prefix_cache, &expected));
        }
        Ok(if has_own_memory { ((prefix_cache / info.state_bytes) as usize).min(max_batch) } else { 0 })
    }
}

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// `validate` or `weights`.
    pub stage: &'static str,
    /// Bytes dealt with in this stage.
    pub loaded_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// What is known of a loaded model.
#[derive(Debug)]
pub struct ModelInfo {
    /// Its shape.
    pub config: Config,
    /// Type of its matrices in memory.
    pub dtype: DType,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Threads that compute.
    pub threads: usize,
    /// Row length of logits: the padded vocabulary.
    pub vocab_size: usize,
    /// Ids that end a text: the configuration's, or the tokenizer's `<|endoftext|>` where it names none.
    pub eos_token_ids: Vec<u32>,
    /// Tells models apart, whatever their device or file format.
    pub fingerprint: [u8; 32],
    /// What a state consists of.
    pub spec: StateSpec,
    /// Bytes of all weights in memory.
    pub weight_bytes: u64,
    /// Bytes of one sequence's state.
    pub state_bytes: u64,
    /// Number of parameters.
    pub parameters: u64,
}

/// A loaded model. Clones are the same model; when the last one is dropped, what is under way is finished and
/// the memory freed ([`Mamba::dispose`] ends it at once).
#[derive(Clone)]
pub struct Mamba {
    shared: Arc<Shared>,
}

struct Shared {
    info: Arc<ModelInfo>,
    tokenizer: Option<Tokenizer>,
    intake: Sender<Job>,
    engine: Sender<Message>,
    pending: Arc<AtomicUsize>,
    queue_limit: usize,
    caches_prefixes: bool,
    /// Their names, in the order of the engine's.
    adapters: Vec<String>,
    /// Requests so far, and those refused for the queue's limit.
    requests: AtomicU64,
    refused: AtomicU64,
    meter: Arc<Meter>,
    life: Arc<Life>,
}

/// Whether the engine is still there, and who wants to know when it is not.
#[derive(Default)]
pub(crate) struct Life {
    state: Mutex<LifeState>,
}

#[derive(Default)]
struct LifeState {
    disposed: bool,
    ended: bool,
    waiting: Vec<Box<dyn FnOnce() + Send>>,
}

impl Life {
    fn state(&self) -> std::sync::MutexGuard<'_, LifeState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn is_disposed(&self) -> bool {
        self.state().disposed
    }

    /// The engine's memory is freed.
    fn end(&self) {
        let waiting = {
            let mut state = self.state();
            (state.disposed, state.ended) = (true, true);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|tell| tell());
    }
}

/// One place in the bounded queue, given back when the request is answered.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Mamba {
    /// Loads a model and starts its engine. Blocks; call it on a thread that may.
    ///
    /// # Errors
    /// Whatever is wrong with the options or the files; `ABORTED`.
    pub fn load(
        path: &Path,
        options: &LoadOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        options.check()?;
        let checkpoint = Checkpoint::open(path, &OpenOptions { mmap: options.mmap })?;
        let tokenizer = match options.tokenizer.as_deref().or(checkpoint.tokenizer_path()) {
            Some(path) => Some(Tokenizer::from_file(path)?),
            None => None,
        };
        Self::from_checkpoint(&checkpoint, tokenizer, options, cancel, progress)
    }

    /// The same from an open checkpoint.
    ///
    /// # Errors
    /// As [`Mamba::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        tokenizer: Option<Tokenizer>,
        options: &LoadOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        options.check()?;
        let threads = threads::count(options.threads)?;
        if let Some(cuda) = cuda(options, checkpoint)? {
            return Self::with_backend(cuda, threads, checkpoint, tokenizer, options, cancel, progress);
        }
        let cpu = Cpu::new(threads)?.deterministic(options.deterministic);
        Self::with_backend(cpu, threads, checkpoint, tokenizer, options, cancel, progress)
    }

    /// The same on a given backend; `threads` is what [`ModelInfo`] reports.
    ///
    /// # Errors
    /// As [`Mamba::load`].
    pub fn with_backend<B: Backend>(
        mut backend: B,
        threads: usize,
        checkpoint: &Checkpoint,
        tokenizer: Option<Tokenizer>,
        options: &LoadOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        options.check()?;
        let _work = exit::at_work();
        let config = checkpoint.config().clone();
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_fits(config.padded_vocab_size)?;
        }
        let dtype = options.dtype.unwrap_or_else(|| checkpoint.dtype());
        let total_bytes = dtype.bytes(config.parameter_count() as u64);
        let mut report = |stage, loaded_bytes: u64| {
            progress(LoadProgress { stage, loaded_bytes: loaded_bytes.min(total_bytes), total_bytes });
            if cancel.is_cancelled() { Err(Error::Aborted) } else { Ok(()) }
        };
        report("weights", 0)?;
        if options.validate {
            let mut elements = 0;
            checkpoint.validate(&mut |read| {
                elements += read;
                report("validate", dtype.bytes(elements as u64))
            })?;
        }
        let mut weight_bytes = 0;
        let model = Model::load(&mut backend, checkpoint, dtype, &mut |bytes| {
            weight_bytes = bytes;
            report("weights", bytes)
        })?;
        report("weights", total_bytes)?;

        let mut eos_token_ids = config.eos_token_ids.clone();
        if eos_token_ids.is_empty() {
            eos_token_ids.extend(tokenizer.as_ref().and_then(|text| text.token_to_id("<|endoftext|>")));
        }
        let spec = model.spec().clone();
        let info = Arc::new(ModelInfo {
            parameters: config.parameter_count() as u64,
            vocab_size: config.padded_vocab_size,
            eos_token_ids,
            config,
            dtype,
            device: backend.name().into(),
            threads,
            fingerprint: checkpoint.fingerprint()?,
            weight_bytes,
            state_bytes: 4 * spec.elements() as u64,
            spec,
        });
        let life = Arc::new(Life::default());
        let (engine, messages) = crossbeam_channel::unbounded();
        let worker =
            Worker::new(backend, model, info.clone(), tokenizer.clone(), messages, life.clone(), options)?;
        let meter = worker.meter.clone();
        spawn("mamba-engine", move || worker.run())?;
        let (intake, jobs) = crossbeam_channel::unbounded();
        // More than one, so that nobody waits for another's long text; a request with many is spread over `threads`.
        for _ in 0..threads.clamp(2, MAX_TEXT_THREADS) {
            let (jobs, to_engine) = (jobs.clone(), engine.clone());
            let (text, alive) = (tokenizer.clone(), life.clone());
            spawn("mamba-text", move || intake::run(&jobs, &to_engine, &alive, text.as_ref(), threads))?;
        }
        let pending = Arc::new(AtomicUsize::new(0));
        let queue_limit = options.queue_limit;
        let (requests, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let caches_prefixes = options.prefix_cache > 0;
        let shared = Shared {
            info,
            tokenizer,
            intake,
            engine,
            pending,
            queue_limit,
            caches_prefixes,
            adapters: options.adapters.iter().map(|(name, _)| name.clone()).collect(),
            requests,
            refused,
            meter,
            life,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What is known of it.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// The names of its adapters.
    #[must_use]
    pub fn adapters(&self) -> &[String] {
        &self.shared.adapters
    }

    fn adapter(&self, name: &str) -> Result<usize> {
        let names = &self.shared.adapters;
        names.iter().position(|other| other == name).ok_or_else(|| {
            let expected = match &names[..] {
                [] => "none: the model was loaded without `adapters`".into(),
                names => format!("one of `{}`", names.join("`, `")),
            };
            Error::option("adapter", format!("`{name}`"), &expected)
        })
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// `TOKENIZER_MISSING`.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.shared.tokenizer.as_ref().ok_or(Error::TokenizerMissing)
    }

    /// Puts a request into the queue and returns at once. `on_event` is called on a thread of the model's and
    /// must not block; where there is nothing to compute (an empty list to embed), or the model was disposed of
    /// meanwhile, it is called before this returns.
    ///
    /// # Errors
    /// What can be seen without computing: `MODEL_DISPOSED`, `ABORTED`, `QUEUE_FULL`, `OPTION_INVALID`,
    /// `TOKEN_OUT_OF_RANGE`, `EMPTY_PROMPT`, `TOKENIZER_MISSING`, `SESSION_BUSY`, `SESSION_MISMATCH`. Then
    /// `on_event` is never called.
    pub fn submit(
        &self,
        task: Task,
        cancel: Cancel,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<()> {
        self.submit_as(Standing::default(), task, cancel, on_event)
    }

    /// The same for a user, or with a priority.
    ///
    /// # Errors
    /// As [`Mamba::submit`].
    pub fn submit_as(
        &self,
        Standing { user, priority, adapter }: Standing,
        task: Task,
        cancel: Cancel,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<()> {
        let shared = &*self.shared;
        if shared.life.is_disposed() {
            return Err(Error::ModelDisposed);
        }
        if cancel.is_cancelled() {
            return Err(Error::Aborted);
        }
        if let (Task::CachePrefix { .. }, false) = (&task, shared.caches_prefixes) {
            return Err(Error::option(
                "prefixCache.bytes",
                0,
                "the bytes of a state at least, given when the model is loaded",
            ));
        }
        let adapter = adapter.map(|name| self.adapter(&name)).transpose()?;
        if let (Task::CachePrefix { .. }, Some(_)) = (&task, adapter) {
            return Err(Error::option("adapter", "given", "none: prefixes are cached for the model alone"));
        }
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        let owner = user.map_or(Owner::Request(number), |user| Owner::User(user.into()));
        let job =
            Job::new(task, Place { owner, priority, adapter }, &shared.info, shared.tokenizer.is_some())?;
        let permit = Permit(shared.pending.clone());
        if shared.pending.fetch_add(1, Ordering::AcqRel) >= shared.queue_limit {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Error::QueueFull { limit: shared.queue_limit });
        }
        let job = job.with_reply(cancel, Box::new(on_event), permit);
        if job.is_short() {
            intake::admit(job, &shared.engine, &shared.life, shared.tokenizer.as_ref(), 1);
        } else {
            // Should the thread be gone, the job is dropped, and its reply says so.
            drop(shared.intake.send(job));
        }
        Ok(())
    }

    /// What its engine does and how fast. Takes no time of the engine's.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Shared { pending, requests, refused, meter, .. } = &*self.shared;
        Stats {
            requests_in_flight: pending.load(Ordering::Acquire),
            requests_total: requests.load(Ordering::Relaxed),
            requests_refused: refused.load(Ordering::Relaxed),
            ..meter.stats()
        }
    }

    /// An empty session.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.shared.info.clone())
    }

    /// A session from its bytes.
    ///
    /// # Errors
    /// `SESSION_INVALID`, `SESSION_VERSION`, `SESSION_MISMATCH`.
    pub fn restore(&self, bytes: &[u8]) -> Result<Session> {
        Session::from_snapshot(SessionSnapshot::from_bytes(bytes)?, self.shared.info.clone())
    }

    /// A session from its file.
    ///
    /// # Errors
    /// As [`Mamba::restore`]; `FILE_NOT_FOUND`, `IO_ERROR`.
    pub fn restore_file(&self, path: &Path) -> Result<Session> {
        Session::from_snapshot(SessionSnapshot::load(path)?, self.shared.info.clone())
    }

    /// Ends all requests with `MODEL_DISPOSED` and frees the model's memory. Returns at once and may be
    /// called again; `on_disposed` is called when the memory is free.
    pub fn dispose(&self, on_disposed: impl FnOnce() + Send + 'static) {
        {
            let mut state = self.shared.life.state();
            state.disposed = true;
            if !state.ended {
                state.waiting.push(Box::new(on_disposed));
                drop(state);
                let _ = self.shared.engine.send(Message::Dispose);
                return;
            }
        }
        on_disposed();
    }
}

/// The GPU, where it is asked for, and where the device is left open and it is there.
#[cfg(feature = "cuda")]
fn cuda(options: &LoadOptions, checkpoint: &Checkpoint) -> Result<Option<crate::cuda::Cuda>> {
    let dtype = options.dtype.unwrap_or_else(|| checkpoint.dtype());
    let cuda = || Ok(Some(crate::cuda::Cuda::new(dtype)?.deterministic(options.deterministic)));
    match options.device {
        Device::Cpu => Ok(None),
        Device::Cuda => cuda(),
        Device::Auto => match cuda() {
            Err(Error::DeviceUnavailable { .. } | Error::DeviceLost { .. }) => Ok(None),
            other => other,
        },
    }
}

/// What this build has no code for is never there.
#[cfg(not(feature = "cuda"))]
fn cuda(options: &LoadOptions, _: &Checkpoint) -> Result<Option<Cpu>> {
    match options.device {
        Device::Auto | Device::Cpu => Ok(None),
        Device::Cuda => Err(Error::DeviceUnavailable {
            device: "cuda".into(),
            reason: "this binary was built without CUDA; expected `auto` or `cpu`".into(),
        }),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(|error| {
        Error::DeviceUnavailable { device: "cpu".into(), reason: format!("no thread {name}: {error}") }
    })
}
