//! The scan's gradients, vectorised over channels. A chunk of 64 steps at a time, the last one first; within it, state by
//! state: the states are computed again from the chunk's first, then the gradient runs back through them, all in the
//! first-level cache. Parallel over ranges of channels, each through all sequences; what is summed over channels (dB, dC)
//! is summed range by range, so bits do not depend on the threads.

use super::cpu::chunks;
use super::{CHUNK, ScanBackward};
use crate::backend::{Batch, StateView};
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut};
use crate::error::Result;

/// Channels of a task.
const CHANNELS: usize = 128;

#[derive(Clone, Copy)]
struct Slots {
    start: *mut f32,
    stride: usize,
}

#[derive(Clone, Copy)]
struct Backward<'a> {
    batch: &'a Batch,
    u: ConstMatrix,
    delta: ConstMatrix,
    b: ConstMatrix,
    c: ConstMatrix,
    z: ConstMatrix,
    out_grad: ConstMatrix,
    u_grad: MutMatrix,
    delta_grad: MutMatrix,
    z_grad: MutMatrix,
    delta_bias: *const f32,
    a: *const f32,
    d: *const f32,
    boundary: *const f32,
    last_grad: Option<Slots>,
    initial_grad: Option<Slots>,
    a_grad: *mut f32,
    d_grad: *mut f32,
    bias_grad: *mut f32,
    /// This range's sums: [tokens, 2 · d_state].
    bc: *mut f32,
    /// This range's scratch: [d_state, CHUNK, LANES] of dB, of dC, and [d_state, CHANNELS] of g.
    scratch: *mut f32,
    d_inner: usize,
    d_state: usize,
    from: usize,
    to: usize,
}

