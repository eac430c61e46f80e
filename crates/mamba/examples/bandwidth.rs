//! How fast threads can read an array front to back, in GB/s: what a decode step cannot beat, as it reads every
//! weight once. `cargo run --release -p mamba --example bandwidth -- 2 516000000` (threads, bytes of each array).
//!
//! The array lies as weights do (on huge pages where there are any), each thread reads its own part of it with
//! the widest loads and prefetches, and a pass is one parallel section of the backend's pool. One JSON line per
//! size: the best and the median pass.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mamba::cpu::memory::Aligned;
use mamba::cpu::simd::{Kernel, Level, Simd};
use mamba::cpu::threads::Threads;

/// Bytes of a cache line, and of how far ahead of its use a line is asked for.
const LINE: usize = 64;
const AHEAD: usize = 32 * LINE;
/// Streams that a thread reads side by side, as a row of panels is.
const STREAMS: usize = 4;

/// Sums `part` (whole vectors of it) into `sum`.
struct Read<'a> {
    part: &'a [f32],
    sum: &'a mut f32,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let stream = self.part.len() / STREAMS / 16 * 16;
        // SAFETY: S is there, as `run`'s caller promises.
        let mut sums = [unsafe { S::splat(0.0) }; STREAMS];
        for line in (0..stream).step_by(16) {
            for (s, sum) in sums.iter_mut().enumerate() {
                let at = self.part[s * stream + line..][..16].as_ptr();
                // SAFETY: 16 floats lie there; a prefetch may point anywhere.
                unsafe {
                    S::prefetch(at.cast::<u8>().wrapping_add(AHEAD));
                    for lane in (0..16).step_by(S::LANES) {
                        *sum = S::add(*sum, S::load(at.add(lane)));
                    }
                }
            }
        }
        // SAFETY: as above.
        *self.sum = sums.iter().map(|sum| unsafe { S::sum(*sum) }).sum();
    }
}

fn main() {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|argument| argument.parse().expect("a number")).collect();
    let (&count, sizes) = arguments.split_first().expect("a number of threads, and sizes");
    let mut threads = Threads::new(count).expect("threads");
    for &bytes in sizes {
        let mut array = Aligned::<f32>::zeros(bytes / 4, "array").expect("memory");
        array.fill(1.0); // pages that were never written are all the same one
        let part = array.len().div_ceil(count);
        let sink = AtomicU32::new(0);
        let (mut passes, began) = (Vec::new(), Instant::now());
        while passes.len() < 5 || began.elapsed() < Duration::from_millis(500) {
            let start = Instant::now();
            threads.run(count, &|thread| {
                let mut sum = 0.0;
                let part = array.chunks(part).nth(thread).unwrap_or_default();
                // SAFETY: `detect` names a level that the processor has.
                unsafe { Level::detect().run(Read { part, sum: &mut sum }) };
                sink.fetch_add(sum as u32, Ordering::Relaxed);
            });
            passes.push(start.elapsed().as_secs_f64());
        }
        passes.sort_by(f64::total_cmp);
        let rate = |seconds: f64| bytes as f64 / seconds * 1e-9;
        println!(
            r#"{{"threads":{count},"bytes":{bytes},"best":{:.2},"median":{:.2}}}"#,
            rate(passes[0]),
            rate(passes[passes.len() / 2])
        );
        assert!(sink.into_inner() > 0, "the reads were not left out");
    }
}
