//! Products with bf16 weights on the tile unit (AMX) of recent Intel processors.
//!
//! The unit multiplies bf16 by bf16 and adds in f32. Weights are bf16 already; an activation is split into two
//! bf16, `x ≈ high + low`, which keep 16 of its 24 bits, and both are multiplied. So the result is that of f32
//! activations to about 3e-6 (not that of activations rounded to bf16, a thousand times worse), at half the
//! unit's speed, some five times that of f32 instructions.
//!
//! A tile is 16 rows of 64 bytes. Per step of 32 inputs a block of 32 tokens × 32 outputs takes two tiles of
//! weights (pairs of inputs, as [`super::packed`] lays them), four of activations and eight products.
//!
//! The instructions are written as assembly: their intrinsics are not stable Rust.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use super::cpu::{Operands, Scratch};
use super::integer::{Quantize, Sink, Weights};
use super::packed::PANEL;
use super::tiles::{Part, in_parts};
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, SharedMut};
use crate::error::Result;
use crate::quantize::GROUP;

/// Rows (tokens) of a tile.
const ROWS: usize = 16;
/// Inputs of a step: 64 bytes of bf16.
const STEP: usize = 32;
/// bf16 of a tile.
const TILE: usize = ROWS * STEP;
/// Row blocks that a panel of bf16 passes over while they are in the second-level cache.
const BLOCKS: usize = 8;
/// Panels of quantized weights that pass over row tiles together: so activations come from the second-level cache half
/// as often.
const PAIR: usize = 2;
/// The most row tiles that they pass over, and the bytes of their activations: three quarters of a second-level cache.
const MAX_ROW_TILES: usize = 32;
const ROW_TILES_BYTES: usize = 3 << 19;
/// Groups of a pair of panels that are tiles at a time, in the first-level cache.
const CHUNK: usize = 4;

/// Whether the processor has the unit and the operating system lets this process use it (asked for once).
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE_STATE: u64 = 0b11 << 17;
        // SAFETY: a processor with the unit has xgetbv where the operating system uses xsave.
        unsafe {
            is_in_processor()
                && __cpuid(1).ecx & (1 << 27) != 0
                && xcr0() & TILE_STATE == TILE_STATE
                && is_permitted()
        }
    })
}

/// Whether the processor has the unit, whatever the operating system says.
#[allow(unused_unsafe)] // older compilers call cpuid unsafe
pub fn is_in_processor() -> bool {
    let has = |leaf: u32, bit: u32| leaf & (1 << bit) != 0;
    // SAFETY: leaf 7 is read where it exists.
    unsafe {
        __cpuid(0).eax >= 7 && {
            let leaf = __cpuid_count(7, 0).edx;
            has(leaf, 22) && has(leaf, 24)
        }
    }
}

#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: the caller has seen that the operating system enabled xsave.
    unsafe { _xgetbv(0) }
}

/// Linux wants to be asked, since tiles make every thread's saved state 8 KiB larger.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call has no pointer arguments.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

/// Windows enables tiles for every process; no other system has them.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    cfg!(target_os = "windows")
}

/// All eight tiles: 16 rows of 64 bytes.
#[repr(align(64))]
struct Config([u8; 64]);

static WHOLE: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1; // palette
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64; // bytes of a row, u16
        bytes[48 + tile] = ROWS as u8;
        tile += 1;
    }
    Config(bytes)
};

