//! What comes out of a step: next tokens, logits, scores, vectors, sessions' states.

use std::sync::{Mutex, PoisonError};

use super::request::{FinishReason, Output, Pooling};
use super::sequence::Work;
use super::texts::Pooled;
use super::worker::{LOGIT_ROWS, Running, Worker};
use crate::backend::{Backend, View, ViewMut};
use crate::error::{Error, Result};
use crate::ops::pool::{Pool, PoolKind};

impl<B: Backend> Worker<B> {
    /// Adds this step's hidden states to those of texts being embedded.
    pub(super) fn pool(&mut self, plan: &B::Plan) -> Result<()> {
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

    /// Moves every sequence on and retires those that are done. True if it has waited for the device.
    pub(super) fn hand_out(&mut self) -> Result<bool> {
        // Next tokens of all sequences that generate, a batch of rows at a time.
        let mut rows: Vec<(usize, u32)> = Vec::new();
        for (i, running) in self.running.iter_mut().enumerate() {
            let sequence = &mut running.sequence;
            sequence.done += running.share;
            if matches!(sequence.work, Work::Generate(_)) && running.share > 0 && sequence.left() == 0 {
                rows.push((i, (self.batch.cu_seqlens[i + 1] - 1) as u32));
            }
        }
        let (on_device, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(i, _)| self.device_chooses(&self.running[*i]));
        let mut leaving = on_device.into_iter().rev().peekable();
        let vocab = self.model.padded_vocab_size();
        let mut outcomes: Vec<Result<Option<FinishReason>>> = self.running.iter().map(|_| Ok(None)).collect();
        for chunk in rows.chunks(LOGIT_ROWS) {
            let indices: Vec<u32> = chunk.iter().map(|(_, row)| *row).collect();
            self.model.logits(&mut self.backend, &indices, &mut self.workspace)?;
            let logits = match B::in_host(&mut self.workspace.logits) {
                Some(logits) => logits,
                None => {
                    self.logits.resize(indices.len() * vocab, 0.0);
                    self.backend.read(&self.workspace.logits, 0, &mut self.logits)?;
                    &mut self.logits
                }
            };
            let mut choosing = chunk.iter().map(|(i, _)| *i).peekable();
            let generations = self.running.iter_mut().enumerate().filter_map(|(i, running)| {
                choosing.next_if_eq(&i)?;
                match &mut running.sequence.work {
                    Work::Generate(generation) => Some(generation),
                    _ => None,
                }
            });
            let choices: Vec<_> = generations
                .zip(logits.chunks_exact_mut(vocab))
                .map(|(generation, logits)| {
                    Mutex::new((&mut generation.sampler, generation.context.tokens, logits, None))
                })
                .collect();
            self.backend.in_parallel(choices.len(), &|row| {
                let mut choice = choices[row].lock().unwrap_or_else(PoisonError::into_inner);
                let (sampler, tokens, logits, sampled) = &mut *choice;
                *sampled = Some(sampler.sample(logits, *tokens));
            });
            let sampled: Vec<_> = choices
                .into_iter()
                .map(|choice| choice.into_inner().unwrap_or_else(PoisonError::into_inner).3)
                .collect();
            for ((i, _), sampled) in chunk.iter().zip(sampled) {
                let Running { sequence, .. } = &mut self.running[*i];
                let (Work::Generate(generation), Some(sampled)) = (&mut sequence.work, sampled) else {
                    continue;
                };
                outcomes[*i] = sampled.and_then(|sampled| {
                    sequence.ids.clear();
                    sequence.ids.push(sampled.token);
                    sequence.done = 0;
                    generation.take(sampled, &self.info, &self.meter)
                });
            }
        }
        // From the last to the first, so that removing one leaves the others where they are.
        let mut entering = Vec::new();
        for (i, outcome) in outcomes.into_iter().enumerate().rev() {
            if let Some((_, row)) = leaving.next_if(|(leaves, _)| *leaves == i) {
                entering.push((self.running.remove(i), row));
                continue;
            }
            let result = match outcome {
                Ok(Some(reason)) => self.finish_generation(i, reason),
                Ok(None) => self.advance(i),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                self.retire(i).fail(error);
            }
        }
        entering.reverse();
        self.enter_decode(entering)?;
        Ok(!rows.is_empty())
    }

    pub(super) fn finish_generation(&mut self, i: usize, reason: FinishReason) -> Result<()> {
        let slot = self.running[i].slot.index;
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
    pub(super) fn advance(&mut self, i: usize) -> Result<()> {
        let (begin, end) = (self.batch.cu_seqlens[i], self.batch.cu_seqlens[i + 1]);
        let Running { sequence, slot, .. } = &mut self.running[i];
        let (slot, last) = (slot.index, sequence.left() == 0);
        let done = sequence.done;
        match &mut sequence.work {
            Work::Generate(_) => return Ok(()),
            Work::CachePrefix { .. } => {}
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
                    if let Some(at) = out.iter().position(|logprob| logprob.is_nan()) {
                        return Err(Error::LogitsNotFinite { position: (first + at) as u64 });
                    }
                    logprobs.extend(out);
                }
            }
            Work::Embed { group, index } => {
                if last {
                    let (group, index, tokens) = (group.clone(), *index, done);
                    self.pooled_texts.push(Pooled { group, index, tokens, slot });
                }
            }
        }
        if !last {
            return Ok(());
        }
        let sequence = self.retire(i);
        match sequence.work {
            Work::CachePrefix { tokens, reply } => reply.finish(Ok(Output::Cached { tokens })),
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
}
