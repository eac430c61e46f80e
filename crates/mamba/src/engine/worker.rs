//! The engine's loop. Each turn takes in what has arrived, packs one step (a token of every sequence that
//! decodes, a share of what is left of the chunk for every one that prefills), runs the model once, and hands
//! out what came of it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::intake::{EmbedGroup, Reply};
use super::request::{Event, FinishReason, GenerateOptions, Output, Pooling, TokenEvent, Usage};
use super::session::{Context, Loan};
use super::{Life, LoadOptions, ModelInfo};
use crate::backend::{Backend, Batch, View, ViewMut};
use crate::error::{Error, Result};
use crate::generate::{Sampled, Sampler};
use crate::model::{Model, Slots, Workspace};
use crate::ops::pool::{Pool, PoolKind};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// Rows of logits that are computed at a time where many are asked for.
const LOGIT_ROWS: usize = 64;

/// What reaches the engine.
pub(crate) enum Message {
    Sequence(Box<Sequence>),
    Dispose,
}

/// Tokens to run through the model, and what to do with what comes out.
pub(crate) struct Sequence {
    /// Tokens that the state does not know yet are `ids[done..]`.
    ids: Vec<u32>,
    done: usize,
    /// The state to begin with; `None`: zero.
    initial: Option<Arc<[f32]>>,
    /// Whether its slot holds its state, and not that of the slot's last user.
    begun: bool,
    work: Work,
}

pub(crate) enum Work {
    Generate(Box<Generation>),
    Append { session: Loan, context: Context, tokens: usize, reply: Reply },
    Forward { all: bool, data: Vec<f32>, reply: Reply },
    Score { ids: Vec<u32>, logprobs: Vec<f32>, reply: Reply },
    Embed { group: Arc<EmbedGroup>, index: usize },
}

/// A text in the making.
pub(crate) struct Generation {
    options: GenerateOptions,
    session: Option<Loan>,
    /// Of the session, or of the one-shot prompt (whose state is dropped in the end).
    context: Context,
    sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Option<Detokenizer>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    prompt_tokens: usize,
    admitted: Instant,
    first_token: Option<Instant>,
    reply: Reply,
}

impl Sequence {
    pub fn new(ids: Vec<u32>, work: Work) -> Self {
        Self { ids, done: 0, initial: None, begun: false, work }
    }

    pub fn append(ids: Vec<u32>, session: Loan, reply: Reply) -> Self {
        let mut context = session.context();
        let tokens = ids.len();
        // All but the last are consumed now; that one waits until generation needs its logits.
        let mut consumed: Vec<u32> = context.pending.into_iter().chain(ids.iter().copied()).collect();
        context.pending = consumed.pop();
        context.remember(&ids, 0);
        let initial = context.state.take();
        Self {
            ids: consumed,
            done: 0,
            initial,
            begun: false,
            work: Work::Append { session, context, tokens, reply },
        }
    }

    pub fn score(ids: Vec<u32>, reply: Reply) -> Self {
        // The last token is only predicted.
        let consumed = ids[..ids.len() - 1].to_vec();
        Self::new(consumed, Work::Score { ids, logprobs: Vec::new(), reply })
    }

    pub fn generate(
        ids: Vec<u32>,
        mut options: GenerateOptions,
        stop: StopMatcher,
        session: Option<Loan>,
        reply: Reply,
    ) -> Self {
        let (ids, mut context) = match &session {
            Some(session) => {
                let context = session.context();
                (context.pending.into_iter().collect(), context)
            }
            None => {
                let mut context = Context {
                    state: None,
                    tokens: 0,
                    pending: None,
                    seed: options.sampler.seed,
                    window: Vec::new(),
                };
                context.remember(&ids, options.sampler.penalty_window);
                context.pending = ids.last().copied();
                (ids, context)
            }
        };
        if options.seed.is_none() {
            options.sampler.seed = context.seed;
        }
        context.seed = options.sampler.seed;
        let initial = context.state.take();
        let generation = Generation {
            sampler: Sampler::new(options.sampler.clone(), &context.window),
            stop,
            detokenizer: None,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            prompt_tokens: ids.len(),
            admitted: Instant::now(),
            first_token: None,
            options,
            session,
            context,
            reply,
        };
        Self { ids, done: 0, initial, begun: false, work: Work::Generate(Box::new(generation)) }
    }

