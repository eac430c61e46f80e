//! Where training data come from, and how they become one token file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::token_file::TokenWriter;
use super::{FastaOptions, TokenFile, fasta, wav};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What training data are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// UTF-8, a document a file.
    Text,
    /// A document a line: an object whose `field` holds its text, or its token ids.
    Jsonl,
    /// Nucleotides or amino acids, a document a sequence, a token a letter.
    Fasta,
    /// Token ids as little-endian integers of 16 bits, a document a file.
    Tokens16,
    /// The same with 32 bits.
    Tokens32,
    /// Sound, a document a file, mu-law samples of 8 bits.
    Wav,
}

impl Format {
    /// By a file's name.
    ///
    /// # Errors
    /// `OPTION_INVALID` where it says nothing.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match &*extension {
            "txt" | "text" | "md" => Ok(Self::Text),
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "fa" | "fasta" | "fna" | "faa" | "ffn" => Ok(Self::Fasta),
            "wav" | "wave" => Ok(Self::Wav),
            _ => Err(Error::option(
                "data.format",
                format!("missing, and `{}` does not say", path.display()),
                "`text`, `jsonl`, `fasta`, `tokens16`, `tokens32` or `wav`",
            )),
        }
    }

    /// Whether its tokens are a tokenizer's.
    #[must_use]
    pub fn has_text(self) -> bool {
        matches!(self, Self::Text | Self::Jsonl | Self::Fasta)
    }
}

/// Files of training data.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sources {
    /// In this order.
    pub files: Vec<PathBuf>,
    /// `None`: by each file's name.
    #[serde(default)]
    pub format: Option<Format>,
    /// Where JSON lines have their text. Default: `text`.
    #[serde(default)]
    pub field: Option<String>,
    /// Of FASTA files.
    #[serde(default)]
    pub fasta: FastaOptions,
}

/// Texts that are encoded at a time; longer ones in pieces of about this size.
const PIECE: usize = 4 << 20;

impl Sources {
    /// Each file with its format.
    ///
    /// # Errors
    /// `DATA_EMPTY` (no file), `OPTION_INVALID`.
    pub fn formats(&self) -> Result<Vec<(&Path, Format)>> {
        if self.files.is_empty() {
            return Err(Error::DataEmpty {
                origin: "`data.files`".into(),
                expected: "at least one file".into(),
            });
        }
        self.files
            .iter()
            .map(|path| Ok((path.as_path(), self.format.map_or_else(|| Format::of(path), Ok)?)))
            .collect()
    }

    fn field(&self) -> &str {
        self.field.as_deref().unwrap_or("text")
    }

    /// Hands on all texts, long ones in pieces; for making a tokenizer. `fields`: where examples have theirs, which are
    /// looked at more closely when they are read.
    ///
    /// # Errors
    /// What reading gives.
    pub fn texts(&self, fields: Option<&[&str]>, take: &mut dyn FnMut(&str)) -> Result<()> {
        for (path, format) in self.formats()? {
            match format {
                Format::Text => read_text(path, &mut |text| {
                    take(text);
                    Ok(())
                })?,
                Format::Jsonl => read_lines(path, &mut |line, number| {
                    match fields {
                        Some(fields) => {
                            let value = json(path, number, line)?;
                            fields.iter().for_each(|field| strings(&value[field], take));
                        }
                        None => {
                            if let Document::Text(text) = document(path, number, line, self.field())? {
                                take(&text);
                            }
                        }
                    }
                    Ok(())
                })?,
                Format::Fasta => fasta::read(path, self.fasta, &mut |letters| {
                    take(&String::from_utf8_lossy(letters));
                    Ok(())
                })?,
                Format::Tokens16 | Format::Tokens32 | Format::Wav => {}
            }
        }
        Ok(())
    }
}

