//! The causal depthwise convolution over packed sequences, with SiLU (`cuda/causal_conv1d/`).

use crate::batch::Batch;
use crate::buffer::{Buffer, Rows, RowsMut, States};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{self, ConvForward};

/// The arguments of [`forward`].
pub struct Forward<'a> {
    /// [tokens, d_inner].
    pub x: Rows<'a>,
    /// [d_conv, d_inner] f32.
    pub weight: &'a Buffer,
    /// [d_inner] f32.
    pub bias: Option<&'a Buffer>,
    /// Width of the window.
    pub d_conv: usize,
    /// The last `d_conv − 1` inputs [d_conv − 1, d_inner] of each slot, oldest first; `None` begins at zero and forgets
    /// the last ones.
    pub state: Option<States<'a>>,
    /// [tokens, d_inner]; not `x`.
    pub out: RowsMut<'a>,
}

/// `out_t = SiLU(bias + Σ_k weight[k] ⊙ x_{t − (d_conv − 1) + k})`.
///
/// # Errors
/// [`Error::Unsupported`] unless the window is 1 to 16 wide; [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, batch: &Batch, op: Forward) -> Result<()> {
    let Forward { x, weight, bias, d_conv, state, out } = op;
    let (tokens, channels, float) = (batch.tokens(), x.cols, x.float());
    Error::check("d_conv", d_conv, 1..=16, "1 to 16")?;
    let block_tokens = params::conv_forward_tokens(tokens);
    let params = ConvForward {
        x: x.pointer(tokens, channels, float),
        out: out.pointer(tokens, channels, float),
        weight: weight.f32s(d_conv * channels, "the convolution's weight"),
        bias: bias.map_or(0, |bias| bias.f32s(channels, "the convolution's bias")),
        slot_stride: state.as_ref().map_or(0, |state| state.slot_stride) as i64,
        state: state.map_or(0, |state| state.pointer((d_conv - 1) * channels, batch.last_slot)),
        cu_seqlens: batch.cu_seqlens(),
        slots: batch.slots(),
        fresh: batch.fresh(),
        x_stride: x.stride as i64,
        out_stride: out.stride as i64,
        sequences: batch.sequences() as i32,
        channels: channels as i32,
        d_conv: d_conv as i32,
        block_tokens: block_tokens as i32,
    };
    let columns = channels.div_ceil(128 * params::CONV_CHANNELS);
    let rows = params::conv_blocks(tokens, batch.sequences(), block_tokens);
    device.launch(Kernel::of("causal_conv1d_forward", float), Grid::new([columns, rows, 1], 128), &params)
}
