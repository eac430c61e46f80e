//! Rows copied by index (`cuda/embedding/`).

use crate::batch::Batch;
use crate::buffer::{Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::linear::Weight;
use crate::params::{self, GATHER_ROWS, GATHER_THREADS, Gather};

/// `out[t] = table[ids[t]]` for a batch's tokens, widened to f32; out [tokens, d_model]. The ids are not checked: one
/// beyond the table reads what is not there.
///
/// # Errors
/// [`crate::Error::Lost`].
///
/// # Panics
/// If `out` does not lie within its buffer, or is not as wide as the table.
pub fn embedding(device: &Device, batch: &Batch, table: &Weight, out: RowsMut) -> Result<()> {
    let table = Rows {
        buffer: &table.values,
        offset: 0,
        rows: table.outputs,
        cols: table.inputs,
        stride: table.inputs,
    };
    copy_rows(device, "embedding", table, batch.ids(), batch.tokens(), Float::F32, out)
}

/// `out[i] = x[rows[i]]`; out [rows, cols] of x's type.
///
/// # Errors
/// [`crate::Error::Lost`], [`crate::Error::OutOfMemory`].
///
/// # Panics
/// If there is no such row, a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn gather(device: &Device, x: Rows, rows: &[u32], out: RowsMut) -> Result<()> {
    assert!(rows.iter().all(|row| (*row as usize) < x.rows), "a row beyond the {} of x: {rows:?}", x.rows);
    let list = device.list(&rows.iter().map(|row| *row as i32).collect::<Vec<_>>())?;
    copy_rows(device, "gather", x, list.pointer(0), rows.len(), x.float(), out)
}

fn copy_rows(
    device: &Device,
    kernel: &'static str,
    from: Rows,
    ids: u64,
    count: usize,
    out_float: Float,
    out: RowsMut,
) -> Result<()> {
    let (channels, float) = (from.cols, from.float());
    let params = Gather {
        table: from.pointer(from.rows, channels, float),
        ids,
        out: out.pointer(count, channels, out_float),
        table_stride: from.stride as i64,
        out_stride: out.stride as i64,
        count: count as i32,
        channels: channels as i32,
    };
    let columns = channels.div_ceil(params::gather_channels(out_float.bytes()));
    let grid = Grid::new([columns, count.div_ceil(GATHER_ROWS), 1], GATHER_THREADS as u32);
    device.launch(Kernel::of(kernel, float), grid, &params)
}
