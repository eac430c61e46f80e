//! The trainer on the GPU: the official gradients and steps, in f32 and bf16, and what has to agree.

use mamba::DType;
use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::config::Config;
use mamba::cpu::Cpu;
use mamba::cuda::Cuda;
use mamba::train::{Decay, Schedule, Start, TrainBackend, TrainBatch, TrainOptions, Trained, Trainer};

use crate::common::training;
use crate::common::{Rng, here, relative_l2, wide};

fn cuda(dtype: DType) -> Cuda {
    Cuda::new(dtype).unwrap()
}

fn novels() -> Checkpoint {
    Checkpoint::open(&here("models/mamba-novels-7m"), &OpenOptions::default())
        .or_else(|_| Checkpoint::open(&here("../../models/mamba-novels-7m"), &OpenOptions::default()))
        .unwrap()
}

#[test]
fn training_gradients_are_the_official_ones() {
    for recompute in [false, true] {
        training::gradients(cuda(DType::F32), &novels(), recompute, 1e-4);
    }
}

#[test]
fn training_twenty_steps_are_the_official_ones() {
    training::trajectory(cuda(DType::F32), &novels(), 1e-4, 1e-3);
    // The norm of gradients that are rounded to 8 bits at every step on their way.
    training::trajectory(cuda(DType::BF16), &novels(), 1e-2, 5e-2);
}

#[test]
fn training_steps_are_adamw() {
    for dtype in [DType::F32, DType::BF16] {
        training::steps_are_adamw(cuda(dtype));
    }
}

/// The first steps of a new model on batches of the reference model's recipe: 48 rows of 1024 tokens, which are logits in
/// several pieces and sums over fifty thousand rows.
#[test]
fn training_on_large_batches_is_as_on_the_cpu() {
    let ids = training::stream();
    let config = novels().config().clone();
    let options = TrainOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 1e-5, warmup: 200, steps: 5803, decay: Decay::Cosine },
        max_tokens: 48 * 1024,
        max_sequences: 48,
        ..TrainOptions::default()
    };
    let rows = |from: usize| TrainBatch::rows((0..48).map(|row| &ids[from + 440 * row..][..1025]));
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let new = |options: &TrainOptions| (config.clone(), Start::Seed(0), options.clone());
    let (shape, start, given) = new(&options);
    let mut cpu = Trainer::new(Cpu::new(threads).unwrap(), shape, start, given).unwrap();
    let mut gpus = [DType::F32, DType::BF16].map(|dtype| {
        let (shape, start, given) = new(&options);
        Trainer::new(cuda(dtype), shape, start, given).unwrap()
    });
    for step in 0..2 {
        let batch = rows(100 * step);
        let truth = cpu.step(std::slice::from_ref(&batch)).unwrap();
        let expected = gradients(&mut cpu);
        // f32 differs by the order of sums; bf16 is rounded to 8 bits at every step of its way.
        for (gpu, (loss_bound, bound)) in gpus.iter_mut().zip([(1e-5, 1e-3), (1e-3, 5e-2)]) {
            let report = gpu.step(std::slice::from_ref(&batch)).unwrap();
            assert!((report.loss / truth.loss - 1.0).abs() < loss_bound, "{report:?} {truth:?}");
            let whole = f64::from(truth.grad_norm);
            for ((name, actual), (_, expected)) in gradients(gpu).iter().zip(&expected) {
                let norm = wide(expected).iter().map(|g| g * g).sum::<f64>().sqrt();
                let error = relative_l2(actual, &wide(expected)) * norm / (norm + 1e-3 * whole);
                assert!(error < bound, "step {step}: {name} {error:.2e}, expected {bound}");
            }
        }
    }
}

/// A batch with sequences of these lengths.
fn batch(rng: &mut Rng, config: &Config, lengths: &[usize]) -> TrainBatch {
    let mut batch = TrainBatch { cu_seqlens: vec![0], ..TrainBatch::default() };
    for length in lengths {
        for i in 0..*length {
            batch.ids.push(rng.size(0, config.vocab_size - 1) as u32);
            batch.targets.push(if i % 9 == 4 { -1 } else { rng.size(0, config.vocab_size - 1) as i32 });
        }
        batch.cu_seqlens.push(batch.ids.len());
    }
    batch
}

