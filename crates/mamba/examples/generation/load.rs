//! Requests that arrive at random (Poisson), with prompts and outputs of mixed lengths.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mamba::engine::{Cancel, Event, GenerateOptions, Input, Output, Task};
use mamba::{DType, Mamba};
use serde_json::json;

use crate::machine::cpu_seconds;
use crate::throughput::ids;
use crate::weights::load;

/// Sequences at a time.
const SLOTS: usize = 128;

/// A number in 0 … 1 from two (SplitMix64).
fn random(a: u64, b: u64) -> f64 {
    let mut z = (a << 32 | b).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Prompts of 16 to 1024 tokens, 16 to 256 new ones, both log-uniform.
fn request(model: &Mamba, i: usize) -> Task {
    let between =
        |low: f64, high: f64, key| (low * (high / low).powf(random(key, i as u64))).round() as usize;
    let options = GenerateOptions {
        max_tokens: between(16.0, 256.0, 1),
        ignore_eos: true,
        stream: true,
        ..GenerateOptions::default()
    };
    Task::Generate { prompt: Input::Ids(ids(model, between(16.0, 1024.0, 2), i)), options }
}

struct Answer {
    tokens: Vec<u32>,
    first: f64,
    gaps: Vec<f64>,
}

struct Round {
    answers: HashMap<usize, Answer>,
    seconds: f64,
    /// Of the processor.
    cores: f64,
}

/// Submits request `i` at `at[i]` seconds and waits for all answers.
fn serve(model: &Mamba, at: &[f64]) -> Round {
    let (sender, events) = mpsc::channel();
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let submit = |i: usize| {
        let sender = sender.clone();
        let asked = Instant::now();
        let mut times: Vec<Instant> = Vec::new();
        let on_event = move |event| match event {
            Event::Token(_) => times.push(Instant::now()),
            Event::Done(Output::Generated { tokens, .. }) => {
                let first = (times[0] - asked).as_secs_f64();
                let gaps = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
                drop(sender.send((i, Some(Answer { tokens, first, gaps }))));
            }
            _ => drop(sender.send((i, None))),
        };
        model.submit(request(model, i), Cancel::default(), on_event).expect("a place");
    };
    for (i, at) in at.iter().enumerate() {
        let at = Duration::from_secs_f64(*at);
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        submit(i);
    }
    let answers = (0..at.len()).filter_map(|_| events.recv().ok());
    let answers = answers.filter_map(|(i, answer)| Some((i, answer?))).collect();
    let seconds = began.elapsed().as_secs_f64();
    Round { answers, seconds, cores: (cpu_seconds() - cpu) / seconds }
}

fn percentile(values: &mut [f64], of: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() - 1) as f64 * of).round() as usize).copied().unwrap_or(f64::NAN) * 1e3
}

pub fn run(shape: &str, dtype: DType, seconds: f64) {
    let model = load(shape, dtype, SLOTS);
    // Capacity: all at once, after a round that records the graphs.
    serve(&model, &vec![0.0; SLOTS]);
    let count = 8 * SLOTS;
    let full = serve(&model, &vec![0.0; count]);
    let capacity = count as f64 / full.seconds;
    report(shape, dtype, "all at once", count, capacity, full);
    for load in [0.5, 0.7, 1.0] {
        let rate = capacity * load;
        let (mut at, mut arrivals) = (0.0, Vec::new());
        while at < seconds {
            arrivals.push(at);
            at -= (1.0 - random(3, arrivals.len() as u64)).ln() / rate;
        }
        let round = serve(&model, &arrivals);
        report(
            shape,
            dtype,
            &format!("{} % of capacity", (load * 100.0_f64).round() as u32),
            arrivals.len(),
            rate,
            round,
        );
    }
}

fn report(shape: &str, dtype: DType, what: &str, asked: usize, rate: f64, round: Round) {
    let mut first: Vec<f64> = round.answers.values().map(|answer| answer.first).collect();
    let mut gaps: Vec<f64> = round.answers.values().flat_map(|answer| answer.gaps.clone()).collect();
    let tokens: usize = round.answers.values().map(|answer| answer.tokens.len()).sum();
    println!(
        "{}",
        json!({
            "what": format!("load, {what}"), "shape": shape, "dtype": dtype.name(), "slots": SLOTS,
            "requests": asked, "answered": round.answers.len(), "requests_s": rate,
            "seconds": round.seconds, "tokens_s": tokens as f64 / round.seconds,
            "first_token_ms_p50": percentile(&mut first, 0.5), "first_token_ms_p99": percentile(&mut first, 0.99),
            "between_tokens_ms_p50": percentile(&mut gaps, 0.5),
            "between_tokens_ms_p99": percentile(&mut gaps, 0.99),
            "cpu_cores": round.cores,
        })
    );
    assert_eq!(round.answers.len(), asked, "none is lost");
}

/// Greedy in f32: the answers of many at once against each alone. Where they part, the two best logits of the request
/// alone must lie within 1e-4.
pub fn same_as_alone(shape: &str) {
    let model = load(shape, DType::F32, SLOTS);
    let count = 2 * SLOTS;
    let together = serve(&model, &vec![0.0; count]);
    assert_eq!(together.answers.len(), count);
    let (mut equal, mut gaps) = (0, Vec::new());
    for i in 0..count {
        let alone = serve_one(&model, i);
        let company = &together.answers[&i].tokens;
        let Some(at) = alone.iter().zip(company).position(|(a, b)| a != b) else {
            assert_eq!(alone.len(), company.len());
            equal += 1;
            continue;
        };
        let Task::Generate { prompt: Input::Ids(mut ids), .. } = request(&model, i) else { unreachable!() };
        ids.extend(&alone[..at]);
        let gap = gap(&model, ids);
        assert!(gap < 1e-4, "request {i} parts at token {at}, where the two best logits are {gap} apart");
        gaps.push(gap);
    }
    println!(
        "{}",
        json!({ "what": "in company as alone", "shape": shape, "dtype": "f32", "requests": count, "equal": equal,
            "gaps_where_not": gaps })
    );
}

fn serve_one(model: &Mamba, i: usize) -> Vec<u32> {
    let (sender, events) = mpsc::channel();
    let on_event = move |event| match event {
        Event::Token(_) => {}
        Event::Done(Output::Generated { tokens, .. }) => drop(sender.send(tokens)),
        other => panic!("{other:?}"),
    };
    model.submit(request(model, i), Cancel::default(), on_event).expect("a place");
    events.recv().expect("an answer")
}

/// By which the best logit after a text is ahead of the next.
fn gap(model: &Mamba, ids: Vec<u32>) -> f32 {
    let (sender, events) = mpsc::channel();
    let task = Task::Forward { input: Input::Ids(ids), all: false };
    model.submit(task, Cancel::default(), move |event| drop(sender.send(event))).expect("a place");
    let Ok(Event::Done(Output::Logits { mut data, .. })) = events.recv() else { panic!("no logits") };
    data.sort_by(|a, b| b.total_cmp(a));
    data[0] - data[1]
}
