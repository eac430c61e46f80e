//! The launchers that are no part of `Backend`, but the scan's: each against the reference.rs of its operation, on random
//! shapes, strides and packs. Outputs are filled with NaN beforehand; two runs must give the same bits.

use mamba::DType;
use mamba::backend::{Backend, Batch, View, ViewMut};
use mamba::config::NormKind;
use mamba::cuda::Cuda;
use mamba::ops;
use mamba_kernels::linear::Weight;
use mamba_kernels::{Buffer, Error, Rows, RowsMut, States};
use mamba_kernels::{causal_conv1d, cross_entropy, embedding, norm};

use crate::DTYPES;
use crate::common::ops::{Strided, buffer, read, rounded, slot_layout};
use crate::common::{Rng, relative_l2, wide};

pub fn rows(view: View<'_, Buffer>) -> Rows<'_> {
    let View { buffer, offset, rows, cols, stride } = view;
    Rows { buffer, offset, rows, cols, stride }
}

pub fn rows_mut(view: ViewMut<'_, Buffer>) -> RowsMut<'_> {
    let ViewMut { buffer, offset, rows, cols, stride } = view;
    RowsMut { buffer, offset, rows, cols, stride }
}

fn states(buffer: &mut Buffer, (offset, slot_stride): (usize, usize)) -> States<'_> {
    States { buffer, offset, slot_stride }
}

fn nans(cuda: &mut Cuda, len: usize) -> Buffer {
    buffer(cuda, &vec![f32::NAN; len])
}

/// What f32 results may be off by, relative (L2).
const SUM: f64 = 2e-6;

/// Holds a result of type `dtype` against the exact one: in 16 bits it may be off by a tenth more than rounding costs.
fn hold(what: &str, actual: &[f32], exact: &[f64], dtype: DType) {
    let bound = match dtype {
        DType::F32 => SUM,
        _ => 1.1 * relative_l2(&rounded(exact, dtype), exact),
    };
    let error = relative_l2(actual, exact);
    assert!(error <= bound, "{what}: {error:.2e}, at most {bound:.2e}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What both of two runs give.
fn twice<const N: usize>(what: &str, mut run: impl FnMut() -> [Vec<f32>; N]) -> [Vec<f32>; N] {
    let first = run();
    let second = run();
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        assert!(bits(a) == bits(b), "{what}: result {i} differs from run to run");
    }
    first
}

fn add(sum: &mut [f64], part: &[f64]) {
    assert_eq!(sum.len(), part.len());
    sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
}

#[test]
fn causal_conv1d_backward() {
    for dtype in DTYPES {
        let (cuda, rng) = (&mut Cuda::new(dtype).unwrap(), &mut Rng(31));
        for round in 0..60 {
            let lengths = match round {
                0 => vec![9000, 0, 300], // blocks of 1024 tokens
                1 => vec![3; 1100],
                2 => Vec::new(),
                _ => {
                    let sequences = rng.size(1, 5);
                    (0..sequences).map(|_| rng.pick(&[0, 1, 2, 3, 31, 33, 70, 256, 257, 600])).collect()
                }
            };
            // Of one channel a sum over tokens may be next to nothing beside its terms.
            let d_inner = rng.pick(&[7, 13, 16, 64, 129, 132, 200]);
            let d_conv = rng.pick(&[1, 2, 3, 4, 4, 4, 5, 16]);
            one_conv(cuda, rng, dtype, &lengths, d_inner, d_conv);
        }
    }
}

fn one_conv(cuda: &mut Cuda, rng: &mut Rng, dtype: DType, lengths: &[usize], d_inner: usize, d_conv: usize) {
    let what = format!("{} d_inner {d_inner}, d_conv {d_conv}, lengths {lengths:?}", dtype.name());
    // Slots backwards, others between them.
    let mut batch = Batch::new();
    for (i, length) in lengths.iter().enumerate() {
        batch.push(&vec![0; *length], 2 * (lengths.len() - i) - 1, rng.size(0, 2) == 0);
    }
    let (tokens, slots, elements) = (batch.tokens(), 2 * lengths.len() + 1, (d_conv - 1) * d_inner);
    let layout = slot_layout(rng, elements);
    let at = |s: usize| {
        let begin = batch.slots[s] * layout.1 + layout.0;
        begin..begin + elements
    };
    let x = Strided::random(cuda, rng, tokens, d_inner, 2.0);
    let out_grad = Strided::random(cuda, rng, tokens, d_inner, 1.0);
    let weight = rng.floats(d_conv * d_inner, 1.0);
    let bias = (rng.size(0, 1) == 0).then(|| rng.floats(d_inner, 1.0));
    let mut initial = rng.floats(slots * layout.1, 2.0);
    for s in (0..lengths.len()).filter(|s| batch.fresh[*s]) {
        initial[at(s)].fill(f32::NAN); // not read
    }
    let last_grad = rng.floats(slots * layout.1, 1.0);
    let [has_initial, has_last, wants_initial] = [(); 3].map(|()| rng.size(0, 2) > 0);
    let seed = rng.next();

    let plan = cuda.plan(&batch).unwrap();
    let [x_grad, weight_grad, bias_grad, initial_grad] = twice(&what, || {
        let mut x_grad = Strided::unwritten(cuda, &mut Rng(seed), tokens, d_inner);
        let (mut weight_grad, mut bias_grad) = (nans(cuda, weight.len()), nans(cuda, d_inner));
        let mut initial_grad = nans(cuda, initial.len());
        let weight_buffer = buffer(cuda, &weight);
        let bias_buffer = bias.as_ref().map(|bias| buffer(cuda, bias));
        let (mut before, mut after) = (buffer(cuda, &initial), buffer(cuda, &last_grad));
        let op = causal_conv1d::Backward {
            x: rows(x.view()),
            weight: &weight_buffer,
            bias: bias_buffer.as_ref(),
            d_conv,
            initial_state: has_initial.then_some(&mut before).map(|buffer| states(buffer, layout)),
            out_grad: rows(out_grad.view()),
            last_state_grad: has_last.then_some(&mut after).map(|buffer| states(buffer, layout)),
            x_grad: rows_mut(x_grad.view_mut()),
            weight_grad: &mut weight_grad,
            bias_grad: bias.is_some().then_some(&mut bias_grad),
            initial_state_grad: wants_initial
                .then_some(&mut initial_grad)
                .map(|buffer| states(buffer, layout)),
        };
        causal_conv1d::backward(cuda.device(), &plan, op).unwrap();
        x_grad.fetch(cuda);
        assert!(x_grad.gaps_are_nan(), "{what}");
        [
            x_grad.all(),
            read(cuda, &weight_grad, weight.len()),
            read(cuda, &bias_grad, d_inner),
            read(cuda, &initial_grad, initial.len()),
        ]
    });

    let mut exact_x = Vec::new();
    let (mut exact_weight, mut exact_bias) = (vec![0.0; weight.len()], vec![0.0; d_inner]);
    let (mut actual_initial, mut exact_initial) = (Vec::new(), Vec::new());
    let mut used = vec![false; initial.len()];
    for s in 0..lengths.len() {
        let (from, to) = (batch.cu_seqlens[s], batch.cu_seqlens[s + 1]);
        let state =
            |there: bool, values: &[f32]| if there { wide(&values[at(s)]) } else { vec![0.0; elements] };
        let grads = ops::causal_conv1d::reference::causal_conv1d_backward(
            &wide(&x.rows(from, to)),
            &wide(&weight),
            bias.as_ref().map(|bias| wide(bias)).as_deref(),
            &state(has_initial && !batch.fresh[s], &initial),
            &wide(&out_grad.rows(from, to)),
            &state(has_last, &last_grad),
            d_inner,
        );
        exact_x.extend(grads.x);
        add(&mut exact_weight, &grads.weight);
        if let Some(bias) = grads.bias {
            add(&mut exact_bias, &bias);
        }
        if wants_initial {
            actual_initial.extend_from_slice(&initial_grad[at(s)]);
            // What begins at zero does not depend on what its slot holds.
            exact_initial.extend(if batch.fresh[s] { vec![0.0; elements] } else { grads.window });
            used[at(s)].fill(true);
        }
    }
    hold(&format!("dx, {what}"), &x_grad, &exact_x, dtype);
    hold(&format!("dweight, {what}"), &weight_grad, &exact_weight, DType::F32);
    if bias.is_some() {
        hold(&format!("dbias, {what}"), &bias_grad, &exact_bias, DType::F32);
    }
    hold(&format!("dstate, {what}"), &actual_initial, &exact_initial, DType::F32);
    assert!((0..used.len()).all(|i| used[i] || initial_grad[i].is_nan()), "another slot was touched: {what}");
}

#[test]
fn causal_conv1d_takes_so_many_sequences_and_refuses_more() {
    let (cuda, rng) = (&mut Cuda::new(DType::F32).unwrap(), &mut Rng(32));
    let (d_inner, d_conv) = (4, 4);
    let weight = rng.floats(d_conv * d_inner, 1.0);
    let weight_buffer = buffer(cuda, &weight);
    for (sequences, fits) in [(60_000, true), (70_000, false)] {
        let cu_seqlens: Vec<usize> = (0..=sequences).collect();
        let slots = &cu_seqlens[..sequences];
        let batch =
            cuda.device().batch(&vec![0; sequences], &cu_seqlens, slots, &vec![true; sequences]).unwrap();
        let x = Strided::random(cuda, rng, sequences, d_inner, 2.0);
        let mut out = Strided::unwritten(cuda, rng, sequences, d_inner);
        let mut x_grad = Strided::unwritten(cuda, rng, sequences, d_inner);
        let mut weight_grad = nans(cuda, weight.len());
        let forward = causal_conv1d::Forward {
            x: rows(x.view()),
            weight: &weight_buffer,
            bias: None,
            d_conv,
            state: None,
            out: rows_mut(out.view_mut()),
        };
        let forward = causal_conv1d::forward(cuda.device(), &batch, forward);
        // x as the gradient of out.
        let backward = causal_conv1d::Backward {
            x: rows(x.view()),
            weight: &weight_buffer,
            bias: None,
            d_conv,
            initial_state: None,
            out_grad: rows(x.view()),
            last_state_grad: None,
            x_grad: rows_mut(x_grad.view_mut()),
            weight_grad: &mut weight_grad,
            bias_grad: None,
            initial_state_grad: None,
        };
        let backward = causal_conv1d::backward(cuda.device(), &batch, backward);
        if !fits {
            for result in [forward, backward] {
                assert!(matches!(result, Err(Error::Unsupported { value: 70_001.., .. })), "{result:?}");
            }
            continue;
        }
        forward.unwrap();
        backward.unwrap();
        out.fetch(cuda);
        x_grad.fetch(cuda);
        let (mut exact, mut exact_x) = (Vec::new(), Vec::new());
        let mut exact_weight = vec![0.0; weight.len()];
        let (weight, zeros) = (wide(&weight), vec![0.0; (d_conv - 1) * d_inner]);
        for s in 0..sequences {
            use ops::causal_conv1d::reference as conv;
            let x = wide(&x.rows(s, s + 1));
            exact.extend(conv::causal_conv1d(&x, &weight, None, &mut zeros.clone(), d_inner));
            let grads = conv::causal_conv1d_backward(&x, &weight, None, &zeros, &x, &zeros, d_inner);
            exact_x.extend(grads.x);
            add(&mut exact_weight, &grads.weight);
        }
        hold("out", &out.all(), &exact, DType::F32);
        hold("dx", &x_grad.all(), &exact_x, DType::F32);
        hold("dweight", &read(cuda, &weight_grad, exact_weight.len()), &exact_weight, DType::F32);
    }
}

#[test]
fn norm_backward() {
    const EPS: f32 = 1e-5;
    for dtype in DTYPES {
        let (cuda, rng) = (&mut Cuda::new(dtype).unwrap(), &mut Rng(33));
        // Fewer rows than blocks and more, rows of one tile and of several. Of fewer than five channels the gradient is
        // what is left of terms that nearly cancel.
        let shapes = [
            (0, 16),
            (1, 768),
            (3, 13),
            (37, 5),
            (40, 33),
            (2, 300),
            (9, 4099),
            (300, 4200),
            (3000, 256),
            (600, 72),
        ];
        for (round, (tokens, d_model)) in shapes.into_iter().cycle().take(4 * shapes.len()).enumerate() {
            let kind = if round / shapes.len() % 2 == 0 { NormKind::Rms } else { NormKind::Layer };
            let what = format!("{} {kind:?} {tokens} x {d_model}", dtype.name());
            let residual = Strided::f32(cuda, rng, tokens, d_model, 3.0);
            let out_grad = Strided::random(cuda, rng, tokens, d_model, 1.0);
            let above = rng.floats(tokens * d_model, 1.0);
            let weight: Vec<f32> = rng.floats(d_model, 0.5).iter().map(|w| 1.0 + w).collect();
            let [last, wants_delta, wants_bias] = [(); 3].map(|()| rng.size(0, 1) == 0);
            let seed = rng.next();
            let [residual_grad, delta_grad, weight_grad, bias_grad] = twice(&what, || {
                let layout = &mut Rng(seed);
                let mut residual_grad = Strided::unwritten_f32(cuda, layout, tokens, d_model);
                if !last {
                    residual_grad.put(cuda, &above);
                }
                let mut delta_grad = Strided::unwritten(cuda, layout, tokens, d_model);
                let (mut weight_grad, mut bias_grad) = (nans(cuda, d_model), nans(cuda, d_model));
                let op = norm::Backward {
                    layer: kind == NormKind::Layer,
                    eps: EPS,
                    weight: &buffer(cuda, &weight),
                    residual: rows(residual.view()),
                    out_grad: rows(out_grad.view()),
                    residual_grad: rows_mut(residual_grad.view_mut()),
                    last,
                    delta_grad: wants_delta.then(|| rows_mut(delta_grad.view_mut())),
                    weight_grad: &mut weight_grad,
                    bias_grad: wants_bias.then_some(&mut bias_grad),
                };
                norm::backward(cuda.device(), op).unwrap();
                residual_grad.fetch(cuda);
                delta_grad.fetch(cuda);
                assert!(residual_grad.gaps_are_nan() && delta_grad.gaps_are_nan(), "{what}");
                [
                    residual_grad.all(),
                    delta_grad.all(),
                    read(cuda, &weight_grad, d_model),
                    read(cuda, &bias_grad, d_model),
                ]
            });

            let (residual, out_grad) = (wide(&residual.all()), wide(&out_grad.all()));
            let mut exact = if last { vec![0.0; above.len()] } else { wide(&above) };
            let (mut exact_weight, mut exact_bias) = (vec![0.0; d_model], vec![0.0; d_model]);
            let pairs = residual.chunks(d_model).zip(out_grad.chunks(d_model));
            for ((x, out_grad), sum) in pairs.zip(exact.chunks_mut(d_model)) {
                let grads =
                    ops::norm::reference::norm_backward(kind, x, &wide(&weight), f64::from(EPS), out_grad);
                add(sum, &grads.x);
                add(&mut exact_weight, &grads.weight);
                add(&mut exact_bias, &grads.bias);
            }
            hold(&format!("dresidual, {what}"), &residual_grad, &exact, DType::F32);
            if wants_delta {
                hold(&format!("ddelta, {what}"), &delta_grad, &exact, dtype);
            }
            hold(&format!("dweight, {what}"), &weight_grad, &exact_weight, DType::F32);
            if wants_bias {
                hold(&format!("dbias, {what}"), &bias_grad, &exact_bias, DType::F32);
            }
        }
    }
}

#[test]
fn embedding_backward() {
    let (cuda, rng) = (&mut Cuda::new(DType::F32).unwrap(), &mut Rng(34));
    for (tokens, vocab, d_model) in [
        (0, 5, 8),
        (1, 1, 40),
        (63, 2, 40),
        (64, 1, 8),
        (65, 5, 13),
        (129, 300, 40),
        (1000, 300, 13),
        (9001, 5, 40),
        (5000, 300, 770),
        (4096, 50_000, 16),
    ] {
        // Evenly spread, and small ids more often, as words are.
        for skew in [1, 4] {
            let what = format!("{tokens} of {vocab} x {d_model}, skew {skew}");
            let id = |rng: &mut Rng| {
                let u = f64::from(rng.float(0.5)) + 0.5;
                ((u.powi(skew) * vocab as f64) as u32).min(vocab as u32 - 1)
            };
            let ids: Vec<u32> = (0..tokens).map(|_| id(rng)).collect();
            let out_grad = Strided::f32(cuda, rng, tokens, d_model, 1.0);
            let before = rng.floats(vocab * d_model, 1.0);
            let mut table_grad = Strided::unwritten_f32(cuda, rng, vocab, d_model);
            let [actual] = twice(&what, || {
                table_grad.put(cuda, &before);
                let to = rows_mut(table_grad.view_mut());
                embedding::backward(cuda.device(), &ids, rows(out_grad.view()), to).unwrap();
                table_grad.fetch(cuda);
                assert!(table_grad.gaps_are_nan(), "{what}");
                [table_grad.all()]
            });
            let mut exact = wide(&before);
            let out_grad = wide(&out_grad.all());
            add(&mut exact, &ops::embedding::reference::embedding_backward(&ids, &out_grad, vocab, d_model));
            hold(&what, &actual, &exact, DType::F32);
            let mut used = vec![false; vocab];
            ids.iter().for_each(|id| used[*id as usize] = true);
            let untouched = |i: usize| used[i / d_model] || actual[i].to_bits() == before[i].to_bits();
            assert!((0..actual.len()).all(untouched), "a row of no token was touched: {what}");
        }
    }
}

fn dense(buffer: &Buffer, rows: usize, cols: usize) -> Rows<'_> {
    Rows { buffer, offset: 0, rows, cols, stride: cols }
}

fn dense_mut(buffer: &mut Buffer, rows: usize, cols: usize) -> RowsMut<'_> {
    RowsMut { buffer, offset: 0, rows, cols, stride: cols }
}

