//! The operations that a Mamba model is made of. One folder each: `mod.rs` states the contract (shapes,
//! conventions), `reference.rs` is the plain definition in f64, `cpu.rs` the fast path; a device's kernels
//! stand beside them. Tests hold the fast path against the reference, and the reference against the official
//! implementation's numbers.
//!
//! Activations are laid out (token, channel), channel innermost. Sequences of a batch are packed by
//! `cu_seqlens`; each starts from its own state and writes its last one; no padding is ever computed.
//!
//! Where a value's bits could depend on how work is split, they do not: every sum runs in one order whatever
//! the number of rows, sequences or threads, so the same input gives the same bits in any batch.

pub mod adamw;
pub mod causal_conv1d;
pub mod cross_entropy;
pub mod embedding;
pub mod linear;
pub mod logprobs;
pub mod norm;
pub mod pool;
pub mod selective_scan;
