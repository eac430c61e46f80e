//! Conversions of rows, and what training does to whole buffers (`cuda/elementwise/`).

use crate::buffer::{Buffer, Float, Rows, RowsMut, span};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{ADD, Combine, ConvertRows, MULTIPLY, NEGATIVE_EXP, SumRows};

/// `to = from`, or `to += from` where `add` says so: from f32 to any type. One row of `from` serves for all of `to`.
///
/// # Errors
/// [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes do not fit one another.
pub fn convert(device: &Device, from: Rows, to: RowsMut, add: bool) -> Result<()> {
    let (rows, cols, float) = (to.rows, to.cols, to.view().float());
    assert!(from.cols == cols && (from.rows == rows || from.rows == 1), "{from:?} to {to:?}");
    let repeated = from.rows == 1;
    let params = ConvertRows {
        from: from.pointer(from.rows, cols, Float::F32),
        to: to.pointer(rows, cols, float),
        from_stride: if repeated { 0 } else { from.stride as i64 },
        to_stride: to.stride as i64,
        count: (rows * cols) as i64,
        cols: cols as i32,
        add: i32::from(add),
    };
    device.launch(Kernel::of("convert_rows", float), grid(device, rows * cols), &params)
}

/// `a = −exp(a_log)`, f32.
///
/// # Errors
/// [`Error::Lost`].
///
/// # Panics
/// If they have not the same length.
pub fn negative_exp(device: &Device, a_log: &Buffer, a: &mut Buffer) -> Result<()> {
    assert_eq!(a_log.len(), a.len());
    let (from, to) = (a_log.f32s(a.len(), "A_log"), a.f32s(a.len(), "A"));
    combine(device, from, to, a.len(), NEGATIVE_EXP)
}

/// `out *= x`, f32.
///
/// # Errors
/// [`Error::Lost`].
///
/// # Panics
/// If they have not the same length.
pub fn multiply(device: &Device, x: &Buffer, out: &mut Buffer) -> Result<()> {
    assert_eq!(x.len(), out.len());
    let (from, to) = (x.f32s(x.len(), "a factor"), out.f32s(x.len(), "a product"));
    combine(device, from, to, x.len(), MULTIPLY)
}

/// `to += from` over flat groups ([`Device::flat`], f32) of the same lengths.
///
/// # Errors
/// [`Error::Lost`].
///
/// # Panics
/// If they are not that.
pub fn add(device: &Device, to: &mut [Buffer], from: &[Buffer]) -> Result<()> {
    let ((to, count), (from, from_count)) = (span(to, Float::F32), span(from, Float::F32));
    assert_eq!(count, from_count);
    combine(device, from, to, count, ADD)
}

fn combine(device: &Device, from: u64, to: u64, count: usize, operation: usize) -> Result<()> {
    let params = Combine { from, to, count: count as i64, operation: operation as i32, reserved: 0 };
    device.launch(Kernel::plain("combine"), grid(device, count), &params)
}

/// `out = Σ_rows x`; out [cols] f32.
///
/// # Errors
/// [`Error::Unsupported`] for 2³¹ rows or more; [`Error::Lost`].
///
/// # Panics
/// If the view does not lie within its buffer, or `out` is shorter than a row.
pub fn sum_rows(device: &Device, x: Rows, out: &mut Buffer) -> Result<()> {
    Error::check("the number of rows of a sum", x.rows, 0..=i32::MAX as usize, "below 2147483648")?;
    let params = SumRows {
        x: x.pointer(x.rows, x.cols, x.float()),
        out: out.f32s(x.cols, "a sum of rows"),
        stride: x.stride as i64,
        rows: x.rows as i32,
        cols: x.cols as i32,
    };
    device.launch(Kernel::of("sum_rows", x.float()), Grid::new([x.cols.div_ceil(32), 1, 1], 256), &params)
}

fn grid(device: &Device, count: usize) -> Grid {
    Grid::new([count.div_ceil(256).min(32 * device.multiprocessors()), 1, 1], 256)
}
