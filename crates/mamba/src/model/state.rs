//! What a model remembers: a fixed number of f32 tensors per layer, whatever the context's length.

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
