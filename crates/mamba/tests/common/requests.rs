//! Requests of every kind, and what was answered to them.

use std::sync::mpsc;
use std::time::Duration;

use mamba::Mamba;
use mamba::engine::{Cancel, EmbedOptions, Event, GenerateOptions, Input, Output, Standing, Task};
use mamba::generate::SamplerOptions;

use super::Rng;

pub fn start(model: &Mamba, task: Task, cancel: Cancel) -> mpsc::Receiver<Event> {
    start_with(model, None, task, cancel)
}

/// The same with one of the model's adapters.
pub fn start_with(model: &Mamba, adapter: Option<&str>, task: Task, cancel: Cancel) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    let standing = Standing { adapter: adapter.map(str::to_owned), ..Standing::default() };
    model.submit_as(standing, task, cancel, move |event| drop(sender.send(event))).unwrap();
    events
}

/// Every event; the last is the result.
pub fn events(receiver: &mpsc::Receiver<Event>) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let event = receiver.recv_timeout(Duration::from_secs(300)).expect("an answer");
        let last = !matches!(event, Event::Token(_));
        all.push(event);
        if last {
            return all;
        }
    }
}

/// What was said, without times.
pub fn said(events: Vec<Event>) -> String {
    let one = |event| match event {
        Event::Done(Output::Generated { text, tokens, logprobs, finish_reason, usage }) => {
            let (prompt, completion) = (usage.prompt_tokens, usage.completion_tokens);
            format!("{text:?} {tokens:?} {logprobs:?} {finish_reason:?} {prompt} {completion}")
        }
        other => format!("{other:?}"),
    };
    events.into_iter().map(one).collect::<Vec<_>>().join("\n")
}

/// A request of any kind; the same for the same number.
pub fn request(i: u64) -> Task {
    let rng = &mut Rng(i);
    let length = rng.size(1, 40);
    let prompt: Vec<u32> = (0..length).map(|_| rng.size(0, 8000) as u32).collect();
    if rng.size(0, 9) == 0 {
        return Task::Embed { inputs: vec![Input::Ids(prompt)], options: EmbedOptions::default() };
    }
    let sampler = SamplerOptions {
        temperature: rng.pick(&[0.0, 0.8, 1.3]),
        top_k: rng.pick(&[0, 20]),
        top_p: rng.pick(&[1.0, 0.9]),
        repetition_penalty: rng.pick(&[1.0, 1.2]),
        frequency_penalty: rng.pick(&[0.0, 0.3]),
        penalty_window: rng.pick(&[0, 5, 256]),
        logit_bias: (0..rng.pick(&[0, 0, 2, 6])).map(|i| (i * 7, 0.5)).collect(),
        logprobs: rng.pick(&[0, 0, 0, 2]),
        ..SamplerOptions::default()
    };
    let options = GenerateOptions {
        max_tokens: rng.size(1, 30),
        sampler,
        seed: Some(i),
        stop: rng.pick::<&[&str]>(&[&[], &[" the", "e."]]).iter().map(|stop| (*stop).into()).collect(),
        stop_tokens: (0..rng.pick(&[0, 300])).collect(),
        ignore_eos: rng.pick(&[true, false]),
        stream: rng.pick(&[true, false]),
    };
    Task::Generate { prompt: Input::Ids(prompt), options }
}
