//! Text from token ids as they come.
//!
//! A token's text depends on its neighbours: characters spread over several tokens, and some decoders drop
//! the blank before the first token. So a short window of ids is decoded again for each new id, and what the
//! window's decoding has more than before is the new text (the prefix-and-read-offset technique).

use super::Tokenizer;
use crate::error::Result;

/// Ids that are kept as context when the window is cut.
const KEPT: usize = 8;
/// Window length at which it is cut.
const FULL: usize = 16;
/// A character has at most 4 bytes, hence at most so many tokens.
const CHARACTER: usize = 4;

/// Decodes a stream of ids without special tokens: the texts of all [`push`](Self::push)es and of
/// [`flush`](Self::flush), laid end to end, are [`Tokenizer::decode`] of all the ids.
///
/// One exception: the `ByteFallback` decoder (SentencePiece models) turns a whole run of byte tokens into
/// U+FFFD if any part of the run is no UTF-8, back to its beginning; here the run's valid characters, which
/// have been given out already, stay, and the number of U+FFFDs of such a run may differ.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The newest ids, at most `FULL + 2 * CHARACTER`.
    window: Vec<u32>,
    /// What of the window's text has been given out.
    given: String,
    /// How many ids the window had when its text last began with `given`.
    settled: usize,
}

impl Detokenizer {
    /// Goes on after `tail`: the last ids of a context (only the newest 16 matter), or another detokenizer's
    /// [`tail`](Self::tail), or nothing. Their text counts as given out, except for a character that is
    /// incomplete at their end.
    ///
    /// # Errors
    /// `TOKENIZER_INVALID` if the tokenizer's decoder fails.
    pub fn new(tokenizer: Tokenizer, mut tail: Vec<u32>) -> Result<Self> {
        tail.retain(|id| !tokenizer.is_silent(*id));
        let (window, text) = newest(&tokenizer, &tail, FULL)?;
        let given = text[..certain(&text)].to_owned();
        Ok(Self { tokenizer, settled: window.len(), window: window.to_vec(), given })
    }

