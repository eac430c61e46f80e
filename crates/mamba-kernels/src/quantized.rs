//! Weights of 8 and 4 bits on the device, in GGUF's formats, and products and rows of them (`cuda/quantized/`).
//! Activations are f16; sums are f32.
//!
//! Up to [`OWN_ROWS`] rows are multiplied by a kernel of our own, which reads the weight once and rounds nothing but the
//! sums. More are cuBLAS's: a part of the weight at a time is widened to f16 (and so rounded once more, by 2⁻¹² at most)
//! into the device's workspace.

use crate::batch::Batch;
use crate::buffer::{Buffer, Float, Memory, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel, MAX_GRID_ROWS};
use crate::error::{Error, Result};
use crate::linear::{Gemm, fill_with_bias};
use crate::params::{self, QUANTIZED_ROW_INPUTS, QUANTIZED_ROW_THREADS, QuantizedProduct, QuantizedRows};

/// Rows up to which [`product`] uses its own kernel.
pub const OWN_ROWS: usize = 16;
/// Outputs of a block of the product.
const TILE: usize = 16;
/// Elements that a weight's part has at most when cuBLAS multiplies with it: it stays in the L2.
const PART: usize = 8 << 20;
/// A block's shared memory holds the scales of 16 rows.
const MAX_INPUTS: usize = 32768;

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A signed byte, and a scale for each 32.
    Q8_0,
    /// Four bits, and a scale and a minimum for each 32, in blocks of 256.
    Q4K,
}

impl Format {
    /// Bytes of a row of so many inputs on the device.
    #[must_use]
    pub fn row_bytes(self, inputs: usize) -> usize {
        match self {
            Self::Q8_0 => params::q8_0_row_bytes(inputs),
            Self::Q4K => params::q4_k_row_bytes(inputs),
        }
    }

    fn weight_bytes(self, inputs: usize) -> usize {
        match self {
            Self::Q8_0 => params::q8_0_weight_bytes(inputs),
            Self::Q4K => params::q4_k_weight_bytes(inputs),
        }
    }

    /// The kernel of a name for this format.
    fn kernel(self, of: [&'static str; 2]) -> &'static str {
        of[usize::from(self == Self::Q4K)]
    }
}

/// Writes block `block` of a q8_0 row (inputs 32 · block and on): the scale's f16 bits and the weights. `row` has
/// [`Format::row_bytes`] and was zero before.
pub fn pack_q8_0(inputs: usize, row: &mut [u8], block: usize, d: [u8; 2], weights: &[i8; 32]) {
    row[params::q8_0_scale(inputs, block)..][..2].copy_from_slice(&d);
    for (i, weight) in weights.iter().enumerate() {
        row[params::q8_0_weight(32 * block + i)] = weight.cast_unsigned() ^ 0x80;
    }
}

/// Writes block `block` of a q4_K row (inputs 256 · block and on): the f16 bits of d and d_min, each group's scale and min,
/// and the weights, 0 to 15. `row` has [`Format::row_bytes`] and was zero before.
pub fn pack_q4_k(
    inputs: usize,
    row: &mut [u8],
    block: usize,
    d: [u8; 4],
    scales: &[(u8, u8); 8],
    weights: &[u8; 256],
) {
    row[params::q4_k_d(inputs, block)..][..4].copy_from_slice(&d);
    for (group, (scale, min)) in scales.iter().enumerate() {
        row[params::q4_k_scale(inputs, 8 * block + group)..][..2].copy_from_slice(&[*scale, *min]);
    }
    for (i, weight) in weights.iter().enumerate() {
        let bit = params::q4_k_weight(256 * block + i);
        row[bit / 8] |= weight << (bit % 8);
    }
}

/// A quantized weight [out, in].
#[derive(Debug)]
pub struct Weight {
    memory: Memory,
    format: Format,
    outputs: usize,
    inputs: usize,
}

impl Weight {
    /// Room for one, which [`Device::fill_rows`] fills.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more than 32768 inputs, or none; [`Error::OutOfMemory`], [`Error::Lost`].
    pub fn new(device: &Device, format: Format, outputs: usize, inputs: usize) -> Result<Self> {
        Error::check("the width of a quantized matrix", inputs, 1..=MAX_INPUTS, "1 to 32768")?;
        let rows = i32::MAX as usize;
        Error::check("the number of rows of a quantized matrix", outputs, 0..=rows, "below 2147483648")?;
        let memory = device.memory_of(outputs * format.row_bytes(inputs))?;
        Ok(Self { memory, format, outputs, inputs })
    }

    /// How it is written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Columns.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.outputs * self.format.row_bytes(self.inputs)
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.memory.pointer()
    }
}

/// The arguments of [`product`].
pub struct Product<'a> {
    /// [tokens, in] f16.
    pub x: Rows<'a>,
    /// [out, in].
    pub weight: &'a Weight,
    /// [out] f32; for more than [`OWN_ROWS`] rows it is rounded to out's type before the product is added.
    pub bias: Option<&'a Buffer>,
    /// [tokens, out] f32 or f16.
    pub out: RowsMut<'a>,
    /// Use the own kernel for any number of rows, so that a row has the same bits in any company. The weight is then read
    /// once for each 16 rows.
    pub fixed_rows: bool,
}

