//! Sequences of nucleotides or amino acids: FASTA, one letter a token.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::error::{Error, Result};

/// What is done with the letters of a FASTA file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FastaOptions {
    /// Tell `acgt` (as repeats are often masked) from `ACGT`; otherwise all letters are made upper case.
    pub keep_case: bool,
    /// End a sequence at a run of N and begin another after it; otherwise N is a letter like others.
    pub split_at_n: bool,
    /// After each sequence give its reverse complement, too.
    pub reverse_complement: bool,
}

/// Reads a file and hands on each of its sequences, in order.
///
/// # Errors
/// `FILE_NOT_FOUND`, `IO_ERROR`, `DATA_INVALID` naming the line, and what `take` gives.
pub fn read(path: &Path, options: FastaOptions, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let io = |source| Error::io("read", path, source);
    let invalid = |line: usize, reason: String| Error::DataInvalid {
        path: path.into(),
        reason: format!("line {line}: {reason}"),
    };
    let mut finish = |sequence: &mut Vec<u8>, line: usize| -> Result<()> {
        if !sequence.is_empty() {
            take(sequence)?;
            if options.reverse_complement {
                sequence.reverse();
                for letter in sequence.iter_mut() {
                    *letter = complement(*letter).ok_or_else(|| {
                        let reason = format!(
                            "the sequence before it holds `{}`, which has no complement",
                            char::from(*letter)
                        );
                        invalid(line, reason)
                    })?;
                }
                take(sequence)?;
            }
        }
        sequence.clear();
        Ok(())
    };
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
    let (mut line, mut sequence, mut number, mut begun) = (Vec::new(), Vec::new(), 0, false);
    while file.read_until(b'\n', &mut line).map_err(io)? > 0 {
        number += 1;
        match line.first() {
            Some(b'>') => {
                finish(&mut sequence, number)?;
                begun = true;
            }
            // A comment, in old files.
            Some(b';') => {}
            _ => {
                for letter in line.iter().filter(|letter| !letter.is_ascii_whitespace()) {
                    if !begun {
                        return Err(invalid(number, "a sequence before the first `>` line".into()));
                    }
                    if !letter.is_ascii_alphabetic() && ![b'*', b'-'].contains(letter) {
                        let shown = letter.escape_ascii();
                        return Err(invalid(number, format!("`{shown}`, expected letters")));
                    }
                    if options.split_at_n && letter.eq_ignore_ascii_case(&b'N') {
                        finish(&mut sequence, number)?;
                    } else {
                        let upper = letter.to_ascii_uppercase();
                        sequence.push(if options.keep_case { *letter } else { upper });
                    }
                }
            }
        }
        line.clear();
    }
    finish(&mut sequence, number + 1)
}

/// IUPAC's codes, both cases; T for A in RNA, too, is U's business.
fn complement(letter: u8) -> Option<u8> {
    const FROM: &[u8] = b"ACGTURYSWKMBDHVNacgturyswkmbdhvn*-";
    const TO: &[u8] = b"TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn*-";
    FROM.iter().position(|from| *from == letter).map(|at| TO[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(text: &str, options: FastaOptions) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.fa");
        std::fs::write(&path, text).unwrap();
        let mut all = Vec::new();
        read(&path, options, &mut |sequence| {
            all.push(String::from_utf8(sequence.to_vec()).unwrap());
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn case_n_and_reverse_complement() {
        let text = ">one\r\nACGT\r\nacgN\r\n>none\n\n>two x\nNNGRnT-\n";
        let all = |options| sequences(text, options).unwrap();
        let plain = FastaOptions::default();
        assert_eq!(all(plain), ["ACGTACGN", "NNGRNT-"]);
        assert_eq!(all(FastaOptions { keep_case: true, ..plain }), ["ACGTacgN", "NNGRnT-"]);
        assert_eq!(all(FastaOptions { split_at_n: true, ..plain }), ["ACGTACG", "GR", "T-"]);
        assert_eq!(
            all(FastaOptions { reverse_complement: true, ..plain }),
            ["ACGTACGN", "NCGTACGT", "NNGRNT-", "-ANYCNN"]
        );
    }

    #[test]
    fn complements_are_their_own_inverse() {
        for letter in (0..=127u8).filter(|letter| ![b'U', b'u'].contains(letter)) {
            if let Some(other) = complement(letter) {
                assert_eq!(complement(other), Some(letter));
            }
        }
        assert_eq!(complement(b'U'), Some(b'A'));
    }

    #[test]
    fn bad_files_name_the_line() {
        for (text, what) in
            [("ACGT\n", "line 1"), (">a\nAC\nA1\n", "line 3: `1`"), (">a\nAC\u{e4}\n", "line 2")]
        {
            let error = sequences(text, FastaOptions::default()).unwrap_err();
            assert_eq!(error.code(), "DATA_INVALID");
            assert!(error.to_string().contains(what), "{error}");
        }
        let both = FastaOptions { reverse_complement: true, ..FastaOptions::default() };
        let error = sequences(">p\nMKLE\n>q\n", both).unwrap_err();
        assert!(error.to_string().contains("no complement"), "{error}");
    }
}
