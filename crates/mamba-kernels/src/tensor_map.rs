//! What the copy engine of Hopper and later has to know of a matrix to fetch boxes of it into shared memory.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle, cuTensorMapEncodeTiled,
};

use crate::buffer::{Float, Rows};
use crate::error::{Error, Result};

/// Columns of a box: 128 bytes, what the swizzle takes.
const COLS: u32 = 64;

/// CUDA's `CUtensorMap`, as a part of a kernel's parameters.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TensorMap([u64; 16]);

impl TensorMap {
    /// Of a matrix of 16-bit elements whose rows begin at multiples of 16 bytes, in boxes of `rows` rows and 64 columns. Of
    /// eight rows in shared memory the 16-byte pieces are interchanged so that a column lies in different banks.
    pub fn boxes(matrix: &Rows, rows: usize) -> Result<Self> {
        assert!(matrix.is_aligned(16), "{matrix:?}, expected rows at multiples of 16 bytes");
        let float = matrix.float();
        let kind = match float {
            Float::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Float::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Float::F32 => panic!("boxes of {matrix:?}, expected 16-bit elements"),
        };
        let mut map = Self::default();
        let size = [matrix.cols as u64, matrix.rows as u64];
        // Of a single row it is not used, and is a multiple of 16 bytes nevertheless.
        let stride = [(matrix.stride.next_multiple_of(8) * float.bytes()) as u64];
        // SAFETY: it writes the 128 bytes of the map, and reads arrays of as many numbers as a matrix has dimensions.
        unsafe {
            cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                kind,
                2,
                matrix.pointer(matrix.rows, matrix.cols, float) as *mut c_void,
                size.as_ptr(),
                stride.as_ptr(),
                [COLS, rows as u32].as_ptr(),
                [1, 1].as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| Error::driver("cuTensorMapEncodeTiled", e))?;
        Ok(map)
    }
}
