//! The loss of next-token prediction, per row of logits and target: `log Σ exp(logit) − logit[target]`, that is
//! minus [`token_logprob`](super::logprobs), plus `z_loss` · (log Σ exp(logit))². Rows of target −1 are ignored: their loss and gradient are 0.

pub(crate) mod cpu;
pub mod reference;

use crate::backend::ViewMut;

/// The loss of rows of logits.
pub struct CrossEntropy<'a, T> {
    /// [rows, vocab]; replaced by `scale` times their gradient where there is a scale.
    pub logits: ViewMut<'a, T>,
    /// [rows]; negative: ignored.
    pub targets: &'a [i32],
    /// Weight of (log Σ exp)² in a row's loss.
    pub z_loss: f32,
    /// Of the sum of the losses in what is minimised.
    pub scale: Option<f32>,
    /// [rows] f32.
    pub losses: &'a mut T,
}
