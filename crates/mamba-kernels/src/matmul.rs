//! Products of two matrices of activations, in any orientation, by cuBLAS: `out = scale · a · b`, or added to it. Both
//! factors have one type, out that or f32; sums are f32 (no TF32).

use std::ffi::c_void;

use cudarc::cublas::{result, sys};

use crate::buffer::{Float, Rows, RowsMut};
use crate::device::Device;
use crate::error::{Error, Result};

/// The arguments of [`matmul`].
pub struct MatMul<'a> {
    /// [m, k], or with `a_transposed` [k, m].
    pub a: Rows<'a>,
    /// Take a transposed.
    pub a_transposed: bool,
    /// [k, n], or with `b_transposed` [n, k].
    pub b: Rows<'a>,
    /// Take b transposed.
    pub b_transposed: bool,
    /// Multiplies the product.
    pub scale: f32,
    /// Add to what is in `out`.
    pub add: bool,
    /// [m, n].
    pub out: RowsMut<'a>,
}

/// See the module.
///
/// # Errors
/// [`Error::Unsupported`] for a dimension of 2³¹ or more; [`Error::Lost`].
///
/// # Panics
/// If a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn matmul(device: &Device, op: MatMul) -> Result<()> {
    let MatMul { a, a_transposed, b, b_transposed, scale, add, out } = op;
    let shape = |x: Rows, transposed| if transposed { (x.cols, x.rows) } else { (x.rows, x.cols) };
    let ((m, k), (k_of_b, n)) = (shape(a, a_transposed), shape(b, b_transposed));
    assert!(k == k_of_b && (out.rows, out.cols) == (m, n), "{a:?} times {b:?} to {out:?}");
    let (float, out_float) = (a.float(), out.view().float());
    assert!(out_float == float || out_float == Float::F32, "{float:?} to {out_float:?}");
    let (a_at, b_at) = (a.pointer(a.rows, a.cols, float), b.pointer(b.rows, b.cols, float));
    let out_at = out.pointer(m, n, out_float);
    for size in [m, n, k, a.stride, b.stride, out.stride] {
        Error::check("a dimension of a matrix product", size, 0..=i32::MAX as usize, "below 2147483648")?;
    }
    if m == 0 || n == 0 || k == 0 {
        assert!(k > 0 || add || m == 0 || n == 0, "a product over nothing");
        return Ok(());
    }
    let kind = |float| match float {
        Float::F32 => sys::cudaDataType::CUDA_R_32F,
        Float::BF16 => sys::cudaDataType::CUDA_R_16BF,
        Float::F16 => sys::cudaDataType::CUDA_R_16F,
    };
    let operation = |transposed| match transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let beta = if add { 1.0f32 } else { 0.0 };
    device.bind()?;
    // cuBLAS counts columns first: its matrices are ours transposed, outᵀ = bᵀ · aᵀ.
    // SAFETY: all three matrices lie within their buffers, as checked above; the scalars are on the host, as is the
    // handle's pointer mode.
    unsafe {
        result::gemm_ex(
            device.blas(),
            operation(b_transposed),
            operation(a_transposed),
            n as i32,
            m as i32,
            k as i32,
            (&raw const scale).cast(),
            b_at as *const c_void,
            kind(float),
            b.stride as i32,
            a_at as *const c_void,
            kind(float),
            a.stride as i32,
            (&raw const beta).cast(),
            out_at as *mut c_void,
            kind(out_float),
            out.stride as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| Error::cublas("cublasGemmEx", e))
}
