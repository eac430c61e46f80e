//! Log-probabilities of given tokens; parallel over rows.

use crate::backend::View;
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, SharedMut};

struct LogSumExp<'a> {
    logits: &'a [f32],
    out: &'a mut f32,
}

impl Kernel for LogSumExp<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let whole = self.logits.len() / S::LANES * S::LANES;
        let (body, tail) = self.logits.split_at(whole);
        // SAFETY: `body` is whole vectors.
        let sum = unsafe {
            let mut sum = S::splat(0.0);
            for chunk in body.chunks_exact(S::LANES) {
                sum = S::add(sum, math::exp::<S>(S::sub(S::load(chunk.as_ptr()), S::splat(max))));
            }
            S::sum(sum)
        };
        let sum = sum + tail.iter().map(|x| (x - max).exp()).sum::<f32>();
        *self.out = max + sum.ln();
    }
}

/// `out[i] = log_softmax(logits[i])[targets[i]]`.
pub(crate) fn token_logprobs(
    threads: &mut Threads,
    level: Level,
    logits: View<Aligned<f32>>,
    targets: &[u32],
    out: &mut [f32],
) {
    assert_eq!(targets.len(), out.len());
    let vocab = logits.cols;
    let logits = crate::cpu::Shareable(ConstMatrix::new(&logits, targets.len(), vocab));
    let out = SharedMut::new(out);
    threads.run(targets.len(), &|row| {
        let logits = &logits;
        // SAFETY: rows are in range by the check of the matrix; each task has its own output.
        unsafe {
            let logits = std::slice::from_raw_parts(logits.0.at(row, 0), vocab);
            let out = &mut out.slice(row, 1)[0];
            level.run(LogSumExp { logits, out });
            *out = logits[targets[row] as usize] - *out;
        }
    });
}