    /// Takes the next id and returns the text that is certain now: never a part of a character, never a
    /// U+FFFD that a later token could complete. At most three U+FFFD are held back.
    ///
    /// # Errors
    /// `TOKENIZER_INVALID` if the tokenizer's decoder fails.
    pub fn push(&mut self, token: u32) -> Result<String> {
        // Ids without a text are left out, so that any number of them keeps the window's meaning.
        if self.tokenizer.is_silent(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let mut text = self.tokenizer.decode(&self.window, true)?;
        if !text.starts_with(&self.given) {
            // `ByteFallback` takes back a character while the next one is incomplete.
            let waiting = text.ends_with(char::REPLACEMENT_CHARACTER);
            if waiting && self.window.len() - self.settled < CHARACTER {
                return Ok(String::new());
            }
            self.window.drain(..self.settled);
            self.given.clear();
            text = self.tokenizer.decode(&self.window, true)?;
        }
        self.settled = self.window.len();
        let new = text.get(self.given.len()..certain(&text)).unwrap_or_default().to_owned();
        self.given.push_str(&new);
        if self.window.len() >= FULL {
            self.cut(&text)?;
        }
        Ok(new)
    }

    /// Gives out what is held back, an incomplete character as U+FFFD, and ends the text: what is pushed
    /// later begins another one.
    ///
    /// # Errors
    /// `TOKENIZER_INVALID` if the tokenizer's decoder fails.
    pub fn flush(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(self.tail(), true)?;
        let held = match text.strip_prefix(&self.given) {
            Some(held) if self.settled == self.window.len() => held.to_owned(),
            _ => text,
        };
        self.window.clear();
        self.given.clear();
        self.settled = 0;
        Ok(held)
    }

    /// The ids that a detokenizer needs to go on from here with the same text (at most 24): those whose text
    /// is held back, after a few as context.
    #[must_use]
    pub fn tail(&self) -> &[u32] {
        if self.settled == self.window.len() { &self.window } else { &self.window[self.settled..] }
    }

    /// Forgets the window's oldest ids; `text` is the window's.
    fn cut(&mut self, text: &str) -> Result<()> {
        let (kept, kept_text) = newest(&self.tokenizer, &self.window, KEPT)?;
        let held = text.get(self.given.len()..).unwrap_or_default();
        let (given, rest) = kept_text.split_at(certain(&kept_text));
        // The rest should be just what is held back. Where it is not (only noise does that), longer windows
        // get a chance first.
        if rest == held || self.window.len() >= FULL + CHARACTER {
            self.given = kept_text.strip_suffix(held).unwrap_or(given).to_owned();
            self.window = kept.to_vec();
            self.settled = self.window.len();
        }
        Ok(())
    }
}

/// The length of the text that later ids cannot change: all but the U+FFFDs at its end, of which an
/// incomplete character makes one (byte-level decoders) or up to three (`ByteFallback`).
fn certain(text: &str) -> usize {
    let held =
        text.chars().rev().take(CHARACTER - 1).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
    text.len() - held * char::REPLACEMENT_CHARACTER.len_utf8()
}

/// About `count` of the newest ids and their text, beginning between two characters where there is such a
/// place.
fn newest<'a>(tokenizer: &Tokenizer, ids: &'a [u32], count: usize) -> Result<(&'a [u32], String)> {
    let start = ids.len().saturating_sub(count);
    let mut text = tokenizer.decode(&ids[start..], true)?;
    let mut later = start;
    while start > 0 && later + 1 < ids.len().min(start + CHARACTER) && text.starts_with('\u{FFFD}') {
        later += 1;
        text = tokenizer.decode(&ids[later..], true)?;
    }
    if later > start && text.starts_with('\u{FFFD}') {
        return Ok((&ids[start..], tokenizer.decode(&ids[start..], true)?));
    }
    Ok((&ids[later..], text))
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{from_parts, novels};
    use super::*;

    const TEXTS: [&str; 8] = [
        "It was a dark and stormy night; the rain fell in torrents.\n\n  \"Well!\" said he -- and left.",
        "你好，世界。今天天气很好，我们去公园散步吧！日本語のテキストもある。한국어도 있습니다",
        "🦀🚀 family: 👨‍👩‍👧‍👦, flags: 🇩🇪🇯🇵, skin: 👍🏽, keycap: 1️⃣",
        "e\u{301}a\u{308}\u{323} Z\u{351}\u{36b}\u{343}\u{36a}A\u{310}L\u{321}G\u{334} नमस्ते ภาษาไทย עברית العربية",
        "naïve café — “quotes” … €100 ½ ℵ₀ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
        "a real \u{FFFD} and three \u{FFFD}\u{FFFD}\u{FFFD} and four \u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}",
        "",
        "\u{FFFD}",
    ];

    /// Pushes all ids; checks that no piece is or ends in what a later one could change.
    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), vec![]).unwrap();
        let mut pieces: Vec<String> = ids
            .iter()
            .map(|id| {
                let piece = detokenizer.push(*id).unwrap();
                assert!(detokenizer.tail().len() <= 24);
                piece
            })
            .collect();
        pieces.push(detokenizer.flush().unwrap());
        assert_eq!(detokenizer.flush().unwrap(), "");
        pieces
    }

    /// A pseudo-random sequence (an LCG; the high bits).
    fn noise(seed: u64, below: u32) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % u64::from(below)) as u32
        }
    }

    /// The ids of a text's bytes, one token a byte: every character is split.
    fn bytewise(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let single: Vec<u32> =
            (0..=255u8).map(|byte| tokenizer.token_to_id(&byte_level(byte).to_string()).unwrap()).collect();
        text.bytes().map(|byte| single[usize::from(byte)]).collect()
    }

    /// The character that byte-level BPE writes for a byte (GPT-2's `bytes_to_unicode`).
    fn byte_level(byte: u8) -> char {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        if printable(byte) {
            return char::from(byte);
        }
        let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
        char::from_u32(256 + before).unwrap()
    }

    #[test]
    fn pieces_make_the_text() {
        let tokenizer = novels();
        for text in TEXTS {
            for ids in [tokenizer.encode(text).unwrap(), bytewise(&tokenizer, text)] {
                assert_eq!(stream(&tokenizer, &ids).concat(), text);
            }
        }
    }

    #[test]
    fn no_half_character_and_nothing_held_without_need() {
        let tokenizer = novels();
        for text in &TEXTS[..5] {
            let ids = bytewise(&tokenizer, text);
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), vec![]).unwrap();
            let mut given = String::new();
            for (i, id) in ids.iter().enumerate() {
                given += &detokenizer.push(*id).unwrap();
                // What is certain after i + 1 bytes: all whole characters.
                let mut end = i + 1;
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                assert_eq!(given, text[..end]);
            }
        }
    }

    #[test]
    fn noise_decodes_like_the_whole() {
        let tokenizer = novels();
        for seed in 0..300 {
            // Few distinct ids out of the single bytes make long broken sequences; all ids make mixed text.
            let mut next = noise(seed, if seed % 2 == 0 { 260 } else { 8192 });
            let ids: Vec<u32> = (0..120).map(|_| next()).collect();
            assert_eq!(
                stream(&tokenizer, &ids).concat(),
                tokenizer.decode(&ids, true).unwrap(),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn a_broken_sequence_is_not_held_for_ever() {
        let tokenizer = novels();
        let stray = tokenizer.token_to_id(&byte_level(0x80).to_string()).unwrap();
        let mut detokenizer = Detokenizer::new(tokenizer, vec![]).unwrap();
        let given: String = (0..100).map(|_| detokenizer.push(stray).unwrap()).collect();
        assert_eq!(given.chars().count(), 97);
        assert_eq!(detokenizer.flush().unwrap(), "\u{FFFD}\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn goes_on_from_a_tail_at_every_place() {
        let tokenizer = novels();
        let mut sequences: Vec<Vec<u32>> = TEXTS.iter().map(|text| bytewise(&tokenizer, text)).collect();
        sequences.extend(TEXTS.iter().map(|text| tokenizer.encode(text).unwrap()));
        for seed in 0..20 {
            let mut next = noise(seed, if seed % 2 == 0 { 260 } else { 8192 });
            sequences.push((0..60).map(|_| next()).collect());
        }
        for ids in sequences {
            for cut in 0..=ids.len() {
                let mut first = Detokenizer::new(tokenizer.clone(), vec![]).unwrap();
                let text: String = ids[..cut].iter().map(|id| first.push(*id).unwrap()).collect();
                // Of its own tail, or of all ids so far, as a session keeps them.
                for tail in [first.tail(), &ids[..cut]] {
                    let mut second = Detokenizer::new(tokenizer.clone(), tail.to_vec()).unwrap();
                    let mut text = text.clone();
                    text.extend(ids[cut..].iter().map(|id| second.push(*id).unwrap()));
                    text += &second.flush().unwrap();
                    assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn special_and_unknown_ids_add_nothing_and_break_nothing() {
        let tokenizer = novels();
        let mut ids = Vec::new();
        for id in bytewise(&tokenizer, "a🦀b") {
            ids.extend([0, id, 9_999, 0, 0]);
        }
        assert_eq!(stream(&tokenizer, &ids).concat(), "a🦀b");
    }

    #[test]
    fn other_decoders() {
        let words = |decoder: &str| {
            let vocab = r###"{"▁a":0,"▁b":1,"c":2,"##d":3,"e</w>":4,",":5,"▁":6,"[UNK]":7}"###;
            let model = format!(r#"{{"type":"WordLevel","vocab":{vocab},"unk_token":"[UNK]"}}"#);
            from_parts(&model, decoder).unwrap()
        };
        let tokenizers = [
            words(""),
            words(
                r#""decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"#,
            ),
            words(r###""decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"###),
            words(r#""decoder":{"type":"BPEDecoder","suffix":"</w>"},"#),
            words(
                r#""decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"#,
            ),
        ];
        for (which, tokenizer) in tokenizers.iter().enumerate() {
            for seed in 0..50 {
                let mut next = noise(seed, 8);
                let ids: Vec<u32> = (0..60).map(|_| next()).collect();
                let pieces = stream(tokenizer, &ids);
                assert_eq!(
                    pieces.concat(),
                    tokenizer.decode(&ids, true).unwrap(),
                    "decoder {which}, seed {seed}"
                );
            }
        }
        // A context keeps the blank that a text's first token would lose.
        let mut fresh = Detokenizer::new(tokenizers[1].clone(), vec![]).unwrap();
        assert_eq!(fresh.push(0).unwrap(), "a");
        let mut going_on = Detokenizer::new(tokenizers[1].clone(), vec![1]).unwrap();
        assert_eq!(going_on.push(0).unwrap(), " a");
    }

    /// A SentencePiece-like tokenizer: ids 0 to 255 are bytes, 256 is `▁x`.
    fn byte_fallback() -> Tokenizer {
        let bytes: Vec<String> = (0..256).map(|byte| format!(r#""<0x{byte:02X}>":{byte}"#)).collect();
        let model = format!(
            r#"{{"type":"BPE","vocab":{{{},"▁x":256}},"merges":[],"byte_fallback":true}}"#,
            bytes.join(",")
        );
        from_parts(&model, r#""decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"#)
            .unwrap()
    }

    #[test]
    fn byte_fallback_gives_every_valid_text() {
        let tokenizer = byte_fallback();
        for text in &TEXTS[..5] {
            let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
            ids.extend([256, 256]);
            ids.extend(text.bytes().map(u32::from));
            assert_eq!(stream(&tokenizer, &ids).concat(), tokenizer.decode(&ids, true).unwrap());
            assert_eq!(stream(&tokenizer, &ids).concat(), format!("{text} x x{text}"));
            for cut in 0..=ids.len() {
                let mut first = Detokenizer::new(tokenizer.clone(), vec![]).unwrap();
                let mut text: String = ids[..cut].iter().map(|id| first.push(*id).unwrap()).collect();
                let mut second = Detokenizer::new(tokenizer.clone(), first.tail().to_vec()).unwrap();
                text.extend(ids[cut..].iter().map(|id| second.push(*id).unwrap()));
                assert_eq!(
                    text + &second.flush().unwrap(),
                    tokenizer.decode(&ids, true).unwrap(),
                    "cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn byte_fallback_recovers_from_broken_bytes() {
        let tokenizer = byte_fallback();
        let mut ids: Vec<u32> = "é🦀".bytes().map(u32::from).collect();
        ids.extend([0xE5, 0x8F]);
        ids.extend([256; 4]);
        let text = stream(&tokenizer, &ids).concat();
        assert!(text.starts_with("é🦀") && text.ends_with("\u{FFFD} x x x x"), "{text:?}");
        for seed in 0..50 {
            let mut next = noise(seed, 257);
            let ids: Vec<u32> = (0..100).map(|_| next()).chain([256; 8]).collect();
            assert!(stream(&tokenizer, &ids).concat().ends_with(" x x x x x x x x"));
        }
    }
}
