//! The loss and its gradient, a row at a time; parallel over rows.

use super::CrossEntropy;
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{MutMatrix, Shareable, SharedMut};

struct Row<'a> {
    logits: &'a mut [f32],
    target: usize,
    z_loss: f32,
    scale: Option<f32>,
    loss: &'a mut f32,
}

impl Kernel for Row<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { logits, target, z_loss, scale, loss } = self;
        let (start, len) = (logits.as_mut_ptr(), logits.len());
        // SAFETY: vectors within the row; lanes beyond it are left out of every sum.
        unsafe {
            let whole = len / S::LANES * S::LANES;
            let mut max = S::splat(f32::NEG_INFINITY);
            for i in (0..whole).step_by(S::LANES) {
                max = S::max(max, S::load(start.add(i)));
            }
            let max = (whole..len).fold(S::largest(max), |max, i| max.max(*start.add(i)));
            let mut sum = S::splat(0.0);
            for i in (0..whole).step_by(S::LANES) {
                sum = S::add(sum, math::exp::<S>(S::sub(S::load(start.add(i)), S::splat(max))));
            }
            let sum = (whole..len).fold(S::sum(sum), |sum, i| sum + (*start.add(i) - max).exp());
            let log_sum = max + sum.ln();
            *loss = log_sum - *start.add(target) + z_loss * log_sum * log_sum;
            let Some(scale) = scale else { return };
            let factor = scale * (1.0 + 2.0 * z_loss * log_sum);
            for i in (0..len).step_by(S::LANES) {
                let n = S::LANES.min(len - i);
                let x = S::sub(S::load_first(start.add(i), n), S::splat(log_sum));
                S::store_first(start.add(i), S::mul(S::splat(factor), math::exp::<S>(x)), n);
            }
            *start.add(target) -= scale;
        }
    }
}

/// See [`CrossEntropy`].
pub(crate) fn cross_entropy(threads: &mut Threads, level: Level, op: CrossEntropy<Aligned<f32>>) {
    let CrossEntropy { logits, targets, z_loss, scale, losses } = op;
    let (rows, vocab) = (targets.len(), logits.cols);
    assert!(targets.iter().all(|target| (*target as i64) < vocab as i64), "a target beyond {vocab}");
    let logits = Shareable(MutMatrix::new(logits, rows, vocab));
    let losses = SharedMut::new(losses);
    threads.run(rows, &|row| {
        let logits = &logits;
        // SAFETY: each task has its own row, in range by the check of the matrix.
        unsafe {
            let logits = std::slice::from_raw_parts_mut(logits.0.at(row, 0), vocab);
            let loss = &mut losses.slice(row, 1)[0];
            match usize::try_from(targets[row]) {
                Ok(target) => level.run(Row { logits, target, z_loss, scale, loss }),
                Err(_) => {
                    *loss = 0.0;
                    if scale.is_some() {
                        logits.fill(0.0);
                    }
                }
            }
        }
    });
}
