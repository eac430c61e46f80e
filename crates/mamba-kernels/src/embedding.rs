//! Rows copied by index, and the gradient of a table of them (`cuda/embedding/`).

use crate::batch::Batch;
use crate::buffer::{Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel, MAX_GRID_ROWS};
use crate::error::{Error, Result};
use crate::linear::Weight;
use crate::params::{self, EMBEDDING_TOKENS, EmbeddingBackward, GATHER_ROWS, GATHER_THREADS, Gather};

/// `out[t] = table[ids[t]]` for a batch's tokens, widened to f32; out [tokens, d_model].
///
/// # Errors
/// [`Error::TokenOutOfRange`], [`Error::Lost`].
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
    lookup(device, batch, table, out)
}

/// [`embedding`] with a table [vocab, d_model] that is no weight of a model at rest.
///
/// # Errors
/// As [`embedding`].
///
/// # Panics
/// As [`embedding`].
pub fn lookup(device: &Device, batch: &Batch, table: Rows, out: RowsMut) -> Result<()> {
    copy_rows(device, "embedding", table, batch.ids(table.rows)?, batch.tokens(), Float::F32, out)
}

/// `out[i] = x[rows[i]]`; out [rows, cols] of x's type.
///
/// # Errors
/// [`Error::Lost`], [`Error::OutOfMemory`].
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
    let (table, to) = (from.pointer(from.rows, channels, float), out.pointer(count, channels, out_float));
    let columns = channels.div_ceil(params::gather_channels(out_float.bytes()));
    for first in (0..count).step_by(MAX_GRID_ROWS * GATHER_ROWS) {
        let count = (MAX_GRID_ROWS * GATHER_ROWS).min(count - first);
        let params = Gather {
            table,
            ids: ids + 4 * first as u64,
            out: to + (first * out.stride * out_float.bytes()) as u64,
            table_stride: from.stride as i64,
            out_stride: out.stride as i64,
            count: count as i32,
            channels: channels as i32,
        };
        let grid = Grid::new([columns, count.div_ceil(GATHER_ROWS), 1], GATHER_THREADS as u32);
        device.launch(Kernel::of(kernel, float), grid, &params)?;
    }
    Ok(())
}

/// The gradient by an embedding table: `table_grad[ids[t]] += out_grad[t]`, in f32, a row's tokens in their order;
/// out_grad [tokens, d_model] f32, table_grad [vocab, d_model] f32. Rows of no token are left as they are.
///
/// # Errors
/// [`Error::TokenOutOfRange`]; [`Error::Unsupported`] for more than 67108864 channels or 2³¹ tokens;
/// [`Error::OutOfMemory`], [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes do not fit one another.
pub fn backward(device: &Device, ids: &[u32], out_grad: Rows, table_grad: RowsMut) -> Result<()> {
    let (count, channels, vocabulary) = (ids.len(), table_grad.cols, table_grad.rows);
    Error::check("d_model", channels, 1..=1 << 26, "1 to 67108864")?;
    Error::check("the number of tokens of an embedding", count, 0..=i32::MAX as usize, "below 2147483648")?;
    if let Some(position) = ids.iter().position(|id| *id as usize >= vocabulary) {
        return Err(Error::TokenOutOfRange { id: ids[position], position, rows: vocabulary });
    }
    // Tokens by id, those of one id in their own order.
    let mut order: Vec<i32> = (0..count as i32).collect();
    order.sort_by_key(|token| ids[*token as usize]);
    let mut values: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    values.extend(order);
    let list = device.list(&values)?;
    let (from, to) =
        (out_grad.pointer(count, channels, Float::F32), table_grad.pointer(vocabulary, channels, Float::F32));
    let columns = channels.div_ceil(params::gather_channels(4));
    // A row whose tokens are in two launches is added to twice.
    for first in (0..count).step_by(MAX_GRID_ROWS * EMBEDDING_TOKENS) {
        let tokens = (MAX_GRID_ROWS * EMBEDDING_TOKENS).min(count - first);
        let blocks = tokens.div_ceil(EMBEDDING_TOKENS);
        let params = EmbeddingBackward {
            d_out: from,
            ids: list.pointer(0),
            order: list.pointer(count + first),
            d_table: to,
            partial: device.workspace(2 * blocks * channels)?,
            d_out_stride: out_grad.stride as i64,
            d_table_stride: table_grad.stride as i64,
            count: tokens as i32,
            channels: channels as i32,
        };
        let grid = Grid::new([columns, blocks, 1], GATHER_THREADS as u32);
        device.launch(Kernel::plain("embedding_backward"), grid, &params)?;
        device.launch(Kernel::plain("embedding_backward_join"), grid, &params)?;
    }
    Ok(())
}
