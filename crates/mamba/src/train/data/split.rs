//! What is trained on, and what is held out.

use super::TokenFile;
use crate::generate::philox::uniform;

/// A document or a part of one: tokens `start .. start + len` of a [`TokenFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first token.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// Divides the documents into those to train on and those held out, both in the file's order. `fraction` (0 … 1) of the
/// tokens, at least, is held out: whole documents, drawn by `seed`. A file of one document is cut instead: its end is
/// held out.
#[must_use]
pub fn split(file: &TokenFile, fraction: f64, seed: u64) -> (Vec<Span>, Vec<Span>) {
    let documents: Vec<Span> =
        file.starts().windows(2).map(|pair| Span { start: pair[0], len: pair[1] - pair[0] }).collect();
    let wanted = (file.tokens() as f64 * fraction).ceil() as u64;
    if wanted == 0 {
        return (documents, Vec::new());
    }
    if let [Span { start, len }] = documents[..] {
        let kept = len - wanted.min(len);
        return (vec![Span { start, len: kept }], vec![Span { start: start + kept, len: len - kept }]);
    }
    let mut held = vec![false; documents.len()];
    let mut tokens = 0;
    for i in permutation(documents.len(), seed ^ HELD_OUT) {
        if tokens >= wanted {
            break;
        }
        held[i as usize] = true;
        tokens += documents[i as usize].len;
    }
    let part = |which: bool| {
        let of = documents.iter().zip(&held).filter(|(_, held)| **held == which);
        of.map(|(span, _)| *span).collect()
    };
    (part(false), part(true))
}

/// Tells this use of the seed from others.
const HELD_OUT: u64 = 0x6865_6c64_006f_7574;

/// 0 … n − 1 in an order drawn by `seed` (Fisher and Yates).
pub(in crate::train) fn permutation(n: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        let j = (uniform(seed, i as u64) * (i + 1) as f64) as usize;
        order.swap(i, j.min(i));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::super::TokenWriter;
    use super::*;

    fn file(lengths: &[usize]) -> (tempfile::TempDir, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(&folder.path().join("t"), 10).unwrap();
        for len in lengths {
            writer.extend(&vec![1; *len]).unwrap();
            writer.end_document();
        }
        let file = writer.finish().unwrap();
        (folder, file)
    }

    #[test]
    fn whole_documents_are_held_out() {
        let (_folder, file) = file(&[10; 50]);
        let (train, held) = split(&file, 0.1, 3);
        assert_eq!((train.len(), held.len()), (45, 5));
        let mut all: Vec<u64> = train.iter().chain(&held).map(|span| span.start).collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).map(|i| 10 * i).collect::<Vec<u64>>());
        assert_eq!(split(&file, 0.1, 3), (train, held.clone()));
        assert_ne!(split(&file, 0.1, 4).1, held);
        assert_eq!(split(&file, 0.0, 3).1, []);
    }

    #[test]
    fn a_single_document_is_cut() {
        let (_folder, file) = file(&[1000]);
        let (train, held) = split(&file, 0.05, 1);
        assert_eq!(train, [Span { start: 0, len: 950 }]);
        assert_eq!(held, [Span { start: 950, len: 50 }]);
    }

    #[test]
    fn a_permutation_holds_each_once() {
        let mut order = permutation(1000, 7);
        assert_ne!(order, permutation(1000, 8));
        // About n places keep an index near its own only by chance: the mean displacement is n / 3.
        let moved: i64 = order.iter().enumerate().map(|(i, j)| (i as i64 - i64::from(*j)).abs()).sum();
        assert!((250_000..420_000).contains(&moved), "{moved}");
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<u32>>());
    }
}
