//! Products with float weights: multiply and add on vectors.
//!
//! A panel holds, for each input, its 32 weights side by side. So a vector lane is one output, an input is broadcast
//! to all lanes, and the same walk serves one token (each panel is read once, front to back: the speed of memory)
//! and thousands (a block of a panel stays in the first-level cache while a register tile of tokens passes over it).
//!
//! Every output is summed in the same order whatever the number of tokens and threads: input by input within a
//! block of [`BLOCK`] inputs, then block by block onto the bias. So results are equal to the bit in any batch.

use std::mem::MaybeUninit;

use super::cpu::{Operands, Scratch};
use super::packed::PANEL;
use super::tiles::{Tiled, in_parts, over_rows};
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{SharedMut, memory};
use crate::error::Result;

/// Inputs summed before they are added to the output: 256 · 32 · 4 bytes of a panel fit the first-level cache.
const BLOCK: usize = 256;
/// How far ahead of its use a stream's memory is asked for, in bytes.
const AHEAD: usize = 3072;
/// Bytes of x that stay in the second-level cache while all of a weight passes by.
const RESIDENT: usize = 512 << 10;
/// From so many tokens on, 16-bit weights are widened once per block instead of at each use.
const WIDEN_FROM: usize = 16;

/// A weight's element type, as the inner loop reads it.
trait Element: Copy {
    /// Whether to widen takes so little that a tile of 12 rows does better to do it again than to read what was stored.
    const WIDENS_AT_ONCE: bool = false;

    /// The weights of two neighbouring inputs for LANES outputs from `output` on, widened. `pair` points at
    /// the first input's weights in its panel.
    ///
    /// # Safety
    /// Both inputs exist (the second may be padding).
    unsafe fn load_pair<S: Simd>(pair: *const Self, output: usize) -> [S::F; 2];

    /// The first of the two alone.
    ///
    /// # Safety
    /// The input exists.
    unsafe fn load<S: Simd>(pair: *const Self, output: usize) -> S::F;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Half(u16);

impl Element for f32 {
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(pair: *const Self, output: usize) -> [S::F; 2] {
        // SAFETY: the caller's condition.
        unsafe { [S::load(pair.add(output)), S::load(pair.add(PANEL + output))] }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(pair: *const Self, output: usize) -> S::F {
        // SAFETY: the caller's condition.
        unsafe { S::load(pair.add(output)) }
    }
}

impl Element for Bf16 {
    const WIDENS_AT_ONCE: bool = true;

