//! The engine's loop. Each turn takes in what has arrived, packs one step (a token of every sequence that
//! decodes, a share of what is left of the chunk for every one that prefills), runs the model once, and hands
//! out what came of it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::decode::Decode;
use super::pace::Pace;
use super::prefix::Prefixes;
use super::queue::Queue;
use super::sequence::Sequence;
use super::slot::{FreeSlots, Slot};
use super::stats::{Meter, Stats};
use super::texts::{Landing, Pooled};
use super::{Life, LoadOptions, ModelInfo};
use crate::backend::{Backend, Batch};
use crate::error::{Error, Result};
use crate::exit;
use crate::model::{Adapters, Model, Slots, Workspace};
use crate::text::Tokenizer;
use crate::train::adapter::Adapter;

/// Rows of logits that are computed at a time where many are asked for.
pub(super) const LOGIT_ROWS: usize = 64;

/// How often an engine with nothing else to do looks whether a consumer that paused wants more.
const REST: Duration = Duration::from_millis(10);

/// Turns that are timed together where each waits for what one before it has queued.
const PIPELINED: usize = 4;

/// How often the device is asked for its free memory.
const MEMORY: Duration = Duration::from_secs(1);

/// What reaches the engine.
pub(crate) enum Message {
    Sequence(Box<Sequence>),
    Dispose,
}

/// A sequence in its slot.
pub(super) struct Running {
    pub(super) sequence: Sequence,
    pub(super) slot: Slot,
    /// How many of its tokens this step computes.
    pub(super) share: usize,
}

pub(crate) struct Worker<B: Backend> {
    pub(super) backend: B,
    pub(super) model: Model<B>,
    pub(super) slots: Slots<B>,
    pub(super) workspace: Workspace<B>,
    /// [slots, d_model]: pooled hidden states.
    pub(super) pooled: B::Buffer,
    pub(super) logits: Vec<f32>,
    pub(super) info: Arc<ModelInfo>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) messages: Receiver<Message>,
    pub(super) life: Arc<Life>,
    pub(super) waiting: Queue<Sequence>,
    /// When those were last looked through.
    pub(super) swept: Instant,
    /// Those whose consumers want no more for now. They have no slot.
    pub(super) resting: Vec<Sequence>,
    pub(super) prefixes: Option<Prefixes>,
    pub(super) pace: Pace,
    pub(super) meter: Arc<Meter>,
    /// When the device was last asked for its free memory.
    asked: Option<Instant>,
    pub(super) max_stall: Duration,
    pub(super) running: Vec<Running>,
    /// Texts that this step has finished, and those whose vectors are on their way.
    pub(super) pooled_texts: Vec<Pooled>,
    pub(super) landing: VecDeque<Landing>,
    /// Where the backend chooses tokens: sequences whose prompt is done.
    pub(super) decode: Option<Decode<B>>,
    pub(super) free: FreeSlots,
    pub(super) batch: Batch,
}

impl<B: Backend> Worker<B> {
    pub fn new(
        mut backend: B,
        model: Model<B>,
        info: Arc<ModelInfo>,
        tokenizer: Option<Tokenizer>,
        messages: Receiver<Message>,
        life: Arc<Life>,
        options: &LoadOptions,
    ) -> Result<Self> {
        let count = options.max_batch;
        // Every slot can decode in one step.
        let own = || backend.prefill_chunk(&info.config, info.dtype);
        let tokens = options.prefill_chunk.unwrap_or_else(own).max(count);
        let rows = count.next_power_of_two();
        let decode = backend.decoder(rows, info.vocab_size, count)?.map(Decode::new);
        let (tokens, logit_rows, spare) = match &decode {
            Some(decode) => (tokens.max(rows), LOGIT_ROWS.max(decode.logit_rows()), decode.spare_slots()),
            None => (tokens, LOGIT_ROWS, 0),
        };
        let mut workspace = Workspace::new(&mut backend, &info.config, tokens, logit_rows)?;
        if !options.adapters.is_empty() {
            let adapters = options
                .adapters
                .iter()
                .map(|(_, path)| Adapter::open(path, &info.config))
                .collect::<Result<Vec<_>>>()?;
            workspace.adapters = Some(Adapters::load(&mut backend, &info.config, &adapters, tokens)?);
        }
        let kept = options.kept_on_device(&info, backend.memory().is_some())?;
        let slots = Slots::new(&mut backend, &info.spec, count + spare + kept)?;
        let kept = (count + spare..slots.count()).collect();
        let prefixes =
            (options.prefix_cache > 0).then(|| Prefixes::new(options.prefix_cache, info.state_bytes, kept));
        let pooled = backend.alloc(slots.count() * info.config.d_model, "pooled hidden states")?;
        let stats = Stats {
            slots: count,
            weight_bytes: info.weight_bytes,
            state_bytes: slots.count() as u64 * info.state_bytes,
            device_memory: backend.memory(),
            ..Stats::default()
        };
        Ok(Self {
            backend,
            model,
            slots,
            workspace,
            pooled,
            logits: Vec::new(),
            info,
            tokenizer,
            messages,
            life,
            waiting: Queue::new(),
            swept: Instant::now(),
            resting: Vec::new(),
            prefixes,
            pace: Pace::new(tokens / 16),
            meter: Arc::new(Meter::new(stats)),
            asked: None,
            max_stall: options.max_stall,
            running: Vec::new(),
            pooled_texts: Vec::new(),
            landing: VecDeque::new(),
            decode,
            free: FreeSlots::new(count),
            batch: Batch::new(),
        })
    }

