//! Values on their way to the host, which does not wait for them.

use cudarc::driver::result;

use crate::buffer::{Buffer, Float};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{HostInts, Mark};

/// Room for values, and when they are there.
#[derive(Debug)]
pub struct Readback {
    values: HostInts,
    room: usize,
    there: Mark,
}

impl Device {
    /// Room for `len` f32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Lost`].
    pub fn readback(&self, len: usize) -> Result<Readback> {
        Ok(Readback { values: HostInts::new(self, len)?, room: len, there: self.mark()? })
    }

    /// Queues the copy of `len` elements of an f32 buffer, from element `offset` on.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If the buffer has not so many, there is no room for them, or they are not f32.
    pub fn read_back(&self, buffer: &Buffer, offset: usize, len: usize, to: &mut Readback) -> Result<()> {
        assert!(
            buffer.float() == Float::F32 && offset + len <= buffer.len(),
            "{len} at {offset} of {buffer:?}"
        );
        assert!(len <= to.room, "{len} values, room for {}", to.room);
        self.not_recording("a copy to the host")?;
        self.bind()?;
        // SAFETY: both sides were checked; the host's is pinned, and `wait` comes before anyone looks at it.
        unsafe { result::memcpy_dtoh_async(to.values.slice_mut(len), buffer.pointer(offset), self.stream()) }
            .map_err(|e| Error::driver("cuMemcpyDtoHAsync", e))?;
        self.set_mark(&to.there)
    }
}

impl Readback {
    /// Values that there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// The first `len` values that were read back last, once they are there.
    ///
    /// # Errors
    /// [`Error::Lost`]; it may come from anything that was queued before.
    ///
    /// # Panics
    /// If there is no room for so many.
    pub fn wait(&self, len: usize) -> Result<Vec<f32>> {
        self.there.wait()?;
        Ok((0..len).map(|i| f32::from_bits(self.values.get(i) as u32)).collect())
    }
}
