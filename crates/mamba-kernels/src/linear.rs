//! Matrix products with weights, by cuBLAS: `out = x · weightᵀ + bias`, x [tokens, in], weight [out, in].
//!
//! f32 products are f32 throughout (no TF32); bf16 and f16 ones are summed in f32. cuBLAS gives the same bits for the
//! same shapes on the same card: the stream and its workspace are the device's own. It chooses its kernel, and with it
//! the order of its sums, by the number of rows; [`Product::fixed_rows`] takes that choice away.

use std::ffi::c_void;

use cudarc::cublas::{result, sys};
use cudarc::driver::sys as driver;

use crate::buffer::{Buffer, Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::BiasRows;

/// Rows of a product whose results must not depend on how many there are.
const FIXED_ROWS: usize = 64;

/// A weight [out, in], row-major.
#[derive(Debug)]
pub struct Weight {
    /// [out, in].
    pub values: Buffer,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
}

/// The arguments of [`product`].
pub struct Product<'a> {
    /// [tokens, in], of the weight's type.
    pub x: Rows<'a>,
    /// [out, in].
    pub weight: &'a Weight,
    /// [out] f32; rounded to out's type before the product is added.
    pub bias: Option<&'a Buffer>,
    /// [tokens, out], f32 or of the weight's type.
    pub out: RowsMut<'a>,
    /// Add the product to what is in `out`; there is no bias then.
    pub add: bool,
    /// Multiply 64 rows at a time, the last ones filled up, so that a row has the same bits in any company. A single
    /// row then costs as much as 64.
    pub fixed_rows: bool,
}

/// `out = x · weightᵀ + bias`, or `out += x · weightᵀ`.
///
/// # Errors
/// [`Error::Unsupported`] for a dimension of 2³¹ or more; [`Error::Lost`], [`Error::OutOfMemory`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn product(device: &Device, op: Product) -> Result<()> {
    let Product { x, weight, bias, out, add, fixed_rows } = op;
    let (rows, inputs, outputs) = (out.rows, weight.inputs, weight.outputs);
    let (float, out_float) = (weight.values.float(), out.view().float());
    assert!(x.rows == rows && x.cols == inputs && out.cols == outputs, "{x:?} to {out:?}");
    assert!(out_float == float || out_float == Float::F32, "{float:?} to {out_float:?}");
    assert!(bias.is_none() || !add, "a bias of what is added");
    let (from, to) = (x.pointer(rows, inputs, float), out.pointer(rows, outputs, out_float));
    for size in [rows, inputs, outputs, x.stride, out.stride] {
        Error::check("a dimension of a matrix product", size, 0..=i32::MAX as usize, "below 2147483648")?;
    }
    if rows == 0 {
        return Ok(());
    }
    if let Some(bias) = bias {
        fill_with_bias(device, bias, &out)?;
    }
    let gemm = Gemm {
        weight_stride: inputs,
        outputs,
        inputs,
        float,
        x_stride: x.stride,
        out_stride: out.stride,
        out_float,
        add: add || bias.is_some(),
    };
    let weight = weight.values.pointer(0);
    if !fixed_rows {
        return gemm.run(device, weight, from, to, rows);
    }
    let (x_row, out_row) = (x.stride * float.bytes(), out.stride * out_float.bytes());
    for first in (0..rows).step_by(FIXED_ROWS) {
        let count = FIXED_ROWS.min(rows - first);
        let (from, to) = (from + (first * x_row) as u64, to + (first * out_row) as u64);
        if count == FIXED_ROWS {
            gemm.run(device, weight, from, to, FIXED_ROWS)?;
            continue;
        }
        // Rows that are not there are whatever lies in the workspace; nothing of them is kept. The copies lie as the
        // originals do (cuBLAS looks at strides and alignment, too).
        let (x_bytes, out_bytes) = (256 + FIXED_ROWS * x_row, 256 + FIXED_ROWS * out_row);
        let out_begin = x_bytes.next_multiple_of(256);
        let workspace = device.workspace((out_begin + out_bytes).div_ceil(4))?;
        let (x_copy, out_copy) = (workspace + from % 256, workspace + out_begin as u64 + to % 256);
        let (x_width, out_width) = (inputs * float.bytes(), outputs * out_float.bytes());
        device.copy_rows(from, x_copy, x_row, x_width, count)?;
        if gemm.add {
            device.copy_rows(to, out_copy, out_row, out_width, count)?;
        }
        gemm.run(device, weight, x_copy, out_copy, FIXED_ROWS)?;
        device.copy_rows(out_copy, to, out_row, out_width, count)?;
    }
    Ok(())
}