/// See [`ScanBackward`].
///
/// # Errors
/// `OUT_OF_MEMORY` for scratch.
pub(crate) fn backward(
    threads: &mut Threads,
    level: Level,
    batch: &Batch,
    op: ScanBackward<Aligned<f32>>,
) -> Result<()> {
    let (tokens, d_inner, d_state) = (batch.tokens(), op.u.cols, op.b.cols);
    for (len, expected) in [
        (op.a.len(), d_state * d_inner),
        (op.a_grad.len(), d_state * d_inner),
        (op.d.len(), d_inner),
        (op.d_grad.len(), d_inner),
        (op.delta_bias.len(), d_inner),
        (op.delta_bias_grad.len(), d_inner),
        (op.boundary.len(), chunks(batch) * d_state * d_inner),
    ] {
        assert!(len >= expected, "{len} elements, expected {expected}");
    }
    let slots = |state: Option<StateView<Aligned<f32>>>| {
        state.map(|state| {
            let end = batch.slots.iter().max().map_or(0, |slot| slot * state.slot_stride);
            let end = if batch.slots.is_empty() { 0 } else { end + state.offset + d_state * d_inner };
            assert!(state.buffer.len() >= end, "states of {end} in a buffer of {}", state.buffer.len());
            let from = state.offset.min(state.buffer.len());
            Slots { start: SharedMut::new(&mut state.buffer[from..]).as_ptr(), stride: state.slot_stride }
        })
    };
    let ranges = d_inner.div_ceil(CHANNELS);
    let (sums, scratch) = (tokens * 2 * d_state, (2 * CHUNK * MAX_LANES + CHANNELS) * d_state);
    let mut room = Aligned::zeros(ranges * (sums + scratch), "gradients of B and C")?;
    let (last_grad, initial_grad) = (slots(op.last_state_grad), slots(op.initial_state_grad));
    let whole = Shareable(Backward {
        batch,
        u: ConstMatrix::new(&op.u, tokens, d_inner),
        delta: ConstMatrix::new(&op.delta, tokens, d_inner),
        b: ConstMatrix::new(&op.b, tokens, d_state),
        c: ConstMatrix::new(&op.c, tokens, d_state),
        z: ConstMatrix::new(&op.z, tokens, d_inner),
        out_grad: ConstMatrix::new(&op.out_grad, tokens, d_inner),
        u_grad: MutMatrix::new(op.u_grad, tokens, d_inner),
        delta_grad: MutMatrix::new(op.delta_grad, tokens, d_inner),
        z_grad: MutMatrix::new(op.z_grad, tokens, d_inner),
        delta_bias: op.delta_bias.as_ptr(),
        a: op.a.as_ptr(),
        d: op.d.as_ptr(),
        boundary: op.boundary.as_ptr(),
        last_grad,
        initial_grad,
        a_grad: op.a_grad.as_mut_ptr(),
        d_grad: op.d_grad.as_mut_ptr(),
        bias_grad: op.delta_bias_grad.as_mut_ptr(),
        bc: std::ptr::null_mut(),
        scratch: std::ptr::null_mut(),
        d_inner,
        d_state,
        from: 0,
        to: 0,
    });
    let shared = SharedMut::new(&mut room);
    threads.run(ranges, &|range| {
        let whole = &whole;
        let from = range * CHANNELS;
        // SAFETY: the level was detected; tasks have disjoint channels and room, all in range by the checks above.
        unsafe {
            let bc = shared.slice(range * (sums + scratch), sums + scratch).as_mut_ptr();
            let to = d_inner.min(from + CHANNELS);
            level.run(Backward { bc, scratch: bc.add(sums), from, to, ..whole.0 });
        }
    });
    let out = Shareable([op.b_grad, op.c_grad].map(|grad| MutMatrix::new(grad, tokens, d_state)));
    const ROWS: usize = 64;
    threads.run(tokens.div_ceil(ROWS), &|task| {
        let out = &out;
        for t in task * ROWS..tokens.min((task + 1) * ROWS) {
            for (which, out) in out.0.iter().enumerate() {
                // SAFETY: tasks have disjoint rows, in range by the checks of the matrices.
                let row = unsafe { std::slice::from_raw_parts_mut(out.at(t, 0), d_state) };
                row.fill(0.0);
                for range in 0..ranges {
                    let from = range * (sums + scratch) + (2 * t + which) * d_state;
                    row.iter_mut().zip(&room[from..from + d_state]).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    });
    Ok(())
}

/// Of any level's vectors.
const MAX_LANES: usize = 16;

/// What a chunk's steps take and give of a vector of channels, state by state.
#[derive(Clone, Copy)]
struct Step<S: Simd> {
    delta: S::F,
    u: S::F,
    /// Gradient of the sum before the gate.
    sum_grad: S::F,
    /// The sum itself, D · u first.
    sum: S::F,
    /// Σ g · (A · decayed + B · u)
    delta_grad: S::F,
    /// Σ g · B
    input_grad: S::F,
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `backward` made the pointers; channels beyond `to` are masked.
        unsafe {
            for n in 0..self.d_state {
                std::slice::from_raw_parts_mut(
                    self.a_grad.add(n * self.d_inner + self.from),
                    self.to - self.from,
                )
                .fill(0.0);
            }
            for grad in [self.d_grad, self.bias_grad] {
                std::slice::from_raw_parts_mut(grad.add(self.from), self.to - self.from).fill(0.0);
            }
            let mut first_chunk = 0;
            for (sequence, range) in self.batch.cu_seqlens.windows(2).enumerate() {
                let (begin, end) = (range[0], range[1]);
                let count = (end - begin).div_ceil(CHUNK);
                // g of the range's channels: [d_state, d_inner] of the slot where a gradient is wanted, so that it is
                // carried from chunk to chunk in place; else in scratch of its own.
                self.begin_sequence(sequence);
                for chunk in (0..count).rev() {
                    let from = begin + chunk * CHUNK;
                    self.chunk::<S>(first_chunk + chunk, from, end.min(from + CHUNK));
                }
                self.end_sequence(sequence);
                first_chunk += count;
            }
        }
    }
}

impl Backward<'_> {
    /// The carried gradient of the range: [d_state, to − from].
    unsafe fn carried(&self) -> *mut f32 {
        // SAFETY: behind the sums of dB and dC, see `backward`: d_state · CHANNELS elements.
        unsafe { self.scratch.add(2 * CHUNK * self.d_state * MAX_LANES) }
    }

    unsafe fn begin_sequence(&self, sequence: usize) {
        let width = self.to - self.from;
        // SAFETY: the slot's states are in range.
        unsafe {
            let Some(slots) = self.last_grad else {
                return self.carried().write_bytes(0, self.d_state * width);
            };
            for n in 0..self.d_state {
                let at = self.batch.slots[sequence] * slots.stride + n * self.d_inner + self.from;
                self.carried().add(n * width).copy_from_nonoverlapping(slots.start.add(at), width);
            }
        }
    }

    unsafe fn end_sequence(&self, sequence: usize) {
        let Some(slots) = self.initial_grad else { return };
        let width = self.to - self.from;
        // SAFETY: the slot's states are in range, and the range's channels this task's alone.
        unsafe {
            for n in 0..self.d_state {
                let at = self.batch.slots[sequence] * slots.stride + n * self.d_inner + self.from;
                let to = slots.start.add(at);
                if self.batch.fresh[sequence] {
                    to.write_bytes(0, width);
                } else {
                    to.copy_from_nonoverlapping(self.carried().add(n * width), width);
                }
            }
        }
    }

    /// Rows `begin .. end`, at most [`CHUNK`].
    #[inline(always)]
    unsafe fn chunk<S: Simd>(&self, chunk: usize, begin: usize, end: usize) {
        let (d_state, steps) = (self.d_state, end - begin);
        let vector = |n: usize, t: usize| (n * CHUNK + t) * S::LANES;
        // SAFETY: the caller's rows; scratch has room for d_state · CHUNK vectors twice.
        unsafe {
            let db = self.scratch;
            let dc = self.scratch.add(d_state * CHUNK * S::LANES);
            for n in 0..d_state {
                for sums in [db, dc] {
                    std::slice::from_raw_parts_mut(sums.add(vector(n, 0)), steps * S::LANES).fill(0.0);
                }
            }
            for channel in (self.from..self.to).step_by(S::LANES) {
                let lanes = S::LANES.min(self.to - channel);
                self.vector::<S>(chunk, begin, steps, channel, lanes, db, dc);
            }
            for t in 0..steps {
                let sums = self.bc.add((begin + t) * 2 * d_state);
                for n in 0..d_state {
                    *sums.add(n) = S::sum(S::load(db.add(vector(n, t))));
                    *sums.add(d_state + n) = S::sum(S::load(dc.add(vector(n, t))));
                }
            }
        }
    }

    /// A vector of channels of a chunk.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn vector<S: Simd>(
        &self,
        chunk: usize,
        begin: usize,
        steps: usize,
        channel: usize,
        lanes: usize,
        db: *mut f32,
        dc: *mut f32,
    ) {
        let width = self.to - self.from;
        // SAFETY: as `chunk`; lanes beyond the last channel are zero throughout.
        unsafe {
            let zero = S::splat(0.0);
            let bias = S::load_first(self.delta_bias.add(channel), lanes);
            let skip = S::load_first(self.d.add(channel), lanes);
            let mut all = [Step::<S> {
                delta: zero,
                u: zero,
                sum_grad: zero,
                sum: zero,
                delta_grad: zero,
                input_grad: zero,
            }; CHUNK];
            let all = &mut all[..steps];
            for (t, step) in all.iter_mut().enumerate() {
                let load = |matrix: ConstMatrix| S::load_first(matrix.at(begin + t, channel), lanes);
                step.delta = math::softplus::<S>(S::add(load(self.delta), bias));
                step.u = load(self.u);
                step.sum_grad = S::mul(load(self.out_grad), math::silu::<S>(load(self.z)));
                step.sum = S::mul(skip, step.u);
            }
            let log2_e = S::splat(std::f32::consts::LOG2_E);
            let mut decays = [[zero; 2]; CHUNK];
            for n in 0..self.d_state {
                let at = n * self.d_inner + channel;
                let a = S::load_first(self.a.add(at), lanes);
                let a_log2_e = S::mul(a, log2_e);
                let mut h = S::load_first(self.boundary.add(chunk * self.d_state * self.d_inner + at), lanes);
                let [db, dc] = [db, dc].map(|sums| sums.add(n * CHUNK * S::LANES));
                for (t, (step, [decay, decayed])) in all.iter_mut().zip(&mut decays).enumerate() {
                    *decay = math::exp2_of_product::<S>(step.delta, a_log2_e);
                    *decayed = S::mul(*decay, h);
                    let b = S::splat(*self.b.at(begin + t, n));
                    let c = S::splat(*self.c.at(begin + t, n));
                    h = S::mul_add(S::mul(step.delta, step.u), b, *decayed);
                    step.sum = S::mul_add(c, h, step.sum);
                    let dc = dc.add(t * S::LANES);
                    S::store(dc, S::mul_add(step.sum_grad, h, S::load(dc)));
                }
                let g_at = self.carried().add(n * width + channel - self.from);
                let mut g = S::load_first(g_at, lanes);
                let mut a_grad = S::load_first(self.a_grad.add(at), lanes);
                for (t, (step, [decay, decayed])) in all.iter_mut().zip(&decays).enumerate().rev() {
                    let b = S::splat(*self.b.at(begin + t, n));
                    let c = S::splat(*self.c.at(begin + t, n));
                    g = S::mul_add(c, step.sum_grad, g);
                    let db = db.add(t * S::LANES);
                    S::store(db, S::mul_add(g, S::mul(step.delta, step.u), S::load(db)));
                    a_grad = S::mul_add(g, S::mul(step.delta, *decayed), a_grad);
                    let slope = S::mul_add(a, *decayed, S::mul(b, step.u));
                    step.delta_grad = S::mul_add(g, slope, step.delta_grad);
                    step.input_grad = S::mul_add(g, b, step.input_grad);
                    g = S::mul(*decay, g);
                }
                S::store_first(g_at, g, lanes);
                S::store_first(self.a_grad.add(at), a_grad, lanes);
            }
            let mut d_grad = S::load_first(self.d_grad.add(channel), lanes);
            let mut bias_grad = S::load_first(self.bias_grad.add(channel), lanes);
            for (t, step) in all.iter().enumerate().rev() {
                let load = |matrix: ConstMatrix| S::load_first(matrix.at(begin + t, channel), lanes);
                let store = |matrix: MutMatrix, x| S::store_first(matrix.at(begin + t, channel), x, lanes);
                let z = load(self.z);
                store(self.u_grad, S::mul_add(step.delta, step.input_grad, S::mul(skip, step.sum_grad)));
                let slope = math::sigmoid::<S>(S::add(load(self.delta), bias));
                let delta_grad = S::mul(step.delta_grad, slope);
                store(self.delta_grad, delta_grad);
                store(self.z_grad, S::mul(S::mul(load(self.out_grad), step.sum), math::silu_slope::<S>(z)));
                d_grad = S::mul_add(step.sum_grad, step.u, d_grad);
                bias_grad = S::add(bias_grad, delta_grad);
            }
            S::store_first(self.d_grad.add(channel), d_grad, lanes);
            S::store_first(self.bias_grad.add(channel), bias_grad, lanes);
        }
    }
}
