//! What a model remembers: a fixed number of f32 tensors per layer, whatever the context's length.

use crate::backend::{Backend, StateView};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// One tensor of a layer's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    /// `conv_state` or `ssm_state` for Mamba-1; other mixers may name others.
    pub name: String,
    /// The layer that it belongs to.
    pub layer: usize,
    /// Its shape, outermost first; for Mamba-1 `[d_conv - 1, d_inner]` and `[d_state, d_inner]`
    /// (channel innermost, as the kernels read it).
    pub shape: Vec<usize>,
}

impl StateEntry {
    /// Number of f32 elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The state of one sequence: its tensors in order, laid end to end. Slots, sessions, forks, files and the
/// prefix cache know only this, so another kind of mixer needs no change in any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSpec {
    /// All tensors, layer by layer.
    pub entries: Vec<StateEntry>,
}

impl StateSpec {
    /// Number of f32 elements of one sequence's whole state.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.entries.iter().map(StateEntry::elements).sum()
    }
}

/// Room for the states of so many sequences, one slot each.
pub struct Slots<B: Backend> {
    buffer: B::Buffer,
    elements: usize,
    count: usize,
}

impl<B: Backend> Slots<B> {
    /// Allocates `count` slots.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn new(backend: &mut B, spec: &StateSpec, count: usize) -> Result<Self> {
        let elements = spec.elements();
        Ok(Self { buffer: backend.alloc(count * elements, "states")?, elements, count })
    }

    /// Number of slots.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The tensor that begins at `offset` within each slot.
    pub(super) fn view(&mut self, offset: usize) -> StateView<'_, B::Buffer> {
        StateView { buffer: &mut self.buffer, offset, slot_stride: self.elements }
    }

    /// Copies a slot's whole state out.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn read(&self, backend: &mut B, slot: usize) -> Result<Vec<f32>> {
        let mut state = vec![0.0; self.elements];
        backend.read(&self.buffer, slot * self.elements, &mut state)?;
        Ok(state)
    }

    /// Copies a slot's whole state into another slot.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn copy(&mut self, backend: &mut B, from: usize, to: usize) -> Result<()> {
        backend.copy_within(&mut self.buffer, from * self.elements, to * self.elements, self.elements)
    }

    /// Copies a whole state into a slot.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn write(&mut self, backend: &mut B, slot: usize, state: &[f32]) -> Result<()> {
        assert_eq!(state.len(), self.elements, "elements of a state");
        backend.write(&mut self.buffer, slot * self.elements, state)
    }
}
