//! Steps, prefill, and the paper's throughput.

use std::sync::mpsc;
use std::time::Instant;

use mamba::engine::{Cancel, Event, GenerateOptions, Input, Output, Task, Usage};
use mamba::{DType, Mamba};
use serde_json::json;

use crate::machine::cpu_seconds;
use crate::weights::load;

/// Ids that are spread over the vocabulary.
pub fn ids(model: &Mamba, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % model.info().config.vocab_size) as u32).collect()
}

/// Generates from `sequences` prompts at once; each one's usage, and the seconds from the first request to the last
/// answer.
fn generate(model: &Mamba, sequences: usize, prompt: usize, max_tokens: usize) -> (Vec<Usage>, f64) {
    let (sender, events) = mpsc::channel();
    let began = Instant::now();
    for i in 0..sequences {
        let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
        let task = Task::Generate { prompt: Input::Ids(ids(model, prompt, i)), options };
        let sender = sender.clone();
        model.submit(task, Cancel::default(), move |event| drop(sender.send(event))).expect("a place");
    }
    let usages = (0..sequences).map(|_| match events.recv().expect("an answer") {
        Event::Done(Output::Generated { tokens, usage, .. }) => {
            assert_eq!(tokens.len(), max_tokens);
            usage
        }
        other => panic!("{other:?}"),
    });
    (usages.collect(), began.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Milliseconds of a decode step of so many sequences, by their own count: from the first token of the last one to its
/// last.
fn step(model: &Mamba, batch: usize, steps: usize) -> f64 {
    let (usages, _) = generate(model, batch, 1, steps + 1);
    let last = usages.last().expect("a sequence");
    last.decode_seconds / steps as f64 * 1e3
}

pub fn run(shape: &str, dtype: DType, batches: &[usize]) {
    let most = batches.iter().copied().max().unwrap_or(1);
    let model = load(shape, dtype, most);
    let info = model.info();
    let row = |what: &str, batch: usize, values: serde_json::Value| {
        let mut row = json!({ "what": what, "shape": shape, "dtype": dtype.name(), "batch": batch,
            "weight_bytes": info.weight_bytes, "state_bytes": info.state_bytes });
        row.as_object_mut().expect("an object").extend(values.as_object().expect("an object").clone());
        println!("{row}");
    };
    for &batch in batches {
        let steps = if batch <= 16 { 192 } else { 96 };
        // The bucket's graph is recorded, cuBLAS's kernels are loaded.
        step(&model, batch, 8);
        let (cpu, began) = (cpu_seconds(), Instant::now());
        let rounds: Vec<f64> = (0..3).map(|_| step(&model, batch, steps)).collect();
        let cores = (cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
        row("decode", batch, json!({ "ms": median(rounds.clone()), "rounds": rounds, "cpu_cores": cores }));
    }
    let rounds: Vec<f64> =
        (0..7).map(|_| generate(&model, 1, 2048, 1).0[0].prefill_seconds * 1e3).skip(2).collect();
    row("prefill 2048", 1, json!({ "ms": median(rounds.clone()), "rounds": rounds }));
    let paper = batches.iter().copied().filter(|batch| [1, 16, 64, 128].contains(batch));
    for batch in paper {
        let rounds: Vec<f64> = (0..2).map(|_| generate(&model, batch, 2048, 128).1).collect();
        let seconds = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let rate = batch as f64 * 128.0 / seconds;
        row("prompt 2048, generate 128", batch, json!({ "seconds": rounds, "tokens_s": rate }));
    }
}

/// Shows that so many sequences fit, and what a step of them takes.
pub fn capacity(shape: &str, dtype: DType, batch: usize) {
    let model = load(shape, dtype, batch);
    let info = model.info();
    let ms = step(&model, batch, 8);
    println!(
        "{}",
        json!({ "what": "capacity", "shape": shape, "dtype": dtype.name(), "batch": batch, "ms": ms,
            "weight_bytes": info.weight_bytes, "state_bytes": info.state_bytes })
    );
}