/// Every row of `out` becomes the bias, rounded to its type.
pub(crate) fn fill_with_bias(device: &Device, bias: &Buffer, out: &RowsMut) -> Result<()> {
    let (rows, cols, float) = (out.rows, out.cols, out.view().float());
    let params = BiasRows {
        out: out.pointer(rows, cols, float),
        bias: bias.f32s(cols, "the bias"),
        out_stride: out.stride as i64,
        rows: rows as i32,
        cols: cols as i32,
    };
    let grid = Grid::new([cols.div_ceil(256), rows.min(1024), 1], 256);
    device.launch(Kernel::of("bias_rows", float), grid, &params)
}

/// A product by cuBLAS; all sizes below 2³¹, strides in elements.
pub(crate) struct Gemm {
    /// Elements from a row of the weight [outputs, inputs] to the next.
    pub weight_stride: usize,
    pub outputs: usize,
    pub inputs: usize,
    /// Of the weight and x.
    pub float: Float,
    pub x_stride: usize,
    pub out_stride: usize,
    pub out_float: Float,
    /// To what is in out.
    pub add: bool,
}

impl Gemm {
    /// `rows` rows at `x` to rows at `out`, which the caller knows to lie, with the weight, within their buffers.
    pub(crate) fn run(&self, device: &Device, weight: u64, x: u64, out: u64, rows: usize) -> Result<()> {
        let Self { weight_stride, outputs, inputs, float, x_stride, out_stride, out_float, add } = *self;
        let kind = |float| match float {
            Float::F32 => sys::cudaDataType::CUDA_R_32F,
            Float::BF16 => sys::cudaDataType::CUDA_R_16BF,
            Float::F16 => sys::cudaDataType::CUDA_R_16F,
        };
        let (one, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        device.bind()?;
        // cuBLAS counts columns first: its matrices are ours transposed, outᵀ = weight · xᵀ.
        // SAFETY: all three matrices lie where the caller says; the scalars are on the host, as is the handle's pointer
        // mode.
        unsafe {
            result::gemm_ex(
                device.blas(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                outputs as i32,
                rows as i32,
                inputs as i32,
                (&raw const one).cast(),
                weight as *const c_void,
                kind(float),
                weight_stride as i32,
                x as *const c_void,
                kind(float),
                x_stride as i32,
                (&raw const beta).cast(),
                out as *mut c_void,
                kind(out_float),
                out_stride as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| Error::cublas("cublasGemmEx", e))
    }
}

impl Device {
    /// Copies `rows` rows of `width` bytes, `stride` bytes apart on both sides.
    fn copy_rows(&self, from: u64, to: u64, stride: usize, width: usize, rows: usize) -> Result<()> {
        let memory = driver::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let copy = driver::CUDA_MEMCPY2D {
            srcMemoryType: memory,
            srcDevice: from,
            srcPitch: stride,
            dstMemoryType: memory,
            dstDevice: to,
            dstPitch: stride,
            WidthInBytes: width,
            Height: rows,
            srcXInBytes: 0,
            srcY: 0,
            srcHost: std::ptr::null(),
            srcArray: std::ptr::null_mut(),
            dstXInBytes: 0,
            dstY: 0,
            dstHost: std::ptr::null_mut(),
            dstArray: std::ptr::null_mut(),
        };
        self.bind()?;
        // SAFETY: `product` checked both sides.
        unsafe { driver::cuMemcpy2DAsync_v2(&raw const copy, self.stream()) }
            .result()
            .map_err(|e| Error::driver("cuMemcpy2DAsync", e))
    }
}
