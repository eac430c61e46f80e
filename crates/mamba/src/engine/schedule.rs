//! Who is served when: slots for those who wait, and each one's share of a step.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::decode::Decode;
use super::prefix::{Found, Kept};
use super::queue::Owner;
use super::request::Output;
use super::sequence::{Sequence, Work};
use super::share::{Want, divide};
use super::slot::Slot;
use super::worker::{Running, Worker};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::text::Detokenizer;

/// So many that wait are looked through in every turn for those that were cancelled.
const FEW: usize = 1024;
/// More of them only so often.
const OFTEN: Duration = Duration::from_millis(100);

impl<B: Backend> Worker<B> {
    /// Retires what was cancelled, and lets go of those whose consumers do not keep up.
    pub(super) fn sweep(&mut self) {
        // Of a million texts this takes as long as some steps.
        if self.waiting.len() <= FEW || self.swept.elapsed() > OFTEN {
            self.swept = Instant::now();
            for sequence in self.waiting.take_out(Sequence::is_cancelled) {
                sequence.abort();
            }
        }
        let (settled, resting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.resting)
            .into_iter()
            .partition(|sequence| sequence.is_cancelled() || !sequence.is_paused());
        self.resting = resting;
        for sequence in settled {
            match sequence.is_cancelled() {
                true => sequence.abort(),
                false => self.waiting.push(&sequence.place.clone(), sequence),
            }
        }
        // From the last to the first, so that removing one leaves the others where they are.
        for i in (0..self.running.len()).rev() {
            let Running { sequence, slot, .. } = &self.running[i];
            let (slot, cancelled) = (slot.index, sequence.is_cancelled());
            let pausing = sequence.is_paused() && sequence.decodes();
            if !cancelled && !pausing {
                continue;
            }
            let wanted = sequence.decodes() && (!cancelled || sequence.has_session());
            let state = match wanted {
                true => self.slots.read(&mut self.backend, slot).map(Some),
                false => Ok(None),
            };
            let sequence = self.retire(i);
            match state {
                Ok(state) => self.leave(sequence, state),
                Err(error) => sequence.fail(error),
            }
        }
    }

    /// Ends a sequence that was cancelled, with its state where a session keeps it; or lays it aside until its consumer
    /// wants more.
    pub(super) fn leave(&mut self, mut sequence: Sequence, state: Option<Vec<f32>>) {
        sequence.initial = state.map(Into::into);
        if sequence.is_cancelled() {
            return sequence.abort();
        }
        if let Work::Generate(generation) = &sequence.work {
            (sequence.ids, sequence.done) = (generation.context.pending.into_iter().collect(), 0);
        }
        self.resting.push(sequence);
    }

    /// Takes a sequence out of its slot.
    pub(super) fn retire(&mut self, i: usize) -> Sequence {
        self.running.remove(i).sequence
    }

    /// Gives free slots to those whose turn it is.
    pub(super) fn admit(&mut self) {
        while let Some(slot) = self.free.take() {
            let (texts, most) = (self.text_tokens(), self.workspace.max_tokens());
            let fits = |sequence: &Sequence| {
                let text = matches!(sequence.work, Work::Embed { .. });
                !text || texts == 0 || texts + sequence.left() <= most
            };
            let Some(mut sequence) = self.waiting.pop_if(fits) else { return };
            if sequence.is_cancelled() {
                sequence.abort();
                continue;
            }
            match self.prepare(&mut sequence, &slot) {
                Ok(()) if sequence.left() == 0 => self.finish_without_tokens(sequence),
                Ok(()) => {
                    // Those with the same adapter next to each other, so that its products are few.
                    let at = self
                        .running
                        .partition_point(|other| other.sequence.place.adapter <= sequence.place.adapter);
                    self.running.insert(at, Running { sequence, slot, share: 0 });
                }
                // What runs gives memory back when it ends.
                Err(Error::OutOfMemory { .. }) if !self.running.is_empty() || self.decoding() > 0 => {
                    self.waiting.push(&sequence.place.clone(), sequence);
                    return;
                }
                Err(error) => sequence.fail(error),
            }
        }
    }

    /// Tokens that are left of texts to embed which have a slot. More texts are let in only if the next step can compute
    /// them whole, or there is none: parts of many texts would take no fewer steps, but more copies of states and shorter
    /// runs of tokens.
    fn text_tokens(&self) -> usize {
        let texts = self.running.iter().filter(|running| matches!(running.sequence.work, Work::Embed { .. }));
        texts.map(|running| running.sequence.left()).sum()
    }

