//! From a task to sequences: checks that need no computing, and tokenization on threads of its own, beside the
//! engine's: the first texts are computed while later ones become tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::queue::Place;
use super::request::{Cancel, EmbedOptions, Event, GenerateOptions, Input, Output, Pooling, Task};
use super::sequence::{Sequence, Work};
use super::session::{Loan, new_seed};
use super::worker::Message;
use super::{Life, ModelInfo, Permit};
use crate::error::{Error, Result};
use crate::text::{StopMatcher, Tokenizer};

/// Bytes of text that the caller's thread tokenizes.
const SHORT: usize = 64;

/// A checked task and whom to answer.
pub(crate) struct Job {
    pub kind: Kind,
    inputs: Vec<Input>,
    rules: Rules,
    d_model: usize,
    place: Place,
    reply: Option<Reply>,
}

/// What token ids must be like.
#[derive(Clone, Copy)]
struct Rules {
    vocab_size: usize,
    /// How many there must be of a text.
    least: usize,
    /// Whether an error says which text.
    named: bool,
}

/// What is done with the inputs.
#[allow(clippy::large_enum_variant)] // one a request, moved twice
pub(crate) enum Kind {
    Generate { options: GenerateOptions, stop: StopMatcher, session: Option<Loan> },
    Append { session: Loan },
    CachePrefix,
    Forward { all: bool },
    Score,
    Embed { options: EmbedOptions },
}

/// Whom to answer. Exactly one final event is sent: if nothing else came, `Failed` with `MODEL_DISPOSED`, or with
/// `INTERNAL` where a panic took it along.
pub(crate) struct Reply {
    cancel: Cancel,
    since: Instant,
    on_event: Box<dyn FnMut(Event) + Send>,
    /// Gone once the last event is sent.
    permit: Option<Permit>,
}

impl Reply {
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub fn is_paused(&self) -> bool {
        self.cancel.is_paused()
    }

    /// When it was asked for.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// An event that is not the last.
    pub fn send(&mut self, event: Event) {
        (self.on_event)(event);
    }

    /// The last event.
    pub fn finish(mut self, result: Result<Output>) {
        self.answer(result);
    }

    fn answer(&mut self, result: Result<Output>) {
        // Whoever hears of the end may ask for something else at once.
        drop(self.permit.take());
        let event = match result {
            Ok(output) => Event::Done(output),
            Err(error) => Event::Failed(error),
        };
        // Nothing is left to be ended by a panic of its owner's; others may be waiting for their own end.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.on_event)(event)));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.answer(Err(match std::thread::panicking() {
                true => Error::Internal { message: "a panic in the engine".into() },
                false => Error::ModelDisposed,
            }));
        }
    }
}

/// The texts of one embedding request, computed in any order.
pub(crate) struct EmbedGroup {
    pub options: EmbedOptions,
    results: Mutex<EmbedResults>,
    cancel: Cancel,
    failed: AtomicBool,
}

struct EmbedResults {
    data: Vec<f32>,
    left: usize,
    tokens: usize,
    reply: Option<Reply>,
}

impl EmbedGroup {
    fn results(&self) -> std::sync::MutexGuard<'_, EmbedResults> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.failed.load(Ordering::Acquire)
    }

    /// Text `index` was `tokens` long and is `vector`; the last one answers the request.
    pub fn add(&self, index: usize, tokens: usize, vector: &[f32]) {
        let mut results = self.results();
        let dimensions = vector.len();
        if let Some(row) = results.data.get_mut(index * dimensions..(index + 1) * dimensions) {
            row.copy_from_slice(vector);
        }
        results.tokens += tokens;
        results.left -= 1;
        if results.left == 0 {
            let (data, tokens, reply) =
                (std::mem::take(&mut results.data), results.tokens, results.reply.take());
            drop(results);
            if let Some(reply) = reply {
                reply.finish(Ok(Output::Embeddings { dimensions, data, tokens }));
            }
        }
    }

    /// One failing text fails the request. Who sees that it has failed and says so too comes too late: the first error
    /// is the answer.
    pub fn fail(&self, error: Error) {
        let reply = {
            let mut results = self.results();
            self.failed.store(true, Ordering::Release);
            results.reply.take()
        };
        if let Some(reply) = reply {
            reply.finish(Err(error));
        }
    }
}

