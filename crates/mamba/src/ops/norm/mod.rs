//! Residual add and normalization in one pass: the residual stream is f32 and is read and written once.
//!
//! ```text
//! residual ← residual + delta                         (when there is a delta)
//! RMSNorm:   out = residual / sqrt(mean(residual²) + eps) ⊙ weight (+ bias)
//! LayerNorm: out = (residual − mean) / sqrt(var + eps) ⊙ weight (+ bias)
//! ```

pub mod cpu;
pub mod reference;

use crate::backend::{View, ViewMut};
use crate::config::NormKind;

/// The arguments of [`crate::backend::Backend::add_norm`].
pub struct AddNorm<'a, T> {
    /// Which norm.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// [d_model].
    pub weight: &'a T,
    /// [d_model].
    pub bias: Option<&'a T>,
    /// [tokens, d_model], added to the residual first.
    pub delta: Option<View<'a, T>>,
    /// [tokens, d_model].
    pub residual: ViewMut<'a, T>,
    /// [tokens, d_model].
    pub out: ViewMut<'a, T>,
}
