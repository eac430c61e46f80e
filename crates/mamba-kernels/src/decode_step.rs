//! The decode step: one token of each of S sequences (`cuda/decode_step/`). The same arguments as for whole sequences,
//! with a state; row `i` of every matrix belongs to sequence `i` of the batch.

use crate::batch::Batch;
use crate::causal_conv1d;
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{self, CONV_STEP_CHANNELS, ConvStep, SCAN_STEP_CHANNELS, ScanStep};
use crate::selective_scan;

/// The widest window of [`conv_step`].
pub const MAX_D_CONV: usize = 8;

/// The convolution's step.
///
/// # Errors
/// [`Error::Unsupported`] unless the window is 1 to 8 wide; [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn conv_step(device: &Device, batch: &Batch, op: causal_conv1d::Forward) -> Result<()> {
    let causal_conv1d::Forward { x, weight, bias, d_conv, state, out } = op;
    let (sequences, channels, float) = (batch.sequences(), x.cols, x.float());
    Error::check("d_conv", d_conv, 1..=MAX_D_CONV, "1 to 8")?;
    let state = state.expect("a step has a state");
    let params = ConvStep {
        x: x.pointer(sequences, channels, float),
        out: out.pointer(sequences, channels, float),
        weight: weight.f32s(d_conv * channels, "the convolution's weight"),
        bias: bias.map_or(0, |bias| bias.f32s(channels, "the convolution's bias")),
        state: state.pointer((d_conv - 1) * channels, batch.last_slot),
        slots: batch.slots(),
        fresh: batch.fresh(),
        x_stride: x.stride as i64,
        out_stride: out.stride as i64,
        slot_stride: state.slot_stride as i64,
        channels: channels as i32,
        d_conv: d_conv as i32,
    };
    let grid = Grid::new([channels.div_ceil(CONV_STEP_CHANNELS), sequences, 1], 128);
    device.launch(Kernel::of("conv_step", float), grid.behind(true), &params)
}

/// The scan's step.
///
/// # Errors
/// [`Error::Unsupported`] unless there are 1 to 256 states; [`Error::Lost`].
///
/// # Panics
/// As [`conv_step`].
pub fn scan_step(device: &Device, batch: &Batch, op: selective_scan::Forward) -> Result<()> {
    let selective_scan::Forward { u, delta, delta_bias, a, b, c, d, z, state, out, .. } = op;
    let state = state.expect("a step has a state");
    let (sequences, channels, states, float) = (batch.sequences(), u.cols, b.cols, u.float());
    Error::check("d_state", states, 1..=256, "1 to 256")?;
    let params = ScanStep {
        u: u.pointer(sequences, channels, float),
        delta: delta.pointer(sequences, channels, float),
        z: z.map_or(0, |z| z.pointer(sequences, channels, float)),
        b: b.pointer(sequences, states, float),
        c: c.pointer(sequences, states, float),
        y: out.pointer(sequences, channels, float),
        a: a.f32s(states * channels, "A"),
        d: d.map_or(0, |d| d.f32s(channels, "D")),
        delta_bias: delta_bias.map_or(0, |bias| bias.f32s(channels, "the bias of delta")),
        state: state.pointer(states * channels, batch.last_slot),
        slots: batch.slots(),
        fresh: batch.fresh(),
        u_stride: u.stride as i64,
        delta_stride: delta.stride as i64,
        z_stride: z.map_or(0, |z| z.stride) as i64,
        b_stride: b.stride as i64,
        c_stride: c.stride as i64,
        y_stride: out.stride as i64,
        slot_stride: state.slot_stride as i64,
        sequences: sequences as i32,
        channels: channels as i32,
        states: states as i32,
        softplus: i32::from(delta_bias.is_some()),
    };
    let columns = channels.div_ceil(SCAN_STEP_CHANNELS);
    let rows = match sequences {
        0 => 0,
        _ => params::scan_step_rows(sequences, channels, device.multiprocessors()),
    };
    let grid = Grid::new([columns, rows, 1], 128).behind(true);
    device.launch(Kernel::of("scan_step", float), grid, &params)
}
