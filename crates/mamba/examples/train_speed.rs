//! Tokens per second of training steps on random tokens, and the device memory in use:
//! `cargo run --release -p mamba --example train_speed -- 130m bf16 8 2048 10` (shape, precision, sequences, length,
//! steps). Prints a JSON line.
//!
//! Shapes: 7m, 130m, 370m, or `DMODELxLAYERSxVOCAB`. Options: `--device cuda` (with the feature `cuda`), `--threads N`,
//! `--recompute`, `--micro N` (sequences computed at a time, gradients added up).

use std::time::Instant;

use mamba::config::Config;
use mamba::cpu::Cpu;
use mamba::train::{Start, TrainBackend, TrainBatch, TrainOptions, Trainer};
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.into());
    let option = |name: &str| {
        let at = arguments.iter().position(|given| given == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    };
    let number = |text: String| text.parse::<usize>().unwrap_or_else(|_| panic!("{text} is no number"));
    let shape = argument(0, "130m");
    let [d_model, n_layer, vocab] = match shape.as_str() {
        "7m" => [256, 12, 8192],
        "130m" => [768, 24, 50280],
        "370m" => [1024, 48, 50280],
        other => {
            let parts: Vec<usize> = other.split('x').map(|part| number(part.into())).collect();
            parts.try_into().expect("DMODELxLAYERSxVOCAB")
        }
    };
    let config = format!(r#"{{"d_model": {d_model}, "n_layer": {n_layer}, "vocab_size": {vocab}}}"#);
    let config = Config::from_json(&config).expect("a shape");
    let (precision, sequences) = (argument(1, "bf16"), number(argument(2, "8")));
    let (length, steps) = (number(argument(3, "2048")), number(argument(4, "10")));
    let micro = option("--micro").map_or(sequences, number).min(sequences);
    let options = TrainOptions {
        recompute: arguments.contains(&"--recompute".into()),
        max_tokens: micro * length,
        max_sequences: micro,
        ..TrainOptions::default()
    };
    let what = json!({ "shape": shape, "precision": precision, "sequences": sequences, "length": length,
        "micro": micro, "recompute": options.recompute });
    match option("--device").as_deref() {
        None | Some("cpu") => {
            let threads = option("--threads").map_or(2, number);
            run(
                Cpu::new(threads).expect("threads"),
                config,
                options,
                what,
                [sequences, length, steps, micro],
            );
        }
        #[cfg(feature = "cuda")]
        Some("cuda") => {
            let dtype = mamba::DType::parse(&precision).expect("f32 or bf16");
            let cuda = mamba::cuda::Cuda::new(dtype).expect("a GPU");
            run(cuda, config, options, what, [sequences, length, steps, micro]);
        }
        Some(other) => panic!("no device {other} in this build"),
    }
}

fn run<B: TrainBackend>(
    backend: B,
    config: Config,
    options: TrainOptions,
    mut what: serde_json::Value,
    [sequences, length, steps, micro]: [usize; 4],
) {
    let mut trainer = Trainer::new(backend, config.clone(), Start::Seed(1), options).expect("a trainer");
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % config.vocab_size as u32
    };
    let rows: Vec<Vec<u32>> = (0..sequences).map(|_| (0..=length).map(|_| token()).collect()).collect();
    let batches: Vec<TrainBatch> =
        rows.chunks(micro).map(|rows| TrainBatch::rows(rows.iter().map(Vec::as_slice))).collect();
    let mut seconds = Vec::new();
    let mut losses = Vec::new();
    for step in 0..steps + 2 {
        let began = Instant::now();
        losses.push(trainer.step(&batches).expect("a step").loss);
        // The first ones warm up.
        if step >= 2 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    what["ms_per_step"] = json!(1e3 * median);
    what["ms_slowest"] = json!(1e3 * seconds[seconds.len() - 1]);
    what["tokens_per_second"] = json!((sequences * length) as f64 / median);
    what["memory_gib"] = json!(trainer.memory_in_use().map(|bytes| bytes as f64 / f64::from(1 << 30)));
    what["losses"] = json!([losses[0], losses[losses.len() - 1]]);
    println!("{what}");
}
