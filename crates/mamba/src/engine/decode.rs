//! Decoding on the device. Sequences whose prompt is done leave the batches of the engine's loop for rows of the
//! decoder's table. A turn queues their next step before it looks at what the last one chose: the device never waits for
//! the host, and what happens to a token (text, stop strings, events) takes no time of the device's.
//!
//! A row that ends by a token or by its length is taken out by the device itself, so the step that is already queued does
//! not change its state. Stop strings are seen here alone, a step late. That does no harm where the state is dropped; in
//! a session it would leave a token too many in the state, so such a row holds after each token until it was looked at.
//!
//! A step with adapters is another one than that without, and recorded by itself. Which adapter a row has is in the table,
//! so that one recording serves any of them.

use std::collections::VecDeque;

use super::request::FinishReason;
use super::sequence::{Sequence, Work};
use super::slot::Slot;
use super::worker::{Running, Worker};
use crate::backend::{Backend, ViewMut};
use crate::decoder::{Choice, Decoder, Entry};
use crate::error::{Error, Result};
use crate::generate::Sampled;
use crate::model::{Model, Slots, Workspace};

/// The decoder and who is in its table.
pub(super) struct Decode<B: Backend> {
    decoder: Box<dyn Decoder<B>>,
    /// Row by row, without gaps.
    rows: Vec<Decoding>,
    /// What was queued and not looked at, oldest first: for each the sequences that get a token (their row then, ticket).
    ahead: VecDeque<Vec<(usize, u64)>>,
    next_ticket: u64,
}

/// A sequence in a row of the table.
struct Decoding {
    sequence: Sequence,
    slot: Slot,
    /// Tells it from others that were in its row.
    ticket: u64,
    /// Tokens that were looked at.
    seen: usize,
    hold: bool,
    /// Whether it waits for the host to look at its last token.
    parked: bool,
    /// The adapter that adds to its products, if one does.
    adapter: Option<usize>,
}

impl<B: Backend> Decode<B> {
    pub fn new(decoder: Box<dyn Decoder<B>>) -> Self {
        Self { decoder, rows: Vec::new(), ahead: VecDeque::new(), next_ticket: 0 }
    }

    /// Slots that it needs behind those of the sequences.
    pub fn spare_slots(&self) -> usize {
        self.decoder.spare_slots()
    }

    /// Rows of logits that it needs room for.
    pub fn logit_rows(&self) -> usize {
        self.decoder.logit_rows()
    }

    /// How many sequences are decoded.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether someone waits for each token of one of them.
    pub fn streams(&self) -> bool {
        self.rows.iter().any(|row| row.sequence.streams())
    }

    /// A step of all rows, of which the first `rows` of the table are in use, as one replayed graph from the second time
    /// on: one for steps with adapters, one for those without.
    fn step(
        &mut self,
        rows: usize,
        backend: &mut B,
        model: &Model<B>,
        slots: &mut Slots<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let adapted = self.rows.iter().any(|row| row.adapter.is_some());
        if self.decoder.replay(backend, rows, adapted)? {
            return Ok(());
        }
        let decoder = &mut *self.decoder;
        let plan = decoder.plan(backend, rows)?;
        let mut run = |backend: &mut B, decoder: &mut dyn Decoder<B>| {
            model.decode(backend, &plan, rows, adapted, slots, workspace, &mut |backend, logits, first| {
                decoder.choose(backend, logits, first)
            })
        };
        run(backend, decoder)?;
        // Nothing is computed now; what must exist beforehand, the run above has made.
        if decoder.begin_recording(backend)? {
            // What a failure has cut short is dropped by `fail_decoding`, never replayed.
            run(backend, decoder)?;
            decoder.end_recording(backend, rows, adapted)?;
        }
        Ok(())
    }

    /// Queues the next step of all that do not wait for the host.
    fn launch(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        slots: &mut Slots<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let taking: Vec<(usize, u64)> =
            (0..).zip(&self.rows).filter(|(_, row)| !row.parked).map(|(at, row)| (at, row.ticket)).collect();
        if taking.is_empty() {
            return Ok(());
        }
        self.step(self.rows.len().next_power_of_two(), backend, model, slots, workspace)?;
        self.decoder.mark(backend)?;
        self.ahead.push_back(taking);
        self.rows.iter_mut().for_each(|row| row.parked |= row.hold);
        Ok(())
    }

    /// Takes row `at` out of the table, whose last row moves to its place.
    fn remove(&mut self, backend: &mut B, at: usize) -> Result<Decoding> {
        let last = self.rows.len() - 1;
        match at == last {
            true => self.decoder.point(backend, at, None)?,
            false => self.decoder.relocate(backend, last, at)?,
        }
        Ok(self.rows.swap_remove(at))
    }

