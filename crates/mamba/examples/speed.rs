//! Tokens per second of prefill, decode and embedding, for a model of random weights (always the same ones):
//! `cargo run --release -p mamba --example speed -- 130m f32 2` (shape, dtype, threads).
//!
//! Prints a JSON line of the model, then one a round. Options:
//! - `--device cuda`: on the GPU (with the feature `cuda`).
//! - `--tokenizer FILE --texts FILE`: embeds the texts (one a line) too, tokenization included.
//! - `--prefill-chunk N`: so many tokens of prompts a step, instead of the backend's own number.
//! - `--stdin`: instead of rounds, one measurement for each line read (`prefill 512`, `decode 32 32` for 32
//!   sequences and 32 steps, `embed FILE`), so that another program can take turns with this one.
//! - `--save FOLDER`: only writes the weights, and of the ids that `--stdin` would prefill the first 64 with their
//!   logits, their embedding and a greedy continuation, for another program to compare.

use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use mamba::checkpoint::{Checkpoint, save};
use mamba::config::Config;
use mamba::engine::{
    Cancel, Device, EmbedOptions, Event, GenerateOptions, Input, LoadOptions, Output, Task, Usage,
};
use mamba::text::Tokenizer;
use mamba::{DType, Mamba};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| {
        arguments.get(i).filter(|given| !given.starts_with("--")).cloned().unwrap_or_else(|| default.into())
    };
    let option = |name: &str| {
        let at = arguments.iter().position(|given| given == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a path")).clone())
    };
    let shape = argument(0, "130m");
    let (d_model, n_layer, vocab) = match shape.as_str() {
        "7m" => (256, 12, 8192),
        "130m" => (768, 24, 50280),
        "370m" => (1024, 48, 50280),
        other => panic!("no shape {other}: 7m, 130m or 370m"),
    };
    let config = format!(r#"{{"d_model": {d_model}, "n_layer": {n_layer}, "vocab_size": {vocab}}}"#);
    let dtype = DType::parse(&argument(1, "f32")).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let threads = argument(2, "2").parse().expect("a number of threads");
    let checkpoint = Checkpoint::random(Config::from_json(&config).expect("a shape"), 1);
    let tokenizer =
        option("--tokenizer").map(|path| Tokenizer::from_file(Path::new(&path)).expect("a tokenizer"));
    let device = match option("--device").as_deref() {
        None | Some("cpu") => Device::Cpu,
        Some("cuda") => Device::Cuda,
        Some(other) => panic!("no device {other}: cpu or cuda"),
    };
    // A slot for every sequence that is decoded at once.
    let (dtype, threads, max_batch) = (Some(dtype), Some(threads), 64);
    let prefill_chunk = option("--prefill-chunk").map(|n| n.parse().expect("a number of tokens"));
    let options = LoadOptions { device, dtype, threads, max_batch, prefill_chunk, ..LoadOptions::default() };
    let began = Instant::now();
    let model = Mamba::from_checkpoint(&checkpoint, tokenizer, &options, &Cancel::default(), &mut |_| {})
        .expect("a model");
    let packed_seconds = began.elapsed().as_secs_f64();
    if let Some(folder) = option("--save") {
        return write(&checkpoint, &model, Path::new(&folder));
    }
    drop(checkpoint);
    println!(
        "{}",
        json!({
            "shape": shape,
            "dtype": model.info().dtype.name(),
            "device": model.info().device,
            "threads": model.info().threads,
            "parameters": model.info().parameters,
            "weightBytes": model.info().weight_bytes,
            "packedSeconds": packed_seconds,
        })
    );

    let measure = |line: &str| -> Value {
        let (what, rest) = line.split_once(' ').expect("a measurement and its numbers");
        let number =
            |i: usize| -> usize { rest.split(' ').nth(i).and_then(|n| n.parse().ok()).expect("a number") };
        match what {
            "prefill" => prefill(&model, number(0)),
            "decode" => decode(&model, number(0), number(1)),
            "embed" => embed(&model, Path::new(rest)),
            other => panic!("no measurement {other}: prefill, decode or embed"),
        }
    };
    if arguments.iter().any(|given| given == "--stdin") {
        for line in std::io::stdin().lines() {
            println!("{}", measure(&line.expect("a line")));
        }
        return;
    }
    let texts = option("--texts");
    for _ in 0..3 {
        let rate = |line: &str| measure(line)["tokensPerSecond"].clone();
        let mut round = json!({
            "prefill512": rate("prefill 512"),
            "prefill2048": rate("prefill 2048"),
            "decode1": rate("decode 1 64"),
            "decode32": rate("decode 32 32"),
        });
        if let Some(texts) = &texts {
            round["embed"] = rate(&format!("embed {texts}"));
        }
        println!("{round}");
    }
}

/// Ids that are spread over the vocabulary.
fn ids(model: &Mamba, n: usize) -> Input {
    Input::Ids((0..n as u64).map(|i| (i * 7919 % model.info().vocab_size as u64) as u32).collect())
}

fn ask(model: &Mamba, tasks: Vec<Task>) -> Vec<Output> {
    let (sender, events) = mpsc::channel();
    let count = tasks.len();
    for task in tasks {
        let sender = sender.clone();
        model.submit(task, Cancel::default(), move |event| drop(sender.send(event))).expect("a place");
    }
    let answer = |event| match event {
        Event::Done(output) => output,
        other => panic!("{other:?}"),
    };
    (0..count).map(|_| answer(events.recv().expect("an answer"))).collect()
}

/// Generates from `sequences` equal prompts at once; what the last of them to end took.
fn generate(model: &Mamba, sequences: usize, prompt: usize, max_tokens: usize) -> Usage {
    let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    let task = Task::Generate { prompt: ids(model, prompt), options };
    match ask(model, vec![task; sequences]).pop() {
        Some(Output::Generated { usage, .. }) => usage,
        other => panic!("{other:?}"),
    }
}

fn rate(tokens: usize, seconds: f64) -> Value {
    json!({ "tokens": tokens, "seconds": seconds, "tokensPerSecond": tokens as f64 / seconds })
}

/// One prompt, to the choice of the first new token.
fn prefill(model: &Mamba, tokens: usize) -> Value {
    rate(tokens, generate(model, 1, tokens, 1).prefill_seconds)
}

/// One token of every sequence a step, the choice of each token included.
fn decode(model: &Mamba, sequences: usize, steps: usize) -> Value {
    rate(sequences * steps, generate(model, sequences, 1, steps + 1).decode_seconds)
}

/// From texts, one a line, to normalized means.
fn embed(model: &Mamba, texts: &Path) -> Value {
    let texts = std::fs::read_to_string(texts).expect("texts");
    let inputs: Vec<Input> = texts.lines().map(|line| Input::Text(line.into())).collect();
    let (texts, began) = (inputs.len(), Instant::now());
    let answer = ask(model, vec![Task::Embed { inputs, options: EmbedOptions::default() }]).pop();
    let seconds = began.elapsed().as_secs_f64();
    let Some(Output::Embeddings { tokens, .. }) = answer else { panic!("{answer:?}") };
    let mut answer = rate(tokens, seconds);
    answer["textsPerSecond"] = json!(texts as f64 / seconds);
    answer
}

/// The checkpoint, and in expected.json and logits.f32 ([tokens, vocabulary]) what the model makes of 64 tokens.
fn write(checkpoint: &Checkpoint, model: &Mamba, folder: &Path) {
    save(checkpoint, folder, DType::F32, 2, &mut |_, _| Ok(())).expect("a folder to write into");
    let Input::Ids(prompt) = ids(model, 64) else { unreachable!("ids gives ids") };
    let input = || Input::Ids(prompt.clone());
    let options = GenerateOptions { max_tokens: 32, ignore_eos: true, ..GenerateOptions::default() };
    let answers = [
        Task::Forward { input: input(), all: true },
        Task::Generate { prompt: input(), options },
        Task::Embed { inputs: vec![input()], options: EmbedOptions::default() },
    ]
    .map(|task| ask(model, vec![task]).pop());
    let [
        Some(Output::Logits { data: logits, .. }),
        Some(Output::Generated { tokens: greedy, .. }),
        Some(Output::Embeddings { data: embedding, .. }),
    ] = answers
    else {
        panic!("other outputs than asked for")
    };
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(folder.join("logits.f32"), bytes).expect("logits written");
    let expected = json!({ "prompt": prompt, "greedy": greedy, "embedding": embedding });
    std::fs::write(folder.join("expected.json"), expected.to_string()).expect("the rest written");
}
