//! The norm for training: the sum is kept, and its gradients; parallel over rows.

use super::{NormBackward, NormForward};
use crate::config::NormKind;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut};
use crate::error::Result;

/// Rows of a task: a constant, since the parameters' gradients are summed task by task.
const ROWS: usize = 64;

#[derive(Clone, Copy)]
struct Forward {
    layer: bool,
    eps: f32,
    weight: *const f32,
    bias: Option<*const f32>,
    residual: ConstMatrix,
    delta: Option<(ConstMatrix, MutMatrix)>,
    out: MutMatrix,
    n: usize,
    from: usize,
    to: usize,
}

/// See [`NormForward`].
pub(crate) fn forward(threads: &mut Threads, level: Level, op: NormForward<Aligned<f32>>) {
    let (rows, n) = (op.out.rows, op.out.cols);
    assert!(op.weight.len() >= n && op.bias.is_none_or(|bias| bias.len() >= n));
    let whole = Shareable(Forward {
        layer: op.kind == NormKind::Layer,
        eps: op.eps,
        weight: op.weight.as_ptr(),
        bias: op.bias.map(|bias| bias.as_ptr()),
        residual: ConstMatrix::new(&op.residual, rows, n),
        delta: op.delta.map(|(delta, sum)| (ConstMatrix::new(&delta, rows, n), MutMatrix::new(sum, rows, n))),
        out: MutMatrix::new(op.out, rows, n),
        n,
        from: 0,
        to: 0,
    });
    threads.run(rows.div_ceil(ROWS), &|task| {
        let whole = &whole;
        let from = task * ROWS;
        // SAFETY: the level was detected; tasks have disjoint rows, in range by the checks of the matrices.
        unsafe { level.run(Forward { from, to: rows.min(from + ROWS), ..whole.0 }) };
    });
}

impl Kernel for Forward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `forward` made the pointers; columns beyond n are masked.
        unsafe {
            for row in self.from..self.to {
                let mut sum = self.residual.at(row, 0);
                if let Some((delta, to)) = self.delta {
                    for col in (0..self.n).step_by(S::LANES) {
                        let lanes = S::LANES.min(self.n - col);
                        let x = S::add(
                            S::load_first(sum.add(col), lanes),
                            S::load_first(delta.at(row, col), lanes),
                        );
                        S::store_first(to.at(row, col), x, lanes);
                    }
                    sum = to.at(row, 0).cast_const();
                }
                let [mean, scale] = statistics::<S>(sum, self.n, self.layer, self.eps);
                for col in (0..self.n).step_by(S::LANES) {
                    let lanes = S::LANES.min(self.n - col);
                    let x = S::sub(S::load_first(sum.add(col), lanes), S::splat(mean));
                    let weight = S::load_first(self.weight.add(col), lanes);
                    let bias = self.bias.map_or(S::splat(0.0), |bias| S::load_first(bias.add(col), lanes));
                    let y = S::mul_add(S::mul(x, S::splat(scale)), weight, bias);
                    S::store_first(self.out.at(row, col), y, lanes);
                }
            }
        }
    }
}

/// A row's mean (0 unless `layer`), and 1 over the root of its variance plus eps.
#[inline(always)]
unsafe fn statistics<S: Simd>(row: *const f32, n: usize, layer: bool, eps: f32) -> [f32; 2] {
    // SAFETY: n elements of the row exist; lanes beyond them are zero, or taken out of the sum again.
    unsafe {
        let mut sum = S::splat(0.0);
        if layer {
            for col in (0..n).step_by(S::LANES) {
                sum = S::add(sum, S::load_first(row.add(col), S::LANES.min(n - col)));
            }
        }
        let mean = S::sum(sum) / n as f32;
        let mut squares = S::splat(0.0);
        for col in (0..n).step_by(S::LANES) {
            let x = S::sub(S::load_first(row.add(col), S::LANES.min(n - col)), S::splat(mean));
            squares = S::mul_add(x, x, squares);
        }
        let beyond = (n.next_multiple_of(S::LANES) - n) as f32 * mean * mean;
        [mean, 1.0 / ((S::sum(squares) - beyond) / n as f32 + eps).sqrt()]
    }
}

#[derive(Clone, Copy)]
struct Backward {
    layer: bool,
    eps: f32,
    last: bool,
    weight: *const f32,
    sum: ConstMatrix,
    out_grad: ConstMatrix,
    residual_grad: MutMatrix,
    delta_grad: Option<MutMatrix>,
    /// This task's sums: of the weight, then of the bias, [2, n].
    sums: *mut f32,
    n: usize,
    from: usize,
    to: usize,
}

