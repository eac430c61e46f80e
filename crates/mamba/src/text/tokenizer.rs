//! A checkpoint's `tokenizer.json`, read by the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::ModelWrapper;

use crate::error::{Error, Result};

/// Text to ids and back. Clones are cheap and share one vocabulary.
///
/// What would make ids depend on anything but the text is switched off on load: truncation, padding and BPE
/// dropout. A panic of the underlying crate (it has some on odd files) becomes `TOKENIZER_INVALID`.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: tokenizers::Tokenizer,
    origin: PathBuf,
    vocab_size: usize,
    max_id: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("origin", &self.shared.origin)
            .field("vocab_size", &self.shared.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`, `IO_ERROR`, `TOKENIZER_INVALID`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads the contents of a `tokenizer.json`; `origin` is where they are from, for messages.
    ///
    /// # Errors
    /// `TOKENIZER_INVALID`: not the format, or no token in it, or it cannot even encode an empty text.
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self> {
        guarded(origin, || {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_truncation(None)?.with_padding(None);
            if let ModelWrapper::BPE(bpe) = inner.get_model()
                && bpe.dropout.is_some()
            {
                let mut bpe = bpe.clone();
                bpe.dropout = None;
                inner.with_model(bpe);
            }
            let vocab = inner.get_vocab(true);
            // A post-processor's template states ids of its own: an empty text shows them all.
            let framing = inner.encode_fast("", true)?;
            let max_id = vocab.values().chain(framing.get_ids()).max().copied().ok_or("it has no tokens")?;
            let shared = Shared { vocab_size: vocab.len(), max_id, inner, origin: origin.to_path_buf() };
            Ok(Self { shared: Arc::new(shared) })
        })
    }

    /// The ids of a text. Special tokens written out in the text become their ids, and those that the file's
    /// own post-processor adds are added (GPT-NeoX's, which Mamba's official models use, adds none).
    ///
    /// # Errors
    /// `TOKENIZER_INVALID` where the file's rules cannot encode this text (no unknown token, say).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        guarded(&self.shared.origin, || Ok(self.shared.inner.encode_fast(text, true)?.get_ids().to_vec()))
    }

    /// The text of ids. Ids that the vocabulary does not have (a padded embedding has some) are left out, and
    /// special tokens too with `skip_special`. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `TOKENIZER_INVALID` where the file's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let empty =
            |id: &u32| if skip_special { self.is_silent(*id) } else { self.id_to_token(*id).is_none() };
        // Some decoders panic on nothing (`BPEDecoder`).
        if ids.iter().all(empty) {
            return Ok(String::new());
        }
        guarded(&self.shared.origin, || self.shared.inner.decode(ids, skip_special))
    }

    /// Number of tokens, added ones included. Not the largest id plus one where ids have gaps.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The largest id that encoding can give.
    #[must_use]
    pub fn max_id(&self) -> u32 {
        self.shared.max_id
    }

    /// The id of a token as the vocabulary spells it (`Ġthe` in a byte-level one).
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The token of an id as the vocabulary spells it.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// Checks that every id it can produce has a row in an embedding of `padded_vocab_size` rows.
    ///
    /// # Errors
    /// `TOKENIZER_MISMATCH`.
    pub fn check_fits(&self, padded_vocab_size: usize) -> Result<()> {
        if (self.max_id() as usize) < padded_vocab_size {
            return Ok(());
        }
        Err(Error::TokenizerMismatch { max_id: self.max_id(), vocab_size: padded_vocab_size })
    }

    /// Whether an id adds nothing to a text decoded without special tokens, whatever stands beside it.
    pub(super) fn is_silent(&self, id: u32) -> bool {
        match self.id_to_token(id) {
            None => true,
            Some(token) => self.shared.inner.get_added_vocabulary().is_special_token(&token),
        }
    }
}

/// Runs a call into the `tokenizers` crate; its errors and its panics become `TOKENIZER_INVALID`.
fn guarded<T>(origin: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            format!("the tokenizers crate panicked: {message}")
        }
    };
    Err(Error::TokenizerInvalid { path: origin.to_path_buf(), reason })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The reference model's tokenizer: byte-level BPE, 8192 tokens.
    pub(crate) fn novels() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mamba-novels-7m/tokenizer.json");
        Tokenizer::from_file(Path::new(path)).unwrap()
    }

    /// A tokenizer from JSON parts: the model, and any other top-level fields (each with a comma at its end).
    pub(crate) fn from_parts(model: &str, others: &str) -> Result<Tokenizer> {
        let json = format!(r#"{{"version":"1.0",{others}"model":{model}}}"#);
        Tokenizer::from_bytes(json.as_bytes(), Path::new("made-up.json"))
    }

    const WORDS: &str = r#"{"type":"WordLevel","vocab":{"a":0,"b":1,"[UNK]":2},"unk_token":"[UNK]"}"#;
    const BLANKS: &str = r#""pre_tokenizer":{"type":"WhitespaceSplit"},"#;

    fn invalid(result: Result<Tokenizer>) -> String {
        let error = result.expect_err("refused");
        assert_eq!(error.code(), "TOKENIZER_INVALID");
        error.to_string()
    }

    #[test]
    fn novels_ids_and_back() {
        let tokenizer = novels();
        assert_eq!((tokenizer.vocab_size(), tokenizer.max_id()), (8192, 8191));
        let text = "It was a dark and stormy night; 你好, naïve 🦀\n";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        assert!(tokenizer.encode("").unwrap().is_empty());
        assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(0));
        assert_eq!(tokenizer.id_to_token(0).as_deref(), Some("<|endoftext|>"));
        assert_eq!(tokenizer.id_to_token(8192), None);
        assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [0]);
        assert_eq!(tokenizer.decode(&[0], false).unwrap(), "<|endoftext|>");
        assert_eq!(tokenizer.decode(&[0, 9000], true).unwrap(), "");
    }

    #[test]
    fn a_model_too_small_is_named() {
        let tokenizer = novels();
        tokenizer.check_fits(8192).unwrap();
        let error = tokenizer.check_fits(8191).unwrap_err();
        assert_eq!(error.code(), "TOKENIZER_MISMATCH");
        assert!(error.to_string().contains("8191"), "{error}");
    }

    #[test]
    fn ids_of_added_tokens_and_templates_count() {
        let added = r#""added_tokens":[{"id":3,"content":"<x>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"#;
        assert_eq!(from_parts(WORDS, added).unwrap().max_id(), 3);
        let template = r#""post_processor":{"type":"BertProcessing","sep":["[SEP]",41],"cls":["[CLS]",40]},"#;
        let tokenizer = from_parts(WORDS, template).unwrap();
        assert_eq!(tokenizer.max_id(), 41);
        assert_eq!(tokenizer.encode("a").unwrap(), [40, 0, 41]);
    }

    #[test]
    fn padding_truncation_and_dropout_are_off() {
        let others = format!(
            r#"{BLANKS}"truncation":{{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}},
            "padding":{{"strategy":{{"Fixed":8}},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"a"}},"#
        );
        let tokenizer = from_parts(WORDS, &others).unwrap();
        assert_eq!(tokenizer.encode("b b b b c").unwrap(), [1, 1, 1, 1, 2]);

        let bpe = r#"{"type":"BPE","dropout":1.0,"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#;
        assert_eq!(from_parts(bpe, "").unwrap().encode("ab").unwrap(), [2]);
    }

    #[test]
    fn bad_files_are_refused() {
        let missing = Tokenizer::from_file(Path::new("no/such/tokenizer.json")).unwrap_err();
        assert_eq!(missing.code(), "FILE_NOT_FOUND");

        invalid(Tokenizer::from_bytes(b"", Path::new("x")));
        invalid(Tokenizer::from_bytes(b"\xff\xfe", Path::new("x")));
        invalid(Tokenizer::from_bytes(&b"[".repeat(1 << 20), Path::new("x")));
        invalid(from_parts(r#"{"type":"WordLevel","vocab":{},"unk_token":"[UNK]"}"#, ""));
        assert!(
            invalid(from_parts(r#"{"type":"BPE","vocab":{"a":0},"merges":[["a","z"]]}"#, "")).contains("z")
        );
        invalid(from_parts(WORDS, r#""version":"9.9","#));
        // Nested beyond what a parser may follow on the stack.
        let nested = format!(
            r#""normalizer":{}{}{},"#,
            r#"{"type":"Sequence","normalizers":["#.repeat(20_000),
            r#"{"type":"NFC"}"#,
            "]}".repeat(20_000)
        );
        invalid(from_parts(WORDS, &nested));
        let regex = format!(
            r#""pre_tokenizer":{{"type":"Split","pattern":{{"Regex":"{}"}},"behavior":"Isolated","invert":false}},"#,
            "(".repeat(20_000)
        );
        invalid(from_parts(WORDS, &regex));
    }

    #[test]
    fn a_damaged_file_never_panics() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mamba-novels-7m/tokenizer.json");
        let bytes = std::fs::read(path).unwrap();
        for end in [0, 1, 100, 700, 5_000, bytes.len() / 2, bytes.len() - 2] {
            invalid(Tokenizer::from_bytes(&bytes[..end], Path::new(path)));
        }
    }

    #[test]
    fn panics_of_the_crate_become_errors() {
        // `Strip` reaches before the beginning of a token shorter than what it strips.
        let tokenizer =
            from_parts(WORDS, r#""decoder":{"type":"Strip","content":"a","start":0,"stop":9},"#).unwrap();
        let error = tokenizer.decode(&[0], true).unwrap_err();
        assert_eq!(error.code(), "TOKENIZER_INVALID");
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn a_text_that_cannot_be_encoded_is_an_error() {
        let strict = r#"{"type":"WordLevel","vocab":{"a":0},"unk_token":"[UNK]"}"#;
        let tokenizer = from_parts(strict, "").unwrap();
        assert_eq!(tokenizer.encode("zebra").unwrap_err().code(), "TOKENIZER_INVALID");
    }

    #[test]
    fn long_runs_of_blanks_are_encoded_whole() {
        let tokenizer = novels();
        let text = format!("a{}b", " ".repeat(200_000));
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), true).unwrap(), text);
    }
}
