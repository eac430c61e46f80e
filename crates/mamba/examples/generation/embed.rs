//! Embeddings: texts, as ids, of one length and of mixed lengths.

use std::sync::mpsc;
use std::time::Instant;

use mamba::engine::{Cancel, EmbedOptions, Event, Input, Output, Task};
use mamba::{DType, Mamba};
use serde_json::json;

use crate::machine::cpu_seconds;
use crate::throughput::ids;
use crate::weights::load;

fn embed(model: &Mamba, lengths: &[usize]) -> f64 {
    let inputs = lengths.iter().enumerate().map(|(i, length)| Input::Ids(ids(model, *length, i))).collect();
    let (sender, events) = mpsc::channel();
    let began = Instant::now();
    let task = Task::Embed { inputs, options: EmbedOptions::default() };
    model.submit(task, Cancel::default(), move |event| drop(sender.send(event))).expect("a place");
    match events.recv().expect("an answer") {
        Event::Done(Output::Embeddings { tokens, data, .. }) => {
            assert_eq!(tokens, lengths.iter().sum::<usize>());
            assert!(data.iter().all(|x| x.is_finite()));
        }
        other => panic!("{other:?}"),
    }
    began.elapsed().as_secs_f64()
}

pub fn run(shape: &str, dtype: DType) {
    let model = load(shape, dtype, 256);
    let config = &model.info().config;
    let matrices = model.info().parameters as usize - config.padded_vocab_size * config.d_model;
    let mixed = |i: usize| [8, 700, 31, 128, 64, 250, 12, 512, 90, 33][i % 10];
    for (what, length, count) in
        [("32", 32, 16384), ("128", 128, 8192), ("512", 512, 2048), ("mixed", 0, 4096)]
    {
        let lengths: Vec<usize> = (0..count).map(|i| if length > 0 { length } else { mixed(i) }).collect();
        embed(&model, &lengths[..256]);
        let (cpu, began) = (cpu_seconds(), Instant::now());
        let rounds: Vec<f64> = (0..3).map(|_| embed(&model, &lengths)).collect();
        let cores = (cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
        let seconds = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let tokens: usize = lengths.iter().sum();
        println!(
            "{}",
            json!({
                "what": format!("embed {what}"), "shape": shape, "dtype": dtype.name(), "texts": count,
                "tokens": tokens, "seconds": rounds, "texts_s": count as f64 / seconds,
                "tokens_s": tokens as f64 / seconds, "cpu_cores": cores,
                "product_tflops": 2.0 * (matrices * tokens) as f64 / seconds * 1e-12,
            })
        );
    }
}
