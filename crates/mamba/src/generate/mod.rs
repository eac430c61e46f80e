//! Choosing tokens, and keeping what a generation needs to go on.

pub mod philox;
mod sampler;
mod session_file;

pub use sampler::{Sampled, Sampler, SamplerOptions};
pub use session_file::SessionSnapshot;
