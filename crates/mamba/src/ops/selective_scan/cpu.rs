//! The scan, vectorised over channels: a lane is a channel, the states of a vector of channels stay in
//! registers (d_state 16) while time runs. Parallel over sequences and channels. Every channel is computed by
//! itself, in one order, so results do not depend on batch, chunk or threads.

use std::mem::MaybeUninit;

use super::{CHUNK, SelectiveScan};
use crate::backend::Batch;
use crate::cpu::math;
use crate::cpu::memory::Aligned;
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, SharedMut, channel_tasks};
use crate::error::Result;

/// Steps that all channels of a task take before the next ones: their rows stay in cache and in the TLB.
const STEPS: usize = 32;

/// Channels ahead whose states and A are asked for: where a task takes a single step, it is over before memory answers.
const AHEAD: usize = 128;

/// Channels `from .. to` of one sequence.
#[derive(Clone, Copy)]
struct Scan {
    u: ConstMatrix,
    delta: ConstMatrix,
    b: ConstMatrix,
    c: ConstMatrix,
    z: Option<ConstMatrix>,
    out: MutMatrix,
    delta_bias: Option<*const f32>,
    d: Option<*const f32>,
    /// [d_state, d_inner]
    a: *const f32,
    /// [d_state, d_inner], this sequence's.
    h: *mut f32,
    /// [d_state, d_inner] of each of this sequence's chunks, for the backward.
    boundary: Option<*mut f32>,
    d_inner: usize,
    d_state: usize,
    from: usize,
    to: usize,
    /// Rows of the pack that are this sequence.
    begin: usize,
    end: usize,
}

/// Rows of kept states for a batch: every sequence's chunks.
pub(super) fn chunks(batch: &Batch) -> usize {
    batch.cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(CHUNK)).sum()
}

/// See [`SelectiveScan`]. `boundary` gets the state before every [`CHUNK`]th token, [chunks, d_state, d_inner].
///
/// # Errors
/// `OUT_OF_MEMORY` for the scratch state when there is no `state`.
pub(crate) fn selective_scan(
    threads: &mut Threads,
    level: Level,
    batch: &Batch,
    op: SelectiveScan<Aligned<f32>>,
    boundary: Option<&mut Aligned<f32>>,
) -> Result<()> {
    let (d_inner, tokens) = (op.u.cols, batch.tokens());
    let d_state = op.b.cols;
    assert!(op.a.len() >= d_state * d_inner && op.c.cols == d_state);
    assert!(
        op.delta_bias.is_none_or(|bias| bias.len() >= d_inner) && op.d.is_none_or(|d| d.len() >= d_inner)
    );
    let mut scratch;
    let (states, stride) = match op.state {
        Some(state) => {
            let last = batch.slots.iter().max().map_or(0, |slot| slot * state.slot_stride);
            assert!(batch.slots.is_empty() || state.buffer.len() >= last + state.offset + d_state * d_inner);
            (SharedMut::new(&mut state.buffer[state.offset..]), Some(state.slot_stride))
        }
        None => {
            scratch = Aligned::zeros(batch.sequences() * d_state * d_inner, "scan states")?;
            (SharedMut::new(&mut scratch), None)
        }
    };
    let boundary = boundary.map(|boundary| {
        assert!(boundary.len() >= chunks(batch) * d_state * d_inner, "kept states");
        SharedMut::new(boundary)
    });
    let first_chunks: Vec<usize> = batch
        .cu_seqlens
        .windows(2)
        .scan(0, |chunk, pair| {
            let first = *chunk;
            *chunk += (pair[1] - pair[0]).div_ceil(CHUNK);
            Some(first)
        })
        .collect();
    let scan = Scan {
        u: ConstMatrix::new(&op.u, tokens, d_inner),
        delta: ConstMatrix::new(&op.delta, tokens, d_inner),
        b: ConstMatrix::new(&op.b, tokens, d_state),
        c: ConstMatrix::new(&op.c, tokens, d_state),
        z: op.z.as_ref().map(|z| ConstMatrix::new(z, tokens, d_inner)),
        out: MutMatrix::new(op.out, tokens, d_inner),
        delta_bias: op.delta_bias.map(|bias| bias.as_ptr()),
        d: op.d.map(|d| d.as_ptr()),
        a: op.a.as_ptr(),
        h: std::ptr::null_mut(),
        boundary: None,
        d_inner,
        d_state,
        from: 0,
        to: 0,
        begin: 0,
        end: 0,
    };
    let scan = crate::cpu::Shareable(scan);
    channel_tasks(threads, batch, d_inner, &|sequence, from, to| {
        let scan = &scan;
        let start = match stride {
            Some(stride) => batch.slots[sequence] * stride,
            None => sequence * d_state * d_inner,
        };
        // SAFETY: slots differ between sequences and channels between tasks, so no two tasks share a state;
        // the assertions above keep every pointer in range.
        unsafe {
            let h = states.as_ptr().add(start);
            if batch.fresh[sequence] {
                for n in 0..d_state {
                    std::slice::from_raw_parts_mut(h.add(n * d_inner + from), to - from).fill(0.0);
                }
            }
            let (begin, end) = (batch.cu_seqlens[sequence], batch.cu_seqlens[sequence + 1]);
            let first = first_chunks[sequence] * d_state * d_inner;
            let boundary = boundary.as_ref().map(|boundary| boundary.as_ptr().add(first));
            level.run(Scan { h, boundary, from, to, begin, end, ..scan.0 });
        }
    });
    Ok(())
}

