//! Residual add and normalization in one pass (`cuda/norm/`). The residual stream is f32.

use crate::buffer::{Buffer, Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::params::{self, NormForward};

/// The arguments of [`forward`].
pub struct Forward<'a> {
    /// LayerNorm, which also takes the mean away; otherwise RMSNorm.
    pub layer: bool,
    /// Added under the root.
    pub eps: f32,
    /// [d_model] f32.
    pub weight: &'a Buffer,
    /// [d_model] f32.
    pub bias: Option<&'a Buffer>,
    /// [tokens, d_model], added to the residual first.
    pub delta: Option<Rows<'a>>,
    /// [tokens, d_model] f32.
    pub residual: RowsMut<'a>,
    /// [tokens, d_model].
    pub out: RowsMut<'a>,
}

/// `residual ← residual + delta; out = norm(residual)`.
///
/// # Errors
/// [`crate::Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, op: Forward) -> Result<()> {
    let Forward { layer, eps, weight, bias, delta, residual, out } = op;
    let (tokens, channels, float) = (out.rows, out.cols, out.view().float());
    let residual_pointer = residual.pointer(tokens, channels, Float::F32);
    let params = NormForward {
        delta: delta.map_or(0, |delta| delta.pointer(tokens, channels, float)),
        residual: residual_pointer,
        residual_out: if delta.is_some() { residual_pointer } else { 0 },
        out: out.pointer(tokens, channels, float),
        weight: weight.f32s(channels, "the norm's weight"),
        bias: bias.map_or(0, |bias| bias.f32s(channels, "the norm's bias")),
        delta_stride: delta.map_or(0, |delta| delta.stride) as i64,
        residual_stride: residual.stride as i64,
        residual_out_stride: residual.stride as i64,
        out_stride: out.stride as i64,
        tokens: tokens as i32,
        channels: channels as i32,
        layer: i32::from(layer),
        eps,
    };
    let grid = Grid::new([params::norm_blocks(tokens), 1, 1], params::norm_threads(channels) as u32);
    device.launch(Kernel::of("add_norm_forward", float), grid, &params)
}
