//! Products with quantized weights: multiply and add of integers.
//!
//! Weights are integers times a scale for each group of 32 inputs. Activations are made the same: for each 32 of a row,
//! integers of 8 bits times a 127th of the greatest (as GGUF's kernels take them). Then the sum over a group, `Σ q · x`, is
//! below 2²⁰: exact in integers and in floats alike, whatever the order and the instruction set. Groups are added one
//! after the other, so a product has the same bits on VNNI, AVX2 and the tile unit, alone and in any batch.
//!
//! With VNNI a product of four unsigned bytes with four signed ones, added to a 32-bit sum, is one instruction. So
//! weights are unsigned: those of q8_0 lie 128 above what they are, and a sum begins with −128 times that of the
//! activations. Without VNNI bytes are widened to pairs of 16 bits. As in [`super::float`] a lane is an output, and a word
//! of activations is broadcast to all lanes.

use std::marker::PhantomData;

use super::cpu::{Operands, Scratch};
use super::packed::{PANEL, q4_k, q8_0};
use super::tiles::{Tiled, in_parts, over_rows};
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, SharedMut};
use crate::error::Result;
use crate::quantize::GROUP;

/// The greatest activation of a group becomes this.
const MOST: f32 = 127.0;
/// Words of a group of which each is multiplied by a word of weights: of four bytes with VNNI, else of a pair.
fn group_words(level: Level) -> usize {
    if level.has_dot_bytes() { GROUP / 4 } else { GROUP / 2 }
}
/// How far ahead of its use a panel is asked for, in bytes.
const AHEAD: usize = 3072;

/// How the weights of a panel become bytes and scales.
pub(super) trait Weights: Copy + Send + Sync {
    /// Whether there is a minimum beside the scale.
    const HAS_MIN: bool;

    /// What the byte of a weight of zero is.
    const ZERO: u8;

    /// Bytes of a group's scales and weights.
    const GROUP_BYTES: usize;

    /// Bytes of a panel of so many groups.
    fn panel_bytes(groups: usize) -> usize;

    /// Where a group begins.
    ///
    /// # Safety
    /// The panel has the group.
    unsafe fn group(panel: *const u8, group: usize) -> *const u8;

    /// The scales of a group.
    ///
    /// # Safety
    /// The panel has the group.
    unsafe fn scale<S: Simd>(panel: *const u8, group: usize, output: usize) -> S::F;

    /// What is subtracted for each unit of the activations' sum, negated.
    ///
    /// # Safety
    /// The panel has the group.
    unsafe fn min<S: Simd>(panel: *const u8, group: usize, output: usize) -> S::F;

