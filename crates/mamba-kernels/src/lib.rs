//! CUDA kernels for Mamba and their launchers. One [`Device`] is one card with a stream, the kernels and cuBLAS; [`Buffer`]s live on it; one module an operation checks shapes, strides and limits and launches.
//!
//! Everything is queued on the device's one stream in the order of the calls; only [`Device::read`] waits. What the
//! kernels compute is defined in the mamba crate (`ops/<op>/reference.rs`), how in `docs/kernels.md`.
#![deny(missing_docs)]

mod batch;
pub mod block_step;
mod buffer;
pub mod causal_conv1d;
pub mod cross_entropy;
pub mod decode;
pub mod decode_step;
mod device;
pub mod elementwise;
pub mod embedding;
mod error;
pub mod graph;
pub mod linear;
pub mod logprobs;
pub mod low_rank;
pub mod matmul;
pub mod norm;
pub mod optimizer;
pub mod pool;
pub mod quantized;
pub mod readback;
pub mod sampling;
pub mod selective_scan;
mod tensor_map;
mod upload;

pub use batch::Batch;
pub use buffer::{Buffer, Float, Ints, Rows, RowsMut, States};
pub use device::Device;
pub use error::{Error, Result};

/// The kernels' parameters and grids, from their headers.
#[allow(dead_code, unused_parens, clippy::all)]
mod params {
    use crate::tensor_map::TensorMap as CUtensorMap;
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}