/// A launch takes 262,140 rows, or 4,194,240 tokens of the gradient.
#[test]
fn more_rows_than_a_launch_takes() {
    let (cuda, rng) = (&mut Cuda::new(DType::F32).unwrap(), &mut Rng(35));
    let (count, vocab, d_model) = (262_140 + 77, 1000, 3);
    let ids: Vec<u32> = (0..count).map(|_| rng.size(0, vocab - 1) as u32).collect();
    let table = rng.floats(vocab * d_model, 1.0);
    let expected: Vec<f32> =
        ids.iter().flat_map(|id| &table[*id as usize * d_model..][..d_model]).copied().collect();
    let weight = Weight { values: buffer(cuda, &table), outputs: vocab, inputs: d_model };
    let mut out = nans(cuda, count * d_model);
    let batch = cuda.device().batch(&ids, &[0, count], &[0], &[true]).unwrap();
    embedding::embedding(cuda.device(), &batch, &weight, dense_mut(&mut out, count, d_model)).unwrap();
    assert!(read(cuda, &out, count * d_model) == expected);
    let mut out = nans(cuda, count * d_model);
    let from = dense(&weight.values, vocab, d_model);
    embedding::gather(cuda.device(), from, &ids, dense_mut(&mut out, count, d_model)).unwrap();
    assert!(read(cuda, &out, count * d_model) == expected);

    // By id, the first launch ends amid the 41 tokens of one.
    let (count, vocab) = (4_194_240 + 1000, 100_000);
    let ids: Vec<u32> = (0..count).map(|t| (t % vocab) as u32).collect();
    let out_grad = rng.floats(count * d_model, 1.0);
    let out_grad_buffer = buffer(cuda, &out_grad);
    let mut table_grad = buffer(cuda, &vec![0.0; vocab * d_model]);
    let from = dense(&out_grad_buffer, count, d_model);
    embedding::backward(cuda.device(), &ids, from, dense_mut(&mut table_grad, vocab, d_model)).unwrap();
    let exact = ops::embedding::reference::embedding_backward(&ids, &wide(&out_grad), vocab, d_model);
    hold("the table", &read(cuda, &table_grad, vocab * d_model), &exact, DType::F32);
    // One row's tokens that were left out would not be seen in the whole.
    let border = (vocab - 1 - 1000 / 41) * d_model..vocab * d_model;
    hold(
        "at the border",
        &read(cuda, &table_grad, vocab * d_model)[border.clone()],
        &exact[border],
        DType::F32,
    );
}

