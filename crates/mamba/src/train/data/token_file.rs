//! Tokens on disk, with an index of the documents. Little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `node-mamba-toks1` |
//! | 8 | vocabulary: every id is below it |
//! | 8 | bytes of a token: 2 (vocabularies up to 65,536) or 4 |
//! | … | the tokens, then zeros up to a multiple of 8 |
//! | 8 · (documents + 1) | where each document begins, in tokens; at last their number |
//! | 8 | number of tokens |
//! | 8 | number of documents |
//! | 32 | SHA-256 of all bytes before it |
//!
//! Read by pread, never mapped: a file that is cut short under a run is an error, not the end of the process.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::atomic_file::AtomicFile;
use crate::checkpoint::read_exact_at;
use crate::error::{Error, Result};

const MAGIC: &[u8; 16] = b"node-mamba-toks1";
const HEADER: u64 = 32;
const FOOTER: u64 = 48;

/// Writes a [`TokenFile`]; it is there, whole, after [`TokenWriter::finish`], and not before.
pub struct TokenWriter {
    file: AtomicFile,
    hash: Sha256,
    vocab_size: u64,
    width: usize,
    tokens: u64,
    starts: Vec<u64>,
}

impl TokenWriter {
    /// Begins a file of ids below `vocab_size`.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND` (the folder), `DISK_FULL`, `IO_ERROR`.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        let width = if vocab_size <= 1 << 16 { 2 } else { 4 };
        let mut writer = Self {
            file: AtomicFile::create(path)?,
            hash: Sha256::new(),
            vocab_size: vocab_size as u64,
            width,
            tokens: 0,
            starts: vec![0],
        };
        writer.bytes(MAGIC)?;
        writer.bytes(&(vocab_size as u64).to_le_bytes())?;
        writer.bytes(&(width as u64).to_le_bytes())?;
        Ok(writer)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|source| Error::io("write", self.file.path(), source))
    }

    /// Adds tokens to the document that is being written.
    ///
    /// # Errors
    /// `TOKEN_OUT_OF_RANGE`, `DISK_FULL`, `IO_ERROR`.
    pub fn extend(&mut self, ids: &[u32]) -> Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.width);
        for (i, id) in ids.iter().enumerate() {
            if u64::from(*id) >= self.vocab_size {
                let position = (self.tokens + i as u64) as usize;
                let vocab_size = self.vocab_size as usize;
                return Err(Error::TokenOutOfRange { id: i64::from(*id), position, vocab_size });
            }
            bytes.extend_from_slice(&id.to_le_bytes()[..self.width]);
        }
        self.tokens += ids.len() as u64;
        self.bytes(&bytes)
    }

    /// Ends the document that is being written; an empty one leaves no trace.
    pub fn end_document(&mut self) {
        if self.starts.last() != Some(&self.tokens) {
            self.starts.push(self.tokens);
        }
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Puts the file at its place and opens it.
    ///
    /// # Errors
    /// `DATA_EMPTY` where nothing was written; `DISK_FULL`, `IO_ERROR`.
    pub fn finish(mut self) -> Result<TokenFile> {
        self.end_document();
        if self.tokens == 0 {
            let origin = self.file.path().display().to_string();
            return Err(Error::DataEmpty { origin, expected: "at least one token".into() });
        }
        let padding =
            (self.tokens as usize * self.width).next_multiple_of(8) - self.tokens as usize * self.width;
        self.bytes(&[0; 8][..padding])?;
        let mut index = Vec::with_capacity(8 * self.starts.len() + 16);
        for start in &self.starts {
            index.extend_from_slice(&start.to_le_bytes());
        }
        index.extend_from_slice(&self.tokens.to_le_bytes());
        index.extend_from_slice(&(self.starts.len() as u64 - 1).to_le_bytes());
        self.bytes(&index)?;
        let hash = self.hash.clone().finalize();
        self.file.write_all(&hash).map_err(|source| Error::io("write", self.file.path(), source))?;
        let path = self.file.path().to_path_buf();
        self.file.commit()?;
        TokenFile::open(&path)
    }
}

