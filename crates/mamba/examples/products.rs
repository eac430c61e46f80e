//! Matrix products of the CPU backend, each path on the shapes of the 130m model: GFLOP/s, and GB/s of weights
//! where few rows make memory the limit. `cargo run --release -p mamba --example products -- 2 amx q8_0`
//! (threads, and the only instruction set and type to measure).

use std::time::{Duration, Instant};

use mamba::DType;
use mamba::backend::{Backend, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::cpu::simd::Level;

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    println!("{:11} {:5} {:>16} {:>5} {:>10} {:>8}", "level", "dtype", "out x in", "rows", "GFLOP/s", "GB/s");
    let wanted = |argument, name| std::env::args().nth(argument).is_none_or(|only| only == name);
    for level in Level::available().into_iter().filter(|level| wanted(2, level.name())) {
        for dtype in DType::ALL.into_iter().filter(|dtype| wanted(3, dtype.name())) {
            for (outputs, inputs) in [(3072, 768), (768, 1536), (50280, 768)] {
                let mut cpu = Cpu::with_level(threads, level).expect("an available level");
                let values = (0..outputs * inputs).map(|i| (i % 97) as f32 * 0.01 - 0.48).collect();
                let tensor = Tensor::from_memory("w", vec![outputs, inputs], values);
                // Several copies, so that a small weight is not measured out of the second-level cache.
                let bytes = dtype.bytes((outputs * inputs) as u64) as usize;
                let copies = (64 << 20) / bytes + 1;
                let weights: Vec<_> =
                    (0..copies).map(|_| cpu.weight(&tensor, dtype).expect("a weight")).collect();
                for rows in [1, 4, 8, 32, 512] {
                    let mut x = cpu.alloc(rows * inputs, "x").expect("memory");
                    x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 89) as f32 * 0.02 - 0.9);
                    let mut out = cpu.alloc(rows * outputs, "out").expect("memory");
                    let mut best = Duration::MAX;
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_millis(300) {
                        let start = Instant::now();
                        for weight in &weights {
                            let out = ViewMut::dense(&mut out, rows, outputs);
                            cpu.linear(View::dense(&x, rows, inputs), weight, None, out).expect("a product");
                        }
                        best = best.min(start.elapsed() / copies as u32);
                    }
                    let seconds = best.as_secs_f64();
                    println!(
                        "{:11} {:5} {:>16} {rows:>5} {:>10.1} {:>8.1}",
                        level.name(),
                        dtype.name(),
                        format!("{outputs} x {inputs}"),
                        (2 * rows * inputs * outputs) as f64 / seconds * 1e-9,
                        bytes as f64 / seconds * 1e-9,
                    );
                }
            }
        }
    }
}