#[test]
fn cross_entropy_with_its_gradient() {
    use ops::cross_entropy::reference;
    const SCALE: f32 = 0.37;
    for dtype in DTYPES {
        let (cuda, rng) = (&mut Cuda::new(dtype).unwrap(), &mut Rng(36));
        for (rows_, vocab) in
            [(0, 5), (1, 1), (4, 7), (9, 8), (9, 511), (5, 4096), (4, 20_001), (3, 50_280), (4, 8203)]
        {
            let what = format!("{} {rows_} x {vocab}", dtype.name());
            let target = |r: usize| match r % 4 {
                2 => -1,
                3 => vocab as i32 - 1,
                _ => rng.size(0, vocab - 1) as i32,
            };
            let targets: Vec<i32> = (0..rows_).map(target).collect();
            let mut logits = Strided::unwritten(cuda, rng, rows_, vocab);
            let values = rng.floats(rows_ * vocab, 6.0);
            logits.put(cuda, &values);
            let given = logits.all();
            let [loss, gradient] = twice(&what, || {
                let [mut loss, mut same_loss] = [(); 2].map(|()| nans(cuda, rows_));
                logits.put(cuda, &values);
                let device = cuda.device();
                cross_entropy::forward(device, rows(logits.view()), &targets, &mut loss).unwrap();
                logits.fetch(cuda);
                assert!(bits(&logits.all()) == bits(&given), "the logits are no more as they were: {what}");
                let device = cuda.device();
                let to = rows_mut(logits.view_mut());
                cross_entropy::forward_backward(device, to, &targets, SCALE, 0.0, &mut same_loss).unwrap();
                logits.fetch(cuda);
                assert!(logits.gaps_are_nan(), "{what}");
                let loss = read(cuda, &loss, rows_);
                assert!(bits(&loss) == bits(&read(cuda, &same_loss, rows_)), "{what}");
                [loss, logits.all()]
            });
            let given = wide(&given);
            hold(&what, &loss, &reference::cross_entropy(&given, &targets, vocab, 0.0), DType::F32);
            let exact = reference::cross_entropy_backward(&given, &targets, vocab, 0.0, f64::from(SCALE));
            hold(&what, &gradient, &exact, dtype);

            const Z_LOSS: f32 = 0.1;
            logits.put(cuda, &values);
            let mut loss = nans(cuda, rows_);
            let to = rows_mut(logits.view_mut());
            let device = cuda.device();
            cross_entropy::forward_backward(device, to, &targets, SCALE, Z_LOSS, &mut loss).unwrap();
            logits.fetch(cuda);
            let (scale, z_loss) = (f64::from(SCALE), f64::from(Z_LOSS));
            let exact = reference::cross_entropy(&given, &targets, vocab, z_loss);
            hold(&what, &read(cuda, &loss, rows_), &exact, DType::F32);
            let exact = reference::cross_entropy_backward(&given, &targets, vocab, z_loss, scale);
            hold(&what, &logits.all(), &exact, dtype);
        }
        // What is no number is not hidden; −∞ is the logit of what cannot be.
        for (logit, finite) in [(f32::NAN, false), (f32::INFINITY, false), (f32::NEG_INFINITY, true)] {
            let mut logits = Strided::unwritten(cuda, rng, 1, 100);
            let mut values = rng.floats(100, 2.0);
            values[7] = logit;
            logits.put(cuda, &values);
            let mut loss = buffer(cuda, &[if finite { f32::NAN } else { 0.0 }]);
            cross_entropy::forward(cuda.device(), rows(logits.view()), &[3], &mut loss).unwrap();
            let loss = read(cuda, &loss, 1)[0];
            assert!(if finite { loss.is_finite() } else { loss.is_nan() }, "{logit}: {loss}");
        }
    }
}

