//! Logits and options to sample with: those of tests/data/sampling.json, and random ones.

use mamba::generate::SamplerOptions;
use serde_json::Value;

use super::Rng;

/// `uniform` of cuda/check/harness.h.
fn uniform(i: u64, seed: u64) -> f32 {
    let mut x =
        (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 40) as f32 / 16_777_216.0
}

/// `random_logits` of cuda/check/sampling.cu.
pub fn random_logits(kind: u64, vocab: u64, seed: u64) -> Vec<f32> {
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

/// A row to choose from.
pub struct Case {
    pub logits: Vec<f32>,
    pub options: SamplerOptions,
    pub window: Vec<u32>,
    pub position: u64,
}

/// What a file's case expects; no token where no logit is finite.
pub struct Expected {
    pub token: Option<u32>,
    pub logprob: f32,
}

/// Those of tests/data/sampling.json.
pub fn cases() -> Vec<(Case, Expected)> {
    let cases: Vec<Value> = serde_json::from_slice(include_bytes!("../data/sampling.json")).unwrap();
    assert!(cases.len() > 70);
    cases.iter().map(case_of).collect()
}

fn case_of(case: &Value) -> (Case, Expected) {
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
    let logits = random_logits(number("kind"), number("vocab"), number("seed"));
    let token = case["token"].as_u64().map(|token| token as u32);
    let logprob = if token.is_some() { float("logprob") } else { f32::NAN };
    (Case { logits, options, window, position: number("position") }, Expected { token, logprob })
}

/// Logits of any kind, options of which each is off half the time.
pub fn random_case(rng: &mut Rng, vocab: usize) -> Case {
    let (kind, seed) = (rng.size(0, 6) as u64, rng.size(0, 1 << 20) as u64);
    let on = |rng: &mut Rng| rng.size(0, 1) == 0;
    let mut options = SamplerOptions {
        temperature: rng.pick(&[0.0, 1.0, 0.7, 1.5, 0.01, 30.0]),
        seed: rng.next(),
        ..SamplerOptions::default()
    };
    if on(rng) {
        options.top_k = rng.pick(&[1, 2, 5, 40, 64, 65, 1000, 1024, 5000]);
    }
    if on(rng) {
        options.top_p = rng.pick(&[0.0, 0.1, 0.5, 0.9, 0.95, 0.999]);
    }
    if on(rng) {
        options.min_p = rng.pick(&[0.001, 0.05, 0.5, 1.0]);
    }
    if on(rng) {
        options.repetition_penalty = 1.5 + rng.float(0.5);
        options.frequency_penalty = rng.float(0.5);
        options.presence_penalty = rng.float(0.5);
    }
    if on(rng) {
        // Different ids.
        let step = rng.size(1, 7);
        options.logit_bias =
            (0..vocab.min(150)).step_by(step).map(|id| (id as u32, rng.float(5.0))).collect();
    }
    // Ids more than once, some beyond the vocabulary.
    let length = rng.pick(&[0, 1, 63, 256]);
    let window = (0..length).map(|_| rng.size(0, vocab.min(150)) as u32).collect();
    Case { logits: random_logits(kind, vocab as u64, seed), options, window, position: rng.next() >> 20 }
}
