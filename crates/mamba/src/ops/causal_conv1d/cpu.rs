//! The convolution, vectorised over channels; parallel over sequences and channels.

use std::ops::Range;

use super::CausalConv1d;
use crate::backend::Batch;
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut, channel_tasks};

/// Rows that all channels of a task take before the next ones: they stay in cache and in the TLB. At least a window.
const STEPS: usize = 32;
/// The widest window that `Config` admits.
pub(super) const MAX_WINDOW: usize = 16;

/// Channels `from .. to` of one sequence.
#[derive(Clone, Copy)]
struct Conv {
    x: ConstMatrix,
    out: MutMatrix,
    /// [d_conv, d_inner]
    weight: *const f32,
    bias: Option<*const f32>,
    /// [d_conv − 1, d_inner], this sequence's.
    window: Option<*mut f32>,
    fresh: bool,
    d_conv: usize,
    d_inner: usize,
    from: usize,
    to: usize,
    begin: usize,
    end: usize,
}

/// See [`CausalConv1d`].
pub(crate) fn causal_conv1d(
    threads: &mut Threads,
    level: Level,
    batch: &Batch,
    op: CausalConv1d<Aligned<f32>>,
) {
    let (d_inner, d_conv, tokens) = (op.x.cols, op.d_conv, batch.tokens());
    assert!((1..=MAX_WINDOW).contains(&d_conv) && op.weight.len() >= d_conv * d_inner);
    assert!(op.bias.is_none_or(|bias| bias.len() >= d_inner));
    let state = op.state.map(|state| {
        let last = batch.slots.iter().max().map_or(0, |slot| slot * state.slot_stride);
        assert!(batch.slots.is_empty() || state.buffer.len() >= last + state.offset + (d_conv - 1) * d_inner);
        (SharedMut::new(&mut state.buffer[state.offset..]), state.slot_stride)
    });
    let conv = Shareable(Conv {
        x: ConstMatrix::new(&op.x, tokens, d_inner),
        out: MutMatrix::new(op.out, tokens, d_inner),
        weight: op.weight.as_ptr(),
        bias: op.bias.map(|bias| bias.as_ptr()),
        window: None,
        fresh: true,
        d_conv,
        d_inner,
        from: 0,
        to: 0,
        begin: 0,
        end: 0,
    });
    channel_tasks(threads, batch, d_inner, &|sequence, from, to| {
        let conv = &conv;
        let (begin, end) = (batch.cu_seqlens[sequence], batch.cu_seqlens[sequence + 1]);
        // SAFETY: slots differ between sequences and channels between tasks, so no two tasks share a window;
        // the assertions above keep every pointer in range.
        unsafe {
            let window =
                state.as_ref().map(|(states, stride)| states.as_ptr().add(batch.slots[sequence] * stride));
            let fresh = batch.fresh[sequence] || window.is_none();
            level.run(Conv { window, fresh, from, to, begin, end, ..conv.0 });
        }
    });
}

impl Kernel for Conv {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `causal_conv1d` made the pointers; channels beyond `to` are masked.
        unsafe {
            // A sequence without tokens still leaves a window.
            for begin in (self.begin..self.end.max(self.begin + 1)).step_by(STEPS) {
                let rows = begin..self.end.min(begin + STEPS);
                for channel in (self.from..self.to).step_by(S::LANES) {
                    let lanes = S::LANES.min(self.to - channel);
                    match self.d_conv {
                        4 => self.channels::<S, 4>(4, channel, lanes, rows.clone()),
                        d_conv => self.channels::<S, MAX_WINDOW>(d_conv, channel, lanes, rows.clone()),
                    }
                }
            }
        }
    }
}

impl Conv {
    /// Some rows of a vector of channels; `d_conv` is at most `N`.
    #[inline(always)]
    unsafe fn channels<S: Simd, const N: usize>(
        &self,
        d_conv: usize,
        channel: usize,
        lanes: usize,
        rows: Range<usize>,
    ) {
        // The weights and the newest inputs, oldest first.
        // SAFETY: the caller's ranges.
        unsafe {
            let (mut w, mut x) = ([S::splat(0.0); N], [S::splat(0.0); N]);
            let at = |row: usize| row * self.d_inner + channel;
            for (k, w) in w[..d_conv].iter_mut().enumerate() {
                *w = S::load_first(self.weight.add(at(k)), lanes);
            }
            let bias = self.bias.map_or(S::splat(0.0), |bias| S::load_first(bias.add(channel), lanes));
            // The inputs before these rows, of this sequence or of its window; the first slot is shifted out.
            for (k, x) in x[..d_conv].iter_mut().enumerate().skip(1) {
                let row = rows.start + k;
                if row >= self.begin + d_conv {
                    *x = S::load_first(self.x.at(row - d_conv, channel), lanes);
                } else if let (Some(window), false) = (self.window, self.fresh) {
                    *x = S::load_first(window.add(at(row - self.begin - 1)), lanes);
                }
            }
            for t in rows.clone() {
                for k in 1..d_conv {
                    x[k - 1] = x[k];
                }
                x[d_conv - 1] = S::load_first(self.x.at(t, channel), lanes);
                let mut sum = bias;
                for (w, x) in w[..d_conv].iter().zip(&x) {
                    sum = S::mul_add(*w, *x, sum);
                }
                S::store_first(self.out.at(t, channel), math::silu::<S>(sum), lanes);
            }
            if let (Some(window), true) = (self.window, rows.end == self.end) {
                for (k, x) in x[1..d_conv].iter().enumerate() {
                    S::store_first(window.add(at(k)), *x, lanes);
                }
            }
        }
    }
}
