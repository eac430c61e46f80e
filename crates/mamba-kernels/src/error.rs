//! What can go wrong on a device.

use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::cublasStatus_t;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong on a device.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no driver, no cuBLAS, or no such card.
    #[error("{0}")]
    Unavailable(String),
    /// The device's memory does not suffice.
    #[error("{bytes} bytes of device memory are not there, {free} are free")]
    OutOfMemory {
        /// How much was asked for.
        bytes: u64,
        /// How much is left.
        free: u64,
    },
    /// No kernel takes this shape.
    #[error("{what} is {value}, expected {expected}")]
    Unsupported {
        /// The dimension.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What the kernels take.
        expected: &'static str,
    },
    /// A batch has an id beyond the embedding's table.
    #[error("token id {id} at position {position} is out of range, expected one below {rows}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Where it is among the batch's ids.
        position: usize,
        /// How many rows the table has.
        rows: usize,
    },
    /// The device is beyond use: a kernel failed, the card fell off the bus. The driver refuses all further work of the
    /// process on it.
    #[error("{0}")]
    Lost(String),
    /// A call was refused: a defect of this crate.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The error that a driver call gave.
    pub(crate) fn driver(call: &str, error: DriverError) -> Self {
        let name = error.error_name().map_or_else(|_| "CUDA error".into(), |name| name.to_string_lossy());
        let meaning = error.error_string().map_or_else(|_| "unknown".into(), |text| text.to_string_lossy());
        let message = format!("{call}: {name} ({meaning})");
        match error.0 {
            // Refused at once, with no harm done.
            CUresult::CUDA_ERROR_INVALID_VALUE
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_HANDLE
            | CUresult::CUDA_ERROR_NOT_FOUND
            | CUresult::CUDA_ERROR_NOT_SUPPORTED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => Self::Refused(message),
            CUresult::CUDA_ERROR_NO_DEVICE
            | CUresult::CUDA_ERROR_STUB_LIBRARY
            | CUresult::CUDA_ERROR_NOT_INITIALIZED
            | CUresult::CUDA_ERROR_SYSTEM_NOT_READY
            | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
            | CUresult::CUDA_ERROR_INVALID_DEVICE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUresult::CUDA_ERROR_DEVICE_NOT_LICENSED => Self::Unavailable(message),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::out_of_memory(0),
            _ => Self::Lost(message),
        }
    }

    /// The error that a cuBLAS call gave.
    pub(crate) fn cublas(call: &str, error: CublasError) -> Self {
        let message = format!("{call}: {:?}", error.0);
        match error.0 {
            cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Self::out_of_memory(0),
            // What creating a handle gives where the library and the driver do not go together.
            cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED | cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => {
                Self::Unavailable(message)
            }
            cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED
            | cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR
            | cublasStatus_t::CUBLAS_STATUS_MAPPING_ERROR => Self::Lost(message),
            _ => Self::Refused(message),
        }
    }

    /// The current context's memory does not suffice for `bytes` more.
    pub(crate) fn out_of_memory(bytes: usize) -> Self {
        let free = cudarc::driver::result::mem_get_info().map_or(0, |(free, _)| free);
        Self::OutOfMemory { bytes: bytes as u64, free: free as u64 }
    }

    /// Refuses `value` unless it is within the range.
    pub(crate) fn check(
        what: &'static str,
        value: usize,
        range: std::ops::RangeInclusive<usize>,
        expected: &'static str,
    ) -> Result<()> {
        if range.contains(&value) { Ok(()) } else { Err(Self::Unsupported { what, value, expected }) }
    }
}
