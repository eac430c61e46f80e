//! The causal depthwise convolution over packed sequences, with SiLU, and its gradients (`cuda/causal_conv1d/`).

use crate::batch::Batch;
use crate::buffer::{Buffer, Rows, RowsMut, States};
use crate::device::{Device, Grid, Kernel, MAX_GRID_ROWS};
use crate::error::{Error, Result};
use crate::params::{self, ConvBackward, ConvForward};

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

/// The arguments of [`backward`]: what forward was given, the gradient of out, and where gradients go. All are
/// overwritten. The states lie in slots as forward's, with one stride.
pub struct Backward<'a> {
    /// As given to [`forward`].
    pub x: Rows<'a>,
    /// As given to [`forward`].
    pub weight: &'a Buffer,
    /// As given to [`forward`].
    pub bias: Option<&'a Buffer>,
    /// As given to [`forward`].
    pub d_conv: usize,
    /// What the state was before [`forward`] ran; `None`: zero. Its buffer is not written.
    pub initial_state: Option<States<'a>>,
    /// [tokens, d_inner]: gradient of out.
    pub out_grad: Rows<'a>,
    /// Gradient of the last state; `None`: zero. Its buffer is not written.
    pub last_state_grad: Option<States<'a>>,
    /// [tokens, d_inner].
    pub x_grad: RowsMut<'a>,
    /// [d_conv, d_inner] f32.
    pub weight_grad: &'a mut Buffer,
    /// [d_inner] f32, where there is a bias.
    pub bias_grad: Option<&'a mut Buffer>,
    /// Gradient of the initial state; zero for sequences that begin fresh.
    pub initial_state_grad: Option<States<'a>>,
}

/// `out_t = SiLU(bias + Σ_k weight[k] ⊙ x_{t − (d_conv − 1) + k})`.
///
/// # Errors
/// [`Error::Unsupported`] unless the window is 1 to 16 wide, or for more sequences than a launch takes (32768 always
/// fit); [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, batch: &Batch, op: Forward) -> Result<()> {
    let Forward { x, weight, bias, d_conv, state, out } = op;
    let (tokens, channels, float) = (batch.tokens(), x.cols, x.float());
    check(d_conv, channels)?;
    let block_tokens = params::conv_forward_tokens(tokens);
    let rows = rows_of_blocks(batch, block_tokens)?;
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
    device.launch(Kernel::of("causal_conv1d_forward", float), Grid::new([columns, rows, 1], 128), &params)
}

/// All gradients. Those of the weight and the bias are sums over all tokens, zero where there are none.
///
/// # Errors
/// [`Error::Unsupported`] unless the window is 1 to 16 wide, or for more sequences and tokens than a launch takes (32768
/// sequences of 32 million tokens together fit); [`Error::OutOfMemory`], [`Error::Lost`].
///
/// # Panics
/// As [`forward`], or if the states have several strides.
pub fn backward(device: &Device, batch: &Batch, op: Backward) -> Result<()> {
    let Backward { x, weight, bias, d_conv, initial_state, out_grad, last_state_grad, x_grad, .. } = op;
    let (tokens, channels, float) = (batch.tokens(), x.cols, x.float());
    check(d_conv, channels)?;
    assert!(bias.is_some() == op.bias_grad.is_some(), "the gradient of the bias");
    let block_tokens = params::conv_backward_tokens(tokens);
    let partials = rows_of_blocks(batch, block_tokens)?;
    let states = [initial_state, last_state_grad, op.initial_state_grad];
    let slot_stride = states.iter().flatten().map(|state| state.slot_stride).max().unwrap_or(0);
    assert!(
        states.iter().flatten().all(|state| state.slot_stride == slot_stride),
        "the state and its gradients have one stride"
    );
    let [initial_state, last_state_grad, initial_state_grad] =
        states.map(|state| state.map_or(0, |state| state.pointer((d_conv - 1) * channels, batch.last_slot)));
    let params = ConvBackward {
        x: x.pointer(tokens, channels, float),
        d_out: out_grad.pointer(tokens, channels, float),
        d_x: x_grad.pointer(tokens, channels, float),
        weight: weight.f32s(d_conv * channels, "the convolution's weight"),
        bias: bias.map_or(0, |bias| bias.f32s(channels, "the convolution's bias")),
        initial_state,
        last_state_grad,
        initial_state_grad,
        partial: device.workspace(partials * (d_conv + 1) * channels)?,
        d_weight: op.weight_grad.f32s(d_conv * channels, "the gradient of the convolution's weight"),
        d_bias: op.bias_grad.map_or(0, |bias| bias.f32s(channels, "the gradient of the convolution's bias")),
        cu_seqlens: batch.cu_seqlens(),
        slots: batch.slots(),
        fresh: batch.fresh(),
        x_stride: x.stride as i64,
        d_out_stride: out_grad.stride as i64,
        d_x_stride: x_grad.stride as i64,
        slot_stride: slot_stride as i64,
        sequences: batch.sequences() as i32,
        channels: channels as i32,
        d_conv: d_conv as i32,
        block_tokens: block_tokens as i32,
        partials: partials as i32,
        reserved: 0,
    };
    // A warp has 32 threads, each its channels.
    let columns = channels.div_ceil(32 * params::CONV_CHANNELS);
    let grid = Grid::new([columns, partials, 1], 256);
    device.launch(Kernel::of("causal_conv1d_backward", float), grid, &params)?;
    let grid = Grid::new([((d_conv + 1) * channels).div_ceil(32), 1, 1], 256);
    device.launch(Kernel::plain("causal_conv1d_reduce"), grid, &params)
}

fn check(d_conv: usize, channels: usize) -> Result<()> {
    Error::check("d_conv", d_conv, 1..=16, "1 to 16")?;
    Error::check("d_inner", channels, 1..=1 << 26, "1 to 67108864")
}

/// Rows of blocks: enough for every sequence's tokens, and one for a sequence that is empty.
fn rows_of_blocks(batch: &Batch, block_tokens: usize) -> Result<usize> {
    let rows = params::conv_blocks(batch.tokens(), batch.sequences(), block_tokens);
    let what = "the number of a convolution's sequences and of its blocks of tokens together";
    Error::check(what, rows, 0..=MAX_GRID_ROWS, "at most 65535: a smaller batch")?;
    Ok(rows)
}
