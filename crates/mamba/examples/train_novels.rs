//! The reference model's training run again, by its own recipe (5,803 steps of 48 × 1024 tokens of 94 novels):
//!
//! ```sh
//! train_novels tokens CORPUS_FOLDER TOKENIZER OUT       # each text cleaned and preceded by token 0, as u16
//! train_novels run TRAIN VALIDATION OUT.json            # the run; with the feature `cuda` on the GPU, in bf16
//! ```
//!
//! The log is as the official run's: step, seconds, loss, validation loss, learning rate, every 250 steps.
//! `--steps N` for fewer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mamba::config::Config;
use mamba::generate::philox::uniform;
use mamba::text::Tokenizer;
use mamba::train::{Decay, Schedule, Start, TrainBackend, TrainBatch, TrainOptions, Trainer};
use serde_json::json;

const ROWS: usize = 48;
const LENGTH: usize = 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = |i: usize| PathBuf::from(arguments.get(i).expect("a path"));
    match arguments.first().map(String::as_str) {
        Some("tokens") => tokens(&path(1), &path(2), &path(3)),
        Some("run") => {
            let steps = arguments
                .iter()
                .position(|given| given == "--steps")
                .map_or(5803, |at| arguments[at + 1].parse().expect("a number of steps"));
            #[cfg(feature = "cuda")]
            let backend = mamba::cuda::Cuda::new(mamba::DType::BF16).expect("a GPU");
            #[cfg(not(feature = "cuda"))]
            let backend = mamba::cpu::Cpu::new(2).expect("threads");
            run(backend, &path(1), &path(2), &path(3), steps);
        }
        other => panic!("tokens or run, not {other:?}"),
    }
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

fn run<B: TrainBackend>(backend: B, train: &Path, validation: &Path, out: &Path, steps: u64) {
    let (train, validation) = (read(train), read(validation));
    let config = r#"{"d_model": 256, "n_layer": 12, "vocab_size": 8192}"#;
    let options = TrainOptions {
        schedule: Schedule { lr: 3e-3, min_lr: 1e-5, warmup: 200, steps, decay: Decay::Cosine },
        max_tokens: ROWS * LENGTH,
        max_sequences: ROWS,
        ..TrainOptions::default()
    };
    let config = Config::from_json(config).expect("a shape");
    let mut trainer = Trainer::new(backend, config, Start::Seed(0), options).expect("a trainer");
    let windows = |k: usize| &validation[k * LENGTH..(k + 1) * LENGTH + 1];
    let mut log = Vec::new();
    let began = Instant::now();
    let mut trained = 0.0;
    for step in 0..steps {
        let from = Instant::now();
        let row = |i: usize| {
            let draw = uniform(1, step * ROWS as u64 + i as u64);
            let begin = (draw * (train.len() - LENGTH - 1) as f64) as usize;
            &train[begin..begin + LENGTH + 1]
        };
        let report = trainer.step(&[TrainBatch::rows((0..ROWS).map(row))]).expect("a step");
        trained += from.elapsed().as_secs_f64();
        if report.step % 250 == 0 || report.step == steps {
            let (sum, counted) = trainer.loss(&TrainBatch::rows((0..40).map(windows))).expect("a loss");
            let entry = json!([
                report.step,
                began.elapsed().as_secs_f64(),
                report.loss,
                sum / counted as f64,
                report.lr
            ]);
            println!("{entry}");
            log.push(entry);
        }
    }
    let tokens = steps as usize * ROWS * LENGTH;
    let summary = json!({
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": tokens as f64 / trained,
        "memory_gib": trainer.memory_in_use().map(|bytes| bytes as f64 / f64::from(1 << 30)),
        "log": log,
    });
    std::fs::write(out, summary.to_string()).expect("the log");
}
