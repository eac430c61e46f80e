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
            let key = seed ^ (t as u64) << 32;
            let random = |i: usize| uniform(key, i as u64);
            let around_zero = |i: usize| 2.0 * random(i) - 1.0;
            // The last dimension is the fan-in of every matrix.
            let scale = 1.0 / (*shape.last().unwrap_or(&1) as f64).sqrt();
            let d_state = config.d_state;
            // softplus⁻¹ of a step size log-uniform in 0.001 … 0.1.
            let step_size = |i: usize| {
                let delta = (random(i) * (0.1f64.ln() - 0.001f64.ln()) + 0.001f64.ln()).exp();
                delta + (-(-delta).exp_m1()).ln()
            };
            let kind =
                name.rsplit_once('.').map_or("", |(owner, _)| owner).rsplit('.').next().unwrap_or_default();
            let value: &dyn Fn(usize) -> f64 = match kind {
                _ if name.ends_with("A_log") => &|i| ((i % d_state + 1) as f64).ln(),
                "dt_proj" if name.ends_with("bias") => &step_size,
                // Near one, so that a norm that is not applied is seen.
                "norm" | "norm_f" if name.ends_with("weight") => &|i| 1.0 + 0.1 * around_zero(i),
                _ if name.ends_with(".D") => &|i| 1.0 + 0.1 * around_zero(i),
                "embedding" => &|i| 0.035 * around_zero(i),
                _ if name.ends_with("bias") => &|i| 0.1 * around_zero(i),
                _ => &|i| scale * around_zero(i),
            };
            let values = (0..shape.iter().product()).map(|i| value(i) as f32).collect();
            Tensor::from_memory(&name, shape, values)
        })
        .collect()
}
