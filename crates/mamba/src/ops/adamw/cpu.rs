//! One pass over all tensors, in parallel over pieces of them.

use super::{AdamW, Factors, Rates};
use crate::cpu::SharedMut;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;

/// Elements of a piece.
const PIECE: usize = 1 << 14;

/// A piece of a tensor.
struct Piece<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    clip: f32,
    keep: f32,
    rates: Rates,
    factors: Factors,
}

impl Kernel for Piece<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // The compiler makes vectors of it.
        let Self { p, g, m, v, clip, keep, rates, factors } = self;
        let (beta1, beta2, eps) = (rates.beta1 as f32, rates.beta2 as f32, rates.eps as f32);
        let (rest1, rest2) = ((1.0 - rates.beta1) as f32, (1.0 - rates.beta2) as f32);
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * clip;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *p = *p * keep - factors.step_size * (*m / (v.sqrt() * factors.root_scale + eps));
        }
    }
}

/// See [`AdamW`].
pub(crate) fn adamw(threads: &mut Threads, level: Level, op: AdamW<Aligned<f32>>) {
    let AdamW { params, grads, m, v, norm, clip, decayed, rates, .. } = op;
    let norm = norm[0];
    if !norm.is_finite() {
        return;
    }
    // As torch.nn.utils.clip_grad_norm_ has it.
    let clip = (clip / (norm + 1e-6)).min(1.0);
    let factors = rates.factors();
    for (index, (((p, g), m), v)) in params.iter_mut().zip(grads).zip(m).zip(v).enumerate() {
        let keep = if index < decayed { factors.keep } else { 1.0 };
        let len = p.len();
        assert!(g.len() == len && m.len() == len && v.len() == len);
        let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
        threads.run(len.div_ceil(PIECE), &|piece| {
            let from = piece * PIECE;
            let n = PIECE.min(len - from);
            // SAFETY: each task has its own piece; the level was detected.
            unsafe {
                let (p, m, v) = (p.slice(from, n), m.slice(from, n), v.slice(from, n));
                level.run(Piece { p, g: &g[from..from + n], m, v, clip, keep, rates, factors });
            }
        });
    }
}

/// The Euclidean norm of all elements; summed in f64, piece by piece.
pub(crate) fn norm_of(threads: &mut Threads, grads: &[Aligned<f32>]) -> f32 {
    let mut sum = 0.0;
    let mut pieces = Vec::new();
    for grads in grads {
        pieces.clear();
        pieces.resize(grads.len().div_ceil(PIECE), 0.0f64);
        let shared = SharedMut::new(&mut pieces);
        threads.run(grads.len().div_ceil(PIECE), &|piece| {
            let grads = &grads[piece * PIECE..grads.len().min((piece + 1) * PIECE)];
            // Eight sums side by side, so that the compiler makes vectors of them.
            let mut sums = [0.0f64; 8];
            for chunk in grads.chunks(8) {
                chunk.iter().zip(&mut sums).for_each(|(x, sum)| *sum += f64::from(*x) * f64::from(*x));
            }
            // SAFETY: each task has its own element.
            unsafe { shared.slice(piece, 1)[0] = sums.iter().sum() };
        });
        sum += pieces.iter().sum::<f64>();
    }
    sum.sqrt() as f32
}
