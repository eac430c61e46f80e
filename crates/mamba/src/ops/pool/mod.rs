//! Pooling of hidden states over each sequence of a packed batch, into one row per slot. A sequence may
//! come in several batches: the row carries on from one to the next.
//!
//! ```text
//! sum:  row ← (fresh ? 0 : row) + Σ_t hidden_t        (the mean is this over the length, taken at the end)
//! last: row ← hidden_last
//! ```
//! Empty sequences leave their row as it is.

pub mod cpu;
pub mod reference;

use crate::backend::{View, ViewMut};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The sum over the tokens.
    Sum,
    /// The last token's.
    Last,
}

/// The arguments of [`crate::backend::Backend::pool`].
pub struct Pool<'a, T> {
    /// Per sequence of the plan; `None` for those that are not pooled.
    pub kinds: &'a [Option<PoolKind>],
    /// [tokens, d_model].
    pub hidden: View<'a, T>,
    /// [slots, d_model]; only the rows of pooled sequences' slots are touched.
    pub out: ViewMut<'a, T>,
}
