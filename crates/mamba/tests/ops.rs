//! Every operation of the CPU backend against its plain definition (`common/ops.rs`), on every instruction set of this
//! processor, on one thread and several; and what only the CPU does.

mod common;

use common::ops::{self, Bounds, Strided};
use common::{Rng, buffer, nans, relative_l2, wide};
use mamba::DType;
use mamba::backend::{Backend, Batch, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::cpu::simd::Level;
use mamba::ops::linear;

/// Runs a test on every instruction set, with 1 and 3 threads.
fn on_every_cpu(test: impl Fn(&mut Cpu, &mut Rng)) {
    for level in Level::available() {
        for threads in [1, 3] {
            test(&mut Cpu::with_level(threads, level).unwrap(), &mut Rng(7));
        }
    }
}

#[test]
fn instruction_sets() {
    let (tested, skipped): (Vec<_>, Vec<_>) =
        Level::ALL.into_iter().partition(|level| Level::available().contains(level));
    let names = |levels: Vec<Level>| levels.into_iter().map(Level::name).collect::<Vec<_>>().join(", ");
    // Past the capture of the test runner: what a run did not test must be seen.
    let line = format!("instruction sets tested: {}; skipped: {}\n", names(tested), names(skipped));
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    assert!(Level::available().contains(&Level::Portable));
}

#[test]
fn linear_matches_its_definition() {
    on_every_cpu(|cpu, rng| {
        for _ in 0..60 {
            let rows = rng.pick(&[0, 1, 2, 3, 5, 8, 12, 13, 17, 31, 64, 100]);
            let inputs = rng.pick(&[1, 3, 16, 48, 255, 256, 257, 300, 777]);
            let outputs = rng.pick(&[1, 5, 31, 32, 33, 80, 130]);
            let dtype = rng.pick(&DType::ALL);
            let weights = rng.floats(outputs * inputs, 0.5);
            let rounded = ops::rounded_weights(&weights, inputs, dtype);
            let tensor = Tensor::from_memory("w", vec![outputs, inputs], weights);
            let weight = cpu.weight(&tensor, dtype).unwrap();
            let bias = (rng.size(0, 1) == 0).then(|| buffer(&rng.floats(outputs, 1.0)));
            let x = Strided::random(cpu, rng, rows, inputs, 1.0);
            let mut out = Strided::unwritten(cpu, rng, rows, outputs);
            cpu.linear(x.view(), &weight, bias.as_ref(), out.view_mut()).unwrap();
            out.fetch(cpu);
            let bias = bias.map(|bias| wide(&bias));
            let definition =
                |x: &[f64]| linear::reference::linear(x, &wide(&rounded), bias.as_deref(), inputs);
            let (exact, out_values) = (definition(&wide(&x.all())), out.all());
            let error = match dtype {
                // On the tile unit an activation keeps 16 bits.
                DType::BF16 => relative_l2(&out_values, &exact) / 10.0,
                DType::F32 | DType::F16 => relative_l2(&out_values, &exact),
                DType::Q8_0 | DType::Q4K => {
                    // A few outputs may cancel; where there are many, activations of 8 bits cost this.
                    let error = relative_l2(&out_values, &exact);
                    assert!(rows * outputs < 100 || error < 8e-3, "{rows} x {inputs} x {outputs}: {error}");
                    relative_l2(&out_values, &definition(&linear::reference::as_integers(&x.all(), inputs)))
                }
            };
            assert!(error < 1e-6, "{rows} x {inputs} x {outputs} {dtype:?}: {error}");
            assert!(out.gaps_are_nan());
        }
    });
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    on_every_cpu(|cpu, rng| {
        for dtype in DType::ALL {
            let (inputs, outputs) = (100, 40);
            let tensor = Tensor::from_memory("w", vec![outputs, inputs], rng.floats(outputs * inputs, 0.5));
            let weight = cpu.weight(&tensor, dtype).unwrap();
            for rows in [1, 5, 40] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = rng.floats(rows * inputs, 1.0);
                    let at = (rows / 2, rng.size(0, inputs - 1));
                    x[at.0 * inputs + at.1] = bad;
                    let mut out = nans(rows * outputs);
                    let to = ViewMut::dense(&mut out, rows, outputs);
                    cpu.linear(View::dense(&buffer(&x), rows, inputs), &weight, None, to).unwrap();
                    for (row, out) in out.chunks(outputs).enumerate() {
                        let finite = out.iter().filter(|x| x.is_finite()).count();
                        // A weight of zero times infinity is NaN too.
                        assert_eq!(finite, if row == at.0 { 0 } else { outputs }, "{dtype:?}, {rows}, {bad}");
                    }
                }
            }
        }
    });
}