    /// The bytes of inputs `8 · i … 8 · i + 7` of a group: 0, 2, 1, 3 and 4, 6, 5, 7.
    ///
    /// # Safety
    /// The panel has the group; i < 4.
    unsafe fn bytes<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 2];
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0;

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Weights for Q8_0 {
    const HAS_MIN: bool = false;
    const ZERO: u8 = q8_0::ZERO;
    const GROUP_BYTES: usize = q8_0::GROUP_BYTES;

    fn panel_bytes(groups: usize) -> usize {
        groups * q8_0::GROUP_BYTES
    }

    #[inline(always)]
    unsafe fn group(panel: *const u8, group: usize) -> *const u8 {
        // SAFETY: the caller's condition.
        unsafe { panel.add(group * q8_0::GROUP_BYTES) }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(panel: *const u8, group: usize, output: usize) -> S::F {
        // SAFETY: the caller's condition.
        unsafe { S::load_f16(Self::group(panel, group).add(2 * output).cast()) }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(_: *const u8, _: usize, _: usize) -> S::F {
        // SAFETY: no pointer is used.
        unsafe { S::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn bytes<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 2] {
        // SAFETY: the caller's condition.
        unsafe {
            let at = Self::group(panel, group).add(q8_0::WEIGHTS + (2 * i * PANEL + output) * 4);
            [S::load_words(at), S::load_words(at.add(4 * PANEL))]
        }
    }
}

impl Weights for Q4K {
    const HAS_MIN: bool = true;
    const ZERO: u8 = 0;
    const GROUP_BYTES: usize = q4_k::GROUP_BYTES;

    fn panel_bytes(groups: usize) -> usize {
        groups.div_ceil(q4_k::GROUPS) * q4_k::BLOCK_BYTES
    }

    #[inline(always)]
    unsafe fn group(panel: *const u8, group: usize) -> *const u8 {
        // SAFETY: the caller's condition.
        unsafe { q4_k_block(panel, group).add(q4_k::FIRST + group % q4_k::GROUPS * q4_k::GROUP_BYTES) }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(panel: *const u8, group: usize, output: usize) -> S::F {
        // SAFETY: the caller's condition.
        unsafe {
            let d = S::load_f16(q4_k_block(panel, group).add(2 * output).cast());
            S::mul(d, S::load_u8(Self::group(panel, group).add(output)))
        }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(panel: *const u8, group: usize, output: usize) -> S::F {
        // SAFETY: the caller's condition.
        unsafe {
            let d_min = S::load_f16(q4_k_block(panel, group).add(2 * (PANEL + output)).cast());
            let min = S::load_u8(Self::group(panel, group).add(PANEL + output));
            S::mul(S::sub(S::splat(0.0), d_min), min)
        }
    }

    #[inline(always)]
    unsafe fn bytes<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 2] {
        // SAFETY: the caller's condition.
        unsafe {
            let at = Self::group(panel, group).add(q4_k::WEIGHTS + (i * PANEL + output) * 4);
            S::nibbles(S::load_words(at))
        }
    }
}

/// The block that a group belongs to.
#[inline(always)]
unsafe fn q4_k_block(panel: *const u8, group: usize) -> *const u8 {
    // SAFETY: the caller's condition.
    unsafe { panel.add(group / q4_k::GROUPS * q4_k::BLOCK_BYTES) }
}

/// A product with quantized weights.
///
/// # Errors
/// `OUT_OF_MEMORY` for the activations.
pub(super) fn linear<W: Weights>(
    threads: &mut Threads,
    level: Level,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[u8],
) -> Result<()> {
    let Operands { rows, inputs, outputs, .. } = *operands;
    let groups = inputs.div_ceil(GROUP);
    let panel_bytes = W::panel_bytes(groups);
    assert_eq!(panels.len(), outputs.div_ceil(PANEL) * panel_bytes);
    let tile = if rows == 1 { 1 } else { level.tile_rows() };
    let tiles = rows.div_ceil(tile);
    let group_words = group_words(level);
    let words = scratch.words.reserve(tiles * tile * groups * group_words)?;
    let scales = scratch.rows.reserve(tiles * tile * groups * 2)?;
    {
        let (words, scales) = (SharedMut::new(words), SharedMut::new(scales));
        threads.run(tiles, &|t| {
            // SAFETY: the level was detected; each task writes its own tile; its rows are x's.
            unsafe {
                let words = words.slice(t * tile * groups * group_words, tile * groups * group_words);
                let scales = scales.slice(t * tile * groups * 2, tile * groups * 2);
                let rows = tile.min(rows - t * tile);
                let out = Words { words, tile, group_words };
                let weights = PhantomData::<W>;
                let (x, first) = (operands.x, t * tile);
                level.run(Quantize { x, first, rows, inputs, tile, scales, out, weights });
            }
        });
    }
    let (words, scales) = (&*words, &*scales);
    in_parts(threads, rows, outputs, tile, 48, streams_of(rows), &|part| {
        let row = part.row * groups;
        // SAFETY: the level was detected; the pointers cover the part's rows, inputs and outputs; parts are disjoint.
        unsafe {
            level.run(Product {
                words: words[row * group_words..].as_ptr(),
                scales: scales[row * 2..].as_ptr(),
                tile,
                rows: part.rows,
                groups,
                panels: panels[part.panel * panel_bytes..].as_ptr(),
                panel_bytes,
                outputs: part.outputs,
                bias: operands.bias_at(part.output),
                out: operands.out.at(part.row, part.output),
                out_stride: operands.out.stride(),
                weights: PhantomData::<W>,
            });
        }
    });
    Ok(())
}

/// Where quantized activations go.
pub(super) trait Sink {
    /// Those of two vectors of inputs, from `input` on, of a group of one row of the tile, as integers.
    ///
    /// # Safety
    /// The processor must have `S`; the row and group must be there.
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: [S::F; 2]);
}

/// `[group][word][row]`: a word is a pair of 16 bits, or four bytes, inputs 0, 2, 1, 3.
struct Words<'a> {
    words: &'a mut [i32],
    tile: usize,
    group_words: usize,
}

impl Sink for Words<'_> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: [S::F; 2]) {
        let per_word = GROUP / self.group_words;
        let words = &mut self.words[(group * self.group_words + input / per_word) * self.tile + row..];
        let mut integers = [0i32; GROUP / 2];
        let to = integers.as_mut_ptr();
        // SAFETY: LANES ≤ 16.
        unsafe {
            match per_word {
                2 => {
                    S::store_i16(to.cast(), x[0]);
                    S::store_i16(to.cast::<i16>().add(S::LANES), x[1]);
                }
                _ => {
                    S::store_bytes(to.cast(), x[0]);
                    S::store_bytes(to.cast::<i8>().add(S::LANES), x[1]);
                }
            }
        }
        let integers = &integers[..2 * S::LANES / per_word];
        words.iter_mut().step_by(self.tile).zip(integers).for_each(|(word, integer)| *word = *integer);
    }
}

