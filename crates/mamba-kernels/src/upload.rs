//! From files to the card at the speed of its bus: through two pinned pieces of the host's memory, one being filled while
//! the other is on its way.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUevent_flags};
use cudarc::driver::{CudaContext, result};

use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::quantized;

/// Bytes of a piece: long enough that neither the start of a copy nor that of the threads which fill it counts.
const PIECE: usize = 8 << 20;

/// Memory that the card reads by itself, and when it has.
struct Piece {
    pointer: *mut c_void,
    read: CUevent,
    context: Arc<CudaContext>,
}

impl Piece {
    /// The context is the calling thread's.
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        // A wait that sleeps would cost more than what is waited for.
        let read = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|e| Error::driver("cuEventCreate", e))?;
        // SAFETY: only handed out as bytes, of which every value is valid; zeroed first, so that none is undefined.
        let pointer = unsafe { result::malloc_host(PIECE, 0) }.map_err(|error| {
            // SAFETY: created just now, and used by nobody.
            let _ = unsafe { result::event::destroy(read) };
            match Error::driver("cuMemHostAlloc", error) {
                Error::OutOfMemory { .. } => Error::out_of_memory(PIECE),
                other => other,
            }
        })?;
        // SAFETY: `PIECE` bytes were allocated just now.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, PIECE) };
        Ok(Self { pointer, read, context: context.clone() })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `PIECE` bytes, initialized by `new`, lent out for as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), PIECE) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: both were made by `new` and go once; a copy under way is waited for. Errors mean that the context
            // is gone.
            unsafe {
                let _ = result::event::synchronize(self.read);
                let _ = result::free_host(self.pointer);
                let _ = result::event::destroy(self.read);
            }
        }
    }
}

// SAFETY: memory and an event of the context, not of a thread.
unsafe impl Send for Piece {}

/// The pieces, made when something is first uploaded.
#[derive(Default)]
pub(crate) struct Pieces(Option<[Piece; 2]>);

impl Device {
    /// Fills a buffer from the host: `fill(at, bytes)` is called for piece after piece of it, in order, `at` bytes from
    /// its start, while the piece before is on its way. A piece is a whole number of 256-byte blocks, but for the last.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the pinned pieces; [`Error::Lost`]. The inner result is what `fill` gave, which ends it.
    pub fn fill<E>(
        &self,
        buffer: &mut Buffer,
        fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>> {
        let total = buffer.len() * buffer.float().bytes();
        self.fill_pieces(buffer.pointer(0), total, PIECE, fill)
    }

    /// [`Device::fill`] for a quantized weight, whose pieces are whole rows ([`quantized::Format::row_bytes`]):
    /// `fill(row, bytes)` is called with the first one's number.
    ///
    /// # Errors
    /// As [`Device::fill`].
    pub fn fill_rows<E>(
        &self,
        weight: &mut quantized::Weight,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>> {
        let row_bytes = weight.format().row_bytes(weight.inputs());
        let piece = PIECE / row_bytes * row_bytes;
        self.fill_pieces(weight.pointer(), weight.bytes(), piece, |at, bytes| fill(at / row_bytes, bytes))
    }

    /// `total` bytes at `to`, which are the caller's, `piece_bytes` (at most [`PIECE`]) at a time.
    fn fill_pieces<E>(
        &self,
        to: u64,
        total: usize,
        piece_bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>> {
        self.bind()?;
        let mut pieces = self.pieces();
        let pieces = match &mut pieces.0 {
            Some(pieces) => pieces,
            none => none.insert([Piece::new(self.context())?, Piece::new(self.context())?]),
        };
        for (i, at) in (0..total).step_by(piece_bytes).enumerate() {
            let piece = &mut pieces[i % 2];
            let read = piece.read;
            // SAFETY: the event is alive. One that was never recorded is not waited for.
            unsafe { result::event::synchronize(read) }
                .map_err(|e| Error::driver("cuEventSynchronize", e))?;
            let bytes = &mut piece.bytes()[..piece_bytes.min(total - at)];
            if let Err(error) = fill(at, bytes) {
                return Ok(Err(error));
            }
            // SAFETY: within what is there; the pinned bytes stay as they are until the event says that they were read.
            unsafe {
                result::memcpy_htod_async(to + at as u64, bytes, self.stream())
                    .map_err(|e| Error::driver("cuMemcpyHtoDAsync", e))?;
                result::event::record(read, self.stream()).map_err(|e| Error::driver("cuEventRecord", e))?;
            }
        }
        Ok(Ok(()))
    }

    /// Copies `len` elements of a buffer from element `from` on to element `to` on. The two ranges may not overlap.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If they reach beyond the buffer, or overlap.
    pub fn copy_within(&self, buffer: &mut Buffer, from: usize, to: usize, len: usize) -> Result<()> {
        assert!(from.max(to) + len <= buffer.len(), "{len} from {from} to {to} of {}", buffer.len());
        assert!(from.abs_diff(to) >= len, "{len} from {from} to {to} overlap");
        self.bind()?;
        let bytes = len * buffer.float().bytes();
        // SAFETY: the ranges were checked.
        unsafe { result::memcpy_dtod_async(buffer.pointer(to), buffer.pointer(from), bytes, self.stream()) }
            .map_err(|e| Error::driver("cuMemcpyDtoDAsync", e))
    }
}