/// See [`NormBackward`].
///
/// # Errors
/// `OUT_OF_MEMORY` for scratch.
pub(crate) fn backward(threads: &mut Threads, level: Level, op: NormBackward<Aligned<f32>>) -> Result<()> {
    let (rows, n) = (op.out_grad.rows, op.out_grad.cols);
    assert!(op.weight.len() >= n && op.weight_grad.len() >= n);
    let tasks = rows.div_ceil(ROWS);
    let mut sums = Aligned::zeros(tasks * 2 * n, "gradients of a norm")?;
    let whole = Shareable(Backward {
        layer: op.kind == NormKind::Layer,
        eps: op.eps,
        last: op.last,
        weight: op.weight.as_ptr(),
        sum: ConstMatrix::new(&op.sum, rows, n),
        out_grad: ConstMatrix::new(&op.out_grad, rows, n),
        residual_grad: MutMatrix::new(op.residual_grad, rows, n),
        delta_grad: op.delta_grad.map(|delta| MutMatrix::new(delta, rows, n)),
        sums: std::ptr::null_mut(),
        n,
        from: 0,
        to: 0,
    });
    let shared = SharedMut::new(&mut sums);
    threads.run(tasks, &|task| {
        let whole = &whole;
        let from = task * ROWS;
        // SAFETY: the level was detected; tasks have disjoint rows and sums, in range by the checks of the matrices.
        unsafe {
            let sums = shared.slice(task * 2 * n, 2 * n).as_mut_ptr();
            level.run(Backward { sums, from, to: rows.min(from + ROWS), ..whole.0 });
        }
    });
    op.weight_grad[..n].fill(0.0);
    let mut bias_grad = op.bias_grad;
    if let Some(bias) = &mut bias_grad {
        bias[..n].fill(0.0);
    }
    for sums in sums.chunks_exact(2 * n) {
        op.weight_grad.iter_mut().zip(&sums[..n]).for_each(|(sum, x)| *sum += x);
        if let Some(bias) = &mut bias_grad {
            bias.iter_mut().zip(&sums[n..]).for_each(|(sum, x)| *sum += x);
        }
    }
    Ok(())
}

impl Kernel for Backward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n as f32;
        // SAFETY: `backward` made the pointers; columns beyond n are masked (their gradients are zero).
        unsafe {
            for row in self.from..self.to {
                let x = self.sum.at(row, 0);
                let [mean, scale] = statistics::<S>(x, self.n, self.layer, self.eps);
                let (mut along, mut even) = (S::splat(0.0), S::splat(0.0));
                let each = |col: usize| {
                    let lanes = S::LANES.min(self.n - col);
                    let x = S::mul(S::sub(S::load_first(x.add(col), lanes), S::splat(mean)), S::splat(scale));
                    (lanes, x, S::load_first(self.out_grad.at(row, col), lanes))
                };
                for col in (0..self.n).step_by(S::LANES) {
                    let (lanes, x, grad) = each(col);
                    let weighted = S::mul(grad, S::load_first(self.weight.add(col), lanes));
                    along = S::mul_add(x, weighted, along);
                    even = S::add(even, weighted);
                    let [w, b] = [self.sums.add(col), self.sums.add(self.n + col)];
                    S::store_first(w, S::mul_add(grad, x, S::load_first(w, lanes)), lanes);
                    S::store_first(b, S::add(grad, S::load_first(b, lanes)), lanes);
                }
                let along = S::splat(S::sum(along) / n);
                let even = S::splat(if self.layer { S::sum(even) / n } else { 0.0 });
                for col in (0..self.n).step_by(S::LANES) {
                    let (lanes, x, grad) = each(col);
                    let weighted = S::mul(grad, S::load_first(self.weight.add(col), lanes));
                    let own = S::sub(S::sub(weighted, S::mul(x, along)), even);
                    let to = self.residual_grad.at(row, col);
                    let down = if self.last { S::splat(0.0) } else { S::load_first(to, lanes) };
                    let grad = S::mul_add(S::splat(scale), own, down);
                    S::store_first(to, grad, lanes);
                    if let Some(delta) = self.delta_grad {
                        S::store_first(delta.at(row, col), grad, lanes);
                    }
                }
            }
        }
    }
}
