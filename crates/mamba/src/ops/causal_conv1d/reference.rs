//! The definition in f64.

use crate::ops::selective_scan::reference::silu;

/// One sequence: `x` [L, d_inner], `weight` [d_conv, d_inner], `bias` [d_inner]; `window`
/// [d_conv − 1, d_inner] is the initial state on entry and the last one on return. Returns [L, d_inner].
#[must_use]
pub fn causal_conv1d(
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    window: &mut Vec<f64>,
    d_inner: usize,
) -> Vec<f64> {
    let d_conv = weight.len() / d_inner;
    // All inputs that any output sees: what came before, then this sequence.
    let inputs: Vec<f64> = window.iter().chain(x).copied().collect();
    let length = x.len() / d_inner;
    let mut out = vec![f64::NAN; x.len()];
    for t in 0..length {
        for ch in 0..d_inner {
            let mut sum = bias.map_or(0.0, |bias| bias[ch]);
            for k in 0..d_conv {
                sum += weight[k * d_inner + ch] * inputs[(t + k) * d_inner + ch];
            }
            out[t * d_inner + ch] = silu(sum);
        }
    }
    *window = inputs[length * d_inner..].to_vec();
    out
}
