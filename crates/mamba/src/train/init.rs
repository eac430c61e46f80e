//! Parameters of a new model, as the official code draws them (`mamba_ssm/models/mixer_seq_simple.py`,
//! `modules/mamba_simple.py`).
//!
//! | tensor | values |
//! |---|---|
//! | embedding, lm_head | normal, deviation 0.02; a head of its own: uniform in ±1/√d_model |
//! | in_proj, x_proj | uniform in ±1/√inputs |
//! | out_proj | uniform in ±1/√d_inner, divided by √n_layer |
//! | conv1d weight and bias | uniform in ±1/√d_conv |
//! | dt_proj.weight | uniform in ±1/√dt_rank |
//! | dt_proj.bias | softplus⁻¹ of a step size log-uniform in 0.001 … 0.1, at least 1e-4 |
//! | A_log | log(1 … d_state) |
//! | D, norms' weights | 1 |
//! | other biases | 0 |
//! | lora_A, lora_B | uniform in ±1/√inputs; 0 |

use crate::config::Config;
use crate::generate::philox::uniform;

use super::layout::Parameter;

/// The values of a parameter in the official order; the same for the same seed and name.
pub(super) fn values(config: &Config, parameter: &Parameter, seed: u64) -> Vec<f32> {
    let Parameter { name, shape, .. } = parameter;
    let n = parameter.elements();
    // A key of its own for each name (FNV-1a).
    let key = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let within = |bound: f64| -> Vec<f32> {
        (0..n).map(|i| ((2.0 * uniform(key, i as u64) - 1.0) * bound) as f32).collect()
    };
    let fan_in = shape.last().map_or(1.0, |inputs| *inputs as f64);
    if name.ends_with(".A_log") {
        return (0..n).map(|i| ((i % config.d_state + 1) as f64).ln() as f32).collect();
    }
    if name.ends_with(".D") || name.ends_with("norm.weight") || name.ends_with("norm_f.weight") {
        return vec![1.0; n];
    }
    if name.ends_with("dt_proj.bias") {
        let (low, high) = (0.001f64.ln(), 0.1f64.ln());
        let step = |i: usize| (uniform(key, i as u64) * (high - low) + low).exp().max(1e-4);
        return (0..n).map(step).map(|dt| (dt + (-(-dt).exp_m1()).ln()) as f32).collect();
    }
    if name.ends_with("embedding.weight") {
        let normal = |i: u64| {
            let radius = (-2.0 * (1.0 - uniform(key, 2 * i)).ln()).sqrt();
            radius * (std::f64::consts::TAU * uniform(key, 2 * i + 1)).cos()
        };
        return (0..n).map(|i| (0.02 * normal(i as u64)) as f32).collect();
    }
    if name.contains("conv1d.") {
        return within(1.0 / (config.d_conv as f64).sqrt());
    }
    if name.ends_with("dt_proj.weight") {
        return within(1.0 / (config.dt_rank as f64).sqrt());
    }
    if name.ends_with("out_proj.weight") {
        return within(1.0 / fan_in.sqrt() / (config.n_layer as f64).sqrt());
    }
    if name.ends_with("lora_B.weight") || shape.len() < 2 {
        return vec![0.0; n];
    }
    within(1.0 / fan_in.sqrt())
}
