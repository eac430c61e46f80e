//! The definition in f64.

/// One row of logits [vocab].
#[must_use]
pub fn token_logprob(logits: &[f64], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits[target] - max - logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}

/// The gradient by the row of logits, [vocab], of [`token_logprob`]: 1 at the target, minus the softmax.
#[must_use]
pub fn token_logprob_backward(logits: &[f64], target: usize) -> Vec<f64> {
    let log_sum_exp = logits[target] - token_logprob(logits, target);
    let mut grads: Vec<f64> = logits.iter().map(|logit| -(logit - log_sum_exp).exp()).collect();
    grads[target] += 1.0;
    grads
}
