//! The definition in f64.

use crate::ops::selective_scan::reference::{silu, silu_slope};

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

/// Gradients of a loss by what [`causal_conv1d`] takes; shapes as there.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// [L, d_inner]
    pub x: Vec<f64>,
    /// [d_conv, d_inner]
    pub weight: Vec<f64>,
    /// [d_inner]
    pub bias: Option<Vec<f64>>,
    /// [d_conv − 1, d_inner]: of the window that the sequence began with.
    pub window: Vec<f64>,
}

/// The gradients of one sequence that began with `window`; `out_grad` [L, d_inner] and `last_grad`
/// [d_conv − 1, d_inner] are the gradients of the output and of the last window. Those of the parameters add up
/// over the sequences of a batch.
#[must_use]
pub fn causal_conv1d_backward(
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    window: &[f64],
    out_grad: &[f64],
    last_grad: &[f64],
    d_inner: usize,
) -> Gradients {
    let d_conv = weight.len() / d_inner;
    let inputs: Vec<f64> = window.iter().chain(x).copied().collect();
    let length = x.len() / d_inner;
    // Of all inputs; the last window is the newest of them.
    let mut grads = vec![0.0; inputs.len()];
    grads[length * d_inner..].copy_from_slice(last_grad);
    let mut weight_grad = vec![0.0; weight.len()];
    let mut bias_grad = vec![0.0; d_inner];
    for t in 0..length {
        for ch in 0..d_inner {
            let mut sum = bias.map_or(0.0, |bias| bias[ch]);
            for k in 0..d_conv {
                sum += weight[k * d_inner + ch] * inputs[(t + k) * d_inner + ch];
            }
            let grad = out_grad[t * d_inner + ch] * silu_slope(sum);
            bias_grad[ch] += grad;
            for k in 0..d_conv {
                weight_grad[k * d_inner + ch] += grad * inputs[(t + k) * d_inner + ch];
                grads[(t + k) * d_inner + ch] += grad * weight[k * d_inner + ch];
            }
        }
    }
    let x_grad = grads.split_off(window.len());
    Gradients { x: x_grad, weight: weight_grad, bias: bias.map(|_| bias_grad), window: grads }
}
