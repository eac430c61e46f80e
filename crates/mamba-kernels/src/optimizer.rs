//! The norm of all gradients and AdamW's step, over flat groups of buffers (`cuda/optimizer/`). What a step computes is
//! the mamba crate's `ops/adamw`.

use crate::buffer::{Buffer, Float, span};
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::params::{Adamw, GradientNorm, NORM_BLOCKS, RoundedCopy};

/// The Euclidean norm of a flat group ([`Device::flat`], f32) into one f32; summed in f64, in one order.
///
/// # Errors
/// [`crate::Error::OutOfMemory`], [`crate::Error::Lost`].
///
/// # Panics
/// If the group is not one of f32.
pub fn norm(device: &Device, gradients: &[Buffer], norm: &mut Buffer) -> Result<()> {
    let (from, count) = span(gradients, Float::F32);
    let params = GradientNorm {
        gradients: from,
        partial: device.workspace(2 * NORM_BLOCKS)?,
        norm: norm.f32s(1, "the norm"),
        count: count as i64,
    };
    device.launch(Kernel::plain("gradient_norm"), Grid::new([NORM_BLOCKS, 1, 1], 256), &params)?;
    device.launch(Kernel::plain("gradient_norm_finish"), Grid::new([1, 1, 1], 256), &params)
}

/// The arguments of [`adamw`]: flat groups of the same lengths.
pub struct Step<'a> {
    /// f32.
    pub params: &'a mut [Buffer],
    /// Copies of the first parameters, bf16 (see [`rounded_copy`]) or f32; may be empty.
    pub copies: &'a mut [Buffer],
    /// f32.
    pub gradients: &'a [Buffer],
    /// f32.
    pub m: &'a mut [Buffer],
    /// f32.
    pub v: &'a mut [Buffer],
    /// One f32.
    pub norm: &'a Buffer,
    /// How many tensors, from the first on, are decayed.
    pub decayed: usize,
    /// What gradients are scaled down to; infinite: never.
    pub clip: f32,
    /// lr / (1 − β₁ᵗ).
    pub step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub root_scale: f32,
    /// 1 − lr · weight decay.
    pub keep: f32,
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// Added to the root.
    pub eps: f32,
}

/// One step in one launch.
///
/// # Errors
/// [`crate::Error::Lost`].
///
/// # Panics
/// If the groups are not flat, or do not fit one another.
pub fn adamw(device: &Device, op: Step) -> Result<()> {
    let Step { params, copies, gradients, m, v, norm, decayed, betas, .. } = op;
    let (params_at, count) = span(params, Float::F32);
    let [(gradients, g_count), (m, m_count), (v, v_count)] =
        [span(gradients, Float::F32), span(m, Float::F32), span(v, Float::F32)];
    assert!(
        [g_count, m_count, v_count] == [count; 3],
        "groups of {g_count}, {m_count}, {v_count} for {count}"
    );
    let float = copies.first().map_or(Float::F32, Buffer::float);
    let (copies_at, copied) = span(copies, float);
    let (_, decayed) = span(&params[..decayed], Float::F32);
    assert_eq!(span(&params[..copies.len()], Float::F32).1, copied, "copies of other lengths");
    let params = Adamw {
        params: params_at,
        m,
        v,
        gradients,
        copies: copies_at,
        norm: norm.f32s(1, "the norm"),
        count: count as i64,
        decayed: decayed as i64,
        copied: copied as i64,
        step_size: op.step_size,
        root_scale: op.root_scale,
        keep: op.keep,
        beta1: betas[0] as f32,
        rest1: (1.0 - betas[0]) as f32,
        beta2: betas[1] as f32,
        rest2: (1.0 - betas[1]) as f32,
        eps: op.eps,
        clip: op.clip,
        reserved: 0,
    };
    let blocks = (count / 4).div_ceil(256).min(16 * device.multiprocessors());
    device.launch(Kernel::of("adamw", float), Grid::new([blocks, 1, 1], 256), &params)
}

/// A parameter's bf16 copy, with the bits that [`adamw`] gives it: rounded up or down by chance, an element of a flat group
/// always by the same. Both are of flat groups, at the same place.
///
/// # Errors
/// [`crate::Error::Lost`].
///
/// # Panics
/// If they are not that.
pub fn rounded_copy(device: &Device, values: &Buffer, copy: &mut Buffer) -> Result<()> {
    assert!((values.begin(), values.len()) == (copy.begin(), copy.len()), "not at the same place");
    let (from, count) = span(std::slice::from_ref(values), Float::F32);
    let (to, _) = span(std::slice::from_ref(copy), Float::BF16);
    let begin = values.begin();
    let params = RoundedCopy {
        params: from - (begin * Float::F32.bytes()) as u64,
        copies: to - (begin * Float::BF16.bytes()) as u64,
        begin: begin as i64,
        count: count as i64,
    };
    let blocks = (count / 4).div_ceil(256).min(16 * device.multiprocessors());
    device.launch(Kernel::plain("rounded_copy"), Grid::new([blocks, 1, 1], 256), &params)
}