    #[inline(always)]
    unsafe fn load_pair<S: Simd>(pair: *const Self, output: usize) -> [S::F; 2] {
        // SAFETY: the caller's condition.
        unsafe { S::load_bf16_pairs(pair.add(2 * output).cast()) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(pair: *const Self, output: usize) -> S::F {
        // SAFETY: panels of pairs are padded, so the second input's zeros are there.
        unsafe { Self::load_pair::<S>(pair, output)[0] }
    }
}

impl Element for Half {
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(pair: *const Self, output: usize) -> [S::F; 2] {
        // SAFETY: the caller's condition.
        unsafe { [S::load_f16(pair.add(output).cast()), S::load_f16(pair.add(PANEL + output).cast())] }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(pair: *const Self, output: usize) -> S::F {
        // SAFETY: the caller's condition.
        unsafe { S::load_f16(pair.add(output).cast()) }
    }
}

/// A product of some rows of x with some panels.
#[derive(Clone, Copy)]
struct Product<W> {
    /// Row 0 of a tile of packed rows, or the only row.
    x: *const f32,
    /// From an input to the next: the rows of a tile, or 1.
    x_step: usize,
    rows: usize,
    inputs: usize,
    /// Inputs that a panel has room for.
    padded_inputs: usize,
    /// The first panel of this product.
    panels: *const W,
    /// Outputs from that panel on.
    outputs: usize,
    bias: Option<*const f32>,
    out: *mut f32,
    out_stride: usize,
}

/// f32 weights.
pub(super) fn f32(
    threads: &mut Threads,
    level: Level,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[f32],
) -> Result<()> {
    linear(threads, level, &mut scratch.rows, operands, panels, operands.inputs)
}

/// bf16 weights, in pairs.
pub(super) fn bf16(
    threads: &mut Threads,
    level: Level,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[u16],
) -> Result<()> {
    // SAFETY: Bf16 is a transparent u16.
    let panels = unsafe { std::slice::from_raw_parts(panels.as_ptr().cast::<Bf16>(), panels.len()) };
    linear(threads, level, &mut scratch.rows, operands, panels, operands.inputs.next_multiple_of(32))
}

/// f16 weights.
pub(super) fn f16(
    threads: &mut Threads,
    level: Level,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[u16],
) -> Result<()> {
    // SAFETY: Half is a transparent u16.
    let panels = unsafe { std::slice::from_raw_parts(panels.as_ptr().cast::<Half>(), panels.len()) };
    linear(threads, level, &mut scratch.rows, operands, panels, operands.inputs)
}

/// Panels that so many rows pass over side by side: memory gives more to several streams.
fn streams_of(rows: usize) -> usize {
    match rows {
        1 | 2 => 4,
        4 => 2,
        _ => 1,
    }
}

/// `padded_inputs`: those that a panel has room for.
fn linear<W: Element + Sync>(
    threads: &mut Threads,
    level: Level,
    scratch: &mut memory::Scratch<f32>,
    operands: &Operands,
    panels: &[W],
    padded_inputs: usize,
) -> Result<()> {
    let Operands { rows, inputs, outputs, .. } = *operands;
    assert_eq!(panels.len(), outputs.div_ceil(PANEL) * PANEL * padded_inputs);
    let tile = level.tile_rows();
    let packed = match rows {
        1 => None,
        _ => Some(pack_rows(threads, operands, tile, scratch)?),
    };
    in_parts(threads, rows, outputs, tile, 48, streams_of(rows), &|part| {
        // SAFETY: the level was detected; the pointers cover the part's rows, inputs and outputs; parts are disjoint.
        unsafe {
            level.run(Product {
                x: packed.map_or(operands.x.at(0, 0), |packed| packed[part.row * inputs..].as_ptr()),
                x_step: if packed.is_some() { tile } else { 1 },
                rows: part.rows,
                inputs,
                padded_inputs,
                panels: panels[part.output * padded_inputs..].as_ptr(),
                outputs: part.outputs,
                bias: operands.bias_at(part.output),
                out: operands.out.at(part.row, part.output),
                out_stride: operands.out.stride(),
            });
        }
    });
    Ok(())
}

/// Activations in the order in which a register tile takes them: `[row / tile][input][row % tile]`. So one pointer
/// walks over all of them; with rows apart, each would need its own.
fn pack_rows<'a>(
    threads: &mut Threads,
    operands: &Operands,
    tile: usize,
    scratch: &'a mut memory::Scratch<f32>,
) -> Result<&'a [f32]> {
    let Operands { rows, inputs, .. } = *operands;
    let packed = scratch.reserve(rows.next_multiple_of(tile) * inputs)?;
    let shared = SharedMut::new(packed);
    threads.run(rows.div_ceil(tile), &|t| {
        // SAFETY: each task writes its own tile; the rows are those of x.
        unsafe {
            let packed = shared.slice(t * tile * inputs, tile * inputs);
            let count = tile.min(rows - t * tile);
            for (i, packed) in packed.chunks_exact_mut(tile).enumerate() {
                for (r, packed) in packed[..count].iter_mut().enumerate() {
                    *packed = *operands.x.at(t * tile + r, i);
                }
            }
        }
    });
    Ok(packed)
}

impl<W: Element> Kernel for Product<W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panels = self.outputs.div_ceil(PANEL);
        let blocks = self.inputs.div_ceil(BLOCK);
        // SAFETY: `linear` made the pointers; blocks and panels stay within the weight.
        unsafe {
            let streams = streams_of(self.rows);
            if streams > 1 {
                let mut panel = 0;
                while panels - panel >= streams {
                    match self.rows {
                        1 => self.streams::<S, 1, 4>(panel),
                        2 => self.streams::<S, 2, 4>(panel),
                        _ => self.streams::<S, 4, 2>(panel),
                    }
                    panel += streams;
                }
                for panel in panel..panels {
                    for block in 0..blocks {
                        self.block::<S>(panel, block, BLOCK);
                    }
                }
            } else if self.rows * self.inputs * 4 <= RESIDENT {
                // Panels are read once, front to back.
                for panel in 0..panels {
                    for block in 0..blocks {
                        self.block::<S>(panel, block, BLOCK);
                    }
                }
            } else {
                // A block of x stays in the second-level cache.
                for block in 0..blocks {
                    for panel in 0..panels {
                        self.block::<S>(panel, block, self.padded_inputs);
                    }
                }
            }
        }
    }
}

/// A block of a panel, widened.
#[repr(align(64))]
struct Wide([f32; BLOCK * PANEL]);

impl<W: Element> Product<W> {
    /// All rows over one block of one panel; the next block to be used is `next` inputs further.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, panel: usize, block: usize, next: usize) {
        // SAFETY: the caller names a panel and a block of this product.
        unsafe {
            let weight = self.panel_block(panel, block);
            let next = weight.wrapping_add(next * PANEL).cast();
            let at_once = size_of::<W>() == 4 || W::WIDENS_AT_ONCE && S::TILE_ROWS == 12;
            if at_once || self.rows < WIDEN_FROM {
                over_rows::<S>(self.rows, &Block { product: self, panel, block, weight, next });
            } else {
                let mut wide = MaybeUninit::<Wide>::uninit();
                let weight = self.widen::<S>(weight, BLOCK.min(self.inputs - block * BLOCK), &mut wide);
                over_rows::<S>(self.rows, &Block { product: self, panel, block, weight, next });
            }
        }
    }

