//! Rows of the embedding table [vocab, d_model] for a batch of token ids. The table is a
//! [`Linear`](super::linear) weight, since a tied head uses it as one.

pub mod cpu;
pub mod reference;