fn gradients<B: TrainBackend>(trainer: &mut Trainer<B>) -> Vec<(String, Vec<f32>)> {
    let names: Vec<String> =
        trainer.layout().parameters().iter().filter(|p| p.trained).map(|p| p.name.clone()).collect();
    names.into_iter().map(|name| (name.clone(), trainer.gradient(&name).unwrap())).collect()
}

/// One step of the same kind on the GPU and on the CPU.
#[test]
fn training_is_as_on_the_cpu() {
    let odd = r#"{"d_model": 20, "n_layer": 3, "vocab_size": 53, "rms_norm": false, "tie_embeddings": false,
        "ssm_cfg": {"d_state": 5, "d_conv": 3, "dt_rank": 3, "bias": true}}"#;
    let plain = r#"{"d_model": 64, "n_layer": 2, "vocab_size": 61}"#;
    for config in [odd, plain] {
        let config = Config::from_json(config).unwrap();
        for trained in [Trained::All, Trained::State] {
            let options = TrainOptions {
                trained,
                z_loss: 1e-3,
                schedule: Schedule { lr: 1e-2, ..TrainOptions::default().schedule },
                ..TrainOptions::default()
            };
            let rng = &mut Rng(41);
            let whole = batch(rng, &config, &[70, 0, 1, 133]);
            let pieces: Vec<TrainBatch> = (0..3)
                .map(|i| TrainBatch { carried: vec![i > 0; 2], ..batch(rng, &config, &[65, 64]) })
                .collect();
            let start = Start::Seed(5);
            let mut gpu = Trainer::new(cuda(DType::F32), config.clone(), start, options.clone()).unwrap();
            let mut cpu = Trainer::new(Cpu::new(2).unwrap(), config.clone(), start, options).unwrap();
            let whole = std::slice::from_ref(&whole);
            for way in ["whole", "through pieces", "one by one"] {
                let (a, b) = match way {
                    "whole" => (gpu.step(whole).unwrap(), cpu.step(whole).unwrap()),
                    "one by one" => (gpu.step(&pieces).unwrap(), cpu.step(&pieces).unwrap()),
                    _ => (gpu.step_through(&pieces).unwrap(), cpu.step_through(&pieces).unwrap()),
                };
                assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{way}: {a:?} {b:?}");
                assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4, "{way}: {a:?} {b:?}");
                let whole = f64::from(b.grad_norm);
                for ((name, a), (_, b)) in gradients(&mut gpu).iter().zip(&gradients(&mut cpu)) {
                    let norm = wide(b).iter().map(|g| g * g).sum::<f64>().sqrt();
                    let error = relative_l2(a, &wide(b)) * norm / (norm + 1e-3 * whole);
                    assert!(error < 1e-4, "{way}: {name} {error:.2e}");
                }
            }
        }
    }
}

/// Again from a state, and again at all: the same bits. In bf16 too.
#[test]
fn training_again_gives_the_same_bits() {
    let config = Config::from_json(r#"{"d_model": 64, "n_layer": 2, "vocab_size": 61}"#).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let rng = &mut Rng(42);
        let batches: Vec<TrainBatch> = (0..4)
            .map(|i| TrainBatch { carried: vec![i > 0, false], ..batch(rng, &config, &[170, 33]) })
            .collect();
        for recompute in [false, true] {
            let options = TrainOptions { recompute, ..TrainOptions::default() };
            let new = || Trainer::new(cuda(dtype), config.clone(), Start::Seed(5), options.clone()).unwrap();
            let mut unbroken = new();
            let mut state = None;
            for (i, batch) in batches.iter().enumerate() {
                if i == 2 {
                    state = Some(unbroken.state().unwrap());
                }
                unbroken.step(std::slice::from_ref(batch)).unwrap();
            }
            let mut resumed = new();
            resumed.restore(&state.unwrap()).unwrap();
            for batch in &batches[2..] {
                resumed.step(std::slice::from_ref(batch)).unwrap();
            }
            assert!(resumed.state().unwrap() == unbroken.state().unwrap(), "{dtype:?} {recompute}");
        }
    }
}

#[test]
fn training_in_f16_is_refused() {
    let config = Config::from_json(r#"{"d_model": 64, "n_layer": 2, "vocab_size": 61}"#).unwrap();
    let error =
        Trainer::new(cuda(DType::F16), config, Start::Seed(5), TrainOptions::default()).err().unwrap();
    assert_eq!(error.code(), "OPTION_INVALID");
}
