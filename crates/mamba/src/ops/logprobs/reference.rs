//! The definition in f64.

/// One row of logits [vocab].
#[must_use]
pub fn token_logprob(logits: &[f64], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits[target] - max - logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}
