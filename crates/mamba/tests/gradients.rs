//! The gradients in every `reference.rs`, against finite differences in f64, and the scan's against the official
//! implementation's float64 ones.

mod common;

use common::{Rng, Truth, relative_l2, wide};
use mamba::config::NormKind;
use mamba::ops::causal_conv1d::reference as conv;
use mamba::ops::cross_entropy::reference as cross_entropy;
use mamba::ops::embedding::reference as embedding;
use mamba::ops::linear::reference as linear;
use mamba::ops::logprobs::reference as logprobs;
use mamba::ops::norm::reference as norm;
use mamba::ops::selective_scan::reference as scan;

fn randoms(rng: &mut Rng, n: usize) -> Vec<f64> {
    wide(&rng.floats(n, 1.0))
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Holds the gradients of `loss` by its inputs against central differences, element by element. A central
/// difference over 2e-5 is off by about 1e-10 of the loss (rounding) and of its third derivative.
fn check<const N: usize>(
    what: &str,
    inputs: [(&str, Vec<f64>); N],
    gradients: [&[f64]; N],
    loss: impl Fn(&[Vec<f64>; N]) -> f64,
) {
    const STEP: f64 = 1e-5;
    let names = inputs.each_ref().map(|(name, _)| *name);
    let mut values = inputs.map(|(_, values)| values);
    for i in 0..N {
        assert_eq!(gradients[i].len(), values[i].len(), "{what}: {}", names[i]);
        for j in 0..values[i].len() {
            let x = values[i][j];
            values[i][j] = x + STEP;
            let above = loss(&values);
            values[i][j] = x - STEP;
            let difference = (above - loss(&values)) / (2.0 * STEP);
            values[i][j] = x;
            let error = (gradients[i][j] - difference).abs();
            assert!(
                error < 1e-8 * (1.0 + difference.abs()),
                "{what}: by {}[{j}] {} instead of {difference}",
                names[i],
                gradients[i][j]
            );
        }
    }
}

#[test]
fn selective_scan() {
    let rng = &mut Rng(11);
    for (length, d_inner, d_state, full) in
        [(0, 2, 3, true), (1, 3, 1, true), (6, 3, 4, true), (5, 2, 3, false)]
    {
        let inputs = [
            ("u", randoms(rng, length * d_inner)),
            ("delta", randoms(rng, length * d_inner)),
            ("A", randoms(rng, d_state * d_inner).iter().map(|x| x - 1.5).collect()),
            ("B", randoms(rng, length * d_state)),
            ("C", randoms(rng, length * d_state)),
            ("initial_state", randoms(rng, d_state * d_inner)),
            ("D", randoms(rng, d_inner)),
            ("delta_bias", randoms(rng, d_inner)),
            ("z", randoms(rng, length * d_inner)),
        ];
        let y_grad = randoms(rng, length * d_inner);
        let last_grad = randoms(rng, d_state * d_inner);
        // Without D, delta_bias and z (and softplus) the loss does not depend on the last three.
        let arguments = |[u, delta, a, b, c, _, d, bias, z]: [&[f64]; 9],
                         run: &mut dyn FnMut(scan::Inputs)| {
            run(scan::Inputs {
                u,
                delta,
                delta_bias: full.then_some(bias),
                a,
                b,
                c,
                d: full.then_some(d),
                z: full.then_some(z),
                d_inner,
                d_state,
            });
        };
        let mut grads = None;
        arguments(inputs.each_ref().map(|(_, x)| &x[..]), &mut |arguments| {
            grads = Some(scan::selective_scan_backward(arguments, &inputs[5].1, &y_grad, &last_grad));
        });
        let grads = grads.unwrap();
        let zeros = vec![0.0; length * d_inner + d_inner];
        let or_zero = |grads: &Option<Vec<f64>>, len: usize| {
            assert_eq!(grads.is_some(), full);
            grads.clone().unwrap_or_else(|| zeros[..len].to_vec())
        };
        let (d, bias) = (or_zero(&grads.d, d_inner), or_zero(&grads.delta_bias, d_inner));
        let z = or_zero(&grads.z, length * d_inner);
        let all: [&[f64]; 9] =
            [&grads.u, &grads.delta, &grads.a, &grads.b, &grads.c, &grads.initial_state, &d, &bias, &z];
        check(&format!("scan {length}×{d_inner}×{d_state}"), inputs, all, |values| {
            let mut h = values[5].clone();
            let mut loss = 0.0;
            arguments(values.each_ref().map(|x| &x[..]), &mut |arguments| {
                loss = dot(&scan::selective_scan(arguments, &mut h), &y_grad);
            });
            loss + dot(&h, &last_grad)
        });
    }
}

/// Against the official implementation in float64, whose results the files hold rounded to float32; packed
/// sequences one by one.
#[test]
fn selective_scan_official() {
    for name in ["len1", "len7", "state8", "plain", "initial_state", "packed"] {
        let truth = Truth::scan(name);
        let [.., dim, d_state] = truth.shape("A")[..] else { panic!("A") };
        let full = truth.has("z");
        let cu_seqlens = truth.cu_seqlens();
        let states_size = d_state * dim;
        let zeros = vec![0.0; (cu_seqlens.len() - 1) * states_size];
        let states_or_zeros =
            |tensor: &str| if truth.has(tensor) { truth.states(tensor) } else { zeros.clone() };
        let (initial, last_grad) = (states_or_zeros("h0"), states_or_zeros("dlast_state"));
        let [u, delta, b, c, y_grad] = ["u", "delta", "B", "C", "dy"].map(|tensor| truth.tokens(tensor));
        let z = full.then(|| truth.tokens("z"));
        let (bias, d) = (full.then(|| wide(&truth.floats("bias"))), full.then(|| wide(&truth.floats("D"))));
        let a = wide(&truth.states("A"));

        // By token these are one after the other; by parameter they add up.
        let mut by_token: [Vec<f64>; 6] = Default::default();
        let mut by_parameter = [vec![0.0; states_size], vec![0.0; dim], vec![0.0; dim]];
        for (s, range) in cu_seqlens.windows(2).enumerate() {
            let part = |x: &[f32], width: usize| wide(&x[range[0] * width..range[1] * width]);
            let state = |x: &[f32]| wide(&x[s * states_size..(s + 1) * states_size]);
            let z = z.as_ref().map(|z| part(z, dim));
            let inputs = scan::Inputs {
                u: &part(&u, dim),
                delta: &part(&delta, dim),
                delta_bias: bias.as_deref(),
                a: &a,
                b: &part(&b, d_state),
                c: &part(&c, d_state),
                d: d.as_deref(),
                z: z.as_deref(),
                d_inner: dim,
                d_state,
            };
            let grads = scan::selective_scan_backward(
                inputs,
                &state(&initial),
                &part(&y_grad, dim),
                &state(&last_grad),
            );
            let parts = [
                Some(grads.u),
                Some(grads.delta),
                Some(grads.b),
                Some(grads.c),
                grads.z,
                Some(grads.initial_state),
            ];
            for (all, part) in by_token.iter_mut().zip(parts) {
                all.extend(part.unwrap_or_default());
            }
            for (all, part) in by_parameter.iter_mut().zip([Some(grads.a), grads.d, grads.delta_bias]) {
                all.iter_mut().zip(part.unwrap_or_default()).for_each(|(sum, x)| *sum += x);
            }
        }
        let hold = |tensor: &str, grads: &[f64], expected: Vec<f32>| {
            let narrow: Vec<f32> = grads.iter().map(|x| *x as f32).collect();
            let error = relative_l2(&narrow, &wide(&expected));
            assert!(error < 1e-7, "{name}: {tensor} {error:.2e}");
        };
        for (tensor, grads) in ["du", "ddelta", "dB", "dC", "dz"].into_iter().zip(&by_token) {
            if truth.has(tensor) {
                hold(tensor, grads, truth.tokens(tensor));
            }
        }
        assert_eq!(truth.has("dh0"), matches!(name, "initial_state" | "packed"));
        if truth.has("dh0") {
            hold("dh0", &by_token[5], truth.states("dh0"));
        }
        hold("dA", &by_parameter[0], truth.states("dA"));
        if full {
            hold("dD", &by_parameter[1], truth.floats("dD"));
            hold("dbias", &by_parameter[2], truth.floats("dbias"));
        }
    }
}

#[test]
fn causal_conv1d() {
    let rng = &mut Rng(12);
    let d_inner = 3;
    for (length, d_conv, with_bias) in [(0, 4, true), (1, 4, true), (6, 4, true), (5, 3, false), (4, 1, true)]
    {
        let inputs = [
            ("x", randoms(rng, length * d_inner)),
            ("weight", randoms(rng, d_conv * d_inner)),
            ("window", randoms(rng, (d_conv - 1) * d_inner)),
            ("bias", randoms(rng, d_inner)),
        ];
        let out_grad = randoms(rng, length * d_inner);
        let last_grad = randoms(rng, (d_conv - 1) * d_inner);
        let [x, weight, window, bias] = inputs.each_ref().map(|(_, x)| &x[..]);
        let bias = with_bias.then_some(bias);
        let grads = conv::causal_conv1d_backward(x, weight, bias, window, &out_grad, &last_grad, d_inner);
        assert_eq!(grads.bias.is_some(), with_bias);
        let bias_grad = grads.bias.unwrap_or_else(|| vec![0.0; d_inner]);
        let all: [&[f64]; 4] = [&grads.x, &grads.weight, &grads.window, &bias_grad];
        check(&format!("conv {length}, {d_conv} wide"), inputs, all, |[x, weight, window, bias]| {
            let mut window = window.clone();
            let bias = with_bias.then_some(&bias[..]);
            let out = conv::causal_conv1d(x, weight, bias, &mut window, d_inner);
            dot(&out, &out_grad) + dot(&window, &last_grad)
        });
    }
}

/// As in `add_norm`: the residual after the addition goes on, too.
#[test]
fn add_norm() {
    let rng = &mut Rng(13);
    for kind in [NormKind::Rms, NormKind::Layer] {
        for d_model in [1, 2, 7] {
            let eps = 1e-2;
            let inputs = [
                ("residual", randoms(rng, d_model)),
                ("delta", randoms(rng, d_model)),
                ("weight", randoms(rng, d_model)),
                ("bias", randoms(rng, d_model)),
            ];
            let (out_grad, residual_grad) = (randoms(rng, d_model), randoms(rng, d_model));
            let add = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x + y).collect::<Vec<_>>();
            let sum = add(&inputs[0].1, &inputs[1].1);
            let grads = norm::norm_backward(kind, &sum, &inputs[2].1, eps, &out_grad);
            let sum_grad = add(&grads.x, &residual_grad);
            let all: [&[f64]; 4] = [&sum_grad, &sum_grad, &grads.weight, &grads.bias];
            check(&format!("{kind:?} {d_model}"), inputs, all, |[residual, delta, weight, bias]| {
                let sum = add(residual, delta);
                dot(&norm::norm(kind, &sum, weight, Some(bias), eps), &out_grad) + dot(&sum, &residual_grad)
            });
        }
    }
}

