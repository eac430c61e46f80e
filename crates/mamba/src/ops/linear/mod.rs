//! Matrix products with weights: `out = x · weightᵀ + bias`, x [tokens, in], weight [out, in].
//!
//! Weights are packed once, at load, and stay in their own type; they are widened in registers or in a cache-sized
//! panel, never as a whole.

#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod cpu;
mod float;
mod integer;
mod packed;
pub mod reference;
mod tiles;

pub use packed::Packed;