    /// Until the model is disposed of, or nobody is left to ask anything.
    pub fn run(self) {
        // Told when everything else is dropped: what is left is answered and the memory freed, even by a panic.
        let _end = End(self.life.clone());
        let mut worker = self;
        while worker.receive() {
            let _work = exit::at_work();
            // A panic is a defect of ours. It ends what was running, not the process, nor the model.
            match catch_unwind(AssertUnwindSafe(|| worker.turn())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    worker.fail_running(|| copy_of(&error));
                    if let Error::DeviceLost { .. } = error {
                        worker.fail_waiting(|| copy_of(&error));
                    }
                }
                Err(panic) => worker.fail_running(|| Error::panic(&*panic)),
            }
            worker.note();
        }
        let _work = exit::at_work();
        drop(worker);
    }

    fn turn(&mut self) -> Result<()> {
        self.sweep_decode()?;
        self.sweep();
        self.admit();
        let sequences = self.running.len() + self.decoding();
        self.launch_decode()?;
        let (prompt_tokens, waited) = self.step()?;
        let sent = self.send_texts()?;
        self.collect_decode()?;
        self.collect_texts(sent)?;
        let together = match &self.decode {
            // What comes next may be long in coming.
            _ if self.running.is_empty() && self.decoding() == 0 => None,
            _ if waited => Some(1),
            Some(decode) if decode.len() > 0 => Some(PIPELINED),
            _ => None,
        };
        self.pace.turn(Instant::now(), prompt_tokens, together);
        self.meter.turn(prompt_tokens, sequences);
        Ok(())
    }

    /// For who asks for statistics.
    fn note(&mut self) {
        let running = self.running.len() + self.decoding();
        self.meter.queue(self.waiting.len(), running, self.resting.len());
        if let Some(prefixes) = &self.prefixes {
            self.meter.prefix_cache(prefixes.states(), prefixes.bytes());
        }
        if self.asked.is_none_or(|asked| asked.elapsed() > MEMORY) {
            self.asked = Some(Instant::now());
            self.meter.device_memory(self.backend.memory());
        }
    }

    /// Takes in what has arrived, waiting for it when there is nothing else to do; false at the end.
    fn receive(&mut self) -> bool {
        loop {
            if self.life.is_disposed() {
                return false;
            }
            let idle = self.running.is_empty() && self.decoding() == 0 && self.waiting.is_empty();
            let message = match (idle, self.resting.is_empty()) {
                (true, true) => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (true, false) => self.messages.recv_timeout(REST),
                (false, _) => self.messages.try_recv().map_err(|_| RecvTimeoutError::Timeout),
            };
            match message {
                Ok(Message::Sequence(sequence)) => self.waiting.push(&sequence.place.clone(), *sequence),
                Ok(Message::Dispose) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) if self.resting.is_empty() => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(REST);
                    return true;
                }
            }
        }
    }

    /// A step of those in `running`. Returns how many tokens of prompts it had, and whether it has waited for the device.
    fn step(&mut self) -> Result<(usize, bool)> {
        if self.running.is_empty() {
            return Ok((0, false));
        }
        self.share_out();
        self.batch.clear();
        let mut prompt_tokens = 0;
        for Running { sequence, slot, share } in &mut self.running {
            self.batch.push(
                &sequence.ids[sequence.done..sequence.done + *share],
                slot.index,
                !sequence.begun,
            );
            sequence.begun = true;
            prompt_tokens += if sequence.decodes() { 0 } else { *share };
        }
        if let Some(adapters) = &mut self.workspace.adapters {
            let running = self.running.iter();
            adapters.assign(running.map(|running| (running.share, running.sequence.place.adapter)));
        }
        let plan =
            self.model.forward(&mut self.backend, &self.batch, &mut self.slots, &mut self.workspace)?;
        self.pool(&plan)?;
        self.keep_prefixes()?;
        Ok((prompt_tokens, self.hand_out()?))
    }

    /// Ends all that has come and has no slot.
    fn fail_waiting(&mut self, error: impl Fn() -> Error) {
        while let Ok(Message::Sequence(sequence)) = self.messages.try_recv() {
            sequence.fail(error());
        }
        let waiting = self.waiting.take_out(|_| true);
        waiting.into_iter().chain(self.resting.drain(..)).for_each(|sequence| sequence.fail(error()));
    }

    fn fail_running(&mut self, error: impl Fn() -> Error) {
        for Running { sequence, slot, .. } in self.running.drain(..) {
            drop(slot);
            sequence.fail(error());
        }
        self.fail_texts(&error);
        self.fail_decoding(error);
    }
}
/// Tells those who wait for the end.
struct End(Arc<Life>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Each of several requests gets the error that ended them all.
fn copy_of(error: &Error) -> Error {
    match error {
        Error::OutOfMemory { bytes, what, free } => {
            Error::OutOfMemory { bytes: *bytes, what: what.clone(), free: *free }
        }
        Error::DeviceLost { device, reason } => {
            Error::DeviceLost { device: device.clone(), reason: reason.clone() }
        }
        Error::Internal { message } => Error::Internal { message: message.clone() },
        other => Error::Internal { message: other.to_string() },
    }
}