/// `out = x · weightᵀ + bias`.
///
/// # Errors
/// [`Error::Unsupported`] for a dimension of 2³¹ or more; [`Error::OutOfMemory`] while the device's workspace grows;
/// [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn product(device: &Device, op: Product) -> Result<()> {
    let Product { x, weight, bias, out, fixed_rows } = op;
    let Weight { format, outputs, inputs, .. } = *weight;
    let (rows, out_float) = (out.rows, out.view().float());
    assert!(x.rows == rows && x.cols == inputs && out.cols == outputs, "{x:?} to {out:?}");
    assert!(out_float != Float::BF16, "f16 to {out_float:?}");
    let (from, to) = (x.pointer(rows, inputs, Float::F16), out.pointer(rows, outputs, out_float));
    for size in [rows, x.stride, out.stride] {
        Error::check("a dimension of a matrix product", size, 0..=i32::MAX as usize, "below 2147483648")?;
    }
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let out_row = (out.stride * out_float.bytes()) as u64;
    if fixed_rows || rows <= OWN_ROWS {
        let (row_bytes, weight_bytes) = (format.row_bytes(inputs), format.weight_bytes(inputs));
        let tiles = if rows <= 8 { 1 } else { 2 };
        let kernel = Kernel {
            base: format.kernel(["quantized_product_q8_0", "quantized_product_q4_k"]),
            float: Some(out_float),
            variant: Some(tiles),
        };
        let bias = bias.map_or(0, |bias| bias.f32s(outputs, "the bias"));
        for first in (0..rows).step_by(8 * tiles * MAX_GRID_ROWS) {
            let count = (rows - first).min(8 * tiles * MAX_GRID_ROWS);
            let params = QuantizedProduct {
                weight: weight.pointer(),
                x: from + (first * x.stride * Float::F16.bytes()) as u64,
                bias,
                out: to + first as u64 * out_row,
                x_stride: x.stride as i64,
                out_stride: out.stride as i64,
                rows: count as i32,
                inputs: inputs as i32,
                outputs: outputs as i32,
                row_bytes: row_bytes as i32,
                weight_bytes: weight_bytes as i32,
                ring_bytes: params::quantized_ring(weight_bytes) as i32,
                scale_stride: params::quantized_scale_stride(row_bytes, weight_bytes) as i32,
                reserved: 0,
            };
            let grid = Grid::new([outputs.div_ceil(TILE), count.div_ceil(8 * tiles), 1], 256)
                .shared(params::quantized_shared(row_bytes, weight_bytes));
            device.launch(kernel, grid, &params)?;
        }
        return Ok(());
    }
    if let Some(bias) = bias {
        fill_with_bias(device, bias, &out)?;
    }
    // Rows and parts begin where vectors may.
    let stride = inputs.next_multiple_of(8);
    let part = (PART / stride / TILE * TILE).max(TILE);
    let wide = device.workspace((part.min(outputs) * stride).div_ceil(2))?;
    for first in (0..outputs).step_by(part) {
        let count = part.min(outputs - first);
        widen(device, weight, Which::From(first), count, (wide, stride, Float::F16))?;
        let gemm = Gemm {
            weight_stride: stride,
            outputs: count,
            inputs,
            float: Float::F16,
            x_stride: x.stride,
            out_stride: out.stride,
            out_float,
            add: bias.is_some(),
        };
        gemm.run(device, wide, from, to + (first * out_float.bytes()) as u64, rows)?;
    }
    Ok(())
}

/// `out[t] = table[ids[t]]` for a batch's tokens, widened to f32; out [tokens, d_model].
///
/// # Errors
/// [`Error::TokenOutOfRange`], [`Error::Lost`].
///
/// # Panics
/// If `out` does not lie within its buffer, or is not as wide as the table.
pub fn embedding(device: &Device, batch: &Batch, table: &Weight, out: RowsMut) -> Result<()> {
    let (ids, count) = (batch.ids(table.outputs)?, batch.tokens());
    assert!(out.cols == table.inputs, "rows of {} to {out:?}", table.inputs);
    let to = out.pointer(count, table.inputs, Float::F32);
    widen(device, table, Which::Ids(ids), count, (to, out.stride, Float::F32))
}

/// Rows of a weight: by ids on the device, or one after the other.
enum Which {
    Ids(u64),
    From(usize),
}

/// `count` rows to rows (pointer, stride, type) of which the caller knows that they are there.
fn widen(
    device: &Device,
    weight: &Weight,
    which: Which,
    count: usize,
    (out, out_stride, out_float): (u64, usize, Float),
) -> Result<()> {
    let Weight { format, inputs, .. } = *weight;
    let (ids, first) = match which {
        Which::Ids(ids) => (ids, 0),
        Which::From(first) => (0, first),
    };
    let params = QuantizedRows {
        weight: weight.pointer(),
        ids,
        out,
        out_stride: out_stride as i64,
        first: first as i32,
        count: count as i32,
        inputs: inputs as i32,
        row_bytes: format.row_bytes(inputs) as i32,
        weight_bytes: format.weight_bytes(inputs) as i32,
        reserved: 0,
    };
    let kernel = Kernel::of(format.kernel(["quantized_rows_q8_0", "quantized_rows_q4_k"]), out_float);
    let blocks = [inputs.div_ceil(QUANTIZED_ROW_INPUTS), count.min(MAX_GRID_ROWS), 1];
    device.launch(kernel, Grid::new(blocks, QUANTIZED_ROW_THREADS as u32), &params)
}
