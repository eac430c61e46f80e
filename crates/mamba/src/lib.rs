//! Mamba (selective state space) models: load, run, embed, serve. No Node in here.
//!
//! Data flows one way: text → ids → model → ids or vectors → text; nothing below reaches up.
#![deny(missing_docs)]

pub mod atomic_file;
pub mod dtype;
pub mod error;
pub mod generate;
pub mod model;
pub mod text;

pub use dtype::DType;
pub use error::{Error, Result};
