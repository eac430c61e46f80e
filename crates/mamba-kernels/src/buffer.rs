//! Memory on a device, and views of it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use crate::error::{Error, Result};

/// The element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// 32 bits.
    F32,
    /// The upper half of an f32.
    BF16,
    /// IEEE half precision.
    F16,
}

impl Float {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// As kernels' names end.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Bytes on the device, freed when dropped (which waits for what is queued).
#[derive(Debug)]
pub(crate) struct Memory {
    pointer: u64,
    context: Arc<CudaContext>,
}

impl Memory {
    /// The context is the calling thread's.
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        // SAFETY: no more than an allocation; of at least a byte, since none at all is refused.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(pointer) => Ok(Self { pointer, context: context.clone() }),
            Err(error) => Err(match Error::driver("cuMemAlloc", error) {
                Error::OutOfMemory { .. } => Error::out_of_memory(bytes),
                other => other,
            }),
        }
    }

    pub fn pointer(&self) -> u64 {
        self.pointer
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new` and freed once. An error here means that the context is gone.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Numbers on the device: an allocation, or a part of one that no other buffer has.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    /// The element at which it begins.
    begin: usize,
    len: usize,
    float: Float,
}

/// Elements that parts of an allocation begin at multiples of: at whole cache lines.
const PART: usize = 64;

impl Buffer {
    pub(crate) fn new(memory: Memory, len: usize, float: Float) -> Self {
        Self { memory: Arc::new(memory), begin: 0, len, float }
    }

    /// Parts of these lengths, end to end but for gaps to whole cache lines.
    pub(crate) fn split(self, lens: &[usize]) -> Vec<Self> {
        let mut begin = self.begin;
        let parts = lens.iter().map(|len| {
            let part = Self { memory: self.memory.clone(), begin, len: *len, float: self.float };
            begin += len.next_multiple_of(PART);
            part
        });
        let parts = parts.collect();
        assert!(begin <= self.begin + self.len, "parts of {begin} elements in a buffer of {}", self.len);
        parts
    }

    /// Elements that [`Buffer::split`] needs.
    pub(crate) fn len_of_parts(lens: &[usize]) -> usize {
        lens.iter().map(|len| len.next_multiple_of(PART)).sum()
    }

    /// The element of its allocation at which it begins.
    pub(crate) fn begin(&self) -> usize {
        self.begin
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of an element.
    #[must_use]
    pub fn float(&self) -> Float {
        self.float
    }

    /// For who has to keep what a pointer points to.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where element `offset` lies.
    pub(crate) fn pointer(&self, offset: usize) -> u64 {
        assert!(offset <= self.len, "element {offset} of {}", self.len);
        self.memory.pointer() + ((self.begin + offset) * self.float.bytes()) as u64
    }

    /// The first of at least `len` f32, for parameters and states.
    pub(crate) fn f32s(&self, len: usize, what: &str) -> u64 {
        assert_eq!(self.float, Float::F32, "type of {what}");
        assert!(len <= self.len, "{what}: {} elements, expected {len}", self.len);
        self.pointer(0)
    }
}

/// Where a flat group ([`crate::Device::flat`]), or its first buffers, begins, and how many elements it has, gaps
/// included: a multiple of [`PART`].
pub(crate) fn span(group: &[Buffer], float: Float) -> (u64, usize) {
    let Some(first) = group.first() else { return (0, 0) };
    let mut begin = first.begin;
    for buffer in group {
        assert!(
            Arc::ptr_eq(&buffer.memory, &first.memory) && buffer.begin == begin && buffer.float == float,
            "buffers that do not lie end to end"
        );
        begin += buffer.len.next_multiple_of(PART);
    }
    (first.pointer(0), begin - first.begin)
}

/// Integers on the device.
#[derive(Debug)]
pub struct Ints {
    memory: Memory,
    len: usize,
}

impl Ints {
    pub(crate) fn new(memory: Memory, len: usize) -> Self {
        Self { memory, len }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where element `offset` lies.
    pub(crate) fn pointer(&self, offset: usize) -> u64 {
        assert!(offset <= self.len, "integer {offset} of {}", self.len);
        self.memory.pointer() + 4 * offset as u64
    }
}

/// A matrix inside a buffer: `rows` × `cols`, elements of a row next to each other, rows `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Where it lies.
    pub buffer: &'a Buffer,
    /// Element at which row 0 begins.
    pub offset: usize,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Number of columns (channels).
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

/// [`Rows`] that are written.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// Where they lie.
    pub buffer: &'a mut Buffer,
    /// Element at which row 0 begins.
    pub offset: usize,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Number of columns (channels).
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

impl Rows<'_> {
    /// Where row 0 begins, after a check that `rows` × `cols` elements of type `float` lie there.
    pub(crate) fn pointer(&self, rows: usize, cols: usize, float: Float) -> u64 {
        assert_eq!(self.buffer.float, float, "type of a matrix");
        assert!(
            rows <= self.rows
                && cols <= self.cols
                && (rows == 0
                    || (cols <= self.stride || rows == 1)
                        && self.offset + (rows - 1) * self.stride + cols <= self.buffer.len),
            "{rows} rows of {cols} in {self:?}"
        );
        self.buffer.pointer(self.offset.min(self.buffer.len))
    }

    /// Whether rows begin at multiples of `bytes`.
    pub(crate) fn is_aligned(&self, bytes: usize) -> bool {
        let size = self.buffer.float.bytes();
        (self.offset * size).is_multiple_of(bytes)
            && ((self.stride * size).is_multiple_of(bytes) || self.rows <= 1)
    }

    pub(crate) fn float(&self) -> Float {
        self.buffer.float
    }
}

impl RowsMut<'_> {
    /// The same, to look at.
    #[must_use]
    pub fn view(&self) -> Rows<'_> {
        Rows {
            buffer: self.buffer,
            offset: self.offset,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    /// The same, for one of several calls that write them.
    pub(crate) fn reborrow(&mut self) -> RowsMut<'_> {
        RowsMut { buffer: &mut *self.buffer, ..*self }
    }

    /// As [`Rows::pointer`].
    pub(crate) fn pointer(&self, rows: usize, cols: usize, float: Float) -> u64 {
        self.view().pointer(rows, cols, float)
    }
}

/// One tensor of every slot's state, f32, read as the initial state and overwritten with the last one.
/// Slot `s` holds it at `buffer[s * slot_stride + offset ..]`.
#[derive(Debug)]
pub struct States<'a> {
    /// The buffer of all slots.
    pub buffer: &'a mut Buffer,
    /// Where the tensor begins within a slot.
    pub offset: usize,
    /// Elements from a slot to the next.
    pub slot_stride: usize,
}

impl States<'_> {
    /// The same, for one of several calls that write them.
    pub(crate) fn reborrow(&mut self) -> States<'_> {
        States { buffer: &mut *self.buffer, ..*self }
    }

    /// Where slot 0's tensor begins, after a check that `elements` of slot `last_slot` lie there.
    pub(crate) fn pointer(&self, elements: usize, last_slot: usize) -> u64 {
        let end = last_slot * self.slot_stride + self.offset + elements;
        self.buffer.f32s(end, "states");
        self.buffer.pointer(self.offset)
    }

    /// Whether every slot's tensor begins at a multiple of `bytes`.
    pub(crate) fn is_aligned(&self, bytes: usize) -> bool {
        (self.offset * 4).is_multiple_of(bytes) && (self.slot_stride * 4).is_multiple_of(bytes)
    }
}
