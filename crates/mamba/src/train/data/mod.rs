//! Training data: whatever it comes from, it is tokenized once into a [`TokenFile`], and read from there in
//! [`Batches`].

mod batches;
mod fasta;
mod sources;
mod split;
mod token_file;
mod tokenizer;
pub mod wav;

pub use batches::{Batches, Layout, Order, TokenBatch};
pub use fasta::FastaOptions;
pub use sources::{Format, Sources, prepare};
pub(super) use sources::{read_lines, token_ids};
pub(super) use split::permutation;
pub use split::{Span, split};
pub use token_file::{TokenFile, TokenWriter};
pub use tokenizer::{TokenizerKind, train_tokenizer};
