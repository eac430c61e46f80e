//! Text to token ids and back: the tokenizer, streaming decoding, stop strings.

mod detokenizer;
mod stop;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use stop::{StopMatcher, StopStep};
pub use tokenizer::Tokenizer;
