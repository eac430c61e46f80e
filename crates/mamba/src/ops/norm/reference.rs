//! The definition in f64.

use crate::config::NormKind;

/// One row [d_model].
#[must_use]
pub fn norm(kind: NormKind, x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().sum::<f64>() / n,
    };
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    (0..x.len()).map(|i| (x[i] - mean) * scale * weight[i] + bias.map_or(0.0, |bias| bias[i])).collect()
}

/// Gradients of a loss by what [`norm`] takes.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// [d_model]
    pub x: Vec<f64>,
    /// [d_model]
    pub weight: Vec<f64>,
    /// [d_model]
    pub bias: Vec<f64>,
}

/// The gradients of one row, `out_grad` [d_model] being that of [`norm`]'s output. Those of the parameters add up
/// over the rows.
///
/// Where x is a residual after its addition (`add_norm`): the gradient by the residual before it, and by what was
/// added, is `x` plus the gradient that comes down the residual stream.
#[must_use]
pub fn norm_backward(kind: NormKind, x: &[f64], weight: &[f64], eps: f64, out_grad: &[f64]) -> Gradients {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().sum::<f64>() / n,
    };
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    let normal: Vec<f64> = x.iter().map(|v| (v - mean) * scale).collect();
    let normal_grad: Vec<f64> = out_grad.iter().zip(weight).map(|(grad, w)| grad * w).collect();
    // What of the gradient goes along the row itself, and along all ones, the norm takes out.
    let along = normal.iter().zip(&normal_grad).map(|(x, grad)| x * grad).sum::<f64>() / n;
    let even = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => normal_grad.iter().sum::<f64>() / n,
    };
    Gradients {
        x: normal_grad.iter().zip(&normal).map(|(grad, x)| scale * (grad - x * along - even)).collect(),
        weight: out_grad.iter().zip(&normal).map(|(grad, x)| grad * x).collect(),
        bias: out_grad.to_vec(),
    }
}
