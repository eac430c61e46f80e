//! A tensor in a checkpoint: where it lies, and its values as f32.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::quantize::Format;

/// Element types that weights may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Narrowed to f32.
    F64,
    /// As it is.
    F32,
    /// Widened.
    F16,
    /// Widened.
    BF16,
    /// Rows of blocks; of matrices.
    Quantized(Format),
}

impl Stored {
    /// Bytes of `elements` next to one another: of a part of a row of whole blocks, where they are quantized.
    #[must_use]
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F64 => 8 * elements,
            Self::F32 => 4 * elements,
            Self::F16 | Self::BF16 => 2 * elements,
            Self::Quantized(format) => format.row_bytes(elements),
        }
    }

    /// Bytes of a tensor; `None` when they are more than can be counted, or a vector is said to be quantized.
    fn tensor_bytes(self, shape: &[usize]) -> Option<u64> {
        let product = |shape: &[usize]| shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        match (self, shape) {
            (Self::Quantized(format), [rows, cols]) => {
                product(&[*rows, cols.div_ceil(format.block()), format.block_bytes()])
            }
            (Self::Quantized(_), _) => None,
            _ => product(shape)?.checked_mul(self.bytes(1) as u64),
        }
    }

    fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            out.iter_mut().zip(elements).for_each(|(x, bytes)| *x = read(*bytes));
        }
        match self {
            Self::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => each(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
            Self::BF16 => each(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
            Self::Quantized(format) => format.dequantize(bytes, out),
        }
    }
}

/// A weights file, mapped or to be read. Its length was taken when it was opened; nobody reads beyond it.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub len: u64,
    access: Access,
}

#[derive(Debug)]
enum Access {
    Mapped(Mmap),
    Read(File),
}

impl Source {
    pub fn open(path: &Path, mmap: bool) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("read", path, error))?;
        if !metadata.is_file() {
            return Err(Error::CheckpointInvalid { path: path.into(), reason: "not a file".into() });
        }
        let access = if mmap && metadata.len() > 0 {
            // SAFETY: the mapping is only read, within the length taken now. A file that another process
            // cuts short meanwhile kills this one (SIGBUS): documented, and why `mmap: false` exists.
            let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))?;
            Access::Mapped(map)
        } else {
            Access::Read(file)
        };
        Ok(Arc::new(Self { path: path.into(), len: metadata.len(), access }))
    }

    /// Hands `use_bytes` the bytes of a range that lies within the file.
    pub fn with<T>(&self, from: u64, len: usize, use_bytes: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let truncated = || Error::CheckpointInvalid {
            path: self.path.clone(),
            reason: format!("{} bytes long, expected {len} bytes from {from} on", self.len),
        };
        if from.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(truncated());
        }
        match &self.access {
            Access::Mapped(map) => {
                let from = from as usize;
                let result = use_bytes(&map[from..from + len]);
                #[cfg(unix)]
                release(map, from, len);
                Ok(result)
            }
            Access::Read(file) => {
                let mut bytes = vec![0; len];
                read_exact_at(file, from, &mut bytes).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => truncated(),
                    _ => Error::io("read", &self.path, error),
                })?;
                Ok(use_bytes(&bytes))
            }
        }
    }
}

/// Gives back the mapped pages of a range, so that a load's memory does not grow with the file. Rounded
/// outwards: a page that another thread is still reading simply comes back from the page cache.
#[cfg(unix)]
fn release(map: &Mmap, from: usize, len: usize) {
    // What a fault may map at a time: 64 KiB, or all of a large folio (Linux 6.16 has them on ext4).
    const AROUND: usize = 2 << 20;
    let start = from / AROUND * AROUND;
    let end = (from + len).next_multiple_of(AROUND).min(map.len());
    if start < end {
        // SAFETY: the mapping is only ever read, so a dropped page holds nothing that the file does not.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }
}

/// Reads all of `bytes` from `from` on, without moving the file's position.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, from: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, from)
}

/// Reads all of `bytes` from `from` on.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut from: u64, mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, from)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (from, bytes) = (from + n as u64, &mut bytes[n..]),
        }
    }
    Ok(())
}

/// A tensor of a checkpoint. Its values are read when they are asked for.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its canonical (official) name.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    File { source: Arc<Source>, offset: u64, stored: Stored },
    Memory { values: Arc<[f32]>, from: usize },
}

