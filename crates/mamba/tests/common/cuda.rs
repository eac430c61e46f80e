//! Models with their engines, on either device.

use std::sync::mpsc;

use mamba::engine::{Cancel, Device, Event, GenerateOptions, LoadOptions, Output, Task};
use mamba::{DType, Error, Mamba};

use super::model::checkpoint;

pub fn load(device: Device, dtype: DType) -> Mamba {
    let options = LoadOptions { device, dtype: Some(dtype), threads: Some(2), ..LoadOptions::default() };
    Mamba::from_checkpoint(&checkpoint(), None, &options, &Cancel::default(), &mut |_| {}).unwrap()
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
