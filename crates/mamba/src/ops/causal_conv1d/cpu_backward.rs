//! The convolution's gradients, vectorised over channels; parallel over channels, each range through all sequences, so
//! that sums run in one order whatever the threads.

use super::ConvBackward;
use super::cpu::MAX_WINDOW;
use crate::backend::{Batch, StateView};
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut};

/// Channels of a task.
const CHANNELS: usize = 64;

/// One tensor of every slot.
#[derive(Clone, Copy)]
struct Slots {
    start: *mut f32,
    stride: usize,
}

impl Slots {
    fn new(state: StateView<Aligned<f32>>, batch: &Batch, elements: usize) -> Self {
        let end =
            batch.slots.iter().max().map_or(0, |slot| slot * state.slot_stride + state.offset + elements);
        assert!(state.buffer.len() >= end, "states of {end} elements in a buffer of {}", state.buffer.len());
        let from = state.offset.min(state.buffer.len());
        Self { start: SharedMut::new(&mut state.buffer[from..]).as_ptr(), stride: state.slot_stride }
    }
}

#[derive(Clone, Copy)]
struct Backward<'a> {
    batch: &'a Batch,
    x: ConstMatrix,
    out_grad: ConstMatrix,
    x_grad: MutMatrix,
    weight: *const f32,
    bias: Option<*const f32>,
    initial: Option<Slots>,
    last_grad: Option<Slots>,
    initial_grad: Option<Slots>,
    weight_grad: *mut f32,
    bias_grad: Option<*mut f32>,
    d_conv: usize,
    d_inner: usize,
    from: usize,
    to: usize,
}

/// See [`ConvBackward`].
pub(crate) fn backward(threads: &mut Threads, level: Level, batch: &Batch, op: ConvBackward<Aligned<f32>>) {
    let (d_inner, d_conv, tokens) = (op.x.cols, op.d_conv, batch.tokens());
    assert!((1..=MAX_WINDOW).contains(&d_conv) && op.weight.len() >= d_conv * d_inner);
    assert!(op.weight_grad.len() >= d_conv * d_inner && op.bias.is_none_or(|bias| bias.len() >= d_inner));
    assert!(op.bias_grad.as_ref().is_none_or(|bias| bias.len() >= d_inner));
    let slots = |state: Option<StateView<Aligned<f32>>>| {
        state.map(|state| Slots::new(state, batch, (d_conv - 1) * d_inner))
    };
    let whole = Shareable(Backward {
        batch,
        x: ConstMatrix::new(&op.x, tokens, d_inner),
        out_grad: ConstMatrix::new(&op.out_grad, tokens, d_inner),
        x_grad: MutMatrix::new(op.x_grad, tokens, d_inner),
        weight: op.weight.as_ptr(),
        bias: op.bias.map(|bias| bias.as_ptr()),
        initial: slots(op.initial_state),
        last_grad: slots(op.last_state_grad),
        initial_grad: slots(op.initial_state_grad),
        weight_grad: op.weight_grad.as_mut_ptr(),
        bias_grad: op.bias_grad.map(|bias| bias.as_mut_ptr()),
        d_conv,
        d_inner,
        from: 0,
        to: 0,
    });
    threads.run(d_inner.div_ceil(CHANNELS), &|task| {
        let whole = &whole;
        let from = task * CHANNELS;
        // SAFETY: the level was detected; tasks have disjoint channels, all in range by the checks above.
        unsafe { level.run(Backward { from, to: d_inner.min(from + CHANNELS), ..whole.0 }) };
    });
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `backward` made the pointers; channels beyond `to` are masked.
        unsafe {
            for channel in (self.from..self.to).step_by(S::LANES) {
                let lanes = S::LANES.min(self.to - channel);
                match self.d_conv {
                    4 => self.channels::<S, 4>(4, channel, lanes),
                    d_conv => self.channels::<S, MAX_WINDOW>(d_conv, channel, lanes),
                }
            }
        }
    }
}

impl Backward<'_> {
    /// A vector of channels through all sequences; `d_conv` is at most `N`.
    #[inline(always)]
    unsafe fn channels<S: Simd, const N: usize>(&self, d_conv: usize, channel: usize, lanes: usize) {
        let before = d_conv - 1;
        // SAFETY: the caller's channels; rows and slots are the batch's.
        unsafe {
            let mut w = [S::splat(0.0); N];
            for (k, w) in w[..d_conv].iter_mut().enumerate() {
                *w = S::load_first(self.weight.add(k * self.d_inner + channel), lanes);
            }
            let bias = self.bias.map_or(S::splat(0.0), |bias| S::load_first(bias.add(channel), lanes));
            let (mut w_grad, mut bias_grad) = ([S::splat(0.0); N], S::splat(0.0));
            for (s, range) in self.batch.cu_seqlens.windows(2).enumerate() {
                let (begin, length, fresh) = (range[0], range[1] - range[0], self.batch.fresh[s]);
                let at = |slots: Slots, i: usize| {
                    slots.start.add(self.batch.slots[s] * slots.stride + i * self.d_inner + channel)
                };
                // x[k]: the inputs that output t sees, oldest first; g[k]: the gradients of the last outputs' sums,
                // newest last.
                let (mut x, mut g) = ([S::splat(0.0); N], [S::splat(0.0); N]);
                if let Some(initial) = self.initial.filter(|_| !fresh) {
                    for i in 0..before {
                        x[i + 1] = S::load_first(at(initial, i), lanes);
                    }
                }
                // Input j is seen by outputs j − before … j, as weight k by output j − k.
                for j in 0..length + before {
                    for k in 1..d_conv {
                        g[k - 1] = g[k];
                        x[k - 1] = x[k];
                    }
                    g[before] = S::splat(0.0);
                    if j < length {
                        x[before] = S::load_first(self.x.at(begin + j, channel), lanes);
                        let mut sum = bias;
                        for k in 0..d_conv {
                            sum = S::mul_add(w[k], x[k], sum);
                        }
                        let grad = S::load_first(self.out_grad.at(begin + j, channel), lanes);
                        let grad = S::mul(grad, math::silu_slope::<S>(sum));
                        for k in 0..d_conv {
                            w_grad[k] = S::mul_add(grad, x[k], w_grad[k]);
                        }
                        bias_grad = S::add(bias_grad, grad);
                        g[before] = grad;
                    }
                    let mut input_grad = match self.last_grad.filter(|_| j >= length) {
                        Some(last) => S::load_first(at(last, j - length), lanes),
                        None => S::splat(0.0),
                    };
                    for k in 0..d_conv {
                        input_grad = S::mul_add(w[k], g[before - k], input_grad);
                    }
                    if j >= before {
                        S::store_first(self.x_grad.at(begin + j - before, channel), input_grad, lanes);
                    } else if let Some(initial) = self.initial_grad {
                        let grad = if fresh { S::splat(0.0) } else { input_grad };
                        S::store_first(at(initial, j), grad, lanes);
                    }
                }
            }
            for (k, w_grad) in w_grad[..d_conv].iter().enumerate() {
                S::store_first(self.weight_grad.add(k * self.d_inner + channel), *w_grad, lanes);
            }
            if let Some(to) = self.bias_grad {
                S::store_first(to.add(channel), bias_grad, lanes);
            }
        }
    }
}