/// Tokenizes all of it once, into a token file at `path`. Every document begins with `begin`, where there is one.
/// `progress` gets the tokens written so far, and may end it with an error.
///
/// # Errors
/// `DATA_EMPTY`, `DATA_INVALID`, `FILE_NOT_FOUND`, `TOKENIZER_MISSING`, `TOKENIZER_INVALID`, `TOKEN_OUT_OF_RANGE`,
/// `OPTION_INVALID`, `DISK_FULL`, `IO_ERROR`, and what `progress` gives.
pub fn prepare(
    sources: &Sources,
    tokenizer: Option<&Tokenizer>,
    begin: Option<u32>,
    vocab_size: usize,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<TokenFile> {
    let mut writer = TokenWriter::create(path, vocab_size)?;
    for (file, format) in sources.formats()? {
        let start = |writer: &mut TokenWriter| match begin {
            Some(id) => writer.extend(&[id]),
            None => Ok(()),
        };
        match format {
            Format::Text => {
                let tokenizer = tokenizer.ok_or(Error::TokenizerMissing)?;
                let mut first = true;
                read_text(file, &mut |text| {
                    if std::mem::take(&mut first) {
                        start(&mut writer)?;
                    }
                    writer.extend(&tokenizer.encode(text)?)?;
                    progress(writer.tokens())
                })?;
                writer.end_document();
            }
            Format::Jsonl => {
                let mut batch = Vec::new();
                let mut flush = |batch: &mut Vec<Document>| {
                    for ids in encode_all(tokenizer, std::mem::take(batch))? {
                        if !ids.is_empty() {
                            start(&mut writer)?;
                            writer.extend(&ids)?;
                            writer.end_document();
                        }
                    }
                    progress(writer.tokens())
                };
                let mut bytes = 0;
                read_lines(file, &mut |line, number| {
                    batch.push(document(file, number, line, sources.field())?);
                    bytes += line.len();
                    if bytes > PIECE {
                        bytes = 0;
                        flush(&mut batch)?;
                    }
                    Ok(())
                })?;
                flush(&mut batch)?;
            }
            Format::Fasta => {
                let tokenizer = tokenizer.ok_or(Error::TokenizerMissing)?;
                let ids: Vec<Option<u32>> = (0..=127u8)
                    .map(|letter| tokenizer.token_to_id(char::from(letter).encode_utf8(&mut [0; 4])))
                    .collect();
                fasta::read(file, sources.fasta, &mut |letters| {
                    start(&mut writer)?;
                    for piece in letters.chunks(1 << 16) {
                        let ids = piece.iter().map(|letter| ids[usize::from(*letter)].ok_or(*letter));
                        let ids =
                            ids.collect::<Result<Vec<u32>, u8>>().map_err(|letter| Error::DataInvalid {
                                path: file.into(),
                                reason: format!("`{}` is no token of the tokenizer", char::from(letter)),
                            })?;
                        writer.extend(&ids)?;
                    }
                    writer.end_document();
                    progress(writer.tokens())
                })?;
            }
            Format::Tokens16 | Format::Tokens32 => {
                start(&mut writer)?;
                read_ids(file, if format == Format::Tokens16 { 2 } else { 4 }, &mut |ids| {
                    writer.extend(ids)?;
                    progress(writer.tokens())
                })?;
                writer.end_document();
            }
            Format::Wav => {
                wav::read(file, &mut |ids| {
                    writer.extend(ids)?;
                    progress(writer.tokens())
                })?;
                writer.end_document();
            }
        }
    }
    writer.finish()
}

/// A line of JSON lines.
enum Document {
    Text(String),
    Ids(Vec<u32>),
}

fn json(path: &Path, line: usize, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::DataInvalid {
        path: path.into(),
        reason: format!("line {line}: not JSON ({error})"),
    })
}

/// Hands on a text, or all of a list.
fn strings(value: &Value, take: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => take(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, take)),
        _ => {}
    }
}

fn document(path: &Path, line: usize, text: &str, field: &str) -> Result<Document> {
    let invalid =
        |reason: String| Error::DataInvalid { path: path.into(), reason: format!("line {line}: {reason}") };
    match &json(path, line, text)?[field] {
        Value::String(text) => Ok(Document::Text(text.clone())),
        Value::Array(ids) => token_ids(ids, field).map(Document::Ids).map_err(invalid),
        _ => Err(invalid(format!("no `{field}` that is a text or a list of token ids"))),
    }
}

/// Token ids of a field; the error is what is wrong with it.
pub(crate) fn token_ids(values: &[Value], field: &str) -> std::result::Result<Vec<u32>, String> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("`{field}` holds {value}, expected token ids"))
    };
    values.iter().map(id).collect()
}