/// Makes integers of a tile of rows. `scales` is `[group][unit, of_sum][row]`: what a unit is worth, and what a product
/// needs of the sum of the group's activations: that sum where weights have a minimum, else (an integer) what the
/// group's sum begins with.
pub(super) struct Quantize<'a, W, O> {
    pub x: ConstMatrix,
    pub first: usize,
    pub rows: usize,
    pub inputs: usize,
    pub tile: usize,
    pub scales: &'a mut [f32],
    pub out: O,
    pub weights: PhantomData<W>,
}

impl<W: Weights, O: Sink> Kernel for Quantize<'_, W, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: the rows and inputs are x's; lanes beyond the last input are masked.
        unsafe {
            for row in 0..self.rows {
                let mut zero = S::splat(0.0);
                for group in 0..self.inputs.div_ceil(GROUP) {
                    let from = group * GROUP;
                    let x = self.x.at(self.first + row, from);
                    let left = self.inputs - from;
                    let load = |i: usize| match left >= GROUP {
                        true => S::load(x.add(i)),
                        false => S::load_first(x.wrapping_add(i), S::LANES.min(left.saturating_sub(i))),
                    };
                    let (mut largest, mut least) = (S::splat(0.0), S::splat(0.0));
                    for i in (0..GROUP).step_by(S::LANES) {
                        let x = load(i);
                        (largest, least) = (S::max(largest, x), S::min(least, x));
                        zero = S::mul_add(x, S::splat(0.0), zero);
                    }
                    let (unit, to_integers) =
                        units(S::largest(S::max(largest, S::sub(S::splat(0.0), least))));
                    let mut sum = S::splat(0.0);
                    for i in (0..GROUP).step_by(2 * S::LANES) {
                        let x = [load(i), load(i + S::LANES)];
                        let x = x.map(|x| S::round(S::mul(x, S::splat(to_integers))));
                        sum = S::add(sum, S::add(x[0], x[1]));
                        self.out.put::<S>(row, group, i, x);
                    }
                    let scales = &mut self.scales[2 * group * self.tile + row..];
                    scales[0] = unit;
                    scales[self.tile] = match W::HAS_MIN {
                        true => unit * S::sum(sum),
                        false => f32::from_bits((-i32::from(W::ZERO) * S::sum(sum) as i32) as u32),
                    };
                }
                // 0 · x is NaN where x is no number or infinite: then so are the row's products.
                if S::sum(zero).is_nan() {
                    self.scales[row] = f32::NAN;
                }
            }
        }
    }
}

/// What a unit of a group is worth, and its inverse.
#[inline(always)]
fn units(largest: f32) -> (f32, f32) {
    // Below all is zero: both are numbers that no processor flushes.
    if largest < 2e-35 { (0.0, 0.0) } else { (largest / MOST, MOST / largest) }
}

