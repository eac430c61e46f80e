//! Models with their engines, on either device.

use std::path::PathBuf;
use std::sync::mpsc;

use mamba::engine::{Cancel, Device, Event, GenerateOptions, LoadOptions, Output, Task};
use mamba::{DType, Error, Mamba};

use super::here;
use super::model::checkpoint;
use super::requests::events;

pub fn load(device: Device, dtype: DType) -> Mamba {
    let options = LoadOptions { device, dtype: Some(dtype), threads: Some(2), ..LoadOptions::default() };
    Mamba::from_checkpoint(&checkpoint(), None, &options, &Cancel::default(), &mut |_| {}).unwrap()
}

/// The default model with its tokenizer, for stop strings, and with adapters by name.
pub fn load_whole(device: Device, dtype: DType, adapters: &[(String, PathBuf)]) -> Mamba {
    let options = LoadOptions {
        device,
        dtype: Some(dtype),
        threads: Some(4),
        adapters: adapters.to_vec(),
        ..LoadOptions::default()
    };
    Mamba::load(&here("../../models/mamba-novels-7m"), &options, &Cancel::default(), &mut |_| {}).unwrap()
}

/// What each of several requests gives: ids, and why it ended.
pub fn tokens(all: impl Iterator<Item = mpsc::Receiver<Event>>) -> Vec<String> {
    // All are asked before the first is waited for.
    let all: Vec<_> = all.collect();
    let one = |one: &mpsc::Receiver<Event>| match events(one).pop() {
        Some(Event::Done(Output::Generated { tokens, finish_reason, .. })) => {
            format!("{tokens:?} {finish_reason:?}")
        }
        Some(Event::Done(Output::Embeddings { .. })) => String::new(),
        other => panic!("{other:?}"),
    };
    all.iter().map(one).collect()
}

pub fn ask(model: &Mamba, task: Task) -> Result<Output, Error> {
    let (sender, events) = mpsc::channel();
    model.submit(task, Cancel::default(), move |event| drop(sender.send(event)))?;
    loop {
        match events.recv().unwrap() {
            Event::Done(output) => return Ok(output),
            Event::Failed(error) => return Err(error),
            Event::Token(_) => {}
        }
    }
}

pub fn generated(output: Result<Output, Error>) -> Vec<u32> {
    let Ok(Output::Generated { tokens, .. }) = output else { panic!("{output:?}") };
    tokens
}

pub fn greedy(max_tokens: usize) -> GenerateOptions {
    let mut options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    options.sampler.temperature = 0.0;
    options
}
