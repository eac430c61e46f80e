//! What is learned: the next token, or vectors and labels of whole texts.

mod examples;
mod language;
mod texts;
mod vectors;

pub use examples::{Example, Examples, Target};
pub use language::Language;
pub use texts::{HEAD, Texts};

/// What a look at held-out data gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// Mean loss.
    pub loss: f64,
    /// Part of the texts that got the right label; of a classifier.
    pub accuracy: Option<f64>,
}
