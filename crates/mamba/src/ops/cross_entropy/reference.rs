//! The definition in f64.

use crate::ops::logprobs::reference::{token_logprob, token_logprob_backward};

/// `logits` [rows, vocab], `targets` [rows] (−1: ignored); returns the loss of each row.
#[must_use]
pub fn cross_entropy(logits: &[f64], targets: &[i32], vocab: usize, z_loss: f64) -> Vec<f64> {
    let row = |(logits, target): (&[f64], &i32)| match usize::try_from(*target) {
        Ok(target) => {
            let logprob = token_logprob(logits, target);
            -logprob + z_loss * (logits[target] - logprob).powi(2)
        }
        Err(_) => 0.0,
    };
    logits.chunks(vocab).zip(targets).map(row).collect()
}

/// The gradient by the logits, [rows, vocab], of `scale` times the sum of the losses (`scale` = 1 / rows for their
/// mean).
#[must_use]
pub fn cross_entropy_backward(
    logits: &[f64],
    targets: &[i32],
    vocab: usize,
    z_loss: f64,
    scale: f64,
) -> Vec<f64> {
    let row = |(logits, target): (&[f64], &i32)| match usize::try_from(*target) {
        Ok(target) => {
            let logprob_grad = token_logprob_backward(logits, target);
            let log_sum = logits[target] - token_logprob(logits, target);
            // That of log Σ exp is the softmax: one at the target, minus the log-probability's.
            let grad = |(i, grad): (usize, &f64)| {
                let softmax = f64::from(u8::from(i == target)) - grad;
                scale * (2.0 * z_loss * log_sum * softmax - grad)
            };
            logprob_grad.iter().enumerate().map(grad).collect()
        }
        Err(_) => vec![0.0; vocab],
    };
    logits.chunks(vocab).zip(targets).flat_map(row).collect()
}
