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
use std::marker::PhantomData;
use std::mem::MaybeUninit;
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
/// Rows of a block: two tiles.
const BLOCK_ROWS: usize = 2 * ROWS;
/// Row blocks that a panel of bf16 passes over while they are in the second-level cache.
const BLOCKS: usize = 8;
/// The most that quantized weights pass over.
const MAX_BLOCKS: usize = 16;
/// Groups of quantized weights that are tiles at a time, in the first-level cache.
const CHUNK: usize = 8;

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

/// As [`super::integer`], and with its bits: bf16 holds weights (without their scales) and both parts of an activation,
/// f32 every partial sum of a group.
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
    let row_blocks = rows.div_ceil(BLOCK_ROWS);
    let per_row_tile = groups * 2 * TILE;
    let tiles = scratch.split.reserve(row_blocks * 2 * per_row_tile)?;
    let scales = scratch.rows.reserve(row_blocks * BLOCK_ROWS * groups * 2)?;
    {
        let (tiles, scales) = (SharedMut::new(tiles), SharedMut::new(scales));
        threads.run(rows.div_ceil(ROWS), &|tile| {
            // SAFETY: the level is available; tasks write disjoint tiles; rows beyond the last are left as they are
            // and their products are not stored.
            unsafe {
                let out = Tiles(tiles.slice(tile * per_row_tile, per_row_tile));
                let scales = scales.slice(tile * ROWS * groups * 2, ROWS * groups * 2);
                let rows = ROWS.min(rows - tile * ROWS);
                let x = operands.x;
                let sums = W::HAS_MIN;
                Level::Amx.run(Quantize {
                    sums,
                    x,
                    first: tile * ROWS,
                    rows,
                    inputs,
                    tile: ROWS,
                    scales,
                    out,
                });
            }
        });
    }
    let (tiles, scales) = (&*tiles, &*scales);
    // As many row blocks as leave their tiles in half of a second-level cache of 2 MiB.
    let blocks = ((1 << 20) / (4 * per_row_tile)).clamp(1, MAX_BLOCKS);
    in_parts(threads, row_blocks, outputs, 1, 2, 1, &|part| {
        // SAFETY: the level is available; tiles, scales and panels are in range by construction, parts are disjoint.
        unsafe {
            configure();
            Level::Amx.run(Product::<W> {
                tiles: tiles.as_ptr(),
                scales: scales.as_ptr(),
                groups,
                blocks,
                panels: panels.as_ptr(),
                panel_bytes,
                part,
                operands,
                weights: PhantomData,
            });
            release();
        }
    });
    Ok(())
}

/// Activations that are integers times a power of two, as the two tiles of a step: `x = high + low`, both of which
/// bf16 holds.
struct Tiles<'a>(&'a mut [u16]);

impl Sink for Tiles<'_> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, row: usize, group: usize, input: usize, x: S::F, unit: f32) {
        let at = &mut self.0[group * 2 * TILE + row * STEP + input..][..TILE + S::LANES];
        // SAFETY: both tiles have room from there on.
        unsafe {
            let (unit, round) = (S::splat(unit), S::splat(ROUND_TO_32));
            // To the nearest multiple of 32: seven bits and the sign.
            let high = S::sub(S::add(x, round), round);
            S::store_bf16(at.as_mut_ptr(), S::mul(high, unit));
            S::store_bf16(at.as_mut_ptr().add(TILE), S::mul(S::sub(x, high), unit));
        }
    }
}

/// 1.5 · 2²³ · 32.
const ROUND_TO_32: f32 = 402_653_184.0;

/// A part of a product with quantized weights.
struct Product<'a, W> {
    tiles: *const u16,
    /// `[row / 16][group][unit, sum][row % 16]`, see [`Quantize`].
    scales: *const f32,
    groups: usize,
    /// Row blocks at a time.
    blocks: usize,
    panels: *const u8,
    panel_bytes: usize,
    /// Its rows are row blocks of 32 tokens.
    part: Part,
    operands: &'a Operands<'a>,
    weights: PhantomData<W>,
}