/// Longer than the two pinned pieces together, so that the first is filled again.
#[test]
fn buffers_are_filled_piece_by_piece_and_copied() {
    let mut cuda = Cuda::new(DType::F32).unwrap();
    let values: Vec<f32> = (0..7_000_003).map(|i| i as f32 * 0.25).collect();
    let mut filled = nans(&mut cuda, 2 * values.len());
    let mut next = 0;
    let fill = |at: usize, bytes: &mut [u8]| -> Result<(), ()> {
        assert_eq!(at, next);
        next += bytes.len();
        for (i, bytes) in bytes.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&values[(at / 4 + i) % values.len()].to_ne_bytes());
        }
        Ok(())
    };
    cuda.device().fill(&mut filled, fill).unwrap().unwrap();
    assert_eq!(next, 4 * filled.len());
    let mut back = vec![0.0; values.len()];
    for half in [0, values.len()] {
        cuda.read(&filled, half, &mut back).unwrap();
        assert!(bits(&back) == bits(&values));
    }
    cuda.copy_within(&mut filled, 5, 1_000_000, 900_000).unwrap();
    cuda.read(&filled, 0, &mut back).unwrap();
    assert!(back[1_000_000..1_900_000] == values[5..900_005] && back[1_900_000..] == values[1_900_000..]);
    let stopped = cuda.device().fill(&mut filled, |_, _| Err("no such file"));
    assert_eq!(stopped.unwrap(), Err("no such file"));
}
