//! What a GPU does for many users, with random weights of the published shapes: decode steps, prefill, throughput as the
//! paper measures it, a load test, embeddings. `scripts/gpu/run.sh generation` runs it all.
//!
//! ```text
//! generation throughput SHAPE DTYPE [BATCHES]    steps at each batch, prefill, prompts of 2048 and 128 new tokens
//! generation capacity SHAPE DTYPE BATCH          a step with so many sequences
//! generation load SHAPE DTYPE SECONDS            requests at random times, at 70 % and at 100 % of capacity
//! generation same SHAPE                          in f32: each answer in company against the request alone
//! generation ops SHAPE DTYPE TOKENS SEQUENCES    each operation of a layer, of a batch of prompts
//! generation embed SHAPE DTYPE                   texts of 32, 128, 512 tokens and of mixed lengths
//! ```
//! Every line that it prints is a JSON object. Floors are those of `shared` bandwidth and product rate, measured first.

mod embed;
mod load;
mod machine;
mod ops;
mod throughput;
mod weights;

use mamba::DType;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize| arguments.get(i).map(String::as_str);
    let number =
        |i: usize, default: usize| argument(i).map_or(default, |text| text.parse().expect("a number"));
    let shape = argument(1).unwrap_or("130m");
    let dtype = DType::parse(argument(2).unwrap_or("f16")).expect("a type");
    match argument(0) {
        Some("machine") => machine::print(),
        Some("throughput") => {
            let batches = argument(3).unwrap_or("1,2,4,8,16,32,64,128,256");
            let batches: Vec<usize> = batches.split(',').map(|b| b.parse().expect("a batch")).collect();
            throughput::run(shape, dtype, &batches);
        }
        Some("capacity") => throughput::capacity(shape, dtype, number(3, 256)),
        Some("load") => load::run(shape, dtype, number(3, 10) as f64),
        Some("same") => load::same_as_alone(shape),
        Some("ops") => ops::run(shape, dtype, number(3, 4096), number(4, 2)),
        Some("embed") => embed::run(shape, dtype),
        other => panic!("no measurement {other:?}: machine, throughput, capacity, load, same, ops or embed"),
    }
}
