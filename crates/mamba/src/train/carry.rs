//! The states that sequences carry from batch to batch, seen from outside.

use super::backend::TrainBackend;
use super::{TrainBatch, Trainer};
use crate::error::Result;

impl<B: TrainBackend> Trainer<B> {
    /// Keeps the states that sequences end with from now on, of batches of so many.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn keep_states(&mut self, sequences: usize) -> Result<()> {
        self.states.reserve(&mut self.backend, sequences)
    }

    /// Bytes that training asks for only later: the states of sequences, if these go on from batch to batch (`carried`) or
    /// begin from a learned state, and the copy of everything that a checkpoint is written from.
    #[must_use]
    pub fn bytes_to_come(&self, carried: bool) -> u64 {
        let slots = match carried || self.layout.initial_state.is_some() {
            true => self.options.max_sequences,
            false => 0,
        };
        let trained: usize = self.layout.lens()[..self.layout.trained].iter().sum();
        // Of each trained parameter its value and two moments; of the states those that the next batch goes on from.
        self.states.bytes(slots) + 4 * (3 * trained as u64 + slots as u64 * self.states.elements() as u64)
    }

    /// After a step on a batch that was skipped: no state that is not finite is carried on.
    pub(super) fn mend_states(&mut self, batch: &TrainBatch) -> Result<()> {
        let learned = self.layout.initial_state.is_some();
        self.states
            .mend(&mut self.backend, |slot| learned || batch.carried.get(slot).copied().unwrap_or(false))
    }

    /// What each sequence of the last batch ended with, `[sequence][element]`; empty where no state is kept.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn carried_states(&mut self) -> Result<Vec<Vec<f32>>> {
        self.states.read(&mut self.backend)
    }

    /// Sets what carried sequences of the next batch go on from: sequence `i` from `states[i]`.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, what the backend gives.
    pub fn set_carried_states(&mut self, states: &[Vec<f32>]) -> Result<()> {
        self.states.reserve(&mut self.backend, states.len())?;
        self.states.write(&mut self.backend, states)
    }
}
