//! The reference model's training run again, by its own recipe (5,803 steps of 48 × 1024 tokens of 94 novels):
//!
//! ```sh
//! train_novels tokens CORPUS_FOLDER TOKENIZER OUT       # each text cleaned and preceded by token 0, as u16
//! train_novels run TRAIN VALIDATION OUT_FOLDER          # the run: log.json, and the model
//! train_novels evaluate MODEL_FOLDER VALIDATION TRAIN   # losses of any model, the reference's too
//! ```
//!
//! With the feature `cuda` all of it but `tokens` is on the GPU, in bf16 or by `--precision f32` in f32. The log is as the
//! official run's: step, seconds, loss, validation loss, learning rate, every 250 steps. `--steps N` for fewer, `--seed N`
//! for another run, `--start FOLDER` for the first parameters and the batches of the official one
//! (`scripts/gpu/official_start.py` draws them). A batch's loss varies by 0.05 with its rows, so what two models have learned of the training data is
//! told by `evaluate`, on the same 240 windows.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mamba::DType;
use mamba::checkpoint::{Checkpoint, OpenOptions, save};
use mamba::config::Config;
use mamba::generate::philox::uniform;
use mamba::text::Tokenizer;
use mamba::train::{Decay, Schedule, Start, TrainBackend, TrainBatch, TrainOptions, Trained, Trainer};
use serde_json::json;

const ROWS: usize = 48;
const LENGTH: usize = 1024;

/// Validation windows, as the recipe's `val`.
const WINDOWS: usize = 40;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = |i: usize| PathBuf::from(arguments.get(i).expect("a path"));
    let option = |name: &str| {
        let at = arguments.iter().position(|given| given == name);
        at.map(|at| arguments[at + 1].as_str())
    };
    let precision = option("--precision").unwrap_or("bf16");
    match arguments.first().map(String::as_str) {
        Some("tokens") => tokens(&path(1), &path(2), &path(3)),
        Some("run") => {
            let number = |name, default| option(name).map_or(default, |n| n.parse().expect("a number"));
            let (steps, seed) = (number("--steps", 5803), number("--seed", 0));
            let start = option("--start").map(Path::new);
            run(backend(precision), &path(1), &path(2), &path(3), steps, seed, start);
        }
        Some("evaluate") => evaluate(backend(precision), &path(1), &path(2), &path(3)),
        other => panic!("tokens, run or evaluate, not {other:?}"),
    }
}

#[cfg(feature = "cuda")]
fn backend(precision: &str) -> impl TrainBackend {
    mamba::cuda::Cuda::new(DType::parse(precision).expect("bf16 or f32")).expect("a GPU")
}

#[cfg(not(feature = "cuda"))]
fn backend(_: &str) -> impl TrainBackend {
    mamba::cpu::Cpu::new(2).expect("threads")
}

/// As `clean` of the recipe: line ends to \n, runs of blanks to one, at most one empty line in a row, trimmed.
fn clean(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
    let mut cleaned = String::with_capacity(text.len());
    let (mut blank, mut lines) = (false, 0);
    for c in text.chars() {
        let is_blank = c == ' ' || c == '\t';
        lines = if c == '\n' { lines + 1 } else { 0 };
        if is_blank && !blank {
            cleaned.push(' ');
        } else if !is_blank && lines <= 2 {
            cleaned.push(c);
        }
        blank = is_blank;
    }
    cleaned.trim().into()
}

fn tokens(corpus: &Path, tokenizer: &Path, out: &Path) {
    let tokenizer = Tokenizer::from_file(tokenizer).expect("a tokenizer");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(corpus).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut bytes = Vec::new();
    for file in &files {
        let text = String::from_utf8_lossy(&std::fs::read(file).expect("a text")).into_owned();
        let ids = tokenizer.encode(&clean(&text)).expect("tokens");
        for id in [0].into_iter().chain(ids) {
            bytes.extend(u16::try_from(id).expect("a vocabulary of u16").to_le_bytes());
        }
    }
    std::fs::write(out, &bytes).expect("the tokens");
    println!("{} texts, {} tokens", files.len(), bytes.len() / 2);
}

fn read(file: &Path) -> Vec<u32> {
    let bytes = std::fs::read(file).expect("tokens");
    bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_le_bytes(*pair))).collect()
}

