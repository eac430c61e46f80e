//! The sampler against tests/data/sampling.json: tokens that cuda/check/sampling.cu expects of the GPU's sampler, of
//! random logits and options. Its definition by sorted lists is a second one, so the two samplers are held together.

mod common;

use common::sampling::cases;
use mamba::Error;
use mamba::generate::Sampler;

#[test]
fn the_gpu_chooses_the_same() {
    for (i, (mut case, expected)) in cases().into_iter().enumerate() {
        let sampled = Sampler::new(case.options, &case.window).sample(&mut case.logits, case.position);
        match expected.token {
            Some(token) => {
                let sampled = sampled.unwrap();
                assert_eq!(sampled.token, token, "case {i}");
                let error = (sampled.logprob - expected.logprob).abs() / (1.0 + expected.logprob.abs());
                assert!(error < 3e-7, "case {i}: {} instead of {}", sampled.logprob, expected.logprob);
            }
            None => assert!(matches!(sampled, Err(Error::LogitsNotFinite { .. })), "case {i}"),
        }
    }
}
