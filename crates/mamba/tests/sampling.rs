//! The sampler against tests/data/sampling.json: tokens that cuda/check/sampling.cu expects of the GPU's sampler, of
//! random logits and options. Its definition by sorted lists is a second one, so the two samplers are held together.

mod common;

use common::here;
use mamba::Error;
use mamba::generate::{Sampler, SamplerOptions};
use serde_json::Value;

/// `uniform` of cuda/check/harness.h.
fn uniform(i: u64, seed: u64) -> f32 {
    let mut x =
        (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 40) as f32 / 16_777_216.0
}

/// `random_logits` of cuda/check/sampling.cu.
fn random_logits(kind: u64, vocab: u64, seed: u64) -> Vec<f32> {
    let logit = |i| {
        let [a, b, c, d, .., u] = std::array::from_fn::<_, 8, _>(|k| uniform(i, seed * 16 + k as u64));
        let (n, u) = (1.7 * (a + b + c + d - 2.0), f64::from(u));
        match kind {
            0 => 3.0 * n,
            1 => match (4.0 * n).round() / 2.0 {
                0.0 if u < 0.5 => -0.0,
                x => x,
            },
            2 => 1.5,
            3 => 20.0 * n,
            4 if u < 0.1 => f32::NAN,
            4 if u < 0.2 => f32::NEG_INFINITY,
            4 if u > 0.9999 => f32::INFINITY,
            4 => 2.0 * n,
            5 if u < 0.5 => f32::NAN,
            5 => f32::NEG_INFINITY,
            _ => 1e38 * n,
        }
    };
    (0..vocab).map(logit).collect()
}

#[test]
fn the_gpu_chooses_the_same() {
    let file = std::fs::read(here("tests/data/sampling.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&file).unwrap();
    assert!(cases.len() > 70);
    for case in &cases {
        let number = |name: &str| case[name].as_u64().unwrap();
        let float = |name: &str| case[name].as_f64().unwrap() as f32;
        let list = |name: &str| case[name].as_array().unwrap().iter();
        let window: Vec<u32> = list("window").map(|id| id.as_u64().unwrap() as u32).collect();
        let options = SamplerOptions {
            temperature: float("temperature"),
            top_k: number("top_k") as u32,
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("repetition"),
            frequency_penalty: float("frequency"),
            presence_penalty: float("presence"),
            penalty_window: window.len(),
            seed: number("key"),
            logit_bias: list("bias")
                .map(|entry| (entry[0].as_u64().unwrap() as u32, entry[1].as_f64().unwrap() as f32))
                .collect(),
            logprobs: 0,
        };
        let mut logits = random_logits(number("kind"), number("vocab"), number("seed"));
        let sampled = Sampler::new(options, &window).sample(&mut logits, number("position"));
        match case["token"].as_u64() {
            Some(token) => {
                let sampled = sampled.unwrap();
                assert_eq!(u64::from(sampled.token), token, "{case}");
                let expected = float("logprob");
                let error = (sampled.logprob - expected).abs() / (1.0 + expected.abs());
                assert!(error < 3e-7, "{} instead of {case}", sampled.logprob);
            }
            None => assert!(matches!(sampled, Err(Error::LogitsNotFinite { .. })), "{case}"),
        }
    }
}