#[test]
fn linear_gives_a_row_the_same_bits_in_any_company() {
    on_every_cpu(|cpu, rng| {
        let cpu = &mut std::mem::replace(cpu, Cpu::new(1).unwrap()).deterministic(true);
        for dtype in DType::ALL {
            let (inputs, outputs) = (300, 130);
            let tensor = Tensor::from_memory("w", vec![outputs, inputs], rng.floats(outputs * inputs, 0.5));
            let weight = cpu.weight(&tensor, dtype).unwrap();
            let x = buffer(&rng.floats(200 * inputs, 1.0));
            let mut alone = nans(200 * outputs);
            for row in 0..200 {
                let view = View { buffer: &x, offset: row * inputs, rows: 1, cols: inputs, stride: inputs };
                let out = ViewMut {
                    buffer: &mut alone,
                    offset: row * outputs,
                    rows: 1,
                    cols: outputs,
                    stride: outputs,
                };
                cpu.linear(view, &weight, None, out).unwrap();
            }
            for rows in [2, 5, 12, 13, 16, 31, 200] {
                let mut together = nans(rows * outputs);
                let out = ViewMut::dense(&mut together, rows, outputs);
                cpu.linear(View::dense(&x, rows, inputs), &weight, None, out).unwrap();
                assert_eq!(together[..], alone[..rows * outputs], "{rows} rows, {dtype:?}");
            }
        }
    });
}

/// But for the portable kernels, which multiply and add with two roundings.
#[test]
fn quantized_products_have_the_same_bits_on_every_instruction_set() {
    let mut rng = Rng(11);
    let (inputs, outputs) = (512, 75);
    for dtype in [DType::Q8_0, DType::Q4K] {
        let tensor = Tensor::from_memory("w", vec![outputs, inputs], rng.floats(outputs * inputs, 0.5));
        for rows in [1, 7, 40] {
            let x = buffer(&rng.floats(rows * inputs, 1.0));
            let products =
                Level::available().into_iter().filter(|level| *level > Level::Portable).map(|level| {
                    let mut cpu = Cpu::with_level(2, level).unwrap();
                    let weight = cpu.weight(&tensor, dtype).unwrap();
                    let mut out = nans(rows * outputs);
                    let to = ViewMut::dense(&mut out, rows, outputs);
                    cpu.linear(View::dense(&x, rows, inputs), &weight, None, to).unwrap();
                    (level, out)
                });
            let products: Vec<_> = products.collect();
            for pair in products.windows(2) {
                assert_eq!(pair[0].1[..], pair[1].1[..], "{:?} and {:?}, {rows} rows", pair[0].0, pair[1].0);
            }
        }
    }
}

#[test]
fn causal_conv1d_matches_its_definition() {
    on_every_cpu(|cpu, rng| ops::causal_conv1d_matches(cpu, rng, Bounds::F32));
}

#[test]
fn selective_scan_matches_its_definition() {
    on_every_cpu(|cpu, rng| ops::selective_scan_matches(cpu, rng, Bounds::F32));
}

#[test]
fn selective_scan_without_a_state_begins_at_zero() {
    on_every_cpu(ops::selective_scan_without_a_state_begins_at_zero);
}

#[test]
fn add_norm_matches_its_definition() {
    on_every_cpu(|cpu, rng| ops::add_norm_matches(cpu, rng, Bounds::F32));
}

#[test]
fn pool_matches_its_definition() {
    on_every_cpu(ops::pool_matches);
}

#[test]
fn token_logprobs_match_their_definition() {
    on_every_cpu(ops::token_logprobs_match);
}

#[test]
fn embedding_and_gather_copy_rows() {
    on_every_cpu(|cpu, rng| ops::embedding_and_gather_copy_rows(cpu, rng, DType::F32));
}

/// Kernels rely on what a plan says, so a batch that cannot be is refused there.
#[test]
fn impossible_batches_are_refused() {
    let good =
        Batch { ids: vec![1, 2, 3], cu_seqlens: vec![0, 1, 3], slots: vec![4, 0], fresh: vec![true, false] };
    let mut cpu = Cpu::new(1).unwrap();
    cpu.plan(&good).unwrap();
    for bad in [
        Batch { cu_seqlens: vec![0, 1, 100_000_000], ..good.clone() },
        Batch { cu_seqlens: vec![0, 5, 3], ..good.clone() },
        Batch { cu_seqlens: vec![1, 2, 3], ..good.clone() },
        Batch { cu_seqlens: vec![0, 3], ..good.clone() },
        Batch { slots: vec![4, 4], ..good.clone() },
        Batch { fresh: vec![true], ..good.clone() },
        Batch { cu_seqlens: vec![], ..good.clone() },
    ] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cpu.plan(&bad).is_ok()));
        assert!(refused.is_err(), "{bad:?}");
    }
}
