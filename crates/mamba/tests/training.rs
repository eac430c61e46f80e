//! Training on the CPU: against the official implementation's gradients and losses, and against itself where two ways
//! have to agree.

mod common;

use common::training;
use common::{Rng, here};
use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::config::Config;
use mamba::cpu::Cpu;
use mamba::train::{Decay, Projection, Schedule, Start, TrainBatch, TrainOptions, Trained, Trainer};

fn cpu() -> Cpu {
    Cpu::new(2).unwrap()
}

fn novels() -> Checkpoint {
    Checkpoint::open(&here("../../models/mamba-novels-7m"), &OpenOptions::default()).unwrap()
}

#[test]
fn gradients_are_the_official_ones() {
    training::gradients(cpu(), &novels(), false, 1e-4);
}

#[test]
fn gradients_are_the_official_ones_with_recomputation() {
    training::gradients(cpu(), &novels(), true, 1e-4);
}

#[test]
fn twenty_steps_are_the_official_ones() {
    training::trajectory(cpu(), &novels(), 1e-4, 1e-3);
}

#[test]
fn a_step_is_adamw() {
    training::steps_are_adamw(cpu());
}

/// Odd sizes, LayerNorm, biases, a head of its own.
fn odd() -> Config {
    Config::from_json(
        r#"{"d_model": 20, "n_layer": 3, "vocab_size": 53, "rms_norm": false, "tie_embeddings": false,
            "ssm_cfg": {"d_state": 5, "d_conv": 3, "dt_rank": 3, "bias": true}}"#,
    )
    .unwrap()
}

