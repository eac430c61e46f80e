//! Adapters of random numbers, strong enough to change what is generated.

use std::path::{Path, PathBuf};

use mamba::config::Config;
use mamba::train::Projection;
use mamba::train::adapter::Adapter;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Rng;

/// Adapters of a model, by name: their folders, which go with this.
pub struct Adapters {
    pub named: Vec<(String, PathBuf)>,
    _folder: TempDir,
}

/// Of different ranks, beside different matrices, and a learned state.
pub fn adapters(config: &Config) -> Adapters {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str| (name.to_owned(), folder.path().join(name));
    let named = vec![named("all"), named("state"), named("some"), named("wide")];
    lora(&named[0].1, config, 3, &Projection::ALL);
    state(&named[1].1, config);
    lora(&named[2].1, config, 8, &[Projection::X]);
    lora(&named[3].1, config, 40, &[Projection::In, Projection::Out]);
    Adapters { named, _folder: folder }
}

/// Of the adapters and of none, one after the other.
pub fn in_turn(i: u64) -> Option<&'static str> {
    [None, Some("all"), Some("state"), Some("some"), Some("wide")][i as usize % 5]
}

impl Adapters {
    pub fn open(&self, config: &Config) -> Vec<Adapter> {
        self.named.iter().map(|(_, folder)| Adapter::open(folder, config).unwrap()).collect()
    }

    pub fn folder(&self, name: &str) -> &Path {
        &self.named.iter().find(|(other, _)| other == name).unwrap().1
    }
}

fn lora(folder: &Path, config: &Config, rank: usize, targets: &[Projection]) {
    let mut rng = Rng(rank as u64);
    let mut tensors = Vec::new();
    for layer in 0..config.n_layer {
        for target in targets {
            let [outputs, inputs] = target.shape(config);
            let name = |half| {
                format!("base_model.model.backbone.layers.{layer}.mixer.{}.lora_{half}.weight", target.name())
            };
            let a = rng.floats(rank * inputs, (3.0 / inputs as f32).sqrt());
            let b = rng.floats(outputs * rank, 0.8 / (rank as f32).sqrt());
            tensors.push((name("A"), vec![rank, inputs], a));
            tensors.push((name("B"), vec![outputs, rank], b));
        }
    }
    write(folder, json!({ "peft_type": "LORA", "r": rank, "lora_alpha": rank }), &tensors);
}

fn state(folder: &Path, config: &Config) {
    let elements = config.n_layer * config.d_inner * (config.d_conv - 1 + config.d_state);
    let values = Rng(1).floats(elements, 0.5);
    write(
        folder,
        json!({ "peft_type": "MAMBA_INITIAL_STATE" }),
        &[("initial_state".into(), vec![elements], values)],
    );
}

fn write(folder: &Path, config: Value, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}