impl Kernel for Scan {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `selective_scan` made the pointers; channels beyond `to` are masked.
        unsafe {
            for begin in (self.begin..self.end).step_by(STEPS) {
                let end = self.end.min(begin + STEPS);
                if let Some(boundary) = self.boundary.filter(|_| (begin - self.begin).is_multiple_of(CHUNK)) {
                    let chunk = (begin - self.begin) / CHUNK;
                    for n in 0..self.d_state {
                        let (from, n) = (n * self.d_inner + self.from, self.to - self.from);
                        let to = boundary.add(chunk * self.d_state * self.d_inner + from);
                        std::ptr::copy_nonoverlapping(self.h.add(from), to, n);
                    }
                }
                for channel in (self.from..self.to).step_by(S::LANES) {
                    let lanes = S::LANES.min(self.to - channel);
                    match self.d_state {
                        16 => self.steps::<S, Sixteen<S>>(channel, lanes, begin, end),
                        _ => self.steps::<S, Many<S>>(channel, lanes, begin, end),
                    }
                }
            }
        }
    }
}

/// The states of a vector of channels, and what they decay by.
trait States<S: Simd> {
    /// Loads `n` of them: `h` and `a` point at the first, `stride` from one to the next.
    unsafe fn load(h: *const f32, a: *const f32, n: usize, stride: usize, lanes: usize) -> Self;

    /// h ← exp(delta · a) · h + delta_u · b; returns y + Σ c · h.
    unsafe fn step(&mut self, delta: S::F, delta_u: S::F, b: *const f32, c: *const f32, y: S::F) -> S::F;

    /// Stores the states.
    unsafe fn store(&self, h: *mut f32, stride: usize, lanes: usize);
}

/// One state and its a · log₂ e.
#[derive(Clone, Copy)]
struct State<S: Simd> {
    h: S::F,
    a: S::F,
}