impl Job {
    /// Checks a task.
    pub fn new(task: Task, place: Place, info: &Arc<ModelInfo>, has_tokenizer: bool) -> Result<Self> {
        let (kind, inputs) = match task {
            Task::Generate { prompt, options } => {
                let (options, stop) = check_generate(options, info)?;
                (Kind::Generate { options, stop, session: None }, vec![prompt])
            }
            Task::Continue { session, options } => {
                let (options, stop) = check_generate(options, info)?;
                let session = session.lend(info)?;
                if session.context().pending.is_none() {
                    return Err(Error::EmptyPrompt { what: "append to the session first".into() });
                }
                (Kind::Generate { options, stop, session: Some(session) }, Vec::new())
            }
            Task::Append { session, input } => (Kind::Append { session: session.lend(info)? }, vec![input]),
            Task::CachePrefix { input } => (Kind::CachePrefix, vec![input]),
            Task::Forward { input, all } => (Kind::Forward { all }, vec![input]),
            Task::Score { input } => (Kind::Score, vec![input]),
            Task::Embed { inputs, options } => (Kind::Embed { options: check_embed(options, info)? }, inputs),
        };
        let rules = Rules {
            vocab_size: info.vocab_size,
            least: match kind {
                Kind::Append { .. } => 0,
                Kind::Score => 2,
                _ => 1,
            },
            named: matches!(kind, Kind::Embed { .. }),
        };
        let job = Self { kind, inputs, rules, d_model: info.config.d_model, place, reply: None };
        for (i, input) in job.inputs.iter().enumerate() {
            match input {
                Input::Text(_) if !has_tokenizer => return Err(Error::TokenizerMissing),
                Input::Text(_) => {}
                Input::Ids(ids) => rules.check(i, ids)?,
            }
        }
        Ok(job)
    }

    pub fn with_reply(
        mut self,
        cancel: Cancel,
        on_event: Box<dyn FnMut(Event) + Send>,
        permit: Permit,
    ) -> Self {
        self.reply = Some(Reply { cancel, since: Instant::now(), on_event, permit: Some(permit) });
        self
    }

    /// Whether it is tokenized sooner than another thread has woken up.
    pub fn is_short(&self) -> bool {
        self.inputs.iter().map(Input::text_bytes).sum::<usize>() <= SHORT
    }
}

impl Rules {
    fn check(self, index: usize, ids: &[u32]) -> Result<()> {
        let vocab_size = self.vocab_size;
        if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id: i64::from(*id), position, vocab_size });
        }
        if ids.len() < self.least {
            return Err(Error::EmptyPrompt {
                what: match self {
                    Self { least: 2, .. } => format!("a score needs two, got {}", ids.len()),
                    Self { named: true, .. } => format!("input {index}"),
                    _ => String::new(),
                },
            });
        }
        Ok(())
    }

    fn ids(self, index: usize, input: Input, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        match (input, tokenizer) {
            (Input::Ids(ids), _) => Ok(ids), // checked on arrival
            (Input::Text(text), Some(tokenizer)) => {
                let ids = tokenizer.encode(&text)?;
                self.check(index, &ids)?;
                Ok(ids)
            }
            (Input::Text(_), None) => Err(Error::TokenizerMissing),
        }
    }
}

/// A tokenizing thread; ends when the model's handles are gone.
pub(crate) fn run(
    jobs: &Receiver<Job>,
    engine: &Sender<Message>,
    life: &Life,
    tokenizer: Option<&Tokenizer>,
    threads: usize,
) {
    for job in jobs {
        admit(job, engine, life, tokenizer, threads);
    }
}

/// Bytes of text that are worth another thread.
const BYTES_A_THREAD: usize = 16 << 10;