/// bf16 weights, in pairs. Activations are split and laid as tiles:
/// `[row / 16][input / 32][high, low][row % 16][input % 32]`.
///
/// # Errors
/// `OUT_OF_MEMORY` for the split activations.
pub(super) fn bf16(
    threads: &mut Threads,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[u16],
) -> Result<()> {
    debug_assert!(is_available());
    let Operands { rows, inputs, outputs, bias, .. } = *operands;
    let steps = inputs.div_ceil(STEP);
    assert_eq!(panels.len(), outputs.div_ceil(PANEL) * PANEL * steps * STEP);
    let per_row_tile = steps * 2 * TILE;
    let tiles = scratch.split.reserve(rows.next_multiple_of(2 * ROWS) * steps * STEP * 2)?;
    let shared = SharedMut::new(tiles);
    threads.run(rows.div_ceil(ROWS), &|tile| {
        // SAFETY: tasks write disjoint tiles; rows beyond the last are left as they are and their products
        // are not stored; the rows of x are in range.
        unsafe {
            let tiles = shared.slice(tile * per_row_tile, per_row_tile);
            let (first, rows) = (tile * ROWS, ROWS.min(rows - tile * ROWS));
            Level::Amx.run(Split { x: operands.x, first, rows, inputs, tiles });
        }
    });
    let row_blocks = rows.div_ceil(2 * ROWS);
    let tiles = &*tiles;
    in_parts(threads, row_blocks, outputs, 1, 2, 1, &|part| {
        let out = operands.out;
        // SAFETY: the unit is available; tiles and panels are in range by construction, outputs are masked.
        unsafe {
            configure();
            let mut room = MaybeUninit::uninit();
            for first in (part.row..part.row + part.rows).step_by(BLOCKS) {
                for panel in part.panel..part.panel + part.outputs.div_ceil(PANEL) {
                    let weights = panels.as_ptr().add(panel * PANEL * steps * STEP);
                    for block in first..(part.row + part.rows).min(first + BLOCKS) {
                        let activations = tiles.as_ptr().add(block * 2 * per_row_tile);
                        let sums = multiply(activations, per_row_tile, weights, steps, &mut room);
                        let from = panel * PANEL;
                        let width = PANEL.min(outputs - from);
                        for r in 0..(2 * ROWS).min(rows - block * 2 * ROWS) {
                            let row =
                                std::slice::from_raw_parts_mut(out.at(block * 2 * ROWS + r, from), width);
                            row.copy_from_slice(&sums.0[r][..width]);
                            if let Some(bias) = bias {
                                row.iter_mut().zip(&bias[from..]).for_each(|(sum, bias)| *sum += bias);
                            }
                        }
                    }
                }
            }
            release();
        }
    });
    Ok(())
}

/// As [`super::integer`], and with its bits: bf16 holds weights and activations (without their scales), f32 every partial
/// sum of a group. Activations are laid as tiles: `[row / 16][group][row % 16][input % 32]`.
///
/// # Errors
/// `OUT_OF_MEMORY` for the activations' tiles.
pub(super) fn quantized<W: Weights>(
    threads: &mut Threads,
    scratch: &mut Scratch,
    operands: &Operands,
    panels: &[u8],
) -> Result<()> {
    debug_assert!(is_available());
    let Operands { rows, inputs, outputs, .. } = *operands;
    let groups = inputs.div_ceil(GROUP);
    let panel_bytes = W::panel_bytes(groups);
    assert_eq!(panels.len(), outputs.div_ceil(PANEL) * panel_bytes);
    let row_tiles = rows.div_ceil(ROWS);
    let per_row_tile = groups * TILE;
    let tiles = scratch.split.reserve(row_tiles * per_row_tile)?;
    let scales = scratch.rows.reserve(row_tiles * ROWS * groups * 2)?;
    {
        let (tiles, scales) = (SharedMut::new(tiles), SharedMut::new(scales));
        threads.run(row_tiles, &|tile| {
            // SAFETY: the level is available; tasks write disjoint tiles; rows beyond the last are left as they are
            // and their products are not stored.
            unsafe {
                let out = Tiles(tiles.slice(tile * per_row_tile, per_row_tile));
                let scales = scales.slice(tile * ROWS * groups * 2, ROWS * groups * 2);
                let rows = ROWS.min(rows - tile * ROWS);
                let (x, first) = (operands.x, tile * ROWS);
                let weights = PhantomData::<W>;
                Level::Amx.run(Quantize { x, first, rows, inputs, tile: ROWS, scales, out, weights });
            }
        });
    }
    let (tiles, scales) = (&*tiles, &*scales);
    in_parts(threads, row_tiles, outputs, 1, 4, PAIR, &|part| {
        // SAFETY: the level is available; tiles, scales and panels are in range by construction, parts are disjoint.
        ROOM.with_borrow_mut(|room| unsafe {
            configure();
            let (tiles, scales, panels) = (tiles.as_ptr(), scales.as_ptr(), panels.as_ptr());
            let weights = PhantomData::<W>;
            let product = Product { tiles, scales, groups, panels, panel_bytes, part, operands, weights };
            Level::Amx.run(InRoom(product, room));
            release();
        });
    });
    Ok(())
}

/// Activations that are integers, as the tile of a step.
struct Tiles<'a>(&'a mut [u16]);