/// The mean loss of windows that begin at these tokens, each from a zero state.
fn mean_loss<B: TrainBackend>(
    trainer: &mut Trainer<B>,
    tokens: &[u32],
    begins: impl ExactSizeIterator<Item = usize>,
) -> f64 {
    let count = begins.len() as f64;
    let losses = begins.map(|begin| {
        let window = TrainBatch::rows([&tokens[begin..begin + LENGTH + 1]]);
        let (sum, counted) = trainer.loss(&window).expect("a loss");
        sum / counted as f64
    });
    losses.sum::<f64>() / count
}

/// As the recipe's `val`: the first windows.
fn validation_loss<B: TrainBackend>(trainer: &mut Trainer<B>, tokens: &[u32]) -> f64 {
    mean_loss(trainer, tokens, (0..WINDOWS).map(|window| window * LENGTH))
}

/// Where draw `i` of a seed has its window.
fn drawn(seed: u64, i: u64, tokens: &[u32]) -> usize {
    (uniform(seed, i) * (tokens.len() - LENGTH - 1) as f64) as usize
}

fn evaluate<B: TrainBackend>(backend: B, model: &Path, validation: &Path, train: &Path) {
    let checkpoint = Checkpoint::open(model, &OpenOptions::default()).expect("a model");
    let options = TrainOptions {
        trained: Trained::Extra,
        max_tokens: LENGTH,
        max_sequences: 1,
        ..TrainOptions::default()
    };
    let start = Start::Checkpoint(&checkpoint, 0);
    let mut trainer = Trainer::new(backend, checkpoint.config().clone(), start, options).expect("a trainer");
    let (train, validation) = (read(train), read(validation));
    let train_loss =
        mean_loss(&mut trainer, &train, (0..240).map(|i: u32| drawn(u64::MAX, i.into(), &train)));
    let validation_loss = validation_loss(&mut trainer, &validation);
    println!("{}", json!({ "model": model, "validation_loss": validation_loss, "train_loss": train_loss }));
}

fn run<B: TrainBackend>(
    backend: B,
    train: &Path,
    validation: &Path,
    out: &Path,
    steps: u64,
    seed: u64,
    start: Option<&Path>,
) {
    let (train, validation) = (read(train), read(validation));
    let official = start.map(|folder| {
        let begins = std::fs::read(folder.join("begins.u32")).expect("where the rows begin");
        let begins: Vec<usize> =
            begins.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four) as usize).collect();
        (Checkpoint::open(folder, &OpenOptions::default()).expect("the first parameters"), begins)
    });
    let config = r#"{"d_model": 256, "n_layer": 12, "vocab_size": 8192}"#;
    let options = TrainOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 1e-5, warmup: 200, steps, decay: Decay::Cosine },
        max_tokens: ROWS * LENGTH,
        max_sequences: ROWS,
        ..TrainOptions::default()
    };
    let config = Config::from_json(config).expect("a shape");
    let first = official.as_ref().map_or(Start::Seed(seed), |(model, _)| Start::Checkpoint(model, seed));
    let mut trainer = Trainer::new(backend, config, first, options).expect("a trainer");
    let mut log = Vec::new();
    let began = Instant::now();
    let mut trained = 0.0;
    for step in 0..steps {
        let from = Instant::now();
        let row = |i: usize| {
            let i = step as usize * ROWS + i;
            let begin =
                official.as_ref().map_or_else(|| drawn(seed + 1, i as u64, &train), |(_, begins)| begins[i]);
            &train[begin..begin + LENGTH + 1]
        };
        let report = trainer.step(&[TrainBatch::rows((0..ROWS).map(row))]).expect("a step");
        trained += from.elapsed().as_secs_f64();
        if report.step.is_multiple_of(250) || report.step == steps {
            let loss = validation_loss(&mut trainer, &validation);
            let entry = json!([report.step, began.elapsed().as_secs_f64(), report.loss, loss, report.lr]);
            println!("{entry}");
            log.push(entry);
        }
    }
    let tokens = steps as usize * ROWS * LENGTH;
    let summary = json!({
        "steps": steps,
        "seed": start.is_none().then_some(seed),
        "tokens": tokens,
        "tokens_per_second": tokens as f64 / trained,
        "memory_gib": trainer.memory_in_use().map(|bytes| bytes as f64 / f64::from(1 << 30)),
        "log": log,
    });
    let model = trainer.checkpoint().expect("the parameters");
    save(&model, out, DType::F32, 2, &mut |_, _| Ok(())).expect("the model");
    std::fs::write(out.join("log.json"), summary.to_string()).expect("the log");
}
