//! The trainer of any backend against the official implementation's gradients and losses.

use std::fmt::Write as _;

use mamba::checkpoint::Checkpoint;
use mamba::config::Config;
use mamba::ops::adamw::{Rates, reference};
use mamba::train::{Decay, Schedule, Start, TrainBackend, TrainBatch, TrainOptions, Trainer};

use super::{Truth, here, relative_l2, wide};

fn facts() -> serde_json::Value {
    let text = std::fs::read_to_string(here("tests/reference/novels-7m-training.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn truth() -> Truth {
    Truth(std::fs::read(here("tests/reference/novels-7m-training.safetensors")).unwrap())
}

/// Tokens of the validation novels.
pub fn stream() -> Vec<u32> {
    truth().ids("stream.ids")
}

fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn options() -> TrainOptions {
    let schedule = Schedule { lr: 3e-4, min_lr: 0.0, warmup: 0, steps: 20, decay: Decay::Constant };
    TrainOptions { schedule, max_tokens: 1024, max_sequences: 4, ..TrainOptions::default() }
}

/// Gradients of layers 0 and 11 within `bound` (relative L2), norms of all gradients too.
pub fn gradients<B: TrainBackend>(backend: B, checkpoint: &Checkpoint, recompute: bool, bound: f64) {
    let (facts, truth) = (facts(), truth());
    let ids = truth.ids("grad.ids");
    let batch = TrainBatch::rows(ids.chunks(257));
    let options = TrainOptions { recompute, ..options() };
    let start = Start::Checkpoint(checkpoint, 0);
    let mut trainer = Trainer::new(backend, checkpoint.config().clone(), start, options).unwrap();
    let report = trainer.step(&[batch]).unwrap();
    let loss = f64::from(truth.floats("grad.loss")[0]);
    assert!((report.loss / loss - 1.0).abs() < bound, "loss {} instead of {loss}", report.loss);
    let mut compared = 0;
    for (name, norm) in facts["grad_norms"].as_object().unwrap() {
        let norm = norm.as_f64().unwrap();
        let gradient = trainer.gradient(name).unwrap();
        let actual = wide(&gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((actual / norm - 1.0).abs() < bound, "norm of {name}: {actual} instead of {norm}");
        if truth.has(&format!("grad.{name}")) {
            let error = relative_l2(&gradient, &wide(&truth.floats(&format!("grad.{name}"))));
            assert!(error < bound, "{name}: {error:.2e}");
            compared += 1;
        }
    }
    assert_eq!(compared, 20);
}

/// 20 steps of AdamW: every loss within `loss_bound`, every norm within `norm_bound` (relative).
pub fn trajectory<B: TrainBackend>(backend: B, checkpoint: &Checkpoint, loss_bound: f64, norm_bound: f64) {
    let facts = facts();
    let (losses, norms) =
        (floats(&facts["trajectory"]["losses"]), floats(&facts["trajectory"]["grad_norms"]));
    let ids = stream();
    let start = Start::Checkpoint(checkpoint, 0);
    let mut trainer = Trainer::new(backend, checkpoint.config().clone(), start, options()).unwrap();
    let mut worst = [0.0f64; 2];
    let mut steps = String::new();
    for (k, (loss, norm)) in losses.into_iter().zip(norms).enumerate() {
        let batch = TrainBatch::rows([0, 1000, 2000, 3000].map(|j| &ids[1000 * k + j..][..257]));
        let report = trainer.step(&[batch]).unwrap();
        let errors = [report.loss / loss - 1.0, f64::from(report.grad_norm) / norm - 1.0];
        for (worst, error) in worst.iter_mut().zip(errors) {
            *worst = worst.max(error.abs());
        }
        let _ = writeln!(
            steps,
            "{k}: loss {loss:.4} off by {:.1e}, norm {norm:.4} by {:.1e}",
            errors[0], errors[1]
        );
    }
    println!("{steps}");
    assert!(
        worst[0] < loss_bound && worst[1] < norm_bound,
        "off by {worst:?}, expected {loss_bound}, {norm_bound}"
    );
}

/// Every parameter after each of three steps is what AdamW's definition makes of it and its gradient: decayed or not, as the
/// official recipe says, and clipped. Without decay the losses of [`trajectory`] are off by no more than 1.4e-4.
pub fn steps_are_adamw<B: TrainBackend>(backend: B) {
    let config = r#"{"d_model": 32, "n_layer": 2, "vocab_size": 64}"#;
    let options = TrainOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 1e-4, warmup: 2, steps: 4, decay: Decay::Cosine },
        weight_decay: 0.5,
        clip: Some(0.1),
        max_tokens: 128,
        max_sequences: 2,
        ..TrainOptions::default()
    };
    let config = Config::from_json(config).unwrap();
    let mut trainer = Trainer::new(backend, config, Start::Seed(3), options.clone()).unwrap();
    let parameters = trainer.layout().parameters().to_vec();
    let mut moments: Vec<[Vec<f64>; 2]> =
        parameters.iter().map(|p| [(); 2].map(|()| vec![0.0; p.elements()])).collect();
    for step in 0..3 {
        let row: Vec<u32> = (0..65).map(|i| (i * i + step) % 64).collect();
        let before: Vec<Vec<f32>> = parameters.iter().map(|p| trainer.parameter(&p.name).unwrap()).collect();
        let report = trainer.step(&[TrainBatch::rows([&row[..], &row[20..60]])]).unwrap();
        let clip = 0.1 / (f64::from(report.grad_norm) + 1e-6);
        assert!(clip < 1.0, "nothing is clipped");
        let rates = Rates {
            lr: options.schedule.lr(u64::from(step)),
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.5,
            step: u64::from(step) + 1,
        };
        for ((parameter, before), [m, v]) in parameters.iter().zip(before).zip(&mut moments) {
            let name = &parameter.name;
            let decayed = parameter.shape.len() >= 2 && !name.ends_with(".A_log");
            let gradient: Vec<f64> =
                wide(&trainer.gradient(name).unwrap()).iter().map(|g| g * clip).collect();
            let mut expected = wide(&before);
            reference::adamw(&mut expected, m, v, &gradient, decayed, &rates);
            for ((actual, expected), before) in
                trainer.parameter(name).unwrap().iter().zip(expected).zip(before)
            {
                let error = (f64::from(*actual) - expected).abs();
                // A decayed value moves by up to 1.5e-3 of itself.
                let bound = 1e-6 * f64::from(before.abs()) + 1e-4 * rates.lr;
                assert!(error <= bound, "{name} after step {step}: {actual} instead of {expected}");
            }
        }
    }
}
