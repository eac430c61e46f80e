//! The trainer of any backend against the official implementation's gradients and losses.

use mamba::checkpoint::Checkpoint;
use mamba::train::{Decay, Schedule, Start, TrainBackend, TrainBatch, TrainOptions, Trainer};

use super::{Truth, here, relative_l2, wide};

fn facts() -> serde_json::Value {
    let text = std::fs::read_to_string(here("tests/reference/novels-7m-training.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn truth() -> Truth {
    Truth(std::fs::read(here("tests/reference/novels-7m-training.safetensors")).unwrap())
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
    let ids = truth().ids("stream.ids");
    let start = Start::Checkpoint(checkpoint, 0);
    let mut trainer = Trainer::new(backend, checkpoint.config().clone(), start, options()).unwrap();
    for (k, (loss, norm)) in losses.into_iter().zip(norms).enumerate() {
        let batch = TrainBatch::rows([0, 1000, 2000, 3000].map(|j| &ids[1000 * k + j..][..257]));
        let report = trainer.step(&[batch]).unwrap();
        assert!(
            (report.loss / loss - 1.0).abs() < loss_bound,
            "step {k}: loss {} instead of {loss}",
            report.loss
        );
        let actual = f64::from(report.grad_norm);
        assert!((actual / norm - 1.0).abs() < norm_bound, "step {k}: norm {actual} instead of {norm}");
    }
}