#[test]
fn embedding() {
    let rng = &mut Rng(14);
    let (vocab, d_model, ids) = (5, 3, [2, 0, 2, 4, 2]);
    let out_grad = randoms(rng, ids.len() * d_model);
    let grads = embedding::embedding_backward(&ids, &out_grad, vocab, d_model);
    check("embedding", [("table", randoms(rng, vocab * d_model))], [&grads], |[table]| {
        dot(&embedding::embedding(table, &ids, d_model), &out_grad)
    });
}

#[test]
fn linear() {
    let rng = &mut Rng(15);
    let (tokens, inputs, outputs) = (3, 4, 5);
    let values = [
        ("x", randoms(rng, tokens * inputs)),
        ("weight", randoms(rng, outputs * inputs)),
        ("bias", randoms(rng, outputs)),
    ];
    let out_grad = randoms(rng, tokens * outputs);
    let grads = linear::linear_backward(&values[0].1, &values[1].1, &out_grad, inputs);
    check("linear", values, [&grads.x, &grads.weight, &grads.bias], |[x, weight, bias]| {
        dot(&linear::linear(x, weight, Some(bias), inputs), &out_grad)
    });
}

#[test]
fn token_logprob() {
    let rng = &mut Rng(16);
    let logits = randoms(rng, 6);
    let grads = logprobs::token_logprob_backward(&logits, 4);
    check("token_logprob", [("logits", logits)], [&grads], |[logits]| logprobs::token_logprob(logits, 4));
}

#[test]
fn cross_entropy() {
    let rng = &mut Rng(17);
    let (vocab, targets, scale) = (6, [3, -1, 0, 5], 0.25);
    for z_loss in [0.0, 0.1] {
        let logits = randoms(rng, targets.len() * vocab);
        let grads = cross_entropy::cross_entropy_backward(&logits, &targets, vocab, z_loss, scale);
        check("cross_entropy", [("logits", logits)], [&grads], |[logits]| {
            let losses = cross_entropy::cross_entropy(logits, &targets, vocab, z_loss);
            assert_eq!(losses[1], 0.0);
            scale * losses.iter().sum::<f64>()
        });
    }
}
