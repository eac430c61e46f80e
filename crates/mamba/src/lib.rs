//! Mamba (selective state space) models: load, run, embed, serve, train. No Node in here.
//!
//! Data flows one way: text → ids → model → ids or vectors → text; nothing below reaches up.
#![deny(missing_docs)]

pub mod atomic_file;
pub mod backend;
pub mod checkpoint;
pub mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decoder;
pub mod dtype;
pub mod engine;
pub mod error;
#[doc(hidden)]
pub mod exit;
pub mod generate;
pub mod model;
pub mod ops;
pub mod quantize;
pub mod text;
pub mod train;

pub use dtype::DType;
pub use engine::Mamba;
pub use error::{Error, Result};
