//! Choosing tokens, and keeping what a generation needs to go on.

pub mod philox;
mod sampler;

pub use sampler::{Sampled, Sampler, SamplerOptions};
