//! The states that sequences carry from batch to batch, seen from outside.

use super::Trainer;
use super::backend::TrainBackend;
use crate::error::Result;

impl<B: TrainBackend> Trainer<B> {
    /// Keeps the states that sequences end with from now on, of batches of so many.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn keep_states(&mut self, sequences: usize) -> Result<()> {
        self.states.reserve(&mut self.backend, sequences)
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
