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
use std::sync::OnceLock;

use super::packed::PANEL;
use crate::cpu::memory::Scratch;
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut};
use crate::error::Result;

/// Rows (tokens) of a tile.
const ROWS: usize = 16;
/// Inputs of a step: 64 bytes of bf16.
const STEP: usize = 32;
/// bf16 of a tile.
const TILE: usize = ROWS * STEP;
/// Row blocks of 32 tokens that a panel passes over while they are in the second-level cache.
const BLOCKS: usize = 4;

/// Whether the processor has the unit and the operating system lets this process use it (asked for once).
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE_STATE: u64 = 0b11 << 17;
        // SAFETY: leaf 7 is read where it exists, xgetbv where the operating system uses xsave.
        unsafe {
            let (max_leaf, features) = (__cpuid(0).eax, __cpuid(1).ecx);
            if max_leaf < 7 || features & (1 << 27) == 0 {
                return false;
            }
            let leaf = __cpuid_count(7, 0).edx;
            let has_bf16_tiles = leaf & (1 << 22) != 0 && leaf & (1 << 24) != 0;
            has_bf16_tiles && xcr0() & TILE_STATE == TILE_STATE && is_permitted()
        }
    })
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

/// `out = x · weightᵀ + bias`, `panels` packed as bf16 pairs. `split` holds the split activations as tiles:
/// `[row / 16][input / 32][high, low][row % 16][input % 32]`.
///
/// # Errors
/// `OUT_OF_MEMORY` for the split activations.
#[allow(clippy::too_many_arguments)]
pub(super) fn linear(
    threads: &mut Threads,
    split: &mut Scratch<u16>,
    x: ConstMatrix,
    rows: usize,
    inputs: usize,
    panels: &[u16],
    outputs: usize,
    bias: Option<&[f32]>,
    out: MutMatrix,
) -> Result<()> {
    debug_assert!(is_available());
    let steps = inputs.div_ceil(STEP);
    let row_tiles = rows.div_ceil(ROWS);
    let tiles = split.reserve(rows.next_multiple_of(2 * ROWS) * steps * STEP * 2)?;
    let per_row_tile = steps * 2 * TILE;
    let shared = SharedMut::new(tiles);
    let x = Shareable(x);
    threads.run(row_tiles, &|tile| {
        let x = &x;
        // SAFETY: tasks write disjoint tiles; rows beyond the last are left as they are and their products
        // are not stored; the rows of x are in range.
        unsafe {
            let tiles = shared.slice(tile * per_row_tile, per_row_tile);
            for r in 0..ROWS.min(rows - tile * ROWS) {
                split_row(std::slice::from_raw_parts(x.0.at(tile * ROWS + r, 0), inputs), tiles, r);
            }
        }
    });

    let count = outputs.div_ceil(PANEL);
    let wanted = if threads.count() == 1 { 1 } else { 4 * threads.count() };
    let group = count.div_ceil(wanted);
    let row_blocks = rows.div_ceil(2 * ROWS);
    let out = Shareable(out);
    let tiles = &*tiles;
    threads.run(count.div_ceil(group), &|task| {
        let out = &out;
        // SAFETY: the unit is available; tiles and panels are in range by construction, outputs are masked.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) WHOLE.0.as_ptr(), options(nostack));
            for first in (0..row_blocks).step_by(BLOCKS) {
                for panel in task * group..count.min((task + 1) * group) {
                    let weights = panels.as_ptr().add(panel * PANEL * steps * STEP);
                    for block in first..row_blocks.min(first + BLOCKS) {
                        let activations = tiles.as_ptr().add(block * 2 * per_row_tile);
                        let mut sums = Sums([[0.0; PANEL]; 2 * ROWS]);
                        multiply(activations, per_row_tile, weights, steps, &mut sums);
                        let from = panel * PANEL;
                        let width = PANEL.min(outputs - from);
                        for r in 0..(2 * ROWS).min(rows - block * 2 * ROWS) {
                            let row =
                                std::slice::from_raw_parts_mut(out.0.at(block * 2 * ROWS + r, from), width);
                            row.copy_from_slice(&sums.0[r][..width]);
                            if let Some(bias) = bias {
                                row.iter_mut().zip(&bias[from..]).for_each(|(sum, bias)| *sum += bias);
                            }
                        }
                    }
                }
            }
            asm!("tilerelease", options(nomem, nostack));
        }
    });
    Ok(())
}

/// Sums of a block of 32 tokens × 32 outputs.
#[repr(align(64))]
struct Sums([[f32; PANEL]; 2 * ROWS]);

/// Splits a row into row `r` of its tiles.
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

/// # Safety
/// The unit is available and configured; `activations` are two row tiles, `per_row_tile` bf16 apart, of
/// `steps` steps, `weights` a panel of as many.
unsafe fn multiply(
    activations: *const u16,
    per_row_tile: usize,
    weights: *const u16,
    steps: usize,
    sums: &mut Sums,
) {
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
            sums = in(reg) sums.0.as_mut_ptr(),
            pair = in(reg) 128usize,
            row = in(reg) 64usize,
            options(nostack),
        );
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
