//! The Node binding: argument checks and conversions, nothing else. lib/ in TypeScript turns its callbacks
//! into promises and async iterators; nobody else calls it.
//!
//! What takes time runs on a thread of the model's or on one of its own, never on libuv's pool, and answers
//! through a callback `(error, value)`. Errors carry the core crate's `code` and message. No panic crosses
//! into Node: entry points catch it, and so does the engine.
// napi-derive exports nothing in a test build, which `clippy --all-targets` looks at.
#![cfg_attr(test, allow(dead_code))]

mod callback;
mod checkpoint;
mod convert;
mod load;
mod model;
mod probe;
mod session;
mod stats;
mod train;

use napi_derive::napi;

/// The version of this binary, equal to the package's.
#[napi]
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// What this binary is and what it found.
#[napi(object, object_from_js = false)]
pub struct NativeDiagnosis {
    /// `linux`, `macos`, `windows`.
    pub os: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// The vector instructions that the kernels use on this processor.
    pub simd: String,
    /// Why it is not a better one, if there is a reason that someone might change.
    pub notes: Vec<String>,
    /// Processors that the process may use.
    pub processors: u32,
    /// What `device` may be in this binary, besides `auto`.
    pub devices: Vec<&'static str>,
}

/// What this binary is and what it found on this machine.
#[napi(catch_unwind)]
pub fn diagnose() -> NativeDiagnosis {
    NativeDiagnosis {
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        simd: mamba::cpu::simd::Level::detect().name().into(),
        notes: mamba::cpu::simd::Level::notes(),
        processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        devices: if cfg!(feature = "cuda") { vec!["cpu", "cuda"] } else { vec!["cpu"] },
    }
}