impl Sink for Tiles<'_> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: [S::F; 2]) {
        let at = &mut self.0[group * TILE + row * STEP + input..][..2 * S::LANES];
        // SAFETY: the tile has room from there on.
        unsafe { S::store_bf16(at.as_mut_ptr(), x) };
    }
}

/// A part of a product with quantized weights.
struct Product<'a, W> {
    tiles: *const u16,
    /// `[row / 16][group][unit, of_sum][row % 16]`, see [`Quantize`].
    scales: *const f32,
    groups: usize,
    panels: *const u8,
    panel_bytes: usize,
    /// Its rows are row tiles of 16 tokens.
    part: Part,
    operands: &'a Operands<'a>,
    weights: PhantomData<W>,
}

/// A product and what it works in.
struct InRoom<'a, W>(Product<'a, W>, &'a mut Room);

impl<W: Weights> Kernel for InRoom<'_, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(product, room) = self;
        let Part { row: start, rows, outputs, .. } = product.part;
        let end = start + rows;
        // As many row tiles as the second-level cache holds, all passes alike.
        let most = (ROW_TILES_BYTES / (product.groups * 2 * TILE)).clamp(1, MAX_ROW_TILES);
        let count = rows.div_ceil(rows.div_ceil(most));
        let panels = outputs.div_ceil(PANEL);
        for first in (start..end).step_by(count) {
            let rows = first..end.min(first + count);
            for panel in (0..panels).step_by(PAIR) {
                // SAFETY: `quantized` made the pointers.
                unsafe {
                    match panels - panel {
                        1 => product.panels::<S, 1>(rows.clone(), panel, room),
                        _ => product.panels::<S, PAIR>(rows.clone(), panel, room),
                    }
                }
            }
        }
    }
}

impl<W: Weights> Product<'_, W> {
    /// Row tiles with `PANELS` panels: a group's weights become tiles once for all of them.
    #[inline(always)]
    unsafe fn panels<S: Simd, const PANELS: usize>(&self, rows: Range<usize>, panel: usize, room: &mut Room) {
        let Room { totals, weights, sums } = room;
        let totals = &mut totals.0[..rows.len()];
        let output = self.part.output + panel * PANEL;
        // SAFETY: row tiles, groups and panels are in range; rows and outputs beyond the last are not stored.
        unsafe {
            let panel = self.panels.add((self.part.panel + panel) * self.panel_bytes);
            for p in 0..PANELS {
                let (output, width) = self.outputs(output, p);
                let bias = self.operands.bias_at(output);
                for v in (0..PANEL).step_by(S::LANES) {
                    let lanes = S::LANES.min(width.saturating_sub(v));
                    let bias = bias.map_or(S::splat(0.0), |bias| S::load_first(bias.wrapping_add(v), lanes));
                    for total in totals.iter_mut().flat_map(|totals| &mut totals[p]) {
                        S::store(total.as_mut_ptr().add(v), bias);
                    }
                }
            }
            for chunk in (0..self.groups).step_by(CHUNK) {
                let groups = CHUNK.min(self.groups - chunk);
                for (g, weights) in weights.0[..groups].iter_mut().enumerate() {
                    for (p, weights) in weights[..PANELS].iter_mut().enumerate() {
                        widen::<S, W>(panel.add(p * self.panel_bytes), chunk + g, weights);
                    }
                }
                let weights = &weights.0[..groups];
                for (row_tile, totals) in rows.clone().zip(&mut *totals) {
                    RowTile { product: self, panel, row_tile, chunk, groups, sums, totals }
                        .multiply::<S, PANELS>(weights);
                }
            }
            for (row_tile, totals) in rows.zip(totals) {
                for (p, totals) in totals[..PANELS].iter().enumerate() {
                    let (output, width) = self.outputs(output, p);
                    for (row, total) in (row_tile * ROWS..self.operands.rows).zip(totals) {
                        let out = self.operands.out.at(row, output);
                        for v in (0..width).step_by(S::LANES) {
                            let lanes = S::LANES.min(width - v);
                            S::store_first(out.add(v), S::load(total.as_ptr().add(v)), lanes);
                        }
                    }
                }
            }
        }
    }

    /// Where the outputs of a panel begin, and how many there are.
    #[inline(always)]
    fn outputs(&self, first: usize, panel: usize) -> (usize, usize) {
        let output = first + panel * PANEL;
        (output, PANEL.min(self.operands.outputs - output))
    }
}