    fn is_cancelled(&self) -> bool {
        match &self.work {
            Work::Generate(generation) => generation.reply.is_cancelled(),
            Work::Append { reply, .. } | Work::Forward { reply, .. } | Work::Score { reply, .. } => {
                reply.is_cancelled()
            }
            Work::Embed { group, .. } => group.is_cancelled(),
        }
    }

    fn left(&self) -> usize {
        self.ids.len() - self.done
    }

    /// Ends it without a result.
    fn fail(self, error: Error) {
        match self.work {
            // The session is free again before its user hears of the failure.
            Work::Generate(generation) => {
                let Generation { session, reply, .. } = *generation;
                drop(session);
                reply.finish(Err(error));
            }
            Work::Append { session, reply, .. } => {
                drop(session);
                reply.finish(Err(error));
            }
            Work::Forward { reply, .. } | Work::Score { reply, .. } => reply.finish(Err(error)),
            Work::Embed { group, .. } => group.fail(error),
        }
    }
}

/// A sequence in its slot.
struct Running {
    sequence: Sequence,
    slot: usize,
    /// How many of its tokens this step computes.
    share: usize,
}

pub(crate) struct Worker<B: Backend> {
    backend: B,
    model: Model<B>,
    slots: Slots<B>,
    workspace: Workspace<B>,
    /// [slots, d_model]: pooled hidden states.
    pooled: B::Buffer,
    logits: Vec<f32>,
    info: Arc<ModelInfo>,
    tokenizer: Option<Tokenizer>,
    messages: Receiver<Message>,
    life: Arc<Life>,
    waiting: VecDeque<Sequence>,
    /// Waiting texts to embed: there may be very many, so they take turns with what else waits.
    texts: VecDeque<Sequence>,
    texts_turn: bool,
    running: Vec<Running>,
    free: Vec<usize>,
    batch: Batch,
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
        let tokens = options.prefill_chunk.unwrap_or_else(|| backend.prefill_chunk()).max(count);
        let workspace = Workspace::new(&mut backend, &info.config, tokens, LOGIT_ROWS)?;
        let slots = Slots::new(&mut backend, &info.spec, count)?;
        let pooled = backend.alloc(count * info.config.d_model, "pooled hidden states")?;
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
            waiting: VecDeque::new(),
            texts: VecDeque::new(),
            texts_turn: false,
            running: Vec::new(),
            free: (0..count).rev().collect(),
            batch: Batch::new(),
        })
    }

    /// Until the model is disposed of, or nobody is left to ask anything.
    pub fn run(self) {
        // Told when everything else is dropped: what is left is answered and the memory freed, even by a panic.
        let _end = End(self.life.clone());
        let mut worker = self;
        while worker.receive() {
            // A panic is a defect of ours. It ends what was running, not the process, nor the model.
            match catch_unwind(AssertUnwindSafe(|| worker.turn())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => worker.fail_running(|| copy_of(&error)),
                Err(panic) => worker.fail_running(|| Error::panic(&*panic)),
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.sweep();
        self.admit();
        self.step()
    }

    /// Takes in what has arrived, waiting for it when there is nothing else to do; false at the end.
    fn receive(&mut self) -> bool {
        loop {
            let idle = self.running.is_empty() && self.waiting.is_empty() && self.texts.is_empty();
            let message = if idle {
                match self.messages.recv() {
                    Ok(message) => message,
                    Err(_) => return false,
                }
            } else {
                match self.messages.try_recv() {
                    Ok(message) => message,
                    Err(_) => return !self.life.is_disposed(),
                }
            };
            match message {
                Message::Sequence(sequence) => match sequence.work {
                    Work::Embed { .. } => self.texts.push_back(*sequence),
                    _ => self.waiting.push_back(*sequence),
                },
                Message::Dispose => return false,
            }
        }
    }

    /// Retires what was cancelled.
    fn sweep(&mut self) {
        for queue in [&mut self.waiting, &mut self.texts] {
            if queue.iter().any(Sequence::is_cancelled) {
                let (cancelled, waiting): (Vec<_>, Vec<_>) =
                    queue.drain(..).partition(Sequence::is_cancelled);
                *queue = waiting.into();
                cancelled.into_iter().for_each(|sequence| sequence.fail(Error::Aborted));
            }
        }
        let mut i = 0;
        while i < self.running.len() {
            if self.running[i].sequence.is_cancelled() {
                let slot = self.running[i].slot;
                let mut sequence = self.retire(i);
                // What a session has generated so far stays in it.
                if let Work::Generate(generation) = &mut sequence.work
                    && !generation.tokens.is_empty()
                {
                    let kept = generation.keep(&mut self.backend, &self.slots, slot);
                    sequence.fail(kept.err().unwrap_or(Error::Aborted));
                } else {
                    sequence.fail(Error::Aborted);
                }
            } else {
                i += 1;
            }
        }
    }

    /// Takes a sequence out of its slot.
    fn retire(&mut self, i: usize) -> Sequence {
        let Running { sequence, slot, .. } = self.running.remove(i);
        self.free.push(slot);
        sequence
    }

    /// Gives free slots to those who wait longest.
    fn admit(&mut self) {
        while let Some(slot) = self.free.last().copied() {
            self.texts_turn = !self.texts_turn;
            let (first, second) = match self.texts_turn {
                true => (&mut self.texts, &mut self.waiting),
                false => (&mut self.waiting, &mut self.texts),
            };
            let Some(mut sequence) = first.pop_front().or_else(|| second.pop_front()) else { return };
            match self.prepare(&mut sequence, slot) {
                Ok(()) if sequence.left() == 0 => self.finish_without_tokens(sequence),
                Ok(()) => {
                    self.free.pop();
                    self.running.push(Running { sequence, slot, share: 0 });
                }
                Err(error) => sequence.fail(error),
            }
        }
    }

    fn prepare(&mut self, sequence: &mut Sequence, slot: usize) -> Result<()> {
        // Taken: from now on the slot has the state, and a session's old one need not live on for it.
        sequence.begun = match sequence.initial.take() {
            Some(state) => {
                self.slots.write(&mut self.backend, slot, &state)?;
                true
            }
            None => false,
        };
        if let Work::Generate(generation) = &mut sequence.work {
            generation.admitted = Instant::now();
            if let Some(tokenizer) = &self.tokenizer {
                let tail = generation.context.window.clone();
                generation.detokenizer = Some(Detokenizer::new(tokenizer.clone(), tail)?);
            }
        }
        Ok(())
    }

    /// A first append of a single token leaves nothing to compute.
    fn finish_without_tokens(&mut self, sequence: Sequence) {
        if let Work::Append { session, context, tokens, reply } = sequence.work {
            session.store(context);
            drop(session);
            reply.finish(Ok(Output::Appended { tokens }));
        }
    }

    /// Divides the chunk: a token for each that decodes, then equal shares for those that prefill (a short
    /// one's rest goes to the longer ones).
    fn share_out(&mut self) {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|i| self.running[*i].sequence.left());
        let mut room = self.workspace.max_tokens();
        for (position, i) in order.iter().enumerate() {
            let others = order.len() - position;
            let running = &mut self.running[*i];
            running.share = running.sequence.left().min(room.div_ceil(others)).min(room);
            room -= running.share;
        }
    }

    fn step(&mut self) -> Result<()> {
        if self.running.is_empty() {
            return Ok(());
        }
        self.share_out();
        self.batch.clear();
        for Running { sequence, slot, share } in &mut self.running {
            self.batch.push(&sequence.ids[sequence.done..sequence.done + *share], *slot, !sequence.begun);
            sequence.begun = true;
        }
        let plan =
            self.model.forward(&mut self.backend, &self.batch, &mut self.slots, &mut self.workspace)?;
        self.pool(&plan)?;
        self.hand_out()
    }

    /// Adds this step's hidden states to those of texts being embedded.
    fn pool(&mut self, plan: &B::Plan) -> Result<()> {
        let kinds: Vec<_> = self
            .running
            .iter()
            .map(|running| match &running.sequence.work {
                Work::Embed { group, .. } => Some(match group.options.pooling {
                    Pooling::Mean => PoolKind::Sum,
                    Pooling::Last => PoolKind::Last,
                }),
                _ => None,
            })
            .collect();
        if kinds.iter().all(Option::is_none) {
            return Ok(());
        }
        let d_model = self.info.config.d_model;
        self.backend.pool(
            plan,
            Pool {
                kinds: &kinds,
                hidden: View::dense(&self.workspace.hidden, self.batch.tokens(), d_model),
                out: ViewMut::dense(&mut self.pooled, self.slots.count(), d_model),
            },
        )
    }

    /// Moves every sequence on and retires those that are done.
    fn hand_out(&mut self) -> Result<()> {
        // Next tokens of all sequences that generate, a batch of rows at a time.
        let mut rows: Vec<(usize, u32)> = Vec::new();
        for (i, running) in self.running.iter_mut().enumerate() {
            let sequence = &mut running.sequence;
            sequence.done += running.share;
            if matches!(sequence.work, Work::Generate(_)) && running.share > 0 && sequence.left() == 0 {
                rows.push((i, (self.batch.cu_seqlens[i + 1] - 1) as u32));
            }
        }
        let vocab = self.model.padded_vocab_size();
        let mut outcomes: Vec<Result<Option<FinishReason>>> = self.running.iter().map(|_| Ok(None)).collect();
        for chunk in rows.chunks(LOGIT_ROWS) {
            let indices: Vec<u32> = chunk.iter().map(|(_, row)| *row).collect();
            self.model.logits(&mut self.backend, &indices, &mut self.workspace)?;
            self.logits.resize(indices.len() * vocab, 0.0);
            self.backend.read(&self.workspace.logits, 0, &mut self.logits)?;
            for ((i, _), logits) in chunk.iter().zip(self.logits.chunks_exact_mut(vocab)) {
                let Running { sequence, .. } = &mut self.running[*i];
                let Work::Generate(generation) = &mut sequence.work else { continue };
                let sampled = generation.sampler.sample(logits, generation.context.tokens);
                outcomes[*i] = sampled.and_then(|sampled| {
                    sequence.ids.clear();
                    sequence.ids.push(sampled.token);
                    sequence.done = 0;
                    generation.take(sampled, &self.info)
                });
            }
        }
        // From the last to the first, so that removing one leaves the others where they are.
        for (i, outcome) in outcomes.into_iter().enumerate().rev() {
            let result = match outcome {
                Ok(Some(reason)) => self.finish_generation(i, reason),
                Ok(None) => self.advance(i),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                self.retire(i).fail(error);
            }
        }
        Ok(())
    }

    fn finish_generation(&mut self, i: usize, reason: FinishReason) -> Result<()> {
        let slot = self.running[i].slot;
        if let Work::Generate(generation) = &mut self.running[i].sequence.work {
            generation.keep(&mut self.backend, &self.slots, slot)?;
        }
        let sequence = self.retire(i);
        if let Work::Generate(generation) = sequence.work {
            generation.finish(reason);
        }
        Ok(())
    }

    /// Everything but generation: collects this step's outputs and answers after the last one.
    fn advance(&mut self, i: usize) -> Result<()> {
        let (begin, end) = (self.batch.cu_seqlens[i], self.batch.cu_seqlens[i + 1]);
        let Running { sequence, slot, .. } = &mut self.running[i];
        let (slot, last) = (*slot, sequence.left() == 0);
        let done = sequence.done;
        match &mut sequence.work {
            Work::Generate(_) => return Ok(()),
            Work::Append { context, .. } => {
                if last {
                    context.state = Some(self.slots.read(&mut self.backend, slot)?.into());
                }
            }
            Work::Forward { all, data, .. } => {
                let from = match (*all, last) {
                    (true, _) => begin,
                    (false, true) => end - 1,
                    (false, false) => end,
                };
                let vocab = self.model.padded_vocab_size();
                for at in (from..end).step_by(LOGIT_ROWS) {
                    let rows: Vec<u32> = (at as u32..end.min(at + LOGIT_ROWS) as u32).collect();
                    self.model.logits(&mut self.backend, &rows, &mut self.workspace)?;
                    let (old, new) = (data.len(), rows.len() * vocab);
                    data.try_reserve(new).map_err(|_| Error::OutOfMemory {
                        bytes: 4 * (old + new) as u64,
                        what: "logits".into(),
                        free: None,
                    })?;
                    data.resize(old + new, 0.0);
                    self.backend.read(&self.workspace.logits, 0, &mut data[old..])?;
                }
            }
            Work::Score { ids, logprobs, .. } => {
                for at in (begin..end).step_by(LOGIT_ROWS) {
                    let rows: Vec<u32> = (at as u32..end.min(at + LOGIT_ROWS) as u32).collect();
                    self.model.logits(&mut self.backend, &rows, &mut self.workspace)?;
                    // Row `at` is token `done - (end - at)` of the text, which predicts the next one.
                    let first = done - (end - at) + 1;
                    let mut out = vec![0.0; rows.len()];
                    let logits =
                        View::dense(&self.workspace.logits, rows.len(), self.model.padded_vocab_size());
                    self.backend.token_logprobs(logits, &ids[first..first + rows.len()], &mut out)?;
                    logprobs.extend(out);
                }
            }
            Work::Embed { group, index } => {
                if last {
                    let d_model = self.info.config.d_model;
                    let mut row = vec![0.0; d_model];
                    self.backend.read(&self.pooled, slot * d_model, &mut row)?;
                    group.add(*index, done, &group.options.vector(row, done));
                }
            }
        }
        if !last {
            return Ok(());
        }
        let sequence = self.retire(i);
        match sequence.work {
            Work::Append { session, context, tokens, reply } => {
                session.store(context);
                drop(session);
                reply.finish(Ok(Output::Appended { tokens }));
            }
            Work::Forward { data, reply, .. } => {
                let rows = data.len() / self.model.padded_vocab_size();
                reply.finish(Ok(Output::Logits { rows, data }));
            }
            Work::Score { ids, logprobs, reply } => reply.finish(Ok(Output::Scores { ids, logprobs })),
            Work::Embed { .. } | Work::Generate(_) => {}
        }
        Ok(())
    }

    fn fail_running(&mut self, error: impl Fn() -> Error) {
        for Running { sequence, slot, .. } in self.running.drain(..) {
            self.free.push(slot);
            sequence.fail(error());
        }
    }
}