    /// A block of `inputs`, as f32.
    #[inline(always)]
    unsafe fn widen<S: Simd>(
        &self,
        narrow: *const W,
        inputs: usize,
        wide: &mut MaybeUninit<Wide>,
    ) -> *const f32 {
        // SAFETY: the caller's block, and room for it.
        unsafe {
            let wide = (&raw mut (*wide.as_mut_ptr()).0).cast::<f32>();
            for input in (0..inputs).step_by(2) {
                let (pair, out) = (narrow.add(input * PANEL), wide.add(input * PANEL));
                for output in (0..PANEL).step_by(S::LANES) {
                    if input + 1 < inputs {
                        let [first, second] = W::load_pair::<S>(pair, output);
                        S::store(out.add(output), first);
                        S::store(out.add(PANEL + output), second);
                    } else {
                        S::store(out.add(output), W::load::<S>(pair, output));
                    }
                }
            }
            wide
        }
    }

    /// `ROWS` rows with `STREAMS` panels side by side.
    #[inline(always)]
    unsafe fn streams<S: Simd, const ROWS: usize, const STREAMS: usize>(&self, panel: usize) {
        // SAFETY: the caller's panels; outputs beyond the last are masked.
        unsafe {
            match S::TILE_VECTORS {
                1 => self.streams_of::<S, ROWS, 1, STREAMS>(panel),
                _ => self.streams_of::<S, ROWS, 2, STREAMS>(panel),
            }
        }
    }

