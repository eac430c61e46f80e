//! The sampling launcher against tests/data/sampling.json and the CPU's sampler.

use mamba::DType;
use mamba::cuda::Cuda;
use mamba::generate::{self, SamplerOptions};
use mamba_kernels::sampling::{Choice, Row, Sampler};
use mamba_kernels::{Error, RowsMut};

use crate::common::Rng;
use crate::common::ops::{Strided, buffer};
use crate::common::sampling::{Case, cases, random_case};
use crate::launchers::rows_mut;

pub fn row_of<'a>(options: &'a SamplerOptions, window: &'a [u32], position: u64) -> Row<'a> {
    Row {
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        repetition_penalty: options.repetition_penalty,
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        window,
        logit_bias: &options.logit_bias,
        seed: options.seed,
        position,
    }
}

fn row(case: &Case) -> Row<'_> {
    row_of(&case.options, &case.window, case.position)
}

/// Choices of one launch, and the logits as it left them.
fn choose(
    cuda: &mut Cuda,
    sampler: &mut Sampler,
    cases: &[&Case],
    layout: u64,
) -> (Vec<Choice>, Vec<Vec<f32>>) {
    let vocab = cases[0].logits.len();
    let mut logits = Strided::unwritten_f32(cuda, &mut Rng(layout), cases.len(), vocab);
    let values: Vec<f32> = cases.iter().flat_map(|case| &case.logits).copied().collect();
    logits.put(cuda, &values);
    let rows: Vec<Row> = cases.iter().map(|case| row(case)).collect();
    let choices = sampler.choose(cuda.device(), rows_mut(logits.view_mut()), &rows).unwrap();
    logits.fetch(cuda);
    assert!(logits.gaps_are_nan());
    let left = (0..cases.len()).map(|r| logits.rows(r, r + 1)).collect();
    (choices, left)
}

/// By which a log-probability is off.
fn error(actual: f32, expected: f32) -> f32 {
    (actual - expected).abs() / (1.0 + expected.abs())
}

fn same(a: &[Choice], b: &[Choice]) -> bool {
    let bits = |choices: &[Choice]| -> Vec<_> {
        choices.iter().map(|choice| (choice.token, choice.logprob.to_bits())).collect()
    };
    bits(a) == bits(b)
}

#[test]
fn chooses_what_the_file_expects() {
    let (cuda, sampler) = (&mut Cuda::new(DType::F32).unwrap(), &mut Sampler::default());
    let cases = cases();
    let mut vocabs: Vec<usize> = cases.iter().map(|(case, _)| case.logits.len()).collect();
    vocabs.sort_unstable();
    vocabs.dedup();
    for vocab in vocabs {
        let (cases, expected): (Vec<_>, Vec<_>) = cases
            .iter()
            .filter(|(case, _)| case.logits.len() == vocab)
            .map(|(case, expected)| (case, expected))
            .unzip();
        let (choices, _) = choose(cuda, sampler, &cases, 1);
        for (i, (choice, expected)) in choices.iter().zip(expected).enumerate() {
            assert_eq!(choice.token, expected.token, "{vocab}, {i}");
            let right = match expected.token {
                Some(_) => error(choice.logprob, expected.logprob) < 3e-7,
                None => choice.logprob.is_nan(),
            };
            assert!(right, "{vocab}, {i}: {} instead of {}", choice.logprob, expected.logprob);
        }
    }
}

#[test]
fn chooses_as_the_cpu_does() {
    let (cuda, rng, sampler) = (&mut Cuda::new(DType::F32).unwrap(), &mut Rng(41), &mut Sampler::default());
    for (vocab, rows) in [(1, 20), (3, 40), (130, 60), (4097, 60), (50_280, 40), (50_277, 20)] {
        let cases: Vec<Case> = (0..rows).map(|_| random_case(rng, vocab)).collect();
        let cases: Vec<&Case> = cases.iter().collect();
        let layout = rng.next();
        let (choices, left) = choose(cuda, sampler, &cases, layout);
        for (i, case) in cases.iter().enumerate() {
            let mut logits = case.logits.clone();
            let mut cpu = generate::Sampler::new(case.options.clone(), &case.window);
            let expected = cpu.sample(&mut logits, case.position).ok();
            assert_eq!(choices[i].token, expected.as_ref().map(|x| x.token), "{vocab}, {i}: {:?}", row(case));
            let Some(expected) = expected else {
                assert!(choices[i].logprob.is_nan());
                continue;
            };
            // Either may be off by 3e-7.
            let error = error(choices[i].logprob, expected.logprob);
            assert!(error < 6e-7, "{vocab}, {i}: {} instead of {}", choices[i].logprob, expected.logprob);
            // Bias and penalties; the CPU also replaces what is not finite.
            let equal = left[i].iter().zip(&logits).all(|(gpu, cpu)| !gpu.is_finite() || gpu == cpu);
            assert!(equal, "logits: {vocab}, {i}");
        }
        // Again, with what the first call left of its counts, and alone.
        assert!(same(&choose(cuda, sampler, &cases, layout).0, &choices), "{vocab}: not the same again");
        for i in 0..3 {
            let alone = choose(cuda, &mut Sampler::default(), &cases[i..=i], layout).0;
            assert!(same(&alone, &choices[i..=i]), "{vocab}, {i}: not the same alone");
        }
    }
}

#[test]
fn no_rows_and_too_many_columns() {
    let (cuda, sampler) = (&mut Cuda::new(DType::F32).unwrap(), &mut Sampler::default());
    let vocab = (1 << 20) + 1;
    let mut logits = buffer(cuda, &vec![0.0; vocab]);
    let case =
        Case { logits: Vec::new(), options: SamplerOptions::default(), window: Vec::new(), position: 0 };
    let mut choose = |cols: usize, rows: &[Row]| {
        let logits = RowsMut { buffer: &mut logits, offset: 0, rows: 1, cols, stride: cols };
        sampler.choose(cuda.device(), logits, rows)
    };
    assert!(choose(100, &[]).unwrap().is_empty());
    // Of equal logits the lowest id.
    assert_eq!(choose(vocab - 1, &[row(&case)]).unwrap()[0].token, Some(0));
    let error = choose(vocab, &[row(&case)]).err().unwrap();
    assert!(matches!(error, Error::Unsupported { what: "vocab_size", .. }), "{error}");
}
