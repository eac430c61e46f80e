//! What the card can do, and what this process takes of the processor.

use std::time::Instant;

use mamba::DType;
use mamba::backend::{Backend, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cuda::Cuda;
use serde_json::json;

/// The card's name and driver; bytes of device-to-device copies (read and written) a second; floating-point operations of a product
/// of 8192 × 8192 matrices a second, bf16 and f16; bytes that are free.
pub fn print() {
    let mut rates = Vec::new();
    let (mut name, mut copy, mut free) = (String::new(), 0.0, 0);
    for dtype in [DType::BF16, DType::F16] {
        let mut cuda = Cuda::new(dtype).expect("a GPU");
        name = cuda.device().name().expect("a name");
        free = cuda.device().memory().expect("memory").0;
        let n = 8192;
        let values: Vec<f32> = (0..n * n).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
        let tensor = Tensor::from_memory("w", vec![n, n], values.clone());
        let weight = cuda.weight(&tensor, dtype).expect("a weight");
        let mut x = cuda.activations(n * n).expect("memory");
        cuda.write(&mut x, 0, &values).expect("a copy");
        let mut out = cuda.activations(n * n).expect("memory");
        let seconds = best(&mut cuda, 10, &mut |cuda| {
            let out = ViewMut::dense(&mut out, n, n);
            cuda.linear(View::dense(&x, n, n), &weight, None, out).expect("a product");
        });
        rates.push(2.0 * (n as f64).powi(3) / seconds);
        let words = 1 << 28;
        let mut buffer = cuda.alloc(2 * words, "a copy").expect("memory");
        let seconds = best(&mut cuda, 10, &mut |cuda| {
            cuda.copy_within(&mut buffer, 0, words, words).expect("a copy");
        });
        copy = 8.0 * words as f64 / seconds;
    }
    println!(
        "{}",
        json!({
            "what": "machine", "card": name, "driver": driver(), "free_bytes": free, "copy_tb_s": copy * 1e-12,
            "bf16_tflops": rates[0] * 1e-12, "f16_tflops": rates[1] * 1e-12,
        })
    );
}

fn driver() -> String {
    let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().expect("nvidia-smi");
    String::from_utf8_lossy(&output.stdout).trim().into()
}

/// Seconds of one run, the best of three times `count` in a row.
fn best(cuda: &mut Cuda, count: usize, run: &mut dyn FnMut(&mut Cuda)) -> f64 {
    run(cuda);
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        cuda.device().synchronize().expect("the device");
        let began = Instant::now();
        (0..count).for_each(|_| run(cuda));
        cuda.device().synchronize().expect("the device");
        least = least.min(began.elapsed().as_secs_f64() / count as f64);
    }
    least
}

/// Seconds that this process has computed, of all its threads.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a process");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |i: usize| -> f64 {
        after_name.split_whitespace().nth(i).and_then(|ticks| ticks.parse().ok()).expect("ticks")
    };
    // utime and stime, in hundredths of a second.
    (ticks(11) + ticks(12)) / 100.0
}