/// An open file of tokens.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: File,
    vocab_size: usize,
    width: usize,
    tokens: u64,
    starts: Vec<u64>,
}

impl TokenFile {
    /// Opens a file that [`TokenWriter`] wrote. Its size and its index are checked; [`TokenFile::verify`] looks at
    /// the rest.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`, `IO_ERROR`, `DATA_INVALID`.
    pub fn open(path: &Path) -> Result<Self> {
        let invalid = |reason: String| Error::DataInvalid { path: path.into(), reason };
        let io = |source| Error::io("read", path, source);
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let short = || invalid(format!("{len} bytes are no token file, or one that was cut short"));
        if len < HEADER + FOOTER {
            return Err(short());
        }
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let mut header = [0; HEADER as usize];
        read_exact_at(&file, 0, &mut header).map_err(io)?;
        if &header[..16] != MAGIC {
            let found = String::from_utf8_lossy(&header[..16]).into_owned();
            return Err(invalid(format!("it begins with {found:?}, expected {:?}", "node-mamba-toks1")));
        }
        let (vocab_size, width) = (word(&header[16..24]), word(&header[24..32]));
        if ![2, 4].contains(&width) || vocab_size == 0 || vocab_size > 1 << 32 {
            return Err(invalid(format!("its header says {width} bytes a token of {vocab_size} ids")));
        }
        let mut footer = [0; 16];
        read_exact_at(&file, len - FOOTER, &mut footer).map_err(io)?;
        let (tokens, documents) = (word(&footer[..8]), word(&footer[8..]));
        // All that a count may be is checked before anything is allocated by it.
        let fits = tokens <= len
            && documents <= len / 8
            && HEADER + (tokens * width).next_multiple_of(8) + 8 * (documents + 1) + FOOTER == len;
        if !fits {
            return Err(short());
        }
        let mut index = vec![0; 8 * (documents as usize + 1)];
        read_exact_at(&file, len - FOOTER - index.len() as u64, &mut index).map_err(io)?;
        let starts: Vec<u64> =
            index.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        if starts[0] != 0
            || starts.last() != Some(&tokens)
            || starts.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return Err(invalid("its index of documents is damaged".into()));
        }
        let path = path.to_path_buf();
        Ok(Self { path, file, vocab_size: vocab_size as usize, width: width as usize, tokens, starts })
    }

    /// Reads all of it and compares the checksum.
    ///
    /// # Errors
    /// `DATA_INVALID`, `IO_ERROR`.
    pub fn verify(&self) -> Result<()> {
        let mut left = self.data_end() + 8 * self.starts.len() as u64 + 16;
        let (mut at, mut hash, mut buffer) = (0, Sha256::new(), vec![0; 1 << 20]);
        while left > 0 {
            let piece = &mut buffer[..left.min(1 << 20) as usize];
            self.pread(at, piece)?;
            hash.update(&*piece);
            (at, left) = (at + piece.len() as u64, left - piece.len() as u64);
        }
        let mut stored = [0; 32];
        self.pread(at, &mut stored)?;
        if hash.finalize()[..] == stored {
            Ok(())
        } else {
            Err(self.invalid("its checksum is wrong: it is damaged".into()))
        }
    }

    fn data_end(&self) -> u64 {
        HEADER + (self.tokens * self.width as u64).next_multiple_of(8)
    }

    fn invalid(&self, reason: String) -> Error {
        Error::DataInvalid { path: self.path.clone(), reason }
    }

    fn pread(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, at, bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                self.invalid(format!("cut short: no {} bytes at byte {at}", bytes.len()))
            }
            _ => Error::io("read", &self.path, error),
        })
    }

    /// Reads `out.len()` tokens from token `from` on.
    ///
    /// # Errors
    /// `DATA_INVALID` where the file was cut short meanwhile or holds an id that is none, `IO_ERROR`.
    ///
    /// # Panics
    /// If they are more than there are.
    pub fn read(&self, from: u64, out: &mut [u32]) -> Result<()> {
        assert!(
            from + out.len() as u64 <= self.tokens,
            "{} tokens from {from} of {}",
            out.len(),
            self.tokens
        );
        let mut bytes = vec![0; out.len() * self.width];
        self.pread(HEADER + from * self.width as u64, &mut bytes)?;
        for (id, bytes) in out.iter_mut().zip(bytes.chunks_exact(self.width)) {
            let mut word = [0; 4];
            word[..self.width].copy_from_slice(bytes);
            *id = u32::from_le_bytes(word);
        }
        match out.iter().position(|id| *id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(at) => Err(Error::TokenOutOfRange {
                id: i64::from(out[at]),
                position: from as usize + at,
                vocab_size: self.vocab_size,
            }),
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Every id is below it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Where each document begins, in tokens; at last the number of tokens.
    #[must_use]
    pub fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, vocab: usize, documents: &[&[u32]]) -> Result<TokenFile> {
        let mut writer = TokenWriter::create(&folder.join("data.tokens"), vocab)?;
        for ids in documents {
            writer.extend(ids)?;
            writer.end_document();
        }
        writer.finish()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for vocab in [50_000, 70_000] {
            let last = vocab as u32 - 1;
            let file = written(folder.path(), vocab, &[&[1, 2, last], &[], &[7], &[8, 9, 10, 11]]).unwrap();
            file.verify().unwrap();
            assert_eq!((file.tokens(), file.starts(), file.vocab_size()), (8, &[0, 3, 4, 8][..], vocab));
            let mut ids = [0; 5];
            file.read(2, &mut ids).unwrap();
            assert_eq!(ids, [last, 7, 8, 9, 10]);
        }
    }

    #[test]
    fn bad_ids_and_nothing_at_all_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = written(folder.path(), 100, &[&[1, 2], &[3, 100]]).unwrap_err();
        assert_eq!(error.code(), "TOKEN_OUT_OF_RANGE");
        assert!(error.to_string().contains("100 at position 3"), "{error}");
        assert_eq!(written(folder.path(), 100, &[&[]]).unwrap_err().code(), "DATA_EMPTY");
        assert!(!folder.path().join("data.tokens").exists());
    }

    #[test]
    fn a_file_cut_short_is_an_error_wherever_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<u32> = (0..3000).collect();
        let open = written(folder.path(), 3000, &[&ids[..1000], &ids[1000..]]).unwrap();
        let whole = std::fs::read(open.path()).unwrap();
        for len in [0, 10, 31, 79, 80, 1000, 6031, whole.len() - 48, whole.len() - 1] {
            std::fs::write(open.path(), &whole[..len]).unwrap();
            let error = TokenFile::open(open.path()).unwrap_err();
            assert_eq!(error.code(), "DATA_INVALID", "{len}: {error}");
        }
        // Under a reader that has it open.
        std::fs::write(open.path(), &whole[..2000]).unwrap();
        let error = open.read(900, &mut [0; 200]).unwrap_err();
        assert_eq!(error.code(), "DATA_INVALID");
        assert!(error.to_string().contains("cut short"), "{error}");
    }

    #[test]
    fn damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<u32> = (0..100).collect();
        let path = written(folder.path(), 100, &[&ids]).unwrap().path().to_path_buf();
        let whole = std::fs::read(&path).unwrap();
        for at in [0, 20, 40, 100, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            let error = TokenFile::open(&path).and_then(|file| file.verify()).unwrap_err();
            assert_eq!(error.code(), "DATA_INVALID", "{at}: {error}");
        }
        // A number of tokens that would overflow.
        let mut bytes = whole.clone();
        let at = bytes.len() - 48;
        bytes[at..at + 16].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(TokenFile::open(&path).unwrap_err().code(), "DATA_INVALID");
    }
}