    /// The row that a sequence is in now, if it is still there; it was in row `at`.
    fn find(&self, at: usize, ticket: u64) -> Option<usize> {
        let same = |row: &Decoding| row.ticket == ticket;
        match self.rows.get(at).is_some_and(same) {
            true => Some(at),
            false => self.rows.iter().position(same),
        }
    }
}

/// What the device needs to know of a sequence that generates; `None` for others.
fn entry<'a>(
    sequence: &'a Sequence,
    slot: usize,
    adapter: Option<usize>,
    stop: &'a mut Vec<u32>,
    window: &'a mut Vec<u32>,
    eos: &[u32],
) -> Option<Entry<'a>> {
    let Work::Generate(generation) = &sequence.work else { return None };
    let options = &generation.options;
    if !options.ignore_eos {
        stop.extend(eos);
    }
    stop.extend(&options.stop_tokens);
    *window = generation.sampler.window();
    Some(Entry {
        slot,
        options: &options.sampler,
        window,
        position: generation.context.tokens,
        left: options.max_tokens - generation.tokens.len(),
        stop,
        hold: generation.session.is_some() && !options.stop.is_empty(),
        adapter,
    })
}

/// The adapter that adds to a sequence's products, if one does.
fn adapter<B: Backend>(sequence: &Sequence, workspace: &Workspace<B>) -> Option<usize> {
    let adapters = workspace.adapters.as_ref()?;
    sequence.place.adapter.filter(|adapter| adapters.has_matrices(*adapter))
}

impl<B: Backend> Worker<B> {
    /// Sequences that are decoded on the device.
    pub(super) fn decoding(&self) -> usize {
        self.decode.as_ref().map_or(0, Decode::len)
    }

    /// Queues a step of those that are decoded on the device.
    pub(super) fn launch_decode(&mut self) -> Result<()> {
        match &mut self.decode {
            Some(decode) => {
                decode.launch(&mut self.backend, &self.model, &mut self.slots, &mut self.workspace)
            }
            None => Ok(()),
        }
    }

    /// Whether the device can choose the tokens of a sequence that generates.
    pub(super) fn device_chooses(&self, running: &Running) -> bool {
        let Some(decode) = &self.decode else { return false };
        let Running { sequence, slot, .. } = running;
        let adapter = adapter(sequence, &self.workspace);
        let (mut stop, mut window) = (Vec::new(), Vec::new());
        entry(sequence, slot.index, adapter, &mut stop, &mut window, &self.info.eos_token_ids)
            .is_some_and(|entry| entry.options.logprobs == 0 && decode.decoder.takes(&entry))
    }

    /// Puts sequences whose prompt is done (their last row of the hidden states) into the decoder's table, and queues the
    /// choice of their first token.
    pub(super) fn enter_decode(&mut self, entering: Vec<(Running, u32)>) -> Result<()> {
        let Some(decode) = &mut self.decode else { return Ok(()) };
        let first = decode.rows.len();
        let (mut hidden, mut taking) = (Vec::new(), Vec::new());
        // All of them before anything can fail, so that they are answered.
        for (Running { sequence, slot, .. }, row) in entering {
            hidden.push(row);
            taking.push((decode.rows.len(), decode.next_ticket));
            let ticket = decode.next_ticket;
            let adapter = adapter(&sequence, &self.workspace);
            decode.rows.push(Decoding {
                sequence,
                slot,
                ticket,
                seen: 0,
                hold: false,
                parked: false,
                adapter,
            });
            decode.next_ticket += 1;
        }
        for at in first..decode.rows.len() {
            let row = &mut decode.rows[at];
            let (mut stop, mut window) = (Vec::new(), Vec::new());
            let eos = &self.info.eos_token_ids;
            if let Some(entry) =
                entry(&row.sequence, row.slot.index, row.adapter, &mut stop, &mut window, eos)
            {
                decode.decoder.enter(&mut self.backend, at, &entry)?;
                (row.hold, row.parked) = (entry.hold, entry.hold);
            }
        }
        let at_once = decode.decoder.logit_rows();
        for (chunk, hidden) in hidden.chunks(at_once).enumerate() {
            self.model.logits(&mut self.backend, hidden, &mut self.workspace)?;
            let vocab = self.model.padded_vocab_size();
            let logits = ViewMut::dense(&mut self.workspace.logits, hidden.len(), vocab);
            let begin = first + chunk * at_once;
            let rows: Vec<usize> = (begin..begin + hidden.len()).collect();
            decode.decoder.choose_for(&mut self.backend, logits, &rows)?;
        }
        if !taking.is_empty() {
            decode.decoder.mark(&mut self.backend)?;
            decode.ahead.push_back(taking);
        }
        Ok(())
    }