/// A row tile and a chunk of the groups of a pair of panels.
struct RowTile<'a, W> {
    product: &'a Product<'a, W>,
    panel: *const u8,
    row_tile: usize,
    /// The first group, and how many there are.
    chunk: usize,
    groups: usize,
    sums: &'a mut [[Sums; 2]; PAIR],
    totals: &'a mut [[[f32; PANEL]; ROWS]; PAIR],
}

impl<W: Weights> RowTile<'_, W> {
    /// One product after the other, in two pairs of tiles: while the unit works on one, the other's sums are stored and, of
    /// two groups together, added.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const PANELS: usize>(&mut self, weights: &[[[u16; 2 * TILE]; PAIR]]) {
        let all = self.product.groups;
        // SAFETY: the caller's row tile, groups and panels.
        unsafe {
            let mut last = None;
            for (g, weights) in weights.iter().enumerate() {
                let activations = self.product.tiles.add((self.row_tile * all + self.chunk + g) * TILE);
                // The next group's, or the next row tile's of the chunk.
                let next = if g + 1 < self.groups { 1 } else { all + 1 - self.groups };
                for line in (0..TILE).step_by(32) {
                    S::prefetch(activations.wrapping_add(next * TILE + line).cast());
                }
                load(activations);
                for (p, weights) in weights[..PANELS].iter().enumerate() {
                    let second = (g * PANELS + p) % 2 == 1;
                    begin(second, weights.as_ptr());
                    if let Some((g, p)) = last {
                        self.end::<S>(!second, g, p);
                    }
                    last = Some((g, p));
                }
            }
            if let Some((g, p)) = last {
                self.end::<S>((g * PANELS + p) % 2 == 1, g, p);
            }
        }
    }

    /// Stores the sums of a group of a panel, and adds those of two groups, times their scales, to the totals.
    #[inline(always)]
    unsafe fn end<S: Simd>(&mut self, second: bool, g: usize, p: usize) {
        let Self { product, .. } = *self;
        let (group, sums, totals) = (self.chunk + g, &mut self.sums[p], &mut self.totals[p]);
        // SAFETY: the caller's row tile, group and panel; sums are read where they were stored.
        unsafe {
            store(second, &mut sums[g % 2]);
            let panel = self.panel.add(p * product.panel_bytes);
            let scales = product.scales.add((self.row_tile * product.groups + group) * 2 * ROWS);
            if g % 2 == 1 {
                add::<S, W, 2>(panel, group - 1, [&sums[0], &sums[1]], scales.sub(2 * ROWS), totals);
            } else if g + 1 == self.groups {
                add::<S, W, 1>(panel, group, [&sums[0]], scales, totals);
            }
        }
    }
}

/// Adds sums of neighbouring groups of a panel, times their scales, to the totals of 16 tokens.
#[inline(always)]
unsafe fn add<S: Simd, W: Weights, const GROUPS: usize>(
    panel: *const u8,
    group: usize,
    sums: [&Sums; GROUPS],
    scales: *const f32,
    totals: &mut [[f32; PANEL]; ROWS],
) {
    // SAFETY: the caller's panel and groups.
    unsafe {
        for v in (0..PANEL).step_by(S::LANES) {
            let (mut scale, mut min) = ([S::splat(0.0); GROUPS], [S::splat(0.0); GROUPS]);
            for g in 0..GROUPS {
                scale[g] = W::scale::<S>(panel, group + g, v);
                min[g] = W::min::<S>(panel, group + g, v);
            }
            for (r, total) in totals.iter_mut().enumerate() {
                let at = total.as_mut_ptr().add(v);
                let mut total = S::load(at);
                for g in 0..GROUPS {
                    let unit = S::splat(*scales.add(2 * g * ROWS + r));
                    let sum = S::mul(S::load(sums[g].0[r].as_ptr().add(v)), unit);
                    total = S::mul_add(sum, scale[g], total);
                    if W::HAS_MIN {
                        total = S::mul_add(min[g], S::splat(*scales.add((2 * g + 1) * ROWS + r)), total);
                    }
                }
                S::store(at, total);
            }
        }
    }
}

/// Products of 16 tokens with 32 outputs.
#[repr(align(64))]
struct Sums([[f32; PANEL]; ROWS]);

