//! The model and the scan against the official implementation's numbers (`tests/reference/README.md`).

mod common;

use common::model::{Runner, alone, mean, packed, texts};
use common::ops::{OFFICIAL_SCANS, official_scan};
use common::{Truth, relative_l2, wide};
use mamba::DType;
use mamba::cpu::Cpu;
use mamba::cpu::simd::Level;
use mamba::ops::selective_scan::reference;

fn runner(dtype: DType, threads: usize, level: Level) -> Runner<Cpu> {
    Runner::new(Cpu::with_level(threads, level).unwrap(), dtype)
}

fn f32_runner() -> Runner<Cpu> {
    runner(DType::F32, 2, Level::detect())
}

#[test]
fn logits_and_hidden_states() {
    let truth = Truth::novels();
    for level in Level::available() {
        let worst = runner(DType::F32, 2, level).logits_and_hidden_states(&truth);
        println!("{}: worst relative error of logits and hidden states {worst:.2e}", level.name());
        assert!(worst < 1e-5, "{worst}");
    }
}

#[test]
fn states_of_every_layer() {
    let worst = f32_runner().states_of_every_layer(&Truth::novels());
    println!("worst relative error of a layer's state: {worst:.2e}");
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn greedy_continuations() {
    f32_runner().greedy_continuations(&Truth::novels());
}

#[test]
fn validation_loss_in_every_dtype() {
    let truth = Truth::novels();
    let expected = truth.floats("val.nll");
    for dtype in DType::ALL {
        let nll = runner(dtype, 2, Level::detect()).validation(&truth);
        let worst = nll.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (ours, official) = (mean(&nll), mean(&expected));
        println!("{}: mean nll {ours:.7}, official {official:.7}, worst token {worst:.2e}", dtype.name());
        match dtype {
            DType::F32 => assert!((ours - official).abs() < 2e-5 && worst < 1e-3),
            // The checkpoint's matrices are bf16, so bf16 weights lose nothing; f16 rounds them.
            DType::BF16 => assert!((ours / official - 1.0).abs() < 0.002 && worst < 1e-3),
            DType::F16 => assert!((ours / official - 1.0).abs() < 0.002),
            DType::Q8_0 => assert!((ours / official - 1.0).abs() < 0.001),
            DType::Q4K => assert!((ours / official - 1.0).abs() < 0.025),
        }
    }
}

#[test]
fn chunked_and_stepped_equal_whole_to_the_bit() {
    f32_runner().chunked(&Truth::novels(), |what, whole, chunked| assert_eq!(whole, chunked, "{what}"));
}

#[test]
fn packed_equals_one_by_one_to_the_bit_on_any_number_of_threads() {
    let texts = texts(&Truth::novels());
    let expected = alone(&mut runner(DType::F32, 1, Level::detect()), &texts);
    for threads in [1, 2, 5] {
        let packed = packed(&mut runner(DType::F32, threads, Level::detect()), &texts);
        assert_eq!(packed, expected, "{threads} threads");
    }
}

#[test]
fn selective_scan() {
    for level in Level::available() {
        let mut worst = 0.0f64;
        for name in OFFICIAL_SCANS {
            let (y, state) =
                official_scan(&mut Cpu::with_level(2, level).unwrap(), &Truth::scan(name)).unwrap();
            worst = worst.max(y).max(state);
            assert!(y < 1e-6 && state < 1e-6, "{name} on {level:?}: y {y:.2e}, last_state {state:.2e}");
        }
        println!("{}: worst relative error {worst:.2e}", level.name());
    }
}

/// reference.rs itself.
#[test]
fn definition_of_the_selective_scan() {
    for name in OFFICIAL_SCANS {
        let truth = Truth::scan(name);
        let [_, dim, _] = truth.shape("u")[..] else { panic!("u") };
        let d_state = truth.shape("A")[1];
        let full = truth.has("z");
        let cu_seqlens = truth.cu_seqlens();
        let [u, delta, b, c] = ["u", "delta", "B", "C"].map(|name| truth.tokens(name));
        let z = full.then(|| truth.tokens("z"));
        let [bias, d] = ["bias", "D"].map(|name| full.then(|| wide(&truth.floats(name))));
        let a = wide(&truth.states("A"));
        let initial = match truth.has("h0") {
            true => truth.states("h0"),
            false => vec![0.0; (cu_seqlens.len() - 1) * d_state * dim],
        };
        let (expected_y, expected_state) = (wide(&truth.tokens("y")), wide(&truth.states("last_state")));
        for (s, range) in cu_seqlens.windows(2).enumerate() {
            let part = |x: &[f32], width: usize| wide(&x[range[0] * width..range[1] * width]);
            let mut h = wide(&initial[s * d_state * dim..(s + 1) * d_state * dim]);
            let z = z.as_ref().map(|z| part(z, dim));
            let inputs = reference::Inputs {
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
            let y = reference::selective_scan(inputs, &mut h);
            // The file holds float64 results rounded to float32.
            let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
            assert!(relative_l2(&narrow(&y), &expected_y[range[0] * dim..range[1] * dim]) < 1e-7);
            assert!(
                relative_l2(&narrow(&h), &expected_state[s * d_state * dim..(s + 1) * d_state * dim]) < 1e-7
            );
        }
    }
}