/// Encodes on all processors; the ids are in the order of the documents.
fn encode_all(tokenizer: Option<&Tokenizer>, documents: Vec<Document>) -> Result<Vec<Vec<u32>>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(documents.len().max(1));
    let piece = documents.len().div_ceil(workers).max(1);
    let encode = |documents: &[Document]| -> Result<Vec<Vec<u32>>> {
        documents
            .iter()
            .map(|document| match document {
                Document::Text(text) => tokenizer.ok_or(Error::TokenizerMissing)?.encode(text),
                Document::Ids(ids) => Ok(ids.clone()),
            })
            .collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = documents.chunks(piece).map(|part| scope.spawn(move || encode(part))).collect();
        let mut all = Vec::with_capacity(documents.len());
        for part in parts {
            all.extend(part.join().map_err(|panic| Error::panic(&*panic))??);
        }
        Ok(all)
    })
}

/// A file's text; one that is very long in pieces, cut at single line ends between letters, where no tokenizer of the
/// usual kinds joins what is on both sides.
fn read_text(path: &Path, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let io = |source| Error::io("read", path, source);
    let mut file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    let text = String::from_utf8(bytes).map_err(|error| Error::DataInvalid {
        path: path.into(),
        reason: format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
    })?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(&text);
    while rest.len() > PIECE {
        let bytes = rest.as_bytes();
        let cut = (PIECE..rest.len() - 1).find(|at| {
            bytes[*at] == b'\n'
                && bytes[at - 1].is_ascii_alphanumeric()
                && bytes[at + 1].is_ascii_alphanumeric()
        });
        let Some(cut) = cut else { break };
        let (now, later) = rest.split_at(cut + 1);
        take(now)?;
        rest = later;
    }
    if rest.is_empty() { Ok(()) } else { take(rest) }
}

/// Lines that are not blank, with their numbers from 1.
pub(in crate::train) fn read_lines(
    path: &Path,
    take: &mut dyn FnMut(&str, usize) -> Result<()>,
) -> Result<()> {
    let io = |source| Error::io("read", path, source);
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
    let (mut line, mut number) = (Vec::new(), 0);
    while file.read_until(b'\n', &mut line).map_err(io)? > 0 {
        number += 1;
        let text = std::str::from_utf8(&line).map_err(|_| Error::DataInvalid {
            path: path.into(),
            reason: format!("line {number}: not UTF-8"),
        })?;
        let text = text.trim();
        if !text.is_empty() {
            take(text, number)?;
        }
        line.clear();
    }
    Ok(())
}

