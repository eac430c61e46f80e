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