/// A product of some rows of integers with some panels.
#[derive(Clone, Copy)]
struct Product<W> {
    /// Of the first tile of rows; see [`Words`] and [`Quantize`].
    words: *const i32,
    scales: *const f32,
    /// Rows of a tile.
    tile: usize,
    rows: usize,
    groups: usize,
    panels: *const u8,
    panel_bytes: usize,
    outputs: usize,
    bias: Option<*const f32>,
    out: *mut f32,
    out_stride: usize,
    weights: PhantomData<W>,
}

impl<W: Weights> Kernel for Product<W> {
    const HAS_DOT_BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panels = self.outputs.div_ceil(PANEL);
        let streams = streams_of(self.rows);
        let mut panel = 0;
        // SAFETY: `linear` made the pointers.
        unsafe {
            while streams > 1 && panels - panel >= streams {
                match self.rows {
                    1 => Panel { product: &self, panel }.streams::<S, 1, 4>(0),
                    _ => Panel { product: &self, panel }.streams::<S, 2, 2>(0),
                }
                panel += streams;
            }
            for panel in panel..panels {
                over_rows::<S>(self.rows, &Panel { product: &self, panel });
            }
        }
    }
}

/// Panels that so many rows pass over side by side: memory gives more to several streams.
fn streams_of(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 => 2,
        _ => 1,
    }
}

struct Panel<'a, W> {
    product: &'a Product<W>,
    /// The first one.
    panel: usize,
}

impl<W: Weights> Tiled for Panel<'_, W> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(&self, row: usize) {
        // SAFETY: passed on.
        unsafe { self.streams::<S, ROWS, 1>(row) }
    }
}

