//! Matrix products with weights: `out = x · weightᵀ + bias`, x [tokens, in], weight [out, in].
//!
//! Weights are packed once, at load, and stay in their own type (f32, bf16, f16); they are widened to f32
//! in registers or in a cache-sized panel, never as a whole.

#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod cpu;
mod packed;
pub mod reference;

pub use packed::Packed;
