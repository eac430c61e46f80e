//! Random weights for tests and benches, scaled as the official initialization scales them, so that
//! activations and states behave like a model's.

use super::Tensor;
use crate::config::Config;
use crate::generate::philox::uniform;

/// All tensors of a model; the same for the same seed.
pub(super) fn tensors(config: &Config, seed: u64) -> Vec<Tensor> {
    let tensors = config.tensors().into_iter().enumerate();
    tensors
        .map(|(t, (name, shape))| {
            let n: usize = shape.iter().product();
            // The last dimension is the fan-in of every matrix.
            let fan_in = *shape.last().unwrap_or(&1) as f64;
            let key = seed ^ (t as u64) << 32;
            let random = |i: usize| uniform(key, i as u64);
            let value = |i: usize| -> f64 {
                match name.rsplit("mixer.").next().unwrap_or_default() {
                    "A_log" => ((i % config.d_state + 1) as f64).ln(),
                    "D" => 1.0,
                    "dt_proj.bias" => {
                        // softplus⁻¹ of a step size log-uniform in 0.001 … 0.1.
                        let delta = (random(i) * (0.1f64.ln() - 0.001f64.ln()) + 0.001f64.ln()).exp();
                        delta + (-(-delta).exp_m1()).ln()
                    }
                    _ if name.ends_with("norm.weight") || name.ends_with("norm_f.weight") => 1.0,
                    _ if name.ends_with("embedding.weight") => (random(i) * 2.0 - 1.0) * 0.035,
                    _ if name.ends_with(".bias") => (random(i) * 2.0 - 1.0) * 0.1,
                    _ => (random(i) * 2.0 - 1.0) / fan_in.sqrt(),
                }
            };
            let values = (0..n).map(|i| value(i) as f32).collect();
            Tensor::from_memory(&name, shape, values)
        })
        .collect()
}
