//! Tokens per second of prefill, decode and embedding, for a model of random weights:
//! `cargo run --release -p mamba --example speed -- 130m f32 2`.

use std::sync::mpsc;
use std::time::Instant;

use mamba::checkpoint::Checkpoint;
use mamba::config::Config;
use mamba::engine::{Cancel, Event, GenerateOptions, Input, LoadOptions, Output, Task};
use mamba::{DType, Mamba};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.into());
    let (d_model, n_layer) = match argument(0, "130m").as_str() {
        "370m" => (1024, 48),
        "7m" => (256, 12),
        _ => (768, 24),
    };
    let vocab = if d_model == 256 { 8192 } else { 50280 };
    let config = format!(r#"{{"d_model": {d_model}, "n_layer": {n_layer}, "vocab_size": {vocab}}}"#);
    let dtype = DType::parse(&argument(1, "f32")).expect("f32, bf16 or f16");
    let threads = argument(2, "2").parse().expect("a number of threads");
    let checkpoint = Checkpoint::random(Config::from_json(&config).expect("a shape"), 1);
    let options = LoadOptions { dtype: Some(dtype), threads: Some(threads), ..LoadOptions::default() };
    let began = Instant::now();
    let model = Mamba::from_checkpoint(&checkpoint, None, &options, &Cancel::default(), &mut |_| {})
        .expect("a model");
    println!(
        "{} parameters, {}, {threads} threads, packed in {:.2?}",
        model.info().parameters,
        dtype.name(),
        began.elapsed()
    );
    drop(checkpoint);

    let ids = |n: usize| Input::Ids((0..n as u32).map(|i| i * 7919 % vocab).collect());
    let generate = |prompts: usize, prompt: usize, max_tokens: usize| {
        let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
        let (sender, events) = mpsc::channel();
        for _ in 0..prompts {
            let sender = sender.clone();
            let task = Task::Generate { prompt: ids(prompt), options: options.clone() };
            model.submit(task, Cancel::default(), move |event| drop(sender.send(event))).expect("a place");
        }
        (0..prompts)
            .map(|_| match events.recv().expect("an answer") {
                Event::Done(Output::Generated { usage, .. }) => usage,
                other => panic!("{other:?}"),
            })
            .reduce(|_, last| last)
            .expect("one")
    };
    for _ in 0..3 {
        let usage = generate(1, 512, 65);
        let batch = generate(32, 1, 33);
        println!(
            "prefill of 512: {:.1} tokens/s; decode of 1: {:.1} tokens/s; decode of 32: {:.1} tokens/s",
            512.0 / usage.prefill_seconds,
            64.0 / usage.decode_seconds,
            32.0 * 32.0 / batch.decode_seconds
        );
    }
}