impl Tensor {
    /// A tensor of values in memory, row-major; for tests, benches and conversion.
    ///
    /// # Panics
    /// If there are more or fewer values than the shape has.
    #[must_use]
    pub fn from_memory(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "values of {name} {shape:?}");
        Self::window(name, shape, values.into(), 0)
    }

    /// A tensor of the values from `from` on, of which others may be made, too: weights for benches, of any size in no
    /// time.
    ///
    /// # Panics
    /// If there are fewer values than the shape has.
    #[must_use]
    pub fn window(name: &str, shape: Vec<usize>, values: Arc<[f32]>, from: usize) -> Self {
        let end = from + shape.iter().product::<usize>();
        assert!(end <= values.len(), "values {from} to {end} of {} for {name} {shape:?}", values.len());
        Self { name: name.into(), shape, data: Data::Memory { values, from } }
    }

    /// A tensor at `offset` of a file. That it lies within the file is checked here.
    pub(super) fn in_file(
        name: String,
        shape: Vec<usize>,
        source: Arc<Source>,
        offset: u64,
        stored: Stored,
    ) -> Result<Self> {
        let bytes = stored
            .tensor_bytes(&shape)
            .filter(|bytes| offset.checked_add(*bytes).is_some_and(|end| end <= source.len));
        if bytes.is_none() {
            return Err(Error::CheckpointInvalid {
                path: source.path.clone(),
                reason: format!(
                    "tensor `{name}` of shape {shape:?} at byte {offset} reaches beyond the file's {} bytes",
                    source.len
                ),
            });
        }
        Ok(Self { name, shape, data: Data::File { source, offset, stored } })
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The type that it is stored in.
    #[must_use]
    pub fn stored(&self) -> Stored {
        match &self.data {
            Data::File { stored, .. } => *stored,
            Data::Memory { .. } => Stored::F32,
        }
    }

    /// Reads `out.len()` elements as f32, from flat row-major element `start` on. Mapped pages are given back
    /// at once, so memory does not grow with the file.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID` beyond the tensor or the file's end, `IO_ERROR`.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        if start.checked_add(out.len()).is_none_or(|end| end > self.elements()) {
            return Err(Error::Internal {
                message: format!("{} elements from {start} of `{}` {:?}", out.len(), self.name, self.shape),
            });
        }
        match &self.data {
            Data::Memory { values, from } => {
                out.copy_from_slice(&values[from + start..][..out.len()]);
                Ok(())
            }
            Data::File { source, offset, stored: Stored::Quantized(format) } => {
                self.read_quantized(source, *offset, *format, start, out)
            }
            Data::File { source, offset, stored } => {
                let (from, len) = (offset + stored.bytes(start) as u64, stored.bytes(out.len()));
                source.with(from, len, |bytes| stored.to_f32(bytes, out))
            }
        }
    }

    /// Reads `bytes` of the tensor as they are stored (little endian, row-major), from byte `start` of it on.
    /// Nothing is done, and false returned, for a tensor in memory.
    ///
    /// # Errors
    /// As [`Tensor::read_f32`].
    pub fn read_stored(&self, start: usize, bytes: &mut [u8]) -> Result<bool> {
        let Data::File { source, offset, stored } = &self.data else { return Ok(false) };
        let whole = stored.tensor_bytes(&self.shape).unwrap_or_default();
        if (start as u64).checked_add(bytes.len() as u64).is_none_or(|end| end > whole) {
            return Err(Error::Internal {
                message: format!("{} bytes from {start} of `{}` {:?}", bytes.len(), self.name, self.shape),
            });
        }
        source.with(offset + start as u64, bytes.len(), |stored| bytes.copy_from_slice(stored))?;
        Ok(true)
    }

    /// Row by row, from the block on in which the part that is asked for begins.
    fn read_quantized(
        &self,
        source: &Source,
        offset: u64,
        format: Format,
        mut start: usize,
        mut out: &mut [f32],
    ) -> Result<()> {
        let cols = self.shape[1];
        let mut blocks = vec![0.0; cols];
        while !out.is_empty() {
            let (row, col) = (start / cols, start % cols);
            let from = col / format.block() * format.block();
            let len = out.len().min(cols - col);
            let to = (col + len).next_multiple_of(format.block()).min(cols);
            let at = row * format.row_bytes(cols) + format.row_bytes(from);
            let values = &mut blocks[..to - from];
            source.with(offset + at as u64, format.row_bytes(to - from), |bytes| {
                format.dequantize(bytes, values);
            })?;
            let (now, rest) = out.split_at_mut(len);
            now.copy_from_slice(&values[col - from..][..len]);
            (out, start) = (rest, start + len);
        }
        Ok(())
    }

    /// Reads `rows` rows of a matrix from `row` on, as blocks: those that are stored, or the values quantized.
    ///
    /// # Errors
    /// As [`Tensor::read_f32`].
    ///
    /// # Panics
    /// If it is no matrix, or `bytes` has another length than those rows.
    pub fn read_blocks(&self, format: Format, row: usize, rows: usize, bytes: &mut [u8]) -> Result<()> {
        let (cols, row_bytes) = (self.shape[1], format.row_bytes(self.shape[1]));
        assert_eq!(bytes.len(), rows * row_bytes, "blocks of {rows} rows of `{}`", self.name);
        if let Data::File { source, offset, stored } = &self.data
            && *stored == Stored::Quantized(format)
        {
            let from = offset + (row * row_bytes) as u64;
            return source.with(from, bytes.len(), |stored| bytes.copy_from_slice(stored));
        }
        let mut values = vec![0.0; rows * cols];
        self.read_f32(row * cols, &mut values)?;
        for (values, bytes) in values.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes)) {
            format.quantize(values, bytes);
        }
        Ok(())
    }

    /// The whole tensor as f32.
    ///
    /// # Errors
    /// As [`Tensor::read_f32`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.elements()];
        self.read_f32(0, &mut values)?;
        Ok(values)
    }
}