/// Turns a job into sequences for the engine, on up to `threads` threads where it has many texts.
pub(crate) fn admit(
    mut job: Job,
    engine: &Sender<Message>,
    life: &Life,
    tokenizer: Option<&Tokenizer>,
    threads: usize,
) {
    let Some(reply) = job.reply.take() else { return };
    // Wherever a request ends here, its session is free again before its user hears of it.
    if reply.is_cancelled() || life.is_disposed() {
        drop(job);
        let error = if reply.is_cancelled() { Error::Aborted } else { Error::ModelDisposed };
        return reply.finish(Err(error));
    }
    // Should the engine be gone, the message is dropped, and its reply says so.
    let send = |sequence| drop(engine.send(Message::Sequence(Box::new(sequence))));
    let (inputs, rules, place) = (std::mem::take(&mut job.inputs), job.rules, job.place.clone());
    if let Kind::Embed { options } = &job.kind {
        let options = options.clone();
        let dimensions = options.dimensions.unwrap_or(job.d_model);
        if inputs.is_empty() {
            return reply.finish(Ok(Output::Embeddings { dimensions, data: Vec::new(), tokens: 0 }));
        }
        let cancel = reply.cancel.clone();
        let (mut data, elements) = (Vec::new(), inputs.len().saturating_mul(dimensions));
        if data.try_reserve_exact(elements).is_err() {
            let (bytes, what) = ((elements as u64).saturating_mul(4), "vectors".into());
            return reply.finish(Err(Error::OutOfMemory { bytes, what, free: None }));
        }
        data.resize(elements, 0.0);
        let results = EmbedResults { data, left: inputs.len(), tokens: 0, reply: Some(reply) };
        let group = Arc::new(EmbedGroup {
            options,
            results: Mutex::new(results),
            cancel,
            failed: AtomicBool::new(false),
        });
        let bytes: usize = inputs.iter().map(Input::text_bytes).sum();
        let helpers = threads.min(inputs.len()).min(bytes / BYTES_A_THREAD).saturating_sub(1);
        let queue = Mutex::new(inputs.into_iter().enumerate());
        let tokenize = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, input)) = next else { return };
                if group.is_cancelled() {
                    return group.fail(Error::Aborted);
                }
                if life.is_disposed() {
                    return group.fail(Error::ModelDisposed);
                }
                match rules.ids(index, input, tokenizer) {
                    Ok(ids) => {
                        let work = Work::Embed { group: group.clone(), index };
                        send(Sequence::new(ids, place.clone(), work))
                    }
                    Err(error) => return group.fail(error),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                // Without the help it only takes longer.
                let helper = std::thread::Builder::new().name("mamba-text".into());
                let _ = helper.spawn_scoped(scope, tokenize);
            }
            tokenize();
        });
        return;
    }
    let ids = match inputs.into_iter().next() {
        Some(input) => match rules.ids(0, input, tokenizer) {
            Ok(ids) => ids,
            Err(error) => {
                drop(job);
                return reply.finish(Err(error));
            }
        },
        None => Vec::new(), // a session goes on from its pending token
    };
    send(match job.kind {
        Kind::Generate { options, stop, session } => {
            Sequence::generate(ids, place, options, stop, session, reply)
        }
        Kind::Append { session } if ids.is_empty() => {
            drop(session);
            return reply.finish(Ok(Output::Appended { tokens: 0 }));
        }
        Kind::Append { session } => Sequence::append(ids, place, session, reply),
        Kind::CachePrefix => Sequence::cache_prefix(ids, place, reply),
        Kind::Forward { all } => Sequence::new(ids, place, Work::Forward { all, data: Vec::new(), reply }),
        Kind::Score => Sequence::score(ids, place, reply),
        Kind::Embed { .. } => unreachable!("handled above"),
    });
}

fn check_generate(mut options: GenerateOptions, info: &ModelInfo) -> Result<(GenerateOptions, StopMatcher)> {
    if options.max_tokens == 0 {
        return Err(Error::option("maxTokens", 0, "at least 1"));
    }
    for (position, id) in options.stop_tokens.iter().enumerate() {
        if *id as usize >= info.vocab_size {
            let vocab_size = info.vocab_size;
            return Err(Error::TokenOutOfRange { id: i64::from(*id), position, vocab_size });
        }
    }
    let stop = StopMatcher::new(options.stop.clone())?;
    options.sampler.validate(info.vocab_size)?;
    // A session without a seed of the call's keeps its own (see `Sequence::generate`).
    options.sampler.seed = options.seed.unwrap_or_else(new_seed);
    Ok((options, stop))
}

fn check_embed(options: EmbedOptions, info: &ModelInfo) -> Result<EmbedOptions> {
    let d_model = info.config.d_model;
    match options.dimensions {
        Some(n) if n == 0 || n > d_model => {
            Err(Error::option("dimensions", n, &format!("1 to {d_model} (the model's d_model)")))
        }
        _ => Ok(options),
    }
}

impl EmbedOptions {
    /// Turns a pooled row [d_model] of a text of `tokens` tokens into its vector.
    pub(crate) fn vector(&self, mut row: Vec<f32>, tokens: usize) -> Vec<f32> {
        if self.pooling == Pooling::Mean {
            row.iter_mut().for_each(|x| *x /= tokens as f32);
        }
        row.truncate(self.dimensions.unwrap_or(row.len()));
        if self.normalize {
            let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        row
    }
}