impl<W: Weights> Kernel for Product<'_, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { part, blocks, .. } = &self;
        let mut room = Room {
            totals: Totals([[[0.0; PANEL]; BLOCK_ROWS]; MAX_BLOCKS]),
            weights: WeightTiles([[0; 2 * TILE]; CHUNK]),
            sums: [const { MaybeUninit::uninit() }; 2],
        };
        for first in (part.row..part.row + part.rows).step_by(*blocks) {
            let count = (*blocks).min(part.row + part.rows - first);
            for panel in 0..part.outputs.div_ceil(PANEL) {
                // SAFETY: `quantized` made the pointers.
                unsafe { self.panel::<S>(first, count, panel, &mut room) }
            }
        }
    }
}

impl<W: Weights> Product<'_, W> {
    /// `count` row blocks with a panel: a group's weights become tiles once for all of them.
    #[inline(always)]
    unsafe fn panel<S: Simd>(&self, first: usize, count: usize, panel: usize, room: &mut Room) {
        let Room { totals, weights, sums } = room;
        let per_row_tile = self.groups * 2 * TILE;
        let output = self.part.output + panel * PANEL;
        let width = PANEL.min(self.operands.outputs - output);
        // SAFETY: row blocks, groups and the panel are in range; rows and outputs beyond the last are not stored.
        unsafe {
            let panel = self.panels.add((self.part.panel + panel) * self.panel_bytes);
            let bias = self.operands.bias_at(output);
            for v in (0..PANEL).step_by(S::LANES) {
                let lanes = S::LANES.min(width.saturating_sub(v));
                let bias = bias.map_or(S::splat(0.0), |bias| S::load_first(bias.wrapping_add(v), lanes));
                for total in totals.0[..count].as_flattened_mut() {
                    S::store(total.as_mut_ptr().add(v), bias);
                }
            }
            for chunk in (0..self.groups).step_by(CHUNK) {
                let groups = CHUNK.min(self.groups - chunk);
                for (group, weights) in weights.0[..groups].iter_mut().enumerate() {
                    widen::<S, W>(panel, chunk + group, weights);
                }
                // Half a block after the other, in two pairs of tiles: while the unit works on one, the other's sums
                // are stored and added.
                let units = count * groups;
                for i in 0..=units {
                    let last = i.checked_sub(1).map(|i| (i / groups, i % groups));
                    let this = (i < units).then(|| {
                        let at = (first + i / groups) * 2 * per_row_tile + (chunk + i % groups) * 2 * TILE;
                        (self.tiles.add(at), weights.0[i % groups].as_ptr())
                    });
                    if let Some((activations, weights)) = this {
                        begin_upper(activations, weights);
                    }
                    if let Some((block, group)) = last {
                        end_lower(sums[1].as_mut_ptr());
                        let sums = sums[0].assume_init_ref();
                        self.add::<S>(panel, first + block, 0, chunk + group, sums, &mut totals.0[block]);
                    }
                    if let Some((activations, _)) = this {
                        begin_lower(activations.add(per_row_tile));
                        end_upper(sums[0].as_mut_ptr());
                    }
                    if let Some((block, group)) = last {
                        let sums = sums[1].assume_init_ref();
                        self.add::<S>(panel, first + block, 1, chunk + group, sums, &mut totals.0[block]);
                    }
                }
            }
            for (i, total) in totals.0[..count].as_flattened().iter().enumerate() {
                let row = first * BLOCK_ROWS + i;
                if row < self.operands.rows {
                    let out = self.operands.out.at(row, output);
                    for v in (0..width).step_by(S::LANES) {
                        let lanes = S::LANES.min(width - v);
                        S::store_first(out.add(v), S::load(total.as_ptr().add(v)), lanes);
                    }
                }
            }
        }
    }

    /// Adds a group's sums of half a row block, times their scales, to the totals.
    #[inline(always)]
    unsafe fn add<S: Simd>(
        &self,
        panel: *const u8,
        block: usize,
        half: usize,
        group: usize,
        sums: &HalfSums,
        totals: &mut [[f32; PANEL]; BLOCK_ROWS],
    ) {
        // SAFETY: the caller's panel, block and group.
        unsafe {
            let scales = self.scales.add(((2 * block + half) * self.groups + group) * 2 * ROWS);
            for v in (0..PANEL).step_by(S::LANES) {
                let scale = W::scale::<S>(panel, group, v);
                let min = W::min::<S>(panel, group, v);
                for r in 0..ROWS {
                    let total = totals[half * ROWS + r].as_mut_ptr().add(v);
                    let mut sum = S::mul_add(S::load(sums.0[r].as_ptr().add(v)), scale, S::load(total));
                    if W::HAS_MIN {
                        sum = S::mul_add(min, S::splat(*scales.add(ROWS + r)), sum);
                    }
                    S::store(total, sum);
                }
            }
        }
    }
}