fn read_ids(path: &Path, width: usize, take: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
    let io = |source| Error::io("read", path, source);
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    if !len.is_multiple_of(width as u64) {
        let reason = format!("{len} bytes are no whole number of tokens of {width} bytes");
        return Err(Error::DataInvalid { path: path.into(), reason });
    }
    let mut file = BufReader::new(file);
    let mut bytes = Vec::with_capacity(1 << 20);
    loop {
        bytes.clear();
        file.by_ref().take(1 << 20).read_to_end(&mut bytes).map_err(io)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let ids: Vec<u32> = match width {
            2 => bytes.as_chunks::<2>().0.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        };
        take(&ids)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TokenizerKind, train_tokenizer};
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }

        fn tokenizer(&self, text: &str) -> Tokenizer {
            let path = self.0.path().join("tokenizer.json");
            train_tokenizer(TokenizerKind::Characters, &path, &mut |take| {
                take(text);
                Ok(())
            })
            .unwrap();
            Tokenizer::from_file(&path).unwrap()
        }

        fn prepare(&self, files: &[PathBuf], tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<u32>>> {
            let sources =
                Sources { files: files.to_vec(), format: None, field: None, fasta: FastaOptions::default() };
            let begin = tokenizer.map(|_| 0);
            let vocab = tokenizer.map_or(256, Tokenizer::vocab_size);
            let path = self.0.path().join("data.tokens");
            let file = prepare(&sources, tokenizer, begin, vocab, &path, &mut |_| Ok(()))?;
            file.starts()
                .windows(2)
                .map(|pair| {
                    let mut ids = vec![0; (pair[1] - pair[0]) as usize];
                    file.read(pair[0], &mut ids)?;
                    Ok(ids)
                })
                .collect()
        }
    }

    #[test]
    fn texts_lines_and_sequences_become_documents() {
        let folder = Folder::new();
        let tokenizer = folder.tokenizer("ACGTN");
        let files = [
            folder.file("a.txt", "\u{feff}GATTACA"),
            folder.file("b.jsonl", "{\"text\":\"CC\"}\n\n{\"text\":[3,4]}\r\n{\"text\":\"\"}\n"),
            folder.file("c.fa", ">x\nac\ngt\n>y\nNN\n"),
        ];
        let a = |letter: char| tokenizer.token_to_id(&letter.to_string()).unwrap();
        let ids = |text: &str| -> Vec<u32> { std::iter::once(0).chain(text.chars().map(a)).collect() };
        let expected = vec![ids("GATTACA"), ids("CC"), vec![0, 3, 4], ids("ACGT"), ids("NN")];
        assert_eq!(folder.prepare(&files, Some(&tokenizer)).unwrap(), expected);
    }

    #[test]
    fn raw_ids_are_taken_as_they_are() {
        let folder = Folder::new();
        let bytes: Vec<u8> = [1u16, 2, 255].iter().flat_map(|id| id.to_le_bytes()).collect();
        let path = folder.file("ids.bin", &bytes);
        let mut sources = Sources {
            files: vec![path],
            format: Some(Format::Tokens16),
            field: None,
            fasta: FastaOptions::default(),
        };
        let out = folder.0.path().join("t");
        let prepare = |sources: &Sources, vocab| prepare(sources, None, None, vocab, &out, &mut |_| Ok(()));
        assert_eq!(prepare(&sources, 256).unwrap().tokens(), 3);
        // Out of the vocabulary, and no whole number.
        let error = prepare(&sources, 255).unwrap_err();
        assert_eq!(error.code(), "TOKEN_OUT_OF_RANGE");
        assert!(error.to_string().contains("255 at position 2"), "{error}");
        sources.format = Some(Format::Tokens32);
        assert_eq!(prepare(&sources, 256).unwrap_err().code(), "DATA_INVALID");
    }

    #[test]
    fn a_long_text_is_cut_where_its_tokens_are() {
        let folder = Folder::new();
        let novels = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mamba-novels-7m/tokenizer.json");
        let tokenizer = Tokenizer::from_file(Path::new(novels)).unwrap();
        let text =
            "It was a dark night,\nand the rain fell\nin torrents\n\nexcept at\nintervals. ".repeat(70_000);
        assert!(text.len() > PIECE);
        let path = folder.file("a.txt", &text);
        let mut pieces = Vec::new();
        read_text(&path, &mut |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        })
        .unwrap();
        assert!(pieces.len() > 1);
        let mut whole = vec![0];
        whole.extend(tokenizer.encode(&text).unwrap());
        assert_eq!(folder.prepare(&[path], Some(&tokenizer)).unwrap(), [whole]);
    }

    #[test]
    fn bad_sources_are_named() {
        let folder = Folder::new();
        let tokenizer = folder.tokenizer("abc");
        for (name, bytes, code, what) in [
            ("x.txt", &b"a\xff"[..], "DATA_INVALID", "byte 1"),
            ("x.txt", b"", "DATA_EMPTY", "no training data"),
            ("x.jsonl", b"{\"text\":\"a\"}\n{\"txt\":\"b\"}\n", "DATA_INVALID", "line 2: no `text`"),
            ("x.jsonl", b"{\"text\":\"a\"}\n{", "DATA_INVALID", "line 2: not JSON"),
            ("x.jsonl", b"{\"text\":[1,-1]}", "DATA_INVALID", "`text` holds -1"),
            ("x.jsonl", b"{\"text\":[1,900]}", "TOKEN_OUT_OF_RANGE", "900"),
            ("x.fa", b">a\nACZ\n", "DATA_INVALID", "`A` is no token"),
            ("x.dat", b"a", "OPTION_INVALID", "x.dat"),
            ("x.wav", b"RIFF", "DATA_INVALID", "x.wav"),
        ] {
            let error = folder.prepare(&[folder.file(name, bytes)], Some(&tokenizer)).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
        assert_eq!(folder.prepare(&[], None).unwrap_err().code(), "DATA_EMPTY");
        let missing = folder.prepare(&[folder.0.path().join("none.txt")], Some(&tokenizer)).unwrap_err();
        assert_eq!(missing.code(), "FILE_NOT_FOUND");
        let text = folder.file("x.txt", "abc");
        assert_eq!(folder.prepare(&[text], None).unwrap_err().code(), "TOKENIZER_MISSING");
    }
}
