//! Work that is recorded once and replayed, marks in the stream that the host waits for, and host memory that kernels
//! write into.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CUevent, CUevent_flags, CUgraphExec,
    CUstreamCaptureMode, cuEventCreate, cuEventDestroy_v2, cuEventRecord, cuEventSynchronize, cuGraphDestroy,
    cuGraphExecDestroy, cuGraphInstantiateWithFlags, cuGraphLaunch, cuMemFreeHost, cuMemHostAlloc,
    cuMemHostGetDevicePointer_v2,
};
use cudarc::driver::{CudaContext, result};

use crate::device::Device;
use crate::error::{Error, Result};

/// Launches that are queued by one call.
#[derive(Debug)]
pub struct Graph {
    executable: CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: a handle of the context, not of a thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `end_recording`, destroyed once; what of it still runs ends first.
            let _ = unsafe { cuGraphExecDestroy(self.executable) };
        }
    }
}

impl Device {
    /// From here to [`Device::end_recording`] launches are recorded instead of queued. Whatever allocates, copies from or
    /// to the host, or waits is refused meanwhile: what that needs must have been made by running the same work once.
    ///
    /// # Errors
    /// [`Error::Lost`]; [`Error::Refused`] where something is being recorded already.
    pub fn begin_recording(&self) -> Result<()> {
        self.bind()?;
        // Relaxed: what other threads do with the device is none of this recording's business.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(self.stream(), mode) }
            .map_err(|e| Error::driver("cuStreamBeginCapture", e))?;
        self.set_recording(true);
        Ok(())
    }

    /// What was recorded, ready to be replayed.
    ///
    /// # Errors
    /// [`Error::Refused`] where nothing is being recorded or something spoilt it; [`Error::OutOfMemory`],
    /// [`Error::Lost`]. Afterwards nothing is being recorded in any case.
    pub fn end_recording(&self) -> Result<Graph> {
        self.set_recording(false);
        self.bind()?;
        // SAFETY: the stream is alive.
        let graph = unsafe { result::stream::end_capture(self.stream()) }
            .map_err(|e| Error::driver("cuStreamEndCapture", e))?;
        if graph.is_null() {
            return Err(Error::Refused("cuStreamEndCapture: nothing was recorded".into()));
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was made just now and is destroyed here, once.
        let made = unsafe {
            let made = cuGraphInstantiateWithFlags(&raw mut executable, graph, 0).result();
            let _ = cuGraphDestroy(graph);
            made
        };
        made.map_err(|e| Error::driver("cuGraphInstantiate", e))?;
        Ok(Graph { executable, context: self.context().clone() })
    }

    /// Queues what was recorded.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.bind()?;
        // SAFETY: both are alive. What the kernels' pointers point to is the recorder's to keep.
        unsafe { cuGraphLaunch(graph.executable, self.stream()) }
            .result()
            .map_err(|e| Error::driver("cuGraphLaunch", e))
    }

    /// A mark, not yet in the stream.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::OutOfMemory`].
    pub fn mark(&self) -> Result<Mark> {
        self.bind()?;
        let mut event = std::ptr::null_mut();
        // A thread that waits sleeps.
        let flags =
            CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: writes the handle.
        unsafe { cuEventCreate(&raw mut event, flags) }
            .result()
            .map_err(|e| Error::driver("cuEventCreate", e))?;
        Ok(Mark { event, context: self.context().clone() })
    }

    /// Puts the mark behind what is queued.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn set_mark(&self, mark: &Mark) -> Result<()> {
        self.bind()?;
        // SAFETY: both are alive.
        unsafe { cuEventRecord(mark.event, self.stream()) }
            .result()
            .map_err(|e| Error::driver("cuEventRecord", e))
    }
}

/// A place in the stream.
#[derive(Debug)]
pub struct Mark {
    event: CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: a handle of the context, not of a thread.
unsafe impl Send for Mark {}

impl Mark {
    /// Waits until everything before the mark is done; returns at once if it was never set.
    ///
    /// # Errors
    /// [`Error::Lost`]; it may come from anything that was queued before.
    pub fn wait(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| Error::driver("cuCtxSetCurrent", e))?;
        // SAFETY: the event is alive.
        unsafe { cuEventSynchronize(self.event) }.result().map_err(|e| Error::driver("cuEventSynchronize", e))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `Device::mark`, destroyed once.
            let _ = unsafe { cuEventDestroy_v2(self.event) };
        }
    }
}

/// Integers in the host's memory that kernels write, there to be read once a [`Mark`] behind the kernel is passed.
#[derive(Debug)]
pub(crate) struct HostInts {
    host: *mut i32,
    device: u64,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: memory of the process, owned by this struct.
unsafe impl Send for HostInts {}

impl HostInts {
    /// `len` zeros.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        device.bind()?;
        let bytes = len.max(1) * size_of::<i32>();
        let mut host: *mut c_void = std::ptr::null_mut();
        let flags = CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: no more than an allocation.
        unsafe { cuMemHostAlloc(&raw mut host, bytes, flags) }
            .result()
            .map_err(|e| Error::driver("cuMemHostAlloc", e))?;
        let mut ints = Self { host: host.cast(), device: 0, len, context: device.context().clone() };
        // SAFETY: `bytes` bytes were allocated just now, and were mapped.
        unsafe {
            host.cast::<u8>().write_bytes(0, bytes);
            cuMemHostGetDevicePointer_v2(&raw mut ints.device, host, 0)
        }
        .result()
        .map_err(|e| Error::driver("cuMemHostGetDevicePointer", e))?;
        Ok(ints)
    }

    /// Where kernels write.
    pub fn pointer(&self) -> u64 {
        self.device
    }

    /// What lies at `index`.
    pub fn get(&self, index: usize) -> i32 {
        assert!(index < self.len, "integer {index} of {}", self.len);
        // SAFETY: within the allocation; volatile, as the device writes it behind the compiler's back.
        unsafe { self.host.add(index).read_volatile() }
    }
}

impl Drop for HostInts {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once; this waits for what is queued.
            let _ = unsafe { cuMemFreeHost(self.host.cast()) };
        }
    }
}