impl Generation {
    /// Takes the next token in; `Some` when it is the last.
    fn take(&mut self, sampled: Sampled, info: &ModelInfo) -> Result<Option<FinishReason>> {
        let Sampled { token, logprob, top } = sampled;
        self.first_token.get_or_insert_with(Instant::now);
        self.sampler.observe(token);
        self.context.remember(&[token], self.options.sampler.penalty_window);
        self.context.pending = Some(token);
        self.tokens.push(token);
        self.logprobs.push(logprob);
        let eos = !self.options.ignore_eos && info.eos_token_ids.contains(&token);
        let mut finish = (eos || self.options.stop_tokens.contains(&token)).then_some(FinishReason::Stop);
        let mut text = String::new();
        if finish.is_none()
            && let Some(detokenizer) = &mut self.detokenizer
        {
            let step = self.stop.push(&detokenizer.push(token)?);
            text = step.emit;
            finish = step.matched.map(|_| FinishReason::Stop);
        }
        if finish.is_none() && self.tokens.len() >= self.options.max_tokens {
            finish = Some(FinishReason::Length);
        }
        // At the end, what was held back is text after all, unless it holds a stop string.
        if finish.is_some() {
            let mut rest = String::new();
            if let (Some(detokenizer), None) = (&mut self.detokenizer, &self.session) {
                rest = detokenizer.flush()?;
            }
            // An incomplete character never becomes text.
            let steps =
                [self.stop.push(rest.trim_end_matches(char::REPLACEMENT_CHARACTER)), self.stop.flush()];
            for step in steps {
                text.push_str(&step.emit);
                if step.matched.is_some() {
                    finish = Some(FinishReason::Stop);
                    break;
                }
            }
        }
        self.text.push_str(&text);
        if self.options.stream {
            self.reply.send(Event::Token(TokenEvent { text, token, logprob, top }));
        }
        Ok(finish)
    }

    /// Stores what was generated in the session, if there is one.
    fn keep<B: Backend>(&mut self, backend: &mut B, slots: &Slots<B>, slot: usize) -> Result<()> {
        if let Some(session) = self.session.take() {
            self.context.state = Some(slots.read(backend, slot)?.into());
            session.store(self.context.clone());
        }
        Ok(())
    }

    fn finish(self, finish_reason: FinishReason) {
        let first = self.first_token.unwrap_or(self.admitted);
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.tokens.len(),
            prefill_seconds: (first - self.admitted).as_secs_f64(),
            decode_seconds: first.elapsed().as_secs_f64(),
        };
        let Self { text, tokens, logprobs, .. } = self;
        self.reply.finish(Ok(Output::Generated { text, tokens, logprobs, finish_reason, usage }));
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
