//! Making a tokenizer from training data.

use std::path::Path;

use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, PreTokenizerWrapper, Tokenizer as Inner};

use crate::atomic_file::write_atomically;
use crate::error::{Error, Result};

/// The token that begins every document; id 0, as in the official models' tokenizers.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// What kind of tokenizer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Byte-level byte-pair encoding, as GPT-2's, with so many tokens.
    Bpe {
        /// Tokens in all, at least 257.
        vocab_size: usize,
    },
    /// Every character that the data hold is a token.
    Characters,
    /// Every byte is a token: 256 and the one that begins documents.
    Bytes,
}

/// Hands each text on to the function that it gets.
pub type Texts<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&str)) -> Result<()>;

/// Makes a tokenizer of the texts that `texts` hands on, and writes its `tokenizer.json`. The same texts give the same
/// file.
///
/// # Errors
/// What `texts` gives; `OPTION_INVALID` (`vocabSize`), `DATA_EMPTY`, `TOKENIZER_INVALID`, `DISK_FULL`, `IO_ERROR`.
pub fn train_tokenizer(kind: TokenizerKind, path: &Path, texts: Texts) -> Result<()> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::TokenizerInvalid {
        path: path.into(),
        reason: error.to_string(),
    };
    let special = [AddedToken::from(END_OF_TEXT, true)];
    let mut empty = true;
    let inner = match kind {
        TokenizerKind::Bpe { .. } | TokenizerKind::Bytes => {
            let vocab_size = match kind {
                TokenizerKind::Bpe { vocab_size } => vocab_size,
                _ => 257,
            };
            if !(257..=1 << 24).contains(&vocab_size) {
                return Err(Error::option("vocabSize", vocab_size, "257 (every byte and one) to 2^24"));
            }
            let mut inner = Inner::new(ModelWrapper::BPE(BPE::default()));
            let byte_level = ByteLevel::new(false, true, true);
            inner.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)));
            inner.with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)));
            let mut trainer = TrainerWrapper::BpeTrainer(
                BpeTrainer::builder()
                    .vocab_size(vocab_size)
                    .special_tokens(special.to_vec())
                    .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                    .show_progress(false)
                    .build(),
            );
            // The crate takes an iterator, which cannot fail; so it gets one of what a channel brings, and an error of
            // the texts is given after it.
            let (sender, receiver) = crossbeam_channel::bounded::<String>(4);
            std::thread::scope(|scope| {
                let training = scope.spawn(move || {
                    inner.train(&mut trainer, receiver.into_iter()).map(|_| ()).map(|()| inner)
                });
                let read = texts(&mut |text| {
                    empty = empty && text.is_empty();
                    if kind != TokenizerKind::Bytes {
                        // Nobody receives only after an error, which is given below.
                        let _ = sender.send(text.to_owned());
                    }
                });
                drop(sender);
                let trained = training.join().map_err(|panic| Error::panic(&*panic))?;
                read?;
                trained.map_err(failed)
            })?
        }
        TokenizerKind::Characters => {
            let mut characters = std::collections::BTreeSet::new();
            texts(&mut |text| {
                empty = empty && text.is_empty();
                characters.extend(text.chars());
            })?;
            const UNKNOWN: &str = "<unk>";
            let vocab = [END_OF_TEXT, UNKNOWN].map(str::to_owned).into_iter();
            let vocab: Vocab = vocab.chain(characters.into_iter().map(String::from)).zip(0..).collect();
            let model = BPE::builder()
                .vocab_and_merges(vocab, Vec::new())
                .unk_token(UNKNOWN.into())
                .build()
                .map_err(failed)?;
            let mut inner = Inner::new(ModelWrapper::BPE(model));
            inner.with_decoder(Some(DecoderWrapper::Fuse(Fuse::new())));
            inner.add_special_tokens(&[special[0].clone(), AddedToken::from(UNKNOWN, true)]);
            inner
        }
    };
    if empty {
        return Err(Error::DataEmpty { origin: "the texts".into(), expected: "some text".into() });
    }
    let json = inner.to_string(true).map_err(failed)?;
    write_atomically(path, |file| std::io::Write::write_all(file, json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;

    const TEXT: &str = "It was the best of times, it was the worst of times;\nnaïve 你好 🦀 <b>";

    fn made(kind: TokenizerKind, text: &str) -> Result<(Tokenizer, Vec<u8>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        train_tokenizer(kind, &path, &mut |take| {
            take(text);
            Ok(())
        })?;
        Ok((Tokenizer::from_file(&path)?, std::fs::read(&path).unwrap()))
    }

    #[test]
    fn text_comes_back_and_the_same_text_makes_the_same_file() {
        for (kind, vocab) in [
            (TokenizerKind::Bpe { vocab_size: 280 }, 280),
            (TokenizerKind::Characters, 2 + TEXT.chars().collect::<std::collections::BTreeSet<_>>().len()),
            (TokenizerKind::Bytes, 257),
        ] {
            let (tokenizer, file) = made(kind, TEXT).unwrap();
            assert_eq!(tokenizer.vocab_size(), vocab, "{kind:?}");
            assert_eq!(tokenizer.token_to_id(END_OF_TEXT), Some(0));
            let ids = tokenizer.encode(TEXT).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), TEXT, "{kind:?}");
            let length = match kind {
                TokenizerKind::Characters => TEXT.chars().count(),
                TokenizerKind::Bytes => TEXT.len(),
                TokenizerKind::Bpe { .. } => ids.len(),
            };
            assert_eq!(ids.len(), length, "{kind:?}");
            assert!(kind == TokenizerKind::Characters || ids.len() <= TEXT.len());
            assert_eq!(made(kind, TEXT).unwrap().1, file);
        }
    }

    #[test]
    fn merges_are_learnt() {
        let text = "abracadabra abracadabra abracadabra";
        let (tokenizer, _) = made(TokenizerKind::Bpe { vocab_size: 270 }, text).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap().len(), 3);
    }

    #[test]
    fn a_character_that_was_not_there_is_unknown() {
        let (tokenizer, _) = made(TokenizerKind::Characters, "ACGT").unwrap();
        assert_eq!(tokenizer.encode("AXG").unwrap(), [2, 1, 4]);
    }

    #[test]
    fn nothing_and_too_few_tokens_are_refused() {
        for kind in [TokenizerKind::Characters, TokenizerKind::Bpe { vocab_size: 300 }] {
            assert_eq!(made(kind, "").err().unwrap().code(), "DATA_EMPTY");
        }
        let error = made(TokenizerKind::Bpe { vocab_size: 256 }, "a").err().unwrap();
        assert_eq!(error.code(), "OPTION_INVALID");
        // An error of the texts goes through.
        let folder = tempfile::tempdir().unwrap();
        let error =
            train_tokenizer(TokenizerKind::Bytes, &folder.path().join("t"), &mut |_| Err(Error::Aborted));
        assert_eq!(error.unwrap_err().code(), "ABORTED");
    }
}
