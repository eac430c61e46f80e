//! The packed matrix product: which kernel multiplies.
//!
//! | weights | one to eight tokens | more |
//! |---|---|---|
//! | f32, f16 | [`super::float`] | the same |
//! | bf16 | [`super::float`] | [`super::amx`] where there is a tile unit, else the same |
//! | q8_0, q4_K | [`super::integer`] | [`super::amx`] where there is a tile unit, else the same |

use super::integer::{Q4K, Q8_0};
use super::packed::{Packed, Panels};
use super::{float, integer};
use crate::backend::{View, ViewMut};
use crate::cpu::memory::{self, Aligned};
use crate::cpu::simd::Level;
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix};
use crate::error::Result;

/// From so many tokens on, weights are multiplied on the tile unit where there is one.
#[cfg(target_arch = "x86_64")]
const TILES_FROM: usize = 9;

/// What products keep from call to call.
#[derive(Default)]
pub struct Scratch {
    pub(super) rows: memory::Scratch<f32>,
    pub(super) words: memory::Scratch<i32>,
    #[cfg(target_arch = "x86_64")]
    pub(super) split: memory::Scratch<u16>,
}

/// What a product is computed with.
pub(crate) struct Means<'a> {
    pub threads: &'a mut Threads,
    pub level: Level,
    /// Only kernels whose results do not depend on the number of rows.
    pub deterministic: bool,
    pub scratch: &'a mut Scratch,
}

/// x, bias and out of a product, their sizes checked against one another.
pub(super) struct Operands<'a> {
    pub x: ConstMatrix,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: Option<&'a [f32]>,
    pub out: MutMatrix,
}

// SAFETY: tasks share it to read x and to write disjoint parts of out.
unsafe impl Sync for Operands<'_> {}

impl Operands<'_> {
    /// The bias from an output on.
    pub fn bias_at(&self, output: usize) -> Option<*const f32> {
        self.bias.map(|bias| bias[output..].as_ptr())
    }
}

/// `out = x · weightᵀ + bias`: x [tokens, in], out [tokens, out].
///
/// # Errors
/// `OUT_OF_MEMORY` for scratch.
pub(crate) fn linear(
    means: Means,
    x: View<Aligned<f32>>,
    weight: &Packed,
    bias: Option<&[f32]>,
    out: ViewMut<Aligned<f32>>,
) -> Result<()> {
    let Means { threads, level, deterministic, scratch } = means;
    let (rows, inputs, outputs) = (x.rows, weight.inputs(), weight.outputs());
    assert_eq!((x.cols, out.cols, out.rows), (inputs, outputs, rows));
    assert!(bias.is_none_or(|bias| bias.len() >= outputs));
    if rows == 0 {
        return Ok(());
    }
    let x = ConstMatrix::new(&x, rows, inputs);
    let out = MutMatrix::new(out, rows, outputs);
    let operands = Operands { x, rows, inputs, outputs, bias, out };
    #[cfg(target_arch = "x86_64")]
    if level == Level::Amx && rows >= TILES_FROM {
        match &weight.panels {
            // The tile unit sums in another order than the kernel for few tokens does.
            Panels::BF16(panels) if !deterministic => {
                return super::amx::bf16(threads, scratch, &operands, panels);
            }
            // Here both give the same bits.
            Panels::Q8_0(panels) => {
                return super::amx::quantized::<Q8_0>(threads, scratch, &operands, panels);
            }
            Panels::Q4K(panels) => return super::amx::quantized::<Q4K>(threads, scratch, &operands, panels),
            _ => {}
        }
    }
    match &weight.panels {
        Panels::F32(panels) => float::f32(threads, level, scratch, &operands, panels),
        Panels::BF16(panels) => float::bf16(threads, level, scratch, &operands, panels),
        Panels::F16(panels) => float::f16(threads, level, scratch, &operands, panels),
        Panels::Q8_0(panels) => integer::linear::<Q8_0>(threads, level, scratch, &operands, panels),
        Panels::Q4K(panels) => integer::linear::<Q4K>(threads, level, scratch, &operands, panels),
    }
}
