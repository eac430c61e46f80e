//! The definition in f64.

use crate::ops::logprobs::reference::{token_logprob, token_logprob_backward};

/// `logits` [rows, vocab], `targets` [rows] (−1: ignored); returns the loss of each row.
#[must_use]
pub fn cross_entropy(logits: &[f64], targets: &[i32], vocab: usize) -> Vec<f64> {
    let row = |(logits, target): (&[f64], &i32)| {
        usize::try_from(*target).map_or(0.0, |target| -token_logprob(logits, target))
    };
    logits.chunks(vocab).zip(targets).map(row).collect()
}

/// The gradient by the logits, [rows, vocab], of `scale` times the sum of the losses (`scale` = 1 / rows for their
/// mean).
#[must_use]
pub fn cross_entropy_backward(logits: &[f64], targets: &[i32], vocab: usize, scale: f64) -> Vec<f64> {
    let row = |(logits, target): (&[f64], &i32)| match usize::try_from(*target) {
        Ok(target) => token_logprob_backward(logits, target).iter().map(|grad| -scale * grad).collect(),
        Err(_) => vec![0.0; vocab],
    };
    logits.chunks(vocab).zip(targets).flat_map(row).collect()
}
