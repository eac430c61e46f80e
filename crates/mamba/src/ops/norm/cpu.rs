//! The norm, a row at a time; parallel over rows.

use super::AddNorm;
use crate::config::NormKind;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable};

/// Rows `from .. to`.
#[derive(Clone, Copy)]
struct Rows {
    kind: NormKind,
    eps: f32,
    weight: *const f32,
    bias: Option<*const f32>,
    delta: Option<ConstMatrix>,
    residual: MutMatrix,
    out: MutMatrix,
    d_model: usize,
    from: usize,
    to: usize,
}

/// See [`AddNorm`].
pub(crate) fn add_norm(threads: &mut Threads, level: Level, op: AddNorm<Aligned<f32>>) {
    let (rows, d_model) = (op.residual.rows, op.residual.cols);
    assert!(op.weight.len() >= d_model && op.bias.is_none_or(|bias| bias.len() >= d_model));
    let whole = Shareable(Rows {
        kind: op.kind,
        eps: op.eps,
        weight: op.weight.as_ptr(),
        bias: op.bias.map(|bias| bias.as_ptr()),
        delta: op.delta.as_ref().map(|delta| ConstMatrix::new(delta, rows, d_model)),
        residual: MutMatrix::new(op.residual, rows, d_model),
        out: MutMatrix::new(op.out, rows, d_model),
        d_model,
        from: 0,
        to: 0,
    });
    // A row is some hundred nanoseconds of work: hand out no fewer than eight.
    let block = rows.div_ceil(4 * threads.count()).max(8);
    threads.run(rows.div_ceil(block), &|task| {
        let whole = &whole;
        let from = task * block;
        // SAFETY: the level was detected; tasks have disjoint rows, all in range by the checks of the
        // matrices above.
        unsafe { level.run(Rows { from, to: rows.min(from + block), ..whole.0 }) };
    });
}

impl Kernel for Rows {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.d_model as f32;
        // SAFETY: `add_norm` made the pointers; columns beyond d_model are masked.
        unsafe {
            for row in self.from..self.to {
                let residual = self.residual.at(row, 0);
                let out = self.out.at(row, 0);
                let mut sum = S::splat(0.0);
                let mut squares = S::splat(0.0);
                for col in (0..self.d_model).step_by(S::LANES) {
                    let lanes = S::LANES.min(self.d_model - col);
                    let mut x = S::load_first(residual.add(col), lanes);
                    if let Some(delta) = self.delta {
                        x = S::add(x, S::load_first(delta.at(row, col), lanes));
                        S::store_first(residual.add(col), x, lanes);
                    }
                    match self.kind {
                        NormKind::Rms => squares = S::mul_add(x, x, squares),
                        NormKind::Layer => sum = S::add(sum, x),
                    }
                }
                let mean = S::splat(S::sum(sum) / n);
                if let NormKind::Layer = self.kind {
                    for col in (0..self.d_model).step_by(S::LANES) {
                        let lanes = S::LANES.min(self.d_model - col);
                        let x = S::sub(S::load_first(residual.add(col), lanes), mean);
                        // Lanes beyond the row hold −mean; they must not count.
                        let x = if lanes < S::LANES {
                            S::store_first(out.add(col), x, lanes);
                            S::load_first(out.add(col), lanes)
                        } else {
                            x
                        };
                        squares = S::mul_add(x, x, squares);
                    }
                }
                let scale = S::splat(1.0 / (S::sum(squares) / n + self.eps).sqrt());
                for col in (0..self.d_model).step_by(S::LANES) {
                    let lanes = S::LANES.min(self.d_model - col);
                    let x = S::sub(S::load_first(residual.add(col), lanes), mean);
                    let weight = S::load_first(self.weight.add(col), lanes);
                    let bias = self.bias.map_or(S::splat(0.0), |bias| S::load_first(bias.add(col), lanes));
                    let y = S::mul_add(S::mul(x, scale), weight, bias);
                    S::store_first(out.add(col), y, lanes);
                }
            }
        }
    }
}
