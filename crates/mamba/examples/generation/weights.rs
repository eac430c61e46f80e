//! Models of the published shapes, with random weights that are there at once: matrices are windows of one block of
//! numbers.

use std::sync::Arc;
use std::time::Instant;

use mamba::checkpoint::{Checkpoint, Tensor};
use mamba::config::Config;
use mamba::engine::{Cancel, Device, LoadOptions};
use mamba::{DType, Mamba};
use serde_json::json;

pub fn config(shape: &str) -> Config {
    let (d_model, n_layer, vocab) = match shape {
        "7m" => (256, 12, 8192),
        "130m" => (768, 24, 50280),
        "370m" => (1024, 48, 50280),
        "1.4b" => (2048, 48, 50280),
        "2.8b" => (2560, 64, 50280),
        "7b" => (4096, 64, 65024),
        other => panic!("no shape {other}: 7m, 130m, 370m, 1.4b, 2.8b or 7b"),
    };
    let config = format!(r#"{{"d_model": {d_model}, "n_layer": {n_layer}, "vocab_size": {vocab}}}"#);
    Config::from_json(&config).expect("a shape")
}

/// Uniform numbers (SplitMix64), filled by all threads.
fn block(len: usize) -> Arc<[f32]> {
    let mut values = vec![0.0f32; len];
    std::thread::scope(|scope| {
        for (part, values) in values.chunks_mut(len.div_ceil(16)).enumerate() {
            scope.spawn(move || {
                let mut state = part as u64 + 1;
                for value in values {
                    state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                    let mut z = state;
                    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                    *value = (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                }
            });
        }
    });
    values.into()
}

pub fn checkpoint(config: &Config) -> Checkpoint {
    let largest = config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).max();
    let scale = 1.0 / (config.d_inner as f32).sqrt();
    let extra = 1 << 20;
    let values = block(largest.unwrap_or(0) + extra);
    let values: Arc<[f32]> = values.iter().map(|x| x * scale).collect();
    let tensors = (0..).zip(config.tensors()).map(|(t, (name, shape))| {
        let n: usize = shape.iter().product();
        let memory = |values: Vec<f32>| Tensor::from_memory(&name, shape.clone(), values);
        match name.rsplit_once("layers.").map_or(&*name, |(_, name)| name) {
            _ if name.ends_with("A_log") => {
                memory((0..n).map(|i| ((i % config.d_state + 1) as f32).ln()).collect())
            }
            // softplus⁻¹(0.01)
            _ if name.ends_with("dt_proj.bias") => memory(vec![-4.6; n]),
            _ if name.ends_with(".D") || name.contains("norm") => memory(vec![1.0; n]),
            _ => Tensor::window(&name, shape.clone(), values.clone(), t * 7919 % extra),
        }
    });
    Checkpoint::from_memory(config.clone(), tensors.collect()).expect("a checkpoint")
}

/// On the GPU, with room for `max_batch` sequences; says how long the load took and what memory it left.
pub fn load(shape: &str, dtype: DType, max_batch: usize) -> Mamba {
    let config = config(shape);
    let checkpoint = checkpoint(&config);
    let options = LoadOptions {
        device: Device::Cuda,
        dtype: Some(dtype),
        max_batch,
        queue_limit: 1 << 16,
        ..LoadOptions::default()
    };
    let began = Instant::now();
    let model = Mamba::from_checkpoint(&checkpoint, None, &options, &Cancel::default(), &mut |_| {})
        .expect("a model");
    let seconds = began.elapsed().as_secs_f64();
    let info = model.info();
    println!(
        "{}",
        json!({
            "what": "load", "shape": shape, "dtype": dtype.name(), "max_batch": max_batch, "seconds": seconds,
            "weight_bytes": info.weight_bytes, "state_bytes": info.state_bytes,
            "gb_s": info.weight_bytes as f64 / seconds * 1e-9,
        })
    );
    model
}