    /// Looks at what was chosen: at all but the step queued last, or at all if every row waits for that.
    pub(super) fn collect_decode(&mut self) -> Result<()> {
        loop {
            let Some(decode) = &self.decode else { return Ok(()) };
            let waits = decode.rows.iter().all(|row| row.parked);
            if decode.ahead.len() <= usize::from(!waits) {
                return Ok(());
            }
            self.collect_one()?;
        }
    }

    fn collect_one(&mut self) -> Result<()> {
        let Some(decode) = &mut self.decode else { return Ok(()) };
        let Some(taking) = decode.ahead.pop_front() else { return Ok(()) };
        decode.decoder.wait(&mut self.backend)?;
        for (at, ticket) in taking {
            self.take_choice(at, ticket)?;
        }
        Ok(())
    }

    /// Hands the next token to a sequence that was in row `at`, if it is still there.
    fn take_choice(&mut self, at: usize, ticket: u64) -> Result<()> {
        let Some(decode) = &mut self.decode else { return Ok(()) };
        let Some(at) = decode.find(at, ticket) else { return Ok(()) };
        let row = &mut decode.rows[at];
        let Choice { token, logprob } = decode.decoder.chosen(row.slot.index, row.seen);
        row.seen += 1;
        let Work::Generate(generation) = &mut row.sequence.work else { return Ok(()) };
        let taken = match token {
            Some(token) => {
                generation.take(Sampled { token, logprob, top: Vec::new() }, &self.info, &self.meter)
            }
            None => Err(Error::LogitsNotFinite { position: generation.context.tokens }),
        };
        match taken {
            Ok(None) => {
                if std::mem::take(&mut row.parked) {
                    decode.decoder.point(&mut self.backend, at, Some(row.slot.index))?;
                }
                Ok(())
            }
            Ok(Some(reason)) => self.finish_decoding(at, reason),
            Err(error) => {
                self.leave_decode(at)?.fail(error);
                Ok(())
            }
        }
    }

    fn finish_decoding(&mut self, at: usize, reason: FinishReason) -> Result<()> {
        let Some(decode) = &mut self.decode else { return Ok(()) };
        let row = &mut decode.rows[at];
        let mut kept = Ok(());
        if let Work::Generate(generation) = &mut row.sequence.work {
            kept = generation.keep(&mut self.backend, &self.slots, row.slot.index);
        }
        let sequence = self.leave_decode(at)?;
        match kept {
            Err(error) => sequence.fail(error),
            Ok(()) => {
                if let Work::Generate(generation) = sequence.work {
                    generation.finish(reason);
                }
            }
        }
        Ok(())
    }

    /// Takes a sequence out of its row and its slot.
    fn leave_decode(&mut self, at: usize) -> Result<Sequence> {
        let Some(decode) = &mut self.decode else {
            return Err(Error::Internal { message: "no decoder".into() });
        };
        Ok(decode.remove(&mut self.backend, at)?.sequence)
    }

    /// Retires what was cancelled, and lets go of those whose consumers do not keep up.
    pub(super) fn sweep_decode(&mut self) -> Result<()> {
        let leaves = |row: &Decoding| {
            row.sequence.is_cancelled() || (row.sequence.is_paused() && row.sequence.decodes())
        };
        loop {
            let Some(decode) = &mut self.decode else { return Ok(()) };
            let Some(at) = decode.rows.iter().position(leaves) else { return Ok(()) };
            let row = &decode.rows[at];
            let (ticket, slot, cancelled) = (row.ticket, row.slot.index, row.sequence.is_cancelled());
            let state_wanted = !cancelled || row.sequence.has_session();
            if state_wanted {
                // All that the state knows of is taken in, and the token after that.
                while self
                    .decode
                    .as_ref()
                    .is_some_and(|decode| decode.ahead.iter().flatten().any(|(_, of)| *of == ticket))
                {
                    self.collect_one()?;
                }
            }
            // It may have ended by itself meanwhile.
            let Some(at) = self.decode.as_ref().and_then(|decode| decode.find(at, ticket)) else { continue };
            let sequence = self.leave_decode(at)?;
            let state = match state_wanted && sequence.decodes() {
                true => self.slots.read(&mut self.backend, slot).map(Some),
                false => Ok(None),
            };
            match state {
                Ok(state) => self.leave(sequence, state),
                Err(error) => sequence.fail(error),
            }
        }
    }

    /// Ends all that are decoded on the device.
    pub(super) fn fail_decoding(&mut self, error: impl Fn() -> Error) {
        let Some(decode) = &mut self.decode else { return };
        decode.ahead.clear();
        for Decoding { sequence, slot, .. } in decode.rows.drain(..) {
            drop(slot);
            sequence.fail(error());
        }
        // A device that is lost refuses this, as it will all else.
        let _ = decode.decoder.clear(&mut self.backend);
    }
}
