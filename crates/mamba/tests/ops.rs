//! Every operation of the CPU backend against its plain definition, on random shapes, on every instruction
//! set of this processor, on one thread and several. Outputs are filled with NaN beforehand.

mod common;

use common::{Rng, buffer, nans, relative_l2, wide};
use mamba::DType;
use mamba::backend::{Backend, Batch, StateView, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::config::NormKind;
use mamba::cpu::Cpu;
use mamba::cpu::memory::Aligned;
use mamba::cpu::simd::Level;
use mamba::ops::causal_conv1d::{self, CausalConv1d};
use mamba::ops::norm::{self, AddNorm};
use mamba::ops::pool::{self, Pool, PoolKind};
use mamba::ops::selective_scan::{self, SelectiveScan};
use mamba::ops::{linear, logprobs};

/// Runs a test on every instruction set, with 1 and 3 threads.
fn on_every_cpu(test: impl Fn(&mut Cpu, &mut Rng)) {
    for level in Level::available() {
        for threads in [1, 3] {
            test(&mut Cpu::with_level(threads, level).unwrap(), &mut Rng(7));
        }
    }
}

/// A pack of a few sequences, lengths 0 and 1 among them, in slots in disorder.
fn random_batch(rng: &mut Rng) -> (Batch, usize) {
    let sequences = rng.size(1, 5);
    let slots = sequences + 2;
    let mut batch = Batch::new();
    for i in 0..sequences {
        let length = rng.pick(&[0, 1, 2, 3, 7, 31, 33, 70]);
        batch.push(&vec![0; length], (i * 2 + 1) % slots, rng.size(0, 1) == 0);
    }
    // (i · 2 + 1) mod slots repeats where slots is even.
    for (i, slot) in batch.slots.iter_mut().enumerate() {
        *slot = slots - 1 - i;
    }
    (batch, slots)
}

/// Columns of a wider matrix, as the model hands them over: offset, row stride.
struct Strided {
    values: Aligned<f32>,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Strided {
    fn random(rng: &mut Rng, rows: usize, cols: usize, scale: f32) -> Self {
        let (before, after) = (rng.size(0, 9), rng.size(0, 9));
        let stride = before + cols + after;
        Self { values: buffer(&rng.floats(rows * stride, scale)), offset: before, rows, cols, stride }
    }

    fn unwritten(rng: &mut Rng, rows: usize, cols: usize) -> Self {
        let mut strided = Self::random(rng, rows, cols, 1.0);
        strided.values.fill(f32::NAN);
        strided
    }

    fn view(&self) -> View<'_, Aligned<f32>> {
        let Self { rows, cols, offset, stride, ref values } = *self;
        View { buffer: values, offset, rows, cols, stride }
    }

    fn view_mut(&mut self) -> ViewMut<'_, Aligned<f32>> {
        let Self { rows, cols, offset, stride, ref mut values } = *self;
        ViewMut { buffer: values, offset, rows, cols, stride }
    }

    /// Rows `from .. to`, dense.
    fn rows(&self, from: usize, to: usize) -> Vec<f32> {
        (from..to)
            .flat_map(|r| self.values[r * self.stride + self.offset..][..self.cols].iter().copied())
            .collect()
    }

    fn all(&self) -> Vec<f32> {
        self.rows(0, self.rows)
    }

    /// What lies between the columns must still be as it was.
    fn gaps_are_nan(&self) -> bool {
        (0..self.values.len()).all(|i| {
            let col = i % self.stride;
            (self.offset..self.offset + self.cols).contains(&col) || self.values[i].is_nan()
        })
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

/// Weights [outputs, inputs] as a type holds them.
fn rounded(weights: &[f32], inputs: usize, dtype: DType) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mut row = row.to_vec();
        match dtype {
            DType::F32 => {}
            DType::BF16 => row.iter_mut().for_each(|w| *w = half::bf16::from_f32(*w).to_f32()),
            DType::F16 => row.iter_mut().for_each(|w| *w = half::f16::from_f32(*w).to_f32()),
            DType::Q8_0 | DType::Q4K => {
                let format = dtype.format().unwrap();
                let mut bytes = vec![0; format.row_bytes(inputs)];
                format.quantize(&row, &mut bytes);
                format.dequantize(&bytes, &mut row);
            }
        }
        row
    };
    weights.chunks(inputs).flat_map(row).collect()
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
            let rounded = rounded(&weights, inputs, dtype);
            let tensor = Tensor::from_memory("w", vec![outputs, inputs], weights);
            let weight = cpu.weight(&tensor, dtype).unwrap();
            let bias = (rng.size(0, 1) == 0).then(|| buffer(&rng.floats(outputs, 1.0)));
            let x = Strided::random(rng, rows, inputs, 1.0);
            let mut out = Strided::unwritten(rng, rows, outputs);
            cpu.linear(x.view(), &weight, bias.as_ref(), out.view_mut()).unwrap();
            let bias = bias.map(|bias| wide(&bias));
            let definition =
                |x: &[f64]| linear::reference::linear(x, &wide(&rounded), bias.as_deref(), inputs);
            let (exact, out_values) = (definition(&wide(&x.all())), out.all());
            let error = match dtype {
                // On the tile unit an activation keeps 16 bits.
                DType::BF16 => relative_l2(&out_values, &exact) / 10.0,
                DType::F32 | DType::F16 => relative_l2(&out_values, &exact),
                DType::Q8_0 | DType::Q4K => {
                    // A few outputs may cancel; where there are many, activations of 13 bits cost this.
                    let error = relative_l2(&out_values, &exact);
                    assert!(rows * outputs < 100 || error < 6e-4, "{rows} x {inputs} x {outputs}: {error}");
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
    on_every_cpu(|cpu, rng| {
        for _ in 0..60 {
            let (batch, slots) = random_batch(rng);
            let d_inner = rng.pick(&[1, 7, 16, 40, 129]);
            let d_conv = rng.pick(&[1, 2, 3, 4, 4, 7, 16]);
            let x = Strided::random(rng, batch.tokens(), d_inner, 2.0);
            let weight = buffer(&rng.floats(d_conv * d_inner, 1.0));
            let bias = (rng.size(0, 1) == 0).then(|| buffer(&rng.floats(d_inner, 1.0)));
            let (offset, elements) = (rng.size(0, 5), (d_conv - 1) * d_inner);
            let stride = offset + elements + 3;
            let before = rng.floats(slots * stride, 2.0);
            let mut state = buffer(&before);
            let mut out = Strided::unwritten(rng, batch.tokens(), d_inner);
            let op = CausalConv1d {
                x: x.view(),
                weight: &weight,
                bias: bias.as_ref(),
                d_conv,
                state: Some(StateView { buffer: &mut state, offset, slot_stride: stride }),
                out: out.view_mut(),
            };
            let plan = cpu.plan(&batch).unwrap();
            cpu.causal_conv1d(&plan, op).unwrap();

            let mut expected_state = wide(&before);
            for s in 0..batch.sequences() {
                let at = batch.slots[s] * stride + offset;
                let mut window = match batch.fresh[s] {
                    true => vec![0.0; elements],
                    false => wide(&before[at..at + elements]),
                };
                let (from, to) = (batch.cu_seqlens[s], batch.cu_seqlens[s + 1]);
                let expected = causal_conv1d::reference::causal_conv1d(
                    &wide(&x.rows(from, to)),
                    &wide(&weight),
                    bias.as_ref().map(|bias| wide(bias)).as_deref(),
                    &mut window,
                    d_inner,
                );
                assert!(relative_l2(&out.rows(from, to), &expected) < 1e-6);
                expected_state[at..at + elements].copy_from_slice(&window);
            }
            // Windows are copies of inputs: exact, and nothing else in any slot has changed.
            assert_eq!(wide(&state), expected_state);
            assert!(out.gaps_are_nan());
        }
    });
}

#[test]
fn selective_scan_matches_its_definition() {
    on_every_cpu(|cpu, rng| {
        for round in 0..60 {
            let (batch, slots) = random_batch(rng);
            let tokens = batch.tokens();
            let d_inner = rng.pick(&[1, 7, 16, 40, 129]);
            let d_state = rng.pick(&[1, 3, 8, 16, 16, 17, 64, 256]);
            let full = round % 4 != 0;
            let u = Strided::random(rng, tokens, d_inner, 2.0);
            let mut delta = Strided::random(rng, tokens, d_inner, 2.0);
            if !full {
                delta.values.iter_mut().for_each(|x| *x = x.abs() * 0.1); // a step size is positive
            }
            let (b, c) =
                (Strided::random(rng, tokens, d_state, 1.0), Strided::random(rng, tokens, d_state, 1.0));
            let z = full.then(|| Strided::random(rng, tokens, d_inner, 2.0));
            let a = buffer(&rng.floats(d_state * d_inner, 4.0).iter().map(|a| -a.abs()).collect::<Vec<_>>());
            let bias = full.then(|| buffer(&rng.floats(d_inner, 3.0)));
            let d = full.then(|| buffer(&rng.floats(d_inner, 1.0)));
            let (offset, elements) = (rng.size(0, 5), d_state * d_inner);
            let stride = offset + elements + 3;
            let before = rng.floats(slots * stride, 2.0);
            let mut state = buffer(&before);
            let mut out = Strided::unwritten(rng, tokens, d_inner);
            let op = SelectiveScan {
                u: u.view(),
                delta: delta.view(),
                delta_bias: bias.as_ref(),
                a: &a,
                b: b.view(),
                c: c.view(),
                d: d.as_ref(),
                z: z.as_ref().map(Strided::view),
                state: Some(StateView { buffer: &mut state, offset, slot_stride: stride }),
                out: out.view_mut(),
            };
            let plan = cpu.plan(&batch).unwrap();
            cpu.selective_scan(&plan, op).unwrap();

            let mut used = vec![false; slots * stride];
            for s in 0..batch.sequences() {
                let (from, to) = (batch.cu_seqlens[s], batch.cu_seqlens[s + 1]);
                let at = batch.slots[s] * stride + offset;
                let mut h = match batch.fresh[s] {
                    true => vec![0.0; elements],
                    false => wide(&before[at..at + elements]),
                };
                let (u, delta) = (wide(&u.rows(from, to)), wide(&delta.rows(from, to)));
                let (b, c) = (wide(&b.rows(from, to)), wide(&c.rows(from, to)));
                let z = z.as_ref().map(|z| wide(&z.rows(from, to)));
                let bias = bias.as_ref().map(|x| wide(x));
                let d = d.as_ref().map(|x| wide(x));
                let inputs = selective_scan::reference::Inputs {
                    u: &u,
                    delta: &delta,
                    delta_bias: bias.as_deref(),
                    a: &wide(&a),
                    b: &b,
                    c: &c,
                    d: d.as_deref(),
                    z: z.as_deref(),
                    d_inner,
                    d_state,
                };
                let y = selective_scan::reference::selective_scan(inputs, &mut h);
                let error = relative_l2(&out.rows(from, to), &y);
                assert!(
                    error < 1e-6,
                    "y: {error}, d_state {d_state}, d_inner {d_inner}, length {}",
                    to - from
                );
                let error = relative_l2(&state[at..at + elements], &h);
                assert!(error < 1e-6, "state: {error}, d_state {d_state}, d_inner {d_inner}");
                used[at..at + elements].fill(true);
            }
            assert!((0..used.len()).all(|i| used[i] || state[i] == before[i]), "another slot was touched");
            assert!(out.gaps_are_nan());
        }
    });
}

#[test]
fn selective_scan_without_a_state_begins_at_zero() {
    on_every_cpu(|cpu, rng| {
        let (batch, _) = random_batch(rng);
        let (tokens, d_inner, d_state) = (batch.tokens(), 20, 16);
        let inputs: Vec<_> = (0..2).map(|_| buffer(&rng.floats(tokens * d_inner, 1.0))).collect();
        let bc: Vec<_> = (0..2).map(|_| buffer(&rng.floats(tokens * d_state, 1.0))).collect();
        let a = buffer(&vec![-1.0; d_state * d_inner]);
        let mut run = |state: Option<&mut Aligned<f32>>, batch: &Batch| {
            let mut out = nans(tokens * d_inner);
            let op = SelectiveScan {
                u: View::dense(&inputs[0], tokens, d_inner),
                delta: View::dense(&inputs[1], tokens, d_inner),
                delta_bias: None,
                a: &a,
                b: View::dense(&bc[0], tokens, d_state),
                c: View::dense(&bc[1], tokens, d_state),
                d: None,
                z: None,
                state: state.map(|buffer| StateView { buffer, offset: 0, slot_stride: d_state * d_inner }),
                out: ViewMut::dense(&mut out, tokens, d_inner),
            };
            let plan = cpu.plan(batch).unwrap();
            cpu.selective_scan(&plan, op).unwrap();
            out.to_vec()
        };
        let fresh = Batch { fresh: vec![true; batch.sequences()], ..batch.clone() };
        let without = run(None, &batch);
        let with = run(Some(&mut nans(8 * d_state * d_inner)), &fresh);
        assert_eq!(without, with);
    });
}

#[test]
fn add_norm_matches_its_definition() {
    on_every_cpu(|cpu, rng| {
        for _ in 0..60 {
            let rows = rng.pick(&[0, 1, 2, 9, 40]);
            let d_model = rng.pick(&[1, 5, 16, 33, 256]);
            let kind = rng.pick(&[NormKind::Rms, NormKind::Layer]);
            let weight = buffer(&rng.floats(d_model, 1.0));
            let bias = (rng.size(0, 1) == 0).then(|| buffer(&rng.floats(d_model, 1.0)));
            let delta = (rng.size(0, 1) == 0).then(|| Strided::random(rng, rows, d_model, 1.0));
            let mut residual = Strided::random(rng, rows, d_model, 3.0);
            let mut sums = wide(&residual.all());
            if let Some(delta) = &delta {
                sums.iter_mut().zip(delta.all()).for_each(|(sum, x)| *sum += f64::from(x));
            }
            let mut out = Strided::unwritten(rng, rows, d_model);
            cpu.add_norm(AddNorm {
                kind,
                eps: 1e-5,
                weight: &weight,
                bias: bias.as_ref(),
                delta: delta.as_ref().map(Strided::view),
                residual: residual.view_mut(),
                out: out.view_mut(),
            })
            .unwrap();
            assert!(relative_l2(&residual.all(), &sums) < 1e-7);
            let bias = bias.map(|bias| wide(&bias));
            let expected: Vec<f64> = sums
                .chunks(d_model)
                .flat_map(|x| norm::reference::norm(kind, x, &wide(&weight), bias.as_deref(), 1e-5))
                .collect();
            // LayerNorm of one or few channels cancels; what is left is rounding.
            let error = relative_l2(&out.all(), &expected);
            assert!(error < if d_model < 8 { 1e-4 } else { 1e-6 }, "{kind:?} of {d_model}: {error}");
            assert!(out.gaps_are_nan());
        }
    });
}

#[test]
fn pool_matches_its_definition() {
    on_every_cpu(|cpu, rng| {
        for _ in 0..40 {
            let (batch, slots) = random_batch(rng);
            let d_model = rng.pick(&[1, 16, 50]);
            let hidden = Strided::random(rng, batch.tokens(), d_model, 1.0);
            let before = rng.floats(slots * d_model, 1.0);
            let mut out = buffer(&before);
            let kinds: Vec<_> = (0..batch.sequences())
                .map(|_| rng.pick(&[None, Some(PoolKind::Sum), Some(PoolKind::Last)]))
                .collect();
            let view = ViewMut::dense(&mut out, slots, d_model);
            let plan = cpu.plan(&batch).unwrap();
            cpu.pool(&plan, Pool { kinds: &kinds, hidden: hidden.view(), out: view }).unwrap();
            let mut expected = wide(&before);
            for s in 0..batch.sequences() {
                let row = &mut expected[batch.slots[s] * d_model..][..d_model];
                let hidden = wide(&hidden.rows(batch.cu_seqlens[s], batch.cu_seqlens[s + 1]));
                if let Some(kind) = kinds[s] {
                    pool::reference::pool(kind, &hidden, batch.fresh[s], row);
                }
            }
            assert!(relative_l2(&*out, &expected) < 1e-6);
        }
    });
}

#[test]
fn token_logprobs_match_their_definition() {
    on_every_cpu(|cpu, rng| {
        for vocab in [1, 2, 15, 16, 100, 8192] {
            let logits = Strided::random(rng, 9, vocab, 30.0);
            let targets: Vec<u32> = (0..9).map(|_| rng.size(0, vocab - 1) as u32).collect();
            let mut out = [f32::NAN; 9];
            cpu.token_logprobs(logits.view(), &targets, &mut out).unwrap();
            for row in 0..9 {
                let exact = logprobs::reference::token_logprob(
                    &wide(&logits.rows(row, row + 1)),
                    targets[row] as usize,
                );
                assert!((f64::from(out[row]) - exact).abs() < 1e-5, "{vocab}: {} for {exact}", out[row]);
            }
        }
    });
}

#[test]
fn embedding_and_gather_copy_rows() {
    on_every_cpu(|cpu, rng| {
        let (vocab, d_model) = (70, 33);
        let table = rng.floats(vocab * d_model, 1.0);
        let weight =
            cpu.weight(&Tensor::from_memory("e", vec![vocab, d_model], table.clone()), DType::F32).unwrap();
        let mut batch = Batch::new();
        let ids: Vec<u32> = (0..50).map(|_| rng.size(0, vocab - 1) as u32).chain([0, 69]).collect();
        batch.push(&ids, 0, true);
        let mut out = nans(52 * d_model);
        let plan = cpu.plan(&batch).unwrap();
        cpu.embedding(&plan, &weight, ViewMut::dense(&mut out, 52, d_model)).unwrap();
        for (t, id) in ids.iter().enumerate() {
            assert_eq!(out[t * d_model..][..d_model], table[*id as usize * d_model..][..d_model]);
        }
        let mut picked = nans(3 * d_model);
        let view = ViewMut::dense(&mut picked, 3, d_model);
        cpu.gather(View::dense(&out, 52, d_model), &[51, 0, 51], view).unwrap();
        for (i, row) in [51, 0, 51].into_iter().enumerate() {
            assert_eq!(picked[i * d_model..][..d_model], out[row * d_model..][..d_model]);
        }
    });
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
