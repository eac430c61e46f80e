//! Residual add and normalization in one pass: the residual stream is f32 and is read and written once.
//!
//! ```text
//! residual ← residual + delta                         (when there is a delta)
//! RMSNorm:   out = residual / sqrt(mean(residual²) + eps) ⊙ weight (+ bias)
//! LayerNorm: out = (residual − mean) / sqrt(var + eps) ⊙ weight (+ bias)
//! ```

pub mod cpu;
pub(crate) mod cpu_train;
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

/// `sum = residual + delta`, `out = norm(sum)`. The sum is kept for the backward.
pub struct NormForward<'a, T> {
    /// Which norm.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// [d_model].
    pub weight: &'a T,
    /// [d_model].
    pub bias: Option<&'a T>,
    /// [tokens, d_model], f32.
    pub residual: View<'a, T>,
    /// [tokens, d_model], added first; with it comes the sum, [tokens, d_model] f32. `None`: the residual is the sum.
    pub delta: Option<(View<'a, T>, ViewMut<'a, T>)>,
    /// [tokens, d_model].
    pub out: ViewMut<'a, T>,
}

/// The gradients of [`NormForward`]. Those of the parameters are overwritten with the sums over all tokens.
pub struct NormBackward<'a, T> {
    /// As forward.
    pub kind: NormKind,
    /// As forward.
    pub eps: f32,
    /// As forward.
    pub weight: &'a T,
    /// [tokens, d_model] f32: the sum that was normalized.
    pub sum: View<'a, T>,
    /// [tokens, d_model]: gradient of out.
    pub out_grad: View<'a, T>,
    /// [tokens, d_model] f32: the gradient that comes down the residual stream is replaced by what goes on.
    pub residual_grad: ViewMut<'a, T>,
    /// Nothing comes down: what `residual_grad` holds is not read.
    pub last: bool,
    /// [tokens, d_model]: the gradient of delta, which is that of the residual.
    pub delta_grad: Option<ViewMut<'a, T>>,
    /// [d_model].
    pub weight_grad: &'a mut T,
    /// [d_model].
    pub bias_grad: Option<&'a mut T>,
}
