//! Products with quantized weights: multiply and add of integers.
//!
//! Weights are integers times a scale for each group of 32 inputs. Activations are made the same: integers of 13 bits
//! times a power of two for each 32 of a row. Then the sum over a group, `Σ q · x`, is at most 32 · 127 · 4096 < 2²⁴:
//! exact in integers and in floats alike, whatever the order and the instruction set. Groups are added one after the
//! other, so a product has the same bits on VNNI, AVX2 and the tile unit, alone and in any batch. 13 bits cost a
//! relative error of some 2e-4; GGUF's kernels take activations of 8.
//!
//! A product of a pair of 16-bit integers with another, added to a 32-bit sum, is one instruction with VNNI and two
//! without. As in [`super::float`] a lane is an output, and a pair of activations is broadcast to all lanes.

use std::marker::PhantomData;

use super::cpu::{Operands, Scratch};
use super::packed::{PANEL, q4_k, q8_0};
use super::tiles::{Tiled, in_parts, over_rows};
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, SharedMut};
use crate::error::Result;
use crate::quantize::GROUP;

/// The greatest activation of a group becomes an integer of so many bits and its sign: at most 2¹².
const BITS: u32 = 12;
/// Added and subtracted, 1.5 · 2²³ rounds to integers.
const ROUND: f32 = 12_582_912.0;
/// Pairs of a group.
pub(super) const PAIRS: usize = GROUP / 2;
/// How far ahead of its use a panel is asked for, in bytes.
const AHEAD: usize = 3072;

/// How the weights of a panel become pairs and scales.
pub(super) trait Weights: Copy + Send + Sync {
    /// Whether there is a minimum beside the scale.
    const HAS_MIN: bool;

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

    /// The pairs of inputs `8 · i … 8 · i + 7` of a group.
    ///
    /// # Safety
    /// The panel has the group; i < 4.
    unsafe fn pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4];

    /// The same as pairs of bf16.
    ///
    /// # Safety
    /// The panel has the group; i < 4.
    #[cfg(target_arch = "x86_64")]
    unsafe fn bf16_pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4];
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0;

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Weights for Q8_0 {
    const HAS_MIN: bool = false;
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
    unsafe fn pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4] {
        // SAFETY: the caller's condition.
        unsafe {
            let at = Self::group(panel, group).add(q8_0::WEIGHTS + (2 * i * PANEL + output) * 4);
            let (first, second) = (S::load_words(at), S::load_words(at.add(4 * PANEL)));
            [S::low_bytes(first), S::high_bytes(first), S::low_bytes(second), S::high_bytes(second)]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn bf16_pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4] {
        // SAFETY: the caller's condition.
        unsafe {
            let at = Self::group(panel, group).add(q8_0::WEIGHTS + (2 * i * PANEL + output) * 4);
            let [a, b] = S::bytes_to_bf16(S::load_words(at));
            let [c, d] = S::bytes_to_bf16(S::load_words(at.add(4 * PANEL)));
            [a, b, c, d]
        }
    }
}