    /// Puts a sequence's state into its slot. It may be asked again after a failure.
    fn prepare(&mut self, sequence: &mut Sequence, slot: &Slot) -> Result<()> {
        let slot = slot.index;
        if let Work::Generate(generation) = &mut sequence.work
            && let (None, Some(tokenizer)) = (&generation.detokenizer, &self.tokenizer)
        {
            let tail = generation.context.window.clone();
            generation.detokenizer = Some(Detokenizer::new(tokenizer.clone(), tail)?);
        }
        if let Some(state) = &sequence.initial {
            self.slots.write(&mut self.backend, slot, state)?;
        }
        self.use_prefix(sequence, slot)?;
        let mut begun = sequence.initial.is_some() || sequence.done > 0;
        if let (false, Some(adapter), Some(adapters)) =
            (begun, sequence.place.adapter, &self.workspace.adapters)
            && let Some(state) = adapters.initial_state(adapter)
        {
            self.slots.write(&mut self.backend, slot, state)?;
            begun = true;
            if let Work::Embed { .. } = sequence.work {
                // Only for sequences that begin with a zero state the sum over the tokens does so by itself.
                let d_model = self.info.config.d_model;
                self.backend.write(&mut self.pooled, slot * d_model, &vec![0.0; d_model])?;
            }
        }
        // From now on the slot has the state, and a session's old one need not live on for it.
        sequence.initial = None;
        sequence.begun = begun;
        if let Work::Generate(generation) = &mut sequence.work {
            generation.admitted.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Begins after what the prefix cache has of a prompt, and has the state kept at the end of what it shares with
    /// earlier ones.
    fn use_prefix(&mut self, sequence: &mut Sequence, slot: usize) -> Result<()> {
        let cacheable = sequence.cacheable();
        let Some(prefixes) = &mut self.prefixes else { return Ok(()) };
        if cacheable == 0 {
            return Ok(());
        }
        let Found { state, shared } = prefixes.look_up(&sequence.ids[..cacheable]);
        self.meter.look_up(state.as_ref().map_or(0, |(tokens, _)| *tokens));
        sequence.checkpoint = sequence.checkpoint.or(shared);
        if let Some((tokens, kept)) = state {
            match kept {
                Kept::Slot(from) => self.slots.copy(&mut self.backend, from, slot)?,
                Kept::Host(state) => self.slots.write(&mut self.backend, slot, &state)?,
            }
            sequence.done = tokens;
        }
        if let Work::Generate(generation) = &mut sequence.work {
            generation.cached_tokens = sequence.done;
        }
        Ok(())
    }

    /// Keeps the states that this step has brought to where they are to be kept.
    pub(super) fn keep_prefixes(&mut self) -> Result<()> {
        let Some(prefixes) = &mut self.prefixes else { return Ok(()) };
        for Running { sequence, slot, share } in &mut self.running {
            let done = sequence.done + *share;
            if sequence.checkpoint.take_if(|checkpoint| *checkpoint == done).is_none()
                || prefixes.has(&sequence.ids[..done])
            {
                continue;
            }
            let kept = match prefixes.slot(|slot| self.slots.read(&mut self.backend, slot))? {
                Some(to) => {
                    self.slots.copy(&mut self.backend, slot.index, to)?;
                    Kept::Slot(to)
                }
                None => Kept::Host(self.slots.read(&mut self.backend, slot.index)?.into()),
            };
            prefixes.keep(&sequence.ids[..done], kept);
        }
        Ok(())
    }

    /// A first append of a single token leaves nothing to compute, nor does a beginning that is cached already.
    pub(super) fn finish_without_tokens(&mut self, sequence: Sequence) {
        if let Work::CachePrefix { tokens, reply } = sequence.work {
            return reply.finish(Ok(Output::Cached { tokens }));
        }
        if let Work::Append { session, context, tokens, reply } = sequence.work {
            session.store(context);
            drop(session);
            reply.finish(Ok(Output::Appended { tokens }));
        }
    }

    /// Divides a step: a token for each that decodes; the rest goes to prompts, in proportion to their priority,
    /// divided by how many the same owner has among them. While someone reads a stream, that rest is no more than
    /// what fits into `max_stall`.
    pub(super) fn share_out(&mut self) {
        let mut owners: HashMap<&Owner, usize> = HashMap::new();
        let mut prompts = Vec::new();
        let mut streams = self.decode.as_ref().is_some_and(Decode::streams);
        for (i, Running { sequence, .. }) in self.running.iter().enumerate() {
            streams |= sequence.streams();
            if sequence.left() > 1 {
                prompts.push(i);
                *owners.entry(&sequence.place.owner).or_default() += 1;
            }
        }
        let wants: Vec<Want> = prompts
            .iter()
            .map(|i| {
                let Sequence { place, .. } = &self.running[*i].sequence;
                let weight = place.priority.weight() as f64 / owners[&place.owner] as f64;
                Want { tokens: self.running[*i].sequence.next(), weight }
            })
            .collect();
        let room = self.workspace.max_tokens() - (self.running.len() - prompts.len());
        let room = match streams {
            true => room.min(self.pace.prompt_tokens(self.max_stall)).max(prompts.len()),
            false => room,
        };
        self.running.iter_mut().for_each(|running| running.share = 1);
        for (i, share) in prompts.into_iter().zip(divide(room, &wants)) {
            self.running[i].share = share;
        }
    }
}