/// Loads the tile of a group's activations of 16 tokens.
///
/// # Safety
/// The unit is configured; `activations` are that tile.
#[inline(always)]
unsafe fn load(activations: *const u16) {
    // SAFETY: the caller's conditions. Tile registers are not used by compiled code.
    unsafe {
        asm!(
            "tileloadd tmm4, [{a} + {row}*1]",
            a = in(reg) activations,
            row = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Multiplies what [`load`] loaded with a panel's group, into the first or the second pair of tiles.
///
/// # Safety
/// The unit is configured; `weights` are the two tiles of a group.
#[inline(always)]
unsafe fn begin(second: bool, weights: *const u16) {
    macro_rules! multiply {
        ($left:literal, $right:literal) => {
            asm!(
                "tileloadd tmm6, [{w} + {pair}*1]",
                "tileloadd tmm7, [{w} + {pair}*1 + 64]",
                concat!("tilezero tmm", $left),
                concat!("tilezero tmm", $right),
                concat!("tdpbf16ps tmm", $left, ", tmm4, tmm6"),
                concat!("tdpbf16ps tmm", $right, ", tmm4, tmm7"),
                w = in(reg) weights,
                pair = in(reg) 128usize,
                options(nostack, readonly, preserves_flags),
            )
        };
    }
    // SAFETY: the caller's conditions.
    unsafe {
        if second {
            multiply!("2", "3");
        } else {
            multiply!("0", "1");
        }
    }
}

/// Stores what [`begin`] multiplied.
///
/// # Safety
/// The unit is configured.
#[inline(always)]
unsafe fn store(second: bool, sums: &mut Sums) {
    macro_rules! store {
        ($left:literal, $right:literal) => {
            asm!(
                concat!("tilestored [{sums} + {pair}*1], tmm", $left),
                concat!("tilestored [{sums} + {pair}*1 + 64], tmm", $right),
                sums = in(reg) std::ptr::from_mut(sums),
                pair = in(reg) 128usize,
                options(nostack, preserves_flags),
            )
        };
    }
    // SAFETY: the caller's condition.
    unsafe {
        if second {
            store!("2", "3");
        } else {
            store!("0", "1");
        }
    }
}

/// A group of a panel as the two tiles of a step; asks for the one a chunk further on.
///
/// # Safety
/// The panel has the group.
#[inline(always)]
unsafe fn widen<S: Simd, W: Weights>(panel: *const u8, group: usize, tiles: &mut [u16; 2 * TILE]) {
    // SAFETY: the caller's condition.
    unsafe {
        for line in (0..W::GROUP_BYTES).step_by(64) {
            S::prefetch_later(W::group(panel, group).wrapping_add(CHUNK * W::GROUP_BYTES + line));
        }
        for i in 0..4 {
            for output in (0..PANEL).step_by(S::LANES) {
                let bytes = W::bytes::<S>(panel, group, i, output);
                let pairs = bytes.map(|bytes| S::bytes_to_bf16(bytes, W::ZERO));
                for (k, pair) in pairs.into_iter().flatten().enumerate() {
                    let at = tiles.as_mut_ptr().add(((4 * i + k) * PANEL + output) * 2);
                    S::store_words(at.cast(), pair);
                }
            }
        }
    }
}

/// What a part works in.
struct Room {
    totals: Totals,
    weights: WeightTiles,
    /// Of two groups of each panel.
    sums: [[Sums; 2]; PAIR],
}

thread_local! {
    static ROOM: RefCell<Box<Room>> = RefCell::new(Box::new(Room {
        totals: Totals([[[[0.0; PANEL]; ROWS]; PAIR]; MAX_ROW_TILES]),
        weights: WeightTiles([[[0; 2 * TILE]; PAIR]; CHUNK]),
        sums: [const { [const { Sums([[0.0; PANEL]; ROWS]) }; 2] }; PAIR],
    }));
}

/// Products of row tiles with a pair of panels.
#[repr(align(64))]
struct Totals([[[[f32; PANEL]; ROWS]; PAIR]; MAX_ROW_TILES]);

/// Groups of a pair of panels, in pairs of bf16.
#[repr(align(64))]
struct WeightTiles([[[u16; 2 * TILE]; PAIR]; CHUNK]);

/// # Safety
/// The unit is available. To be followed by [`release`] on the same thread.
unsafe fn configure() {
    // SAFETY: the caller's condition.
    unsafe { asm!("ldtilecfg [{}]", in(reg) WHOLE.0.as_ptr(), options(nostack)) }
}

/// # Safety
/// The unit is available.
unsafe fn release() {
    // SAFETY: the caller's condition.
    unsafe { asm!("tilerelease", options(nomem, nostack)) }
}

/// Sums of a block of 32 tokens × 32 outputs.
#[repr(align(64))]
struct BlockSums([[f32; PANEL]; 2 * ROWS]);

/// Splits the rows of a tile.
struct Split<'a> {
    x: ConstMatrix,
    first: usize,
    rows: usize,
    inputs: usize,
    tiles: &'a mut [u16],
}

impl Kernel for Split<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for r in 0..self.rows {
            // SAFETY: the rows are x's.
            let x = unsafe { std::slice::from_raw_parts(self.x.at(self.first + r, 0), self.inputs) };
            split_row(x, self.tiles, r);
        }
    }
}