/// Products of 16 tokens with 32 outputs.
#[repr(align(64))]
struct HalfSums([[f32; PANEL]; ROWS]);

/// Multiplies the upper 16 tokens of a block with a step's weights, into tiles 0 and 1.
///
/// # Safety
/// The unit is configured; `activations` are the two tiles of a step, `weights` likewise.
#[inline(always)]
unsafe fn begin_upper(activations: *const u16, weights: *const u16) {
    // SAFETY: the caller's conditions. Tile registers are not used by compiled code.
    unsafe {
        asm!(
            "tileloadd tmm6, [{w} + {pair}*1]",
            "tileloadd tmm7, [{w} + {pair}*1 + 64]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tdpbf16ps tmm0, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm5, tmm7",
            w = in(reg) weights,
            a = in(reg) activations,
            pair = in(reg) 128usize,
            row = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// The same for the lower 16 tokens, into tiles 2 and 3, with the weights that [`begin_upper`] loaded.
///
/// # Safety
/// As [`begin_upper`], which came before.
#[inline(always)]
unsafe fn begin_lower(activations: *const u16) {
    // SAFETY: the caller's conditions.
    unsafe {
        asm!(
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tdpbf16ps tmm3, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) activations,
            row = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Stores what [`begin_upper`] multiplied.
///
/// # Safety
/// There is room.
#[inline(always)]
unsafe fn end_upper(sums: *mut HalfSums) {
    // SAFETY: the caller's condition.
    unsafe {
        asm!(
            "tilestored [{sums} + {pair}*1], tmm0",
            "tilestored [{sums} + {pair}*1 + 64], tmm1",
            sums = in(reg) sums,
            pair = in(reg) 128usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Stores what [`begin_lower`] multiplied.
///
/// # Safety
/// There is room.
#[inline(always)]
unsafe fn end_lower(sums: *mut HalfSums) {
    // SAFETY: the caller's condition.
    unsafe {
        asm!(
            "tilestored [{sums} + {pair}*1], tmm2",
            "tilestored [{sums} + {pair}*1 + 64], tmm3",
            sums = in(reg) sums,
            pair = in(reg) 128usize,
            options(nostack, preserves_flags),
        );
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
                let pairs = W::pairs::<S>(panel, group, i, output);
                for (k, pair) in pairs.into_iter().enumerate() {
                    let at = tiles.as_mut_ptr().add(((4 * i + k) * PANEL + output) * 2);
                    S::store_words(at.cast(), S::pairs_to_bf16(pair));
                }
            }
        }
    }
}

/// What a part works in.
struct Room {
    totals: Totals,
    weights: WeightTiles,
    sums: [MaybeUninit<HalfSums>; 2],
}

/// Products of row blocks with a panel.
#[repr(align(64))]
struct Totals([[[f32; PANEL]; BLOCK_ROWS]; MAX_BLOCKS]);

/// Groups of a panel, in pairs of bf16.
#[repr(align(64))]
struct WeightTiles([[u16; 2 * TILE]; CHUNK]);

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
struct Sums([[f32; PANEL]; 2 * ROWS]);

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
    room: &mut MaybeUninit<Sums>,
) -> &Sums {
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