    #[inline(always)]
    unsafe fn streams_of<S: Simd, const ROWS: usize, const VECTORS: usize, const STREAMS: usize>(
        &self,
        panel: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            for half in (0..PANEL).step_by(VECTORS * S::LANES) {
                for block in 0..self.inputs.div_ceil(BLOCK) {
                    let inputs = BLOCK.min(self.inputs - block * BLOCK);
                    let x = self.x.add(block * BLOCK * self.x_step);
                    let first = self.panel_block(panel, block);
                    let stride = self.padded_inputs * PANEL;
                    let mut sums = [[[S::splat(0.0); VECTORS]; ROWS]; STREAMS];
                    for i in (0..inputs - 1).step_by(2) {
                        for (s, sums) in sums.iter_mut().enumerate() {
                            let pair = first.add(s * stride + i * PANEL);
                            if half == 0 {
                                prefetch::<S>(pair.cast(), 2 * PANEL * size_of::<W>());
                            }
                            let (mut first, mut second) =
                                ([S::splat(0.0); VECTORS], [S::splat(0.0); VECTORS]);
                            for v in 0..VECTORS {
                                [first[v], second[v]] = load_pair::<S, _>(pair, half + v * S::LANES);
                            }
                            accumulate::<S, ROWS, VECTORS>(sums, x.add(i * self.x_step), first);
                            accumulate::<S, ROWS, VECTORS>(sums, x.add((i + 1) * self.x_step), second);
                        }
                    }
                    for (s, sums) in sums.iter_mut().enumerate() {
                        if inputs % 2 == 1 {
                            let pair = first.add(s * stride + (inputs - 1) * PANEL);
                            let mut last = [S::splat(0.0); VECTORS];
                            for (v, last) in last.iter_mut().enumerate() {
                                *last = load::<S, _>(pair, half + v * S::LANES);
                            }
                            accumulate::<S, ROWS, VECTORS>(sums, x.add((inputs - 1) * self.x_step), last);
                        }
                        self.add::<S, ROWS, VECTORS>(0, (panel + s) * PANEL + half, block, sums);
                    }
                }
            }
        }
    }

    /// Adds a block's sums to the outputs, or to the bias the first time.
    #[inline(always)]
    unsafe fn add<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        row: usize,
        output: usize,
        block: usize,
        sums: &[[S::F; VECTORS]; ROWS],
    ) {
        // SAFETY: the caller's rows; outputs beyond the last are masked.
        unsafe {
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    let output = output + v * S::LANES;
                    if output >= self.outputs {
                        continue;
                    }
                    let n = S::LANES.min(self.outputs - output);
                    let out = self.out.add((row + r) * self.out_stride + output);
                    let before = match (block, self.bias) {
                        (0, Some(bias)) => S::load_first(bias.add(output), n),
                        (0, None) => S::splat(0.0),
                        _ => S::load_first(out, n),
                    };
                    S::store_first(out, S::add(before, *sum), n);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn panel_block(&self, panel: usize, block: usize) -> *const W {
        // SAFETY: the caller names a panel and a block of this product.
        unsafe { self.panels.add((panel * self.padded_inputs + block * BLOCK) * PANEL) }
    }

    /// `ROWS` rows of x with a block of a panel, `VECTORS` vectors of outputs at a time, in registers.
    #[inline(always)]
    unsafe fn tile_of<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        panel: usize,
        block: usize,
        weight: *const impl Element,
        next: *const u8,
        row: usize,
    ) {
        let inputs = BLOCK.min(self.inputs - block * BLOCK);
        // SAFETY: `row + ROWS ≤ rows`, all in one tile, `inputs` of x and of the panel's block exist, outputs beyond the last
        // are masked on their way out.
        unsafe {
            let tile = row / S::TILE_ROWS * S::TILE_ROWS;
            let x = self.x.add(tile * self.inputs + block * BLOCK * self.x_step + row - tile);
            let lines = inputs * PANEL * size_of::<W>() / 64;
            let share = lines.div_ceil(self.rows.div_ceil(S::TILE_ROWS) * (inputs / 2).max(1));
            for half in (0..PANEL).step_by(VECTORS * S::LANES) {
                let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
                for i in (0..inputs - 1).step_by(2) {
                    let pair = weight.add(i * PANEL);
                    let bytes = 2 * PANEL * size_of::<W>();
                    if ROWS <= 4 {
                        prefetch::<S>(pair.cast(), bytes);
                    } else if half == 0 {
                        // The next block, while this one is used: some of it with each tile of rows, since memory
                        // is slower than one tile.
                        let from = (row / S::TILE_ROWS * inputs + i) / 2 * share;
                        for line in from..(from + share).min(lines) {
                            S::prefetch_later(next.wrapping_add(64 * line));
                        }
                    }
                    let (mut first, mut second) = ([S::splat(0.0); VECTORS], [S::splat(0.0); VECTORS]);
                    for v in 0..VECTORS {
                        [first[v], second[v]] = load_pair::<S, _>(pair, half + v * S::LANES);
                    }
                    accumulate::<S, ROWS, VECTORS>(&mut sums, x.add(i * self.x_step), first);
                    accumulate::<S, ROWS, VECTORS>(&mut sums, x.add((i + 1) * self.x_step), second);
                }
                if inputs % 2 == 1 {
                    let pair = weight.add((inputs - 1) * PANEL);
                    let mut last = [S::splat(0.0); VECTORS];
                    for (v, last) in last.iter_mut().enumerate() {
                        *last = load::<S, _>(pair, half + v * S::LANES);
                    }
                    accumulate::<S, ROWS, VECTORS>(&mut sums, x.add((inputs - 1) * self.x_step), last);
                }
                self.add::<S, ROWS, VECTORS>(row, panel * PANEL + half, block, &sums);
            }
        }
    }
}

/// Asks for what a stream reads [`AHEAD`] bytes after `at`.
#[inline(always)]
unsafe fn prefetch<S: Simd>(at: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch may point anywhere.
        unsafe { S::prefetch(at.wrapping_add(AHEAD + line)) };
    }
}

/// One block of one panel.
struct Block<'a, P, W> {
    product: &'a Product<P>,
    panel: usize,
    block: usize,
    weight: *const W,
    next: *const u8,
}

impl<P: Element, W: Element> Tiled for Block<'_, P, W> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(&self, row: usize) {
        let Self { product, panel, block, weight, next } = *self;
        // SAFETY: passed on.
        unsafe {
            match S::TILE_VECTORS {
                1 => product.tile_of::<S, ROWS, 1>(panel, block, weight, next, row),
                _ => product.tile_of::<S, ROWS, 2>(panel, block, weight, next, row),
            }
        }
    }
}

/// `sums[r] += x[r] · w` for one input of all rows.
#[inline(always)]
unsafe fn accumulate<S: Simd, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[S::F; VECTORS]; ROWS],
    x: *const f32,
    w: [S::F; VECTORS],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's rows.
        unsafe {
            let x = S::splat(*x.add(r));
            for (w, sum) in w.into_iter().zip(sums) {
                *sum = S::mul_add(x, w, *sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn load_pair<S: Simd, W: Element>(pair: *const W, output: usize) -> [S::F; 2] {
    // SAFETY: passed on.
    unsafe { W::load_pair::<S>(pair, output) }
}

#[inline(always)]
unsafe fn load<S: Simd, W: Element>(pair: *const W, output: usize) -> S::F {
    // SAFETY: passed on.
    unsafe { W::load::<S>(pair, output) }
}