impl<S: Simd> State<S> {
    #[inline(always)]
    unsafe fn load(h: *const f32, a: *const f32, lanes: usize) -> Self {
        // SAFETY: the caller's pointers.
        unsafe {
            let log2_e = S::splat(std::f32::consts::LOG2_E);
            Self { h: S::load_first(h, lanes), a: S::mul(S::load_first(a, lanes), log2_e) }
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, delta: S::F, delta_u: S::F, b: *const f32, c: *const f32, y: S::F) -> S::F {
        // SAFETY: the caller's pointers.
        unsafe {
            let decay = math::exp2_of_product::<S>(delta, self.a);
            self.h = S::mul_add(decay, self.h, S::mul(delta_u, S::splat(*b)));
            S::mul_add(self.h, S::splat(*c), y)
        }
    }
}

/// d_state 16, every use written out: so they stay in registers.
struct Sixteen<S: Simd>([State<S>; 16]);

macro_rules! sixteen {
    ($n:ident => $e:expr) => {
        sixteen!($n, $e, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    };
    ($n:ident, $e:expr, $($i:literal),*) => {
        [$({ const $n: usize = $i; $e }),*]
    };
}

impl<S: Simd> States<S> for Sixteen<S> {
    #[inline(always)]
    unsafe fn load(h: *const f32, a: *const f32, _: usize, stride: usize, lanes: usize) -> Self {
        // SAFETY: the caller's pointers; a prefetch may point anywhere.
        unsafe {
            let states = sixteen!(N => State::load(h.add(N * stride), a.add(N * stride), lanes));
            sixteen!(N => {
                S::prefetch(h.wrapping_add(N * stride + AHEAD).cast());
                S::prefetch(a.wrapping_add(N * stride + AHEAD).cast());
            });
            Self(states)
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, delta: S::F, delta_u: S::F, b: *const f32, c: *const f32, y: S::F) -> S::F {
        let mut y = y;
        // SAFETY: the caller's pointers.
        unsafe {
            sixteen!(N => y = self.0[N].step(delta, delta_u, b.add(N), c.add(N), y));
        }
        y
    }

    #[inline(always)]
    unsafe fn store(&self, h: *mut f32, stride: usize, lanes: usize) {
        // SAFETY: the caller's pointers.
        unsafe {
            sixteen!(N => S::store_first(h.add(N * stride), self.0[N].h, lanes));
        }
    }
}

/// Any other d_state, up to 256.
struct Many<S: Simd> {
    states: [State<S>; 256],
    n: usize,
}

impl<S: Simd> States<S> for Many<S> {
    #[inline(always)]
    unsafe fn load(h: *const f32, a: *const f32, n: usize, stride: usize, lanes: usize) -> Self {
        // SAFETY: the caller's pointers.
        unsafe {
            let mut states = [State { h: S::splat(0.0), a: S::splat(0.0) }; 256];
            for (i, state) in states[..n].iter_mut().enumerate() {
                *state = State::load(h.add(i * stride), a.add(i * stride), lanes);
            }
            Self { states, n }
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, delta: S::F, delta_u: S::F, b: *const f32, c: *const f32, y: S::F) -> S::F {
        let mut y = y;
        for (n, state) in self.states[..self.n].iter_mut().enumerate() {
            // SAFETY: the caller's pointers.
            y = unsafe { state.step(delta, delta_u, b.add(n), c.add(n), y) };
        }
        y
    }

    #[inline(always)]
    unsafe fn store(&self, h: *mut f32, stride: usize, lanes: usize) {
        for (n, state) in self.states[..self.n].iter().enumerate() {
            // SAFETY: the caller's pointers.
            unsafe { S::store_first(h.add(n * stride), state.h, lanes) };
        }
    }
}

impl Scan {
    /// Rows `begin .. end`, at most [`STEPS`], of a vector of channels. What does not depend on the state comes first, so
    /// that rows are waited for together and not one after the other.
    #[inline(always)]
    unsafe fn steps<S: Simd, H: States<S>>(&self, channel: usize, lanes: usize, begin: usize, end: usize) {
        // SAFETY: the caller's ranges.
        unsafe {
            let bias = self.delta_bias.map(|bias| S::load_first(bias.add(channel), lanes));
            let skip = self.d.map_or(S::splat(0.0), |d| S::load_first(d.add(channel), lanes));
            let mut inputs = [MaybeUninit::<Input<S>>::uninit(); STEPS];
            for (t, input) in (begin..end).zip(&mut inputs) {
                let u = S::load_first(self.u.at(t, channel), lanes);
                let mut delta = S::load_first(self.delta.at(t, channel), lanes);
                if let Some(bias) = bias {
                    delta = math::softplus::<S>(S::add(delta, bias));
                }
                let gate = match self.z {
                    Some(z) => math::silu::<S>(S::load_first(z.at(t, channel), lanes)),
                    None => S::splat(1.0),
                };
                input.write(Input { delta, delta_u: S::mul(delta, u), skip: S::mul(skip, u), gate });
            }
            let (h, a) = (self.h.add(channel), self.a.add(channel));
            let mut states = H::load(h, a, self.d_state, self.d_inner, lanes);
            for (t, input) in (begin..end).zip(&inputs) {
                // What the next vector of channels begins with.
                S::prefetch(self.u.at(t, channel).wrapping_add(S::LANES).cast());
                S::prefetch(self.delta.at(t, channel).wrapping_add(S::LANES).cast());
                if let Some(z) = self.z {
                    S::prefetch(z.at(t, channel).wrapping_add(S::LANES).cast());
                }
                let Input { delta, delta_u, skip, gate } = input.assume_init();
                let y = states.step(delta, delta_u, self.b.at(t, 0), self.c.at(t, 0), skip);
                S::store_first(self.out.at(t, channel), S::mul(y, gate), lanes);
            }
            states.store(h, self.d_inner, lanes);
        }
    }
}

/// What a step takes of a vector of channels.
#[derive(Clone, Copy)]
struct Input<S: Simd> {
    delta: S::F,
    delta_u: S::F,
    /// D · u.
    skip: S::F,
    /// SiLU(z).
    gate: S::F,
}
