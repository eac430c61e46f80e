//! Residual add and normalization in one pass, and the gradients (`cuda/norm/`). The residual stream is f32.

use crate::buffer::{Buffer, Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{self, NormBackward, NormForward};

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

/// The arguments of [`backward`].
pub struct Backward<'a> {
    /// As given to [`forward`].
    pub layer: bool,
    /// As given to [`forward`].
    pub eps: f32,
    /// As given to [`forward`].
    pub weight: &'a Buffer,
    /// [tokens, d_model] f32: what was normalized, as [`forward`] left it.
    pub residual: Rows<'a>,
    /// [tokens, d_model]: gradient of out.
    pub out_grad: Rows<'a>,
    /// [tokens, d_model] f32: the gradient of the residual stream. What comes down to where [`forward`] left it is
    /// replaced by what goes on from there.
    pub residual_grad: RowsMut<'a>,
    /// Nothing comes down (a model's last norm): what `residual_grad` holds is not read.
    pub last: bool,
    /// [tokens, d_model]: gradient of delta, that of the residual rounded; of out's type.
    pub delta_grad: Option<RowsMut<'a>>,
    /// [d_model] f32.
    pub weight_grad: &'a mut Buffer,
    /// [d_model] f32, where there is a bias.
    pub bias_grad: Option<&'a mut Buffer>,
}

/// `residual ← residual + delta; out = norm(residual)`.
///
/// # Errors
/// [`Error::Unsupported`] for more than 67108864 channels or 2³¹ tokens; [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, op: Forward) -> Result<()> {
    let Forward { layer, eps, weight, bias, delta, residual, out } = op;
    let (at, stride) = (residual.pointer(out.rows, out.cols, Float::F32), residual.stride);
    let sum = delta.map(|delta| (delta, at, stride));
    launch_forward(device, (layer, eps, weight, bias), (at, stride), sum, out)
}

/// The arguments of [`forward_keeping`].
pub struct ForwardKeeping<'a> {
    /// As [`Forward`].
    pub layer: bool,
    /// As [`Forward`].
    pub eps: f32,
    /// As [`Forward`].
    pub weight: &'a Buffer,
    /// As [`Forward`].
    pub bias: Option<&'a Buffer>,
    /// [tokens, d_model] f32.
    pub residual: Rows<'a>,
    /// [tokens, d_model], added first, and where the sum goes, [tokens, d_model] f32.
    pub delta: Option<(Rows<'a>, RowsMut<'a>)>,
    /// [tokens, d_model].
    pub out: RowsMut<'a>,
}

/// [`forward`] with a residual that stays as it is: the sum goes elsewhere.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn forward_keeping(device: &Device, op: ForwardKeeping) -> Result<()> {
    let ForwardKeeping { layer, eps, weight, bias, residual, delta, out } = op;
    let at = |rows: Rows| (rows.pointer(out.rows, out.cols, Float::F32), rows.stride);
    let sum = delta.map(|(delta, sum)| {
        let (at, stride) = at(sum.view());
        (delta, at, stride)
    });
    launch_forward(device, (layer, eps, weight, bias), at(residual), sum, out)
}

/// `sum`: delta, where the sum goes, and its stride.
fn launch_forward(
    device: &Device,
    (layer, eps, weight, bias): (bool, f32, &Buffer, Option<&Buffer>),
    (residual, residual_stride): (u64, usize),
    sum: Option<(Rows, u64, usize)>,
    out: RowsMut,
) -> Result<()> {
    let (tokens, channels, float) = (out.rows, out.cols, out.view().float());
    check(tokens, channels)?;
    let delta = sum.map(|(delta, ..)| delta);
    let params = NormForward {
        delta: delta.map_or(0, |delta| delta.pointer(tokens, channels, float)),
        residual,
        residual_out: sum.map_or(0, |(_, at, _)| at),
        out: out.pointer(tokens, channels, float),
        weight: weight.f32s(channels, "the norm's weight"),
        bias: bias.map_or(0, |bias| bias.f32s(channels, "the norm's bias")),
        delta_stride: delta.map_or(0, |delta| delta.stride) as i64,
        residual_stride: residual_stride as i64,
        residual_out_stride: sum.map_or(residual_stride, |(_, _, stride)| stride) as i64,
        out_stride: out.stride as i64,
        tokens: tokens as i32,
        channels: channels as i32,
        layer: i32::from(layer),
        eps,
    };
    let grid = Grid::new([params::norm_blocks(tokens), 1, 1], params::norm_threads(channels) as u32);
    device.launch(Kernel::of("add_norm_forward", float), grid.behind(true), &params)
}

/// `residual_grad ← residual_grad + ∂norm/∂residual · out_grad`, and the gradients of delta, the weight and the bias. The
/// last two are overwritten with the sums over all tokens, zero where there are none.
///
/// # Errors
/// As [`forward`], and [`Error::OutOfMemory`].
///
/// # Panics
/// As [`forward`].
pub fn backward(device: &Device, op: Backward) -> Result<()> {
    let Backward { layer, eps, weight, residual, out_grad, residual_grad, last, delta_grad, .. } = op;
    let (tokens, channels, float) = (out_grad.rows, out_grad.cols, out_grad.float());
    check(tokens, channels)?;
    let partials = params::norm_partials(tokens, channels, device.multiprocessors());
    let sums = if op.bias_grad.is_some() { 2 } else { 1 };
    let residual_grad_pointer = residual_grad.pointer(tokens, channels, Float::F32);
    let params = NormBackward {
        d_out: out_grad.pointer(tokens, channels, float),
        residual: residual.pointer(tokens, channels, Float::F32),
        d_residual: if last { 0 } else { residual_grad_pointer },
        d_residual_out: residual_grad_pointer,
        d_delta: delta_grad.as_ref().map_or(0, |delta| delta.pointer(tokens, channels, float)),
        weight: weight.f32s(channels, "the norm's weight"),
        partial: device.workspace(sums * partials * channels)?,
        d_weight: op.weight_grad.f32s(channels, "the gradient of the norm's weight"),
        d_bias: op.bias_grad.map_or(0, |bias| bias.f32s(channels, "the gradient of the norm's bias")),
        d_out_stride: out_grad.stride as i64,
        residual_stride: residual.stride as i64,
        d_residual_stride: residual_grad.stride as i64,
        d_residual_out_stride: residual_grad.stride as i64,
        d_delta_stride: delta_grad.as_ref().map_or(0, |delta| delta.stride) as i64,
        tokens: tokens as i32,
        channels: channels as i32,
        partials: partials as i32,
        layer: i32::from(layer),
        eps,
        reserved: 0,
    };
    let grid = Grid::new([partials, 1, 1], params::norm_threads(channels) as u32);
    device.launch(Kernel::of("add_norm_backward", float), grid, &params)?;
    let grid = Grid::new([sums * channels.div_ceil(32), 1, 1], 256);
    device.launch(Kernel::plain("add_norm_reduce"), grid, &params)
}

fn check(tokens: usize, channels: usize) -> Result<()> {
    Error::check("d_model", channels, 1..=1 << 26, "1 to 67108864")?;
    Error::check("the number of tokens of a norm", tokens, 0..=i32::MAX as usize, "below 2147483648")
}