fn plain() -> Config {
    Config::from_json(r#"{"d_model": 24, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {"d_state": 16}}"#)
        .unwrap()
}

fn options() -> TrainOptions {
    TrainOptions {
        schedule: Schedule { lr: 1e-2, min_lr: 1e-3, warmup: 2, steps: 20, decay: Decay::Cosine },
        max_tokens: 512,
        max_sequences: 16,
        ..TrainOptions::default()
    }
}

fn trainer(config: Config, options: TrainOptions) -> Trainer<Cpu> {
    Trainer::new(cpu(), config, Start::Seed(7), options).unwrap()
}

/// Sequences of these lengths; every ninth token is not to be predicted.
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

/// Some of a batch's tokens as a batch of one sequence.
fn part(batch: &TrainBatch, from: usize, to: usize, carried: bool) -> TrainBatch {
    TrainBatch {
        ids: batch.ids[from..to].to_vec(),
        targets: batch.targets[from..to].to_vec(),
        cu_seqlens: vec![0, to - from],
        carried: vec![carried],
    }
}

fn all_gradients(trainer: &mut Trainer<Cpu>) -> Vec<(String, Vec<f32>)> {
    let names: Vec<String> =
        trainer.layout().parameters().iter().filter(|p| p.trained).map(|p| p.name.clone()).collect();
    names.into_iter().map(|name| (name.clone(), trainer.gradient(&name).unwrap())).collect()
}

fn all_parameters(trainer: &mut Trainer<Cpu>) -> Vec<(String, Vec<f32>)> {
    let names: Vec<String> = trainer.layout().parameters().iter().map(|p| p.name.clone()).collect();
    names.into_iter().map(|name| (name.clone(), trainer.parameter(&name).unwrap())).collect()
}

/// Relative L2 difference of each parameter's gradient, where it is more than rounding of the whole.
fn assert_close(what: &str, actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], bound: f64) {
    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let whole = expected.iter().map(|(_, x)| norm(x).powi(2)).sum::<f64>().sqrt();
    assert_eq!(actual.len(), expected.len());
    for ((name, actual), (_, expected)) in actual.iter().zip(expected) {
        let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
        let error = norm(&difference) / (norm(expected) + 1e-4 * whole);
        assert!(error < bound, "{what}: {name} {error:.2e}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for config in [odd(), plain()] {
        let rng = &mut Rng(21);
        let batch = batch(rng, &config, &[70, 0, 1, 13]);
        let mut trainer = Trainer::new(
            cpu(),
            config.clone(),
            Start::Seed(7),
            TrainOptions {
                z_loss: 1e-2,
                clip: None,
                schedule: Schedule { lr: 0.0, min_lr: 0.0, ..options().schedule },
                ..options()
            },
        )
        .unwrap();
        trainer.step(std::slice::from_ref(&batch)).unwrap();
        for (name, gradient) in all_gradients(&mut trainer) {
            // Along the gradient itself the loss rises by its squared norm.
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            if norm == 0.0 {
                continue;
            }
            let values = trainer.parameter(&name).unwrap();
            let step = 3e-3;
            let mut loss = |sign: f64| {
                let moved: Vec<f32> = values
                    .iter()
                    .zip(&gradient)
                    .map(|(x, g)| (f64::from(*x) + sign * step * f64::from(*g) / norm) as f32)
                    .collect();
                trainer.set_parameter(&name, &moved).unwrap();
                trainer.step(std::slice::from_ref(&batch)).unwrap().loss
            };
            let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
            trainer.set_parameter(&name, &values).unwrap();
            assert!((slope / norm - 1.0).abs() < 2e-2 + 3e-4 / norm, "{name}: {slope} instead of {norm}");
        }
    }
}

#[test]
fn recomputation_gives_the_same_bits() {
    for config in [odd(), plain()] {
        let rng = &mut Rng(22);
        let batches: Vec<TrainBatch> = (0..3).map(|_| batch(rng, &config, &[70, 0, 1, 133])).collect();
        let run = |recompute| {
            let mut trainer = trainer(config.clone(), TrainOptions { recompute, ..options() });
            let reports: Vec<_> =
                batches.iter().map(|batch| trainer.step(std::slice::from_ref(batch)).unwrap()).collect();
            (reports, all_gradients(&mut trainer), all_parameters(&mut trainer))
        };
        assert_eq!(run(false), run(true));
    }
}

#[test]
fn warming_up_changes_nothing() {
    for (trained, carried) in [(Trained::All, false), (Trained::All, true), (Trained::State, false)] {
        let config = plain();
        let rng = &mut Rng(35);
        let batch = batch(rng, &config, &[70, 1, 33]);
        let run = |warm: bool| {
            let mut trainer = trainer(config.clone(), TrainOptions { trained: trained.clone(), ..options() });
            if warm {
                trainer.warm_up(carried).unwrap();
            }
            let report = trainer.step(std::slice::from_ref(&batch)).unwrap();
            (report, all_gradients(&mut trainer), trainer.state().unwrap())
        };
        assert!(run(false) == run(true));
    }
}

#[test]
fn threads_and_instruction_sets() {
    let config = plain();
    let rng = &mut Rng(23);
    let batches: Vec<TrainBatch> = (0..3).map(|_| batch(rng, &config, &[70, 0, 1, 133])).collect();
    let run = |backend| {
        let mut trainer = Trainer::new(backend, config.clone(), Start::Seed(7), options()).unwrap();
        let reports: Vec<_> =
            batches.iter().map(|batch| trainer.step(std::slice::from_ref(batch)).unwrap()).collect();
        (reports, all_gradients(&mut trainer), all_parameters(&mut trainer))
    };
    let one = run(Cpu::new(1).unwrap());
    for threads in [2, 3] {
        assert!(one == run(Cpu::new(threads).unwrap()), "{threads} threads");
    }
    for level in mamba::cpu::simd::Level::available() {
        let other = run(Cpu::with_level(2, level).unwrap());
        assert_close(level.name(), &other.1, &one.1, 1e-3);
    }
}

#[test]
fn packed_is_one_by_one() {
    for config in [odd(), plain()] {
        let rng = &mut Rng(24);
        let lengths = [70, 0, 1, 133, 64];
        let packed = batch(rng, &config, &lengths);
        let mut together = trainer(config.clone(), options());
        let loss = together.step(std::slice::from_ref(&packed)).unwrap().loss;
        let pieces: Vec<TrainBatch> =
            packed.cu_seqlens.windows(2).map(|range| part(&packed, range[0], range[1], false)).collect();
        let mut apart = trainer(config.clone(), options());
        let report = apart.step(&pieces).unwrap();
        assert!((report.loss - loss).abs() < 1e-6 * loss, "{} {loss}", report.loss);
        assert_close("packed", &all_gradients(&mut together), &all_gradients(&mut apart), 1e-5);
    }
}

/// Logits are computed some rows at a time, here 166: batches of more give what smaller ones do.
#[test]
fn logits_in_pieces_are_the_whole() {
    let config = Config::from_json(r#"{"d_model": 16, "n_layer": 1, "vocab_size": 50277}"#).unwrap();
    let rng = &mut Rng(37);
    let lengths = [150, 150, 99];
    let packed = batch(rng, &config, &lengths);
    let pieces: Vec<TrainBatch> =
        packed.cu_seqlens.windows(2).map(|range| part(&packed, range[0], range[1], false)).collect();
    let options = TrainOptions { z_loss: 1e-2, ..options() };
    let (mut together, mut apart) = (trainer(config.clone(), options.clone()), trainer(config, options));
    assert_eq!(together.loss(&packed).unwrap().1, packed.counted());
    let (a, b) = (together.step(std::slice::from_ref(&packed)).unwrap(), apart.step(&pieces).unwrap());
    assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{a:?} {b:?}");
    assert_close("in pieces", &all_gradients(&mut together), &all_gradients(&mut apart), 1e-5);
}

#[test]
fn accumulation_is_the_big_batch() {
    let config = plain();
    let rng = &mut Rng(25);
    let big = batch(rng, &config, &[64; 8]);
    let small: Vec<TrainBatch> = (0..4)
        .map(|i| TrainBatch {
            ids: big.ids[i * 128..(i + 1) * 128].to_vec(),
            targets: big.targets[i * 128..(i + 1) * 128].to_vec(),
            cu_seqlens: vec![0, 64, 128],
            carried: Vec::new(),
        })
        .collect();
    let mut whole = trainer(config.clone(), options());
    let mut pieces = trainer(config, options());
    let (a, b) = (whole.step(&[big]).unwrap(), pieces.step(&small).unwrap());
    assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{a:?} {b:?}");
    assert!((a.grad_norm - b.grad_norm).abs() < 1e-6 * a.grad_norm, "{a:?} {b:?}");
    assert_close("accumulated", &all_gradients(&mut pieces), &all_gradients(&mut whole), 1e-5);
}

#[test]
fn pieces_with_the_gradient_through_them_are_the_whole() {
    for config in [odd(), plain()] {
        let rng = &mut Rng(26);
        let whole = batch(rng, &config, &[200]);
        for cuts in [vec![0, 64, 128, 200], vec![0, 1, 3, 100, 200], vec![0, 200]] {
            let pieces: Vec<TrainBatch> =
                cuts.windows(2).map(|cut| part(&whole, cut[0], cut[1], cut[0] > 0)).collect();
            let mut one = trainer(config.clone(), options());
            let mut through = trainer(config.clone(), options());
            let (a, b) =
                (one.step(std::slice::from_ref(&whole)).unwrap(), through.step_through(&pieces).unwrap());
            assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{a:?} {b:?}");
            assert_close("through pieces", &all_gradients(&mut through), &all_gradients(&mut one), 1e-4);
        }
    }
}

/// Truncated backpropagation: losses are those of the whole sequence, and where only the last piece counts nothing of its
/// own gradient is lost but what flows through the state.
#[test]
fn carried_states_go_on() {
    let config = plain();
    let rng = &mut Rng(27);
    let whole = batch(rng, &config, &[200]);
    let frozen = Schedule { lr: 0.0, min_lr: 0.0, ..options().schedule };
    let mut one = trainer(config.clone(), TrainOptions { schedule: frozen, ..options() });
    let (sum, counted) = one.loss(&whole).unwrap();
    let mut carried = trainer(config.clone(), TrainOptions { schedule: frozen, ..options() });
    let mut pieces = 0.0;
    for (from, to) in [(0, 64), (64, 65), (65, 200)] {
        pieces += carried.loss(&part(&whole, from, to, from > 0)).unwrap().0;
    }
    assert!((pieces - sum).abs() < 1e-6 * sum, "{pieces} {sum} of {counted}");
    // From a zero state the second piece has another loss.
    let (second, _) = carried.loss(&part(&whole, 64, 200, false)).unwrap();
    let (first, _) = carried.loss(&part(&whole, 0, 64, false)).unwrap();
    // More sequences than there are states, none of them carried.
    let fresh = batch(rng, &config, &[20, 5, 9]);
    assert_eq!(carried.loss(&fresh).unwrap(), one.loss(&fresh).unwrap());
    assert!((first + second - sum).abs() > 1e-3, "the state makes no difference");
}

#[test]
fn a_step_forward_and_back_again_has_the_same_bits() {
    for trained in [
        Trained::All,
        Trained::State,
        Trained::Lora { rank: 3, alpha: 6.0, targets: Projection::ALL.to_vec() },
    ] {
        let config = plain();
        let rng = &mut Rng(28);
        let batches: Vec<TrainBatch> = (0..6)
            .map(|i| TrainBatch {
                carried: vec![i > 0, false, i % 2 == 1],
                ..batch(rng, &config, &[70, 1, 33])
            })
            .collect();
        let options = TrainOptions { trained, extra: vec![("head".into(), vec![2, 24])], ..options() };
        let mut unbroken = trainer(config.clone(), options.clone());
        let mut state = None;
        for (i, batch) in batches.iter().enumerate() {
            if i == 3 {
                state = Some(unbroken.state().unwrap());
            }
            unbroken.step(std::slice::from_ref(batch)).unwrap();
        }
        let mut resumed = trainer(config, options);
        resumed.restore(&state.unwrap()).unwrap();
        for batch in &batches[3..] {
            resumed.step(std::slice::from_ref(batch)).unwrap();
        }
        assert!(resumed.state().unwrap() == unbroken.state().unwrap());
        assert!(all_parameters(&mut resumed) == all_parameters(&mut unbroken));
    }
}

#[test]
fn lora_begins_as_the_base_and_changes_nothing_of_it() {
    let config = plain();
    let rng = &mut Rng(29);
    let batch = batch(rng, &config, &[70, 1, 33]);
    let mut base = trainer(config.clone(), options());
    let before = all_parameters(&mut base);
    let trained = Trained::Lora { rank: 3, alpha: 6.0, targets: vec![Projection::In, Projection::Dt] };
    let mut lora = trainer(config.clone(), TrainOptions { trained, ..options() });
    assert_eq!(lora.loss(&batch).unwrap(), base.loss(&batch).unwrap(), "B is zero at first");
    let losses: Vec<f64> = (0..20).map(|_| lora.step(std::slice::from_ref(&batch)).unwrap().loss).collect();
    assert!(losses[19] < 0.98 * losses[0], "{losses:?}");
    let after = all_parameters(&mut lora);
    for (name, values) in &before {
        let now = &after.iter().find(|(other, _)| other == name).unwrap().1;
        assert!(now == values, "{name} changed");
    }
    // Merged into the base: the same model.
    let mut merged = trainer(config.clone(), options());
    for layer in 0..config.n_layer {
        for (target, [outputs, inputs]) in [Projection::In, Projection::Dt].map(|p| (p, p.shape(&config))) {
            let name = format!("backbone.layers.{layer}.mixer.{}", target.name());
            let a = lora.parameter(&format!("{name}.lora_A.weight")).unwrap();
            let b = lora.parameter(&format!("{name}.lora_B.weight")).unwrap();
            assert!(b.iter().any(|x| *x != 0.0), "{name}: B is still zero");
            let mut weight = merged.parameter(&format!("{name}.weight")).unwrap();
            for o in 0..outputs {
                for i in 0..inputs {
                    let sum: f32 = (0..3).map(|r| b[o * 3 + r] * a[r * inputs + i]).sum();
                    weight[o * inputs + i] += 2.0 * sum;
                }
            }
            merged.set_parameter(&format!("{name}.weight"), &weight).unwrap();
        }
    }
    let (a, b) = (lora.loss(&batch).unwrap().0, merged.loss(&batch).unwrap().0);
    assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
}

#[test]
fn a_learned_initial_state_lowers_the_loss_and_changes_nothing_else() {
    let config = plain();
    let rng = &mut Rng(30);
    let batch = batch(rng, &config, &[7, 1, 5, 0, 3]);
    let mut trainer = trainer(config, TrainOptions { trained: Trained::State, ..options() });
    let before = all_parameters(&mut trainer);
    let losses: Vec<f64> =
        (0..20).map(|_| trainer.step(std::slice::from_ref(&batch)).unwrap().loss).collect();
    assert!(losses[19] < losses[0] - 0.02, "{losses:?}");
    for ((name, before), (_, after)) in before.iter().zip(&all_parameters(&mut trainer)) {
        assert_eq!(before == after, name != "initial_state", "{name}");
    }
}

#[test]
fn hidden_states_and_their_gradient_are_another_way_to_the_same() {
    let config = plain();
    let rng = &mut Rng(31);
    let batch = batch(rng, &config, &[70, 1, 33]);
    let frozen = Schedule { lr: 0.0, min_lr: 0.0, ..options().schedule };
    let mut trainer = trainer(config.clone(), TrainOptions { schedule: frozen, ..options() });
    // The loss Σ w · hidden, by finite differences along its own gradient.
    let hidden = trainer.hidden(&batch).unwrap();
    let weights = rng.floats(hidden.len(), 1.0);
    trainer.zero_gradients().unwrap();
    trainer.backward_hidden(&weights).unwrap();
    let name = "backbone.layers.0.mixer.in_proj.weight";
    let gradient = trainer.gradient(name).unwrap();
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let values = trainer.parameter(name).unwrap();
    let mut loss = |sign: f32| {
        let moved: Vec<f32> =
            values.iter().zip(&gradient).map(|(x, g)| x + sign * 1e-2 * g / norm as f32).collect();
        trainer.set_parameter(name, &moved).unwrap();
        let hidden = trainer.hidden(&batch).unwrap();
        hidden.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
    };
    let slope = (loss(1.0) - loss(-1.0)) / 2e-2;
    assert!((slope / norm - 1.0).abs() < 2e-2, "{slope} {norm}");
}

#[test]
fn steps_with_gradients_that_are_not_finite_are_skipped_and_end_in_an_error() {
    let config = plain();
    let rng = &mut Rng(32);
    let batch = batch(rng, &config, &[70]);
    let mut trainer = trainer(config, TrainOptions { max_skipped: 2, ..options() });
    trainer.step(std::slice::from_ref(&batch)).unwrap();
    let name = "backbone.layers.0.norm.weight";
    let good = trainer.parameter(name).unwrap();
    let mut bad = good.clone();
    bad[3] = f32::NAN;
    trainer.set_parameter(name, &bad).unwrap();
    let before = trainer.state().unwrap();
    for _ in 0..2 {
        let report = trainer.step(std::slice::from_ref(&batch)).unwrap();
        assert!(report.skipped && !report.grad_norm.is_finite(), "{report:?}");
    }
    let after = trainer.state().unwrap();
    assert_eq!((after.step, after.updates, after.skipped), (3, 1, 2));
    assert!(after.first_moments == before.first_moments, "a skipped step changes nothing");
    trainer.set_parameter(name, &good).unwrap();
    assert!(!trainer.step(std::slice::from_ref(&batch)).unwrap().skipped);
    trainer.set_parameter(name, &bad).unwrap();
    for _ in 0..2 {
        trainer.step(std::slice::from_ref(&batch)).unwrap();
    }
    let error = trainer.step(std::slice::from_ref(&batch)).unwrap_err();
    assert_eq!(error.code(), "TRAINING_DIVERGED");
}

/// What goes on after a skipped step goes on from the last finite state.
#[test]
fn a_skipped_step_leaves_no_state_that_is_not_finite() {
    let config = plain();
    let rng = &mut Rng(36);
    let lengths = [40, 7];
    let mut batches: Vec<TrainBatch> = (0..4).map(|_| batch(rng, &config, &lengths)).collect();
    batches.iter_mut().zip([[false; 2], [true, false], [true; 2], [true; 2]]).for_each(|(batch, carried)| {
        batch.carried = carried.to_vec();
    });
    let name = "backbone.layers.0.norm.weight";
    let through = |trainer: &mut Trainer<Cpu>, batch: &TrainBatch| {
        trainer.step_through(std::slice::from_ref(batch)).unwrap()
    };
    let once =
        |trainer: &mut Trainer<Cpu>, batch: &TrainBatch| trainer.step(std::slice::from_ref(batch)).unwrap();
    for step in [&once as &dyn Fn(&mut Trainer<Cpu>, &TrainBatch) -> mamba::train::StepReport, &through] {
        let mut trainer = trainer(config.clone(), options());
        step(&mut trainer, &batches[0]);
        let good = trainer.parameter(name).unwrap();
        let mut bad = good.clone();
        bad[3] = f32::NAN;
        let mut expected = trainer.carried_states().unwrap();
        // The second sequence was fresh, so it is again.
        expected[1].fill(0.0);
        trainer.set_parameter(name, &bad).unwrap();
        for batch in &batches[1..3] {
            assert!(step(&mut trainer, batch).skipped);
            assert_eq!(trainer.carried_states().unwrap(), expected);
        }
        trainer.set_parameter(name, &good).unwrap();
        let report = step(&mut trainer, &batches[3]);
        assert!(!report.skipped && report.loss.is_finite(), "{report:?}");
    }
}

#[test]
fn bad_input() {
    let config = plain();
    let mut small = trainer(config.clone(), TrainOptions { max_tokens: 16, max_sequences: 2, ..options() });
    let rng = &mut Rng(33);
    let code = |trainer: &mut Trainer<Cpu>, batch: TrainBatch| trainer.step(&[batch]).unwrap_err().code();
    assert_eq!(code(&mut small, batch(rng, &config, &[17])), "OPTION_INVALID");
    assert_eq!(code(&mut small, batch(rng, &config, &[1, 1, 1])), "OPTION_INVALID");
    assert_eq!(small.step(&[]).unwrap_err().code(), "EMPTY_PROMPT");
    let good = batch(rng, &config, &[4, 4]);
    let with = |change: &dyn Fn(&mut TrainBatch)| {
        let mut batch = good.clone();
        change(&mut batch);
        batch
    };
    assert_eq!(code(&mut small, with(&|b| b.targets.fill(-1))), "EMPTY_PROMPT");
    assert_eq!(code(&mut small, with(&|b| b.ids[3] = 64)), "TOKEN_OUT_OF_RANGE");
    assert_eq!(code(&mut small, with(&|b| b.targets[3] = 64)), "TOKEN_OUT_OF_RANGE");
    assert_eq!(code(&mut small, with(&|b| b.targets.truncate(7))), "OPTION_INVALID");
    assert_eq!(code(&mut small, with(&|b| b.cu_seqlens = vec![0, 5, 3, 8])), "OPTION_INVALID");
    assert_eq!(code(&mut small, with(&|b| b.cu_seqlens = vec![0, 4])), "OPTION_INVALID");
    assert_eq!(code(&mut small, with(&|b| b.carried = vec![true])), "OPTION_INVALID");
    small.step(&[good]).unwrap();
    for change in [
        (|o| o.eps = 0.0) as fn(&mut TrainOptions),
        |o| o.betas[1] = 1.0,
        |o| o.clip = Some(f32::NAN),
        |o| o.schedule.lr = -1.0,
        |o| o.z_loss = f32::INFINITY,
        |o| o.max_tokens = 0,
        |o| o.trained = Trained::Lora { rank: 0, alpha: 1.0, targets: vec![Projection::In] },
        |o| o.trained = Trained::Lora { rank: 1, alpha: 1.0, targets: vec![] },
        |o| o.extra = vec![("backbone.embedding.weight".into(), vec![1])],
    ] {
        let mut options = options();
        change(&mut options);
        let error = Trainer::new(cpu(), config.clone(), Start::Seed(1), options).err().unwrap();
        assert_eq!(error.code(), "OPTION_INVALID");
    }
}

/// Spread and bounds of what the official code draws (`_init_weights` and the mixers' own initialization).
#[test]
fn a_new_model_is_drawn_as_the_official_one() {
    let config = r#"{"d_model": 128, "n_layer": 9, "vocab_size": 512}"#;
    let mut trainer = trainer(Config::from_json(config).unwrap(), options());
    let mixer = |what: &str| format!("backbone.layers.4.mixer.{what}");
    // Uniform in ±bound.
    for (what, bound) in [
        ("in_proj.weight", 1.0 / 128f64.sqrt()),
        ("x_proj.weight", 1.0 / 256f64.sqrt()),
        ("dt_proj.weight", 1.0 / 8f64.sqrt()),
        ("out_proj.weight", 1.0 / 256f64.sqrt() / 3.0),
        ("conv1d.weight", 0.5),
        ("conv1d.bias", 0.5),
    ] {
        let values = trainer.parameter(&mixer(what)).unwrap();
        let most = values.iter().fold(0.0, |most, x| x.abs().max(most));
        let deviation =
            (values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(f64::from(most) <= bound && (deviation * 3f64.sqrt() / bound - 1.0).abs() < 0.1, "{what}");
    }
    let embedding = trainer.parameter("backbone.embedding.weight").unwrap();
    let n = embedding.len() as f64;
    let moment = |power: i32| embedding.iter().map(|x| (f64::from(*x) / 0.02).powi(power)).sum::<f64>() / n;
    assert!((moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1, "no normal draws");
    // softplus(bias) is log-uniform in 0.001 … 0.1.
    let steps: Vec<f64> = trainer
        .parameter(&mixer("dt_proj.bias"))
        .unwrap()
        .iter()
        .map(|bias| f64::from(*bias).exp().ln_1p().log10())
        .collect();
    assert!(steps.iter().all(|step| (-3.001..-0.999).contains(step)), "{steps:?}");
    let mean = steps.iter().sum::<f64>() / steps.len() as f64;
    assert!((mean + 2.0).abs() < 0.15, "{mean}");
    let a_log = trainer.parameter(&mixer("A_log")).unwrap();
    assert!(a_log.iter().enumerate().all(|(i, x)| (x - ((i % 16 + 1) as f32).ln()).abs() < 1e-6));
    for ones in [mixer("D"), "backbone.layers.4.norm.weight".into(), "backbone.norm_f.weight".into()] {
        assert!(trainer.parameter(&ones).unwrap().iter().all(|x| *x == 1.0), "{ones}");
    }
}

#[test]
fn a_new_model_learns() {
    let config = plain();
    let rng = &mut Rng(34);
    let batch = batch(rng, &config, &[100, 28]);
    let mut trainer = trainer(config.clone(), TrainOptions { z_loss: 1e-4, ..options() });
    let first = trainer.step(std::slice::from_ref(&batch)).unwrap().loss;
    // Logits of a fresh model are near zero, so its loss is near that of guessing.
    assert!((first - (config.padded_vocab_size as f64).ln()).abs() < 0.1, "{first}");
    let mut last = first;
    for _ in 1..20 {
        last = trainer.step(std::slice::from_ref(&batch)).unwrap().loss;
    }
    assert!(last < 0.8 * first, "{first} to {last}");
    // What it has learned is in the checkpoint.
    let checkpoint = trainer.checkpoint().unwrap();
    let mut again = Trainer::new(cpu(), config, Start::Checkpoint(&checkpoint, 0), options()).unwrap();
    assert_eq!(again.loss(&batch).unwrap(), trainer.loss(&batch).unwrap());
}