impl<W: Weights> Panel<'_, W> {
    /// `ROWS` rows with `STREAMS` panels side by side.
    #[inline(always)]
    unsafe fn streams<S: Simd, const ROWS: usize, const STREAMS: usize>(&self, row: usize) {
        // SAFETY: passed on.
        unsafe {
            // Where weights need no widening, a tile of one vector whose sums and totals are all in registers is faster.
            if S::TILE_VECTORS == 1 || S::HAS_DOT_BYTES && ROWS > 4 {
                self.streams_of::<S, ROWS, 1, STREAMS>(row);
            } else {
                self.streams_of::<S, ROWS, 2, STREAMS>(row);
            }
        }
    }

    /// The same, `VECTORS` vectors of outputs of each panel at a time.
    #[inline(always)]
    unsafe fn streams_of<S: Simd, const ROWS: usize, const VECTORS: usize, const STREAMS: usize>(
        &self,
        row: usize,
    ) {
        let Product { tile, groups, panel_bytes, .. } = *self.product;
        // SAFETY: `row + ROWS ≤ rows`, all in one tile; outputs beyond the last are masked.
        unsafe {
            let panel = self.product.panels.add(self.panel * panel_bytes);
            let (first, within) = (row / tile * tile, row % tile);
            let group_words = if S::HAS_DOT_BYTES { GROUP / 4 } else { GROUP / 2 };
            let words = self.product.words.add(first * groups * group_words + within);
            let scales = self.product.scales.add(first * groups * 2 + within);
            for half in (0..PANEL).step_by(VECTORS * S::LANES) {
                let mut totals = [[[S::splat(0.0); VECTORS]; ROWS]; STREAMS];
                if let Some(bias) = self.product.bias {
                    for (s, totals) in totals.iter_mut().enumerate() {
                        for v in 0..VECTORS {
                            let (output, lanes) = self.lanes::<S>(s, half, v);
                            let bias = S::load_first(bias.wrapping_add(output), lanes);
                            for totals in &mut *totals {
                                totals[v] = bias;
                            }
                        }
                    }
                }
                for group in 0..groups {
                    for (s, totals) in totals.iter_mut().enumerate() {
                        let panel = panel.add(s * panel_bytes);
                        if row == 0 && half == 0 {
                            for line in (0..W::GROUP_BYTES).step_by(64) {
                                S::prefetch(W::group(panel, group).wrapping_add(AHEAD + line));
                            }
                        }
                        let words = words.add(group * group_words * tile);
                        let scales = scales.add(2 * group * tile);
                        let mut sums = [[S::zero(); VECTORS]; ROWS];
                        if !W::HAS_MIN {
                            for (r, sums) in sums.iter_mut().enumerate() {
                                *sums = [S::splat_word(*scales.add(tile + r).cast()); VECTORS];
                            }
                        }
                        Self::sum::<S, ROWS, VECTORS>(panel, group, half, words, tile, &mut sums);
                        for v in 0..VECTORS {
                            let scale = W::scale::<S>(panel, group, half + v * S::LANES);
                            let min = W::min::<S>(panel, group, half + v * S::LANES);
                            for r in 0..ROWS {
                                let sum = S::mul(S::to_f32(sums[r][v]), S::splat(*scales.add(r)));
                                totals[r][v] = S::mul_add(sum, scale, totals[r][v]);
                                if W::HAS_MIN {
                                    let x = S::splat(*scales.add(tile + r));
                                    totals[r][v] = S::mul_add(min, x, totals[r][v]);
                                }
                            }
                        }
                    }
                }
                for (s, totals) in totals.iter().enumerate() {
                    for (r, totals) in totals.iter().enumerate() {
                        for (v, total) in totals.iter().enumerate() {
                            let (output, lanes) = self.lanes::<S>(s, half, v);
                            let out = (row + r) * self.product.out_stride + output;
                            S::store_first(self.product.out.wrapping_add(out), *total, lanes);
                        }
                    }
                }
            }
        }
    }

    /// Where a vector's outputs begin, and how many of them there are.
    #[inline(always)]
    fn lanes<S: Simd>(&self, stream: usize, half: usize, v: usize) -> (usize, usize) {
        let output = (self.panel + stream) * PANEL + half + v * S::LANES;
        (output, S::LANES.min(self.product.outputs.saturating_sub(output)))
    }

    /// Adds a group's products to its sums.
    #[inline(always)]
    unsafe fn sum<S: Simd, const ROWS: usize, const VECTORS: usize>(
        panel: *const u8,
        group: usize,
        output: usize,
        words: *const i32,
        tile: usize,
        sums: &mut [[S::I; VECTORS]; ROWS],
    ) {
        // SAFETY: the caller's panel, group and rows.
        unsafe {
            for i in 0..GROUP / 8 {
                let mut bytes = [[S::zero(); 2]; VECTORS];
                for (v, bytes) in bytes.iter_mut().enumerate() {
                    *bytes = W::bytes::<S>(panel, group, i, output + v * S::LANES);
                }
                // Written out: as a loop the compiler would keep the weights in memory.
                if S::HAS_DOT_BYTES {
                    let words = words.add(2 * i * tile);
                    accumulate::<S, ROWS, VECTORS>(sums, words, bytes.map(|[first, _]| first));
                    accumulate::<S, ROWS, VECTORS>(sums, words.add(tile), bytes.map(|[_, second]| second));
                } else {
                    let words = words.add(4 * i * tile);
                    let (first, second) = (bytes.map(|[first, _]| first), bytes.map(|[_, second]| second));
                    accumulate::<S, ROWS, VECTORS>(sums, words, first.map(|x| S::even_bytes(x)));
                    accumulate::<S, ROWS, VECTORS>(sums, words.add(tile), first.map(|x| S::odd_bytes(x)));
                    accumulate::<S, ROWS, VECTORS>(
                        sums,
                        words.add(2 * tile),
                        second.map(|x| S::even_bytes(x)),
                    );
                    accumulate::<S, ROWS, VECTORS>(
                        sums,
                        words.add(3 * tile),
                        second.map(|x| S::odd_bytes(x)),
                    );
                }
            }
        }
    }
}

/// `sums[r] += x[r] · w`: x the words of all rows.
#[inline(always)]
unsafe fn accumulate<S: Simd, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[S::I; VECTORS]; ROWS],
    x: *const i32,
    w: [S::I; VECTORS],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's rows.
        unsafe {
            let x = S::splat_word(*x.add(r));
            for (w, sum) in w.into_iter().zip(sums) {
                *sum = if S::HAS_DOT_BYTES { S::dot_bytes(*sum, w, x) } else { S::dot_pairs(*sum, w, x) };
            }
        }
    }
}