impl Weights for Q4K {
    const HAS_MIN: bool = true;
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
    unsafe fn pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4] {
        // SAFETY: the caller's condition.
        unsafe {
            let at = Self::group(panel, group).add(q4_k::WEIGHTS + (i * PANEL + output) * 4);
            let words = S::load_words(at);
            [S::nibbles::<0>(words), S::nibbles::<4>(words), S::nibbles::<8>(words), S::nibbles::<12>(words)]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn bf16_pairs<S: Simd>(panel: *const u8, group: usize, i: usize, output: usize) -> [S::I; 4] {
        // SAFETY: the caller's condition.
        unsafe { Self::pairs::<S>(panel, group, i, output).map(|pair| S::pairs_to_bf16(pair)) }
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
    let words = scratch.words.reserve(tiles * tile * groups * PAIRS)?;
    let scales = scratch.rows.reserve(tiles * tile * groups * 2)?;
    {
        let (words, scales) = (SharedMut::new(words), SharedMut::new(scales));
        threads.run(tiles, &|t| {
            // SAFETY: the level was detected; each task writes its own tile; its rows are x's.
            unsafe {
                let words = words.slice(t * tile * groups * PAIRS, tile * groups * PAIRS);
                let scales = scales.slice(t * tile * groups * 2, tile * groups * 2);
                let rows = tile.min(rows - t * tile);
                let out = Words { words, tile };
                level.run(Quantize {
                    sums: W::HAS_MIN,
                    x: operands.x,
                    first: t * tile,
                    rows,
                    inputs,
                    tile,
                    scales,
                    out,
                });
            }
        });
    }
    let (words, scales) = (&*words, &*scales);
    in_parts(threads, rows, outputs, tile, 48, streams_of(rows), &|part| {
        let row = part.row * groups;
        // SAFETY: the level was detected; the pointers cover the part's rows, inputs and outputs; parts are disjoint.
        unsafe {
            level.run(Product {
                words: words[row * PAIRS..].as_ptr(),
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
    /// Those of two vectors of inputs, from `input` on, of a group of one row of the tile: integers, and what a unit is
    /// worth.
    ///
    /// # Safety
    /// The processor must have `S`; the row and group must be there.
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: [S::F; 2], unit: f32);
}

/// `[group][pair][row]`, pairs as words.
struct Words<'a> {
    words: &'a mut [i32],
    tile: usize,
}

impl Sink for Words<'_> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: [S::F; 2], _: f32) {
        let mut integers = [0i16; GROUP];
        // SAFETY: LANES ≤ 16.
        unsafe {
            S::store_i16(integers.as_mut_ptr(), x[0]);
            S::store_i16(integers.as_mut_ptr().add(S::LANES), x[1]);
        }
        let words = &mut self.words[(group * PAIRS + input / 2) * self.tile..][..S::LANES * self.tile];
        for (p, word) in words.iter_mut().skip(row).step_by(self.tile).enumerate() {
            *word = i32::from(integers[2 * p + 1]) << 16 | i32::from(integers[2 * p]) & 0xffff;
        }
    }
}

/// Makes integers of a tile of rows. `scales` is `[group][unit, sum][row]`: what a unit is worth, and the sum of the
/// group's activations as they are now.
pub(super) struct Quantize<'a, O> {
    /// Whether sums are wanted.
    pub sums: bool,
    pub x: ConstMatrix,
    pub first: usize,
    pub rows: usize,
    pub inputs: usize,
    pub tile: usize,
    pub scales: &'a mut [f32],
    pub out: O,
}

impl<O: Sink> Kernel for Quantize<'_, O> {
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
                    let (to_integers, round) = (S::splat(to_integers), S::splat(ROUND));
                    let mut sum = S::splat(0.0);
                    for i in (0..GROUP).step_by(2 * S::LANES) {
                        let x = [load(i), load(i + S::LANES)];
                        let x = x.map(|x| S::sub(S::mul_add(x, to_integers, round), round));
                        if self.sums {
                            sum = S::add(sum, S::add(x[0], x[1]));
                        }
                        self.out.put::<S>(row, group, i, x, unit);
                    }
                    self.scales[2 * group * self.tile + row] = unit;
                    if self.sums {
                        self.scales[(2 * group + 1) * self.tile + row] = unit * S::sum(sum);
                    }
                }
                // 0 · x is NaN where x is no number or infinite: then so are the row's products.
                if S::sum(zero).is_nan() {
                    self.out.put::<S>(row, 0, 0, [S::splat(1.0); 2], f32::NAN);
                    self.scales[row] = f32::NAN;
                }
            }
        }
    }
}

/// What a unit of a group is worth, and its inverse: powers of two, so that multiplying by them is exact.
#[inline(always)]
fn units(largest: f32) -> (f32, f32) {
    let exponent = largest.to_bits() >> 23;
    // Below 2⁻¹¹⁵ all is zero.
    if exponent < BITS || exponent == 255 {
        return (0.0, 0.0);
    }
    let power = |exponent: u32| f32::from_bits(exponent << 23);
    (power(exponent + 1 - BITS), power(253 + BITS - exponent))
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
    const HAS_DOT_PAIRS: bool = true;

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
            match S::TILE_VECTORS {
                1 => self.streams_of::<S, ROWS, 1, STREAMS>(row),
                _ => self.streams_of::<S, ROWS, 2, STREAMS>(row),
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
            let words = self.product.words.add(first * groups * PAIRS + within);
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
                        let words = words.add(group * PAIRS * tile);
                        let sums = Self::sums::<S, ROWS, VECTORS>(panel, group, half, words, tile);
                        let scales = scales.add(2 * group * tile);
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

    /// The sums of a group.
    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: usize, const VECTORS: usize>(
        panel: *const u8,
        group: usize,
        output: usize,
        words: *const i32,
        tile: usize,
    ) -> [[S::I; VECTORS]; ROWS] {
        // SAFETY: the caller's panel, group and rows.
        unsafe {
            let mut sums = [[S::zero(); VECTORS]; ROWS];
            for i in 0..4 {
                let words = words.add(4 * i * tile);
                let mut w = [[S::zero(); 4]; VECTORS];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = W::pairs::<S>(panel, group, i, output + v * S::LANES);
                }
                // Written out: as a loop the compiler would keep the pairs in memory.
                accumulate::<S, ROWS, VECTORS, 0>(&mut sums, words, &w);
                accumulate::<S, ROWS, VECTORS, 1>(&mut sums, words.add(tile), &w);
                accumulate::<S, ROWS, VECTORS, 2>(&mut sums, words.add(2 * tile), &w);
                accumulate::<S, ROWS, VECTORS, 3>(&mut sums, words.add(3 * tile), &w);
            }
            sums
        }
    }
}

/// `sums[r] += x[r] · w` for the K-th pair of all rows.
#[inline(always)]
unsafe fn accumulate<S: Simd, const ROWS: usize, const VECTORS: usize, const K: usize>(
    sums: &mut [[S::I; VECTORS]; ROWS],
    x: *const i32,
    w: &[[S::I; 4]; VECTORS],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's rows.
        unsafe {
            let x = *x.add(r);
            for (w, sum) in w.iter().zip(sums) {
                *sum = S::dot_pairs(*sum, w[K], x);
            }
        }
    }
}