/// Splits a row into row `r` of its tiles.
#[inline(always)]
fn split_row(x: &[f32], tiles: &mut [u16], r: usize) {
    for (step, x) in x.chunks(STEP).enumerate() {
        let (high, low) = tiles[step * 2 * TILE..][..2 * TILE].split_at_mut(TILE);
        let (high, low) = (&mut high[r * STEP..][..STEP], &mut low[r * STEP..][..STEP]);
        let mut whole = [0.0; STEP]; // the last step is padded with zeros
        whole[..x.len()].copy_from_slice(x);
        for ((x, high), low) in whole.iter().zip(high).zip(low) {
            let rounded = round_to_bf16(*x);
            *high = (rounded >> 16) as u16;
            let rest = x - f32::from_bits(rounded);
            // Infinity has no rest, NaN is NaN by itself.
            *low = if rest.is_finite() { (round_to_bf16(rest) >> 16) as u16 } else { 0 };
        }
    }
}

/// The bits of x rounded to bf16 (as an f32): to the nearest, but never from a finite number to infinity; NaN
/// stays NaN.
#[inline(always)]
fn round_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let cut = bits & 0xffff_0000;
    if x.is_nan() {
        cut | 0x0040_0000
    } else if f32::from_bits(nearest).is_finite() {
        nearest
    } else {
        cut
    }
}

/// Sums over `steps` steps, in `room`.
///
/// # Safety
/// The unit is available and configured; `activations` are two row tiles, `per_row_tile` bf16 apart, of
/// `steps` steps, `weights` a panel of as many.
unsafe fn multiply(
    activations: *const u16,
    per_row_tile: usize,
    weights: *const u16,
    steps: usize,
    room: &mut MaybeUninit<BlockSums>,
) -> &BlockSums {
    // SAFETY: the caller's conditions. Tile registers are not used by compiled code.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{w} + {pair}*1]",
            "tileloadd tmm7, [{w} + {pair}*1 + 64]",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm5, [{b} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm4, [{a} + {row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm5, [{b} + {row}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {w}, 2048",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {pair}*1], tmm0",
            "tilestored [{sums} + {pair}*1 + 64], tmm1",
            "tilestored [{sums} + {pair}*1 + 2048], tmm2",
            "tilestored [{sums} + {pair}*1 + 2112], tmm3",
            w = inout(reg) weights => _,
            a = inout(reg) activations => _,
            b = inout(reg) activations.add(per_row_tile) => _,
            steps = inout(reg) steps => _,
            sums = in(reg) room.as_mut_ptr(),
            pair = in(reg) 128usize,
            row = in(reg) 64usize,
            options(nostack),
        );
        // All of it was stored.
        room.assume_init_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_keeps_sixteen_bits_and_what_is_no_number() {
        let values = [
            1.0,
            -std::f32::consts::PI,
            1e-30,
            f32::MAX,
            f32::MIN,
            0.0,
            f32::INFINITY,
            f32::NAN,
            f32::from_bits(0x7fff_ffff),
        ];
        let mut tiles = vec![0; 2 * TILE];
        split_row(&values, &mut tiles, 0);
        for (i, x) in values.into_iter().enumerate() {
            let [high, low] =
                [tiles[i], tiles[TILE + i]].map(|bits| f64::from(half::bf16::from_bits(bits).to_f32()));
            if x.is_finite() {
                assert!(
                    (high + low - f64::from(x)).abs() <= f64::from(x).abs() * 2f64.powi(-16),
                    "{x}: {high} + {low}"
                );
            } else {
                assert!(x.is_nan() && high.is_nan() || high == f64::from(x), "{x}: {high}");
                assert_eq!(low, 0.0);
            }
        }
    }
}
