//! Who is served when: slots for those who wait, and each one's share of a step.

use std::time::Instant;

use super::request::Output;
use super::sequence::{Sequence, Work};
use super::worker::{Running, Worker};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::text::Detokenizer;

impl<B: Backend> Worker<B> {
    /// Retires what was cancelled.
    pub(super) fn sweep(&mut self) {
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
    pub(super) fn retire(&mut self, i: usize) -> Sequence {
        let Running { sequence, slot, .. } = self.running.remove(i);
        self.free.push(slot);
        sequence
    }

    /// Gives free slots to those who wait longest.
    pub(super) fn admit(&mut self) {
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

    pub(super) fn prepare(&mut self, sequence: &mut Sequence, slot: usize) -> Result<()> {
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
    pub(super) fn finish_without_tokens(&mut self, sequence: Sequence) {
        if let Work::Append { session, context, tokens, reply } = sequence.work {
            session.store(context);
            drop(session);
            reply.finish(Ok(Output::Appended { tokens }));
        }
    }

    /// Divides the chunk: a token for each that decodes, then equal shares for those that prefill (a short
    /// one's rest goes to the longer ones).
    pub(super) fn share_out(&mut self) {
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
}
