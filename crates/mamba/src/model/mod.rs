//! Blocks, stacks and states: what is composed of the ops.

pub mod state;

pub use state::{StateEntry, StateSpec};
