//! A card: its context, one stream, the kernels and cuBLAS.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::sys::{
    CUdevice_attribute, CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchAttributeValue_union__bindgen_ty_1 as ClusterSize, CUlaunchConfig,
    CUmodule, CUresult, CUstream, cuLaunchKernelEx,
};
use cudarc::driver::{CudaContext, CudaStream, result};

use crate::batch::Spare;
use crate::buffer::{Buffer, Float, Ints, Memory, RowsMut, span};
use crate::error::{Error, Result};
use crate::upload::Pieces;

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// For cuBLAS, so that it allocates nothing itself; what NVIDIA recommends for Hopper.
const BLAS_WORKSPACE: usize = 32 << 20;

/// Rows of blocks of one launch (the grid's y, and z).
pub(crate) const MAX_GRID_ROWS: usize = 65535;

/// One card, in the process's context, with a stream of its own. It may move from thread to thread, but only one uses it
/// at a time.
///
/// (A context of its own would cost half a gigabyte and shield nobody: after a kernel's fault the driver refuses all work
/// of the process, in whatever context.)
pub struct Device {
    // Fields are dropped in this order: what lies in the context before the context.
    blas: Blas,
    /// With the most shared memory that a launch of it asked for so far.
    kernels: RefCell<HashMap<Kernel, (CUfunction, u32)>>,
    spare: Spare,
    pieces: RefCell<Pieces>,
    workspace: RefCell<Workspace>,
    modules: Modules,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    multiprocessors: usize,
    /// Bytes of shared memory that a block may have.
    shared_memory: usize,
    /// Compute capability.
    capability: (i32, i32),
    /// Whether launches are recorded instead of queued (graph.rs).
    recording: Cell<bool>,
    /// Whether the last layer's step left the residual's sums of squares in the workspace (block_step.rs).
    squares: Cell<bool>,
}

/// What launchers use between them.
#[derive(Default)]
struct Workspace {
    room: Option<Buffer>,
    /// Whether a recorded launch uses it.
    is_recorded: bool,
    /// Earlier ones that recorded launches use. Each has at most half of the next one's size.
    recorded: Vec<Buffer>,
}

/// A kernel's name in the fatbins: `<base>[_<float>][_<variant>]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub base: &'static str,
    pub float: Option<Float>,
    pub variant: Option<usize>,
}

impl Kernel {
    /// `<base>_<float>`.
    pub fn of(base: &'static str, float: Float) -> Self {
        Self { base, float: Some(float), variant: None }
    }

    /// `<base>`.
    pub fn plain(base: &'static str) -> Self {
        Self { base, float: None, variant: None }
    }

    fn name(self) -> String {
        let float = self.float.map_or(String::new(), |float| format!("_{}", float.name()));
        let variant = self.variant.map_or(String::new(), |variant| format!("_{variant}"));
        format!("{}{float}{variant}", self.base)
    }
}

/// How often a kernel runs: blocks in x, y, z, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    blocks: [usize; 3],
    threads: u32,
    shared: u32,
    cluster: usize,
    behind: bool,
}

impl Grid {
    pub fn new(blocks: [usize; 3], threads: u32) -> Self {
        Self { blocks, threads, shared: 0, cluster: 1, behind: false }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }

    /// So many neighbouring blocks in x run together and see one another's shared memory. From Hopper on.
    pub fn cluster(self, cluster: usize) -> Self {
        Self { cluster, ..self }
    }

    /// The kernel may begin before the one in front of it has ended: when that one says so, or as its blocks end. It waits
    /// itself for what it needs (cuda/common/early.cuh). From Hopper on.
    pub fn behind(self, behind: bool) -> Self {
        Self { behind, ..self }
    }
}

/// Whether a kernel has the instruction that waits for the kernel in front: it is left out for cards before Hopper, and so
/// out of the PTX that a driver compiles for cards which came later than this build.
fn waits_itself(function: CUfunction) -> Result<bool> {
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
    // SAFETY: the function is of a loaded module.
    let version = unsafe { result::function::get_function_attribute(function, attribute) };
    Ok(version.map_err(|e| Error::driver("cuFuncGetAttribute", e))? >= 90)
}

struct Modules {
    modules: Vec<CUmodule>,
    context: Arc<CudaContext>,
}

// SAFETY: a handle, used by one thread at a time (`Device` is not `Sync`).
unsafe impl Send for Modules {}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for module in self.modules.drain(..) {
                // SAFETY: loaded by `Device::new` and unloaded once. An error here means that the context is gone.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

struct Blas {
    handle: blas_sys::cublasHandle_t,
    context: Arc<CudaContext>,
    _workspace: Memory,
}

impl Blas {
    fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self> {
        let workspace = Memory::new(context, BLAS_WORKSPACE)?;
        let pointer = workspace.pointer() as *mut c_void;
        let handle = blas::create_handle().map_err(|e| Error::cublas("cublasCreate", e))?;
        let blas = Self { handle, context: context.clone(), _workspace: workspace };
        let mut version = 0;
        // SAFETY: the handle is alive.
        unsafe { blas_sys::cublasGetVersion_v2(handle, &raw mut version) }
            .result()
            .map_err(|e| Error::cublas("cublasGetVersion", e))?;
        if version < 130_000 {
            return Err(Error::Unavailable(format!(
                "the cuBLAS that was loaded is {}.{}, expected 13.0 or newer: is there an older libcublas.so where \
                 libraries are looked for first (LD_LIBRARY_PATH)?",
                version / 10_000,
                version / 100 % 100
            )));
        }
        // bf16 and f16 products that are cut along their inputs are added up in f32, too.
        let mode = blas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle is alive; the stream and the memory live as long as it does. Setting the stream takes the
        // workspace back, so that comes first.
        unsafe {
            blas::set_stream(handle, stream.cu_stream().cast())
                .map_err(|e| Error::cublas("cublasSetStream", e))?;
            blas_sys::cublasSetWorkspace_v2(handle, pointer, BLAS_WORKSPACE)
                .result()
                .map_err(|e| Error::cublas("cublasSetWorkspace", e))?;
            blas_sys::cublasSetMathMode(handle, mode)
                .result()
                .map_err(|e| Error::cublas("cublasSetMathMode", e))?;
        }
        Ok(blas)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: created by `new` and destroyed once. An error here means that the context is gone.
            let _ = unsafe { blas::destroy_handle(self.handle) };
        }
    }
}

// SAFETY: the kernels' handles and cuBLAS's belong to the context, not to a thread; `RefCell` keeps it from being `Sync`.
unsafe impl Send for Device {}

impl Device {
    /// Opens card `ordinal`, as the driver counts them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver, cuBLAS, or the card; [`Error::OutOfMemory`].
    pub fn new(ordinal: usize) -> Result<Self> {
        // SAFETY: only tries to load the libraries. cudarc itself panics where they are missing.
        let (driver, blas) =
            unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::cublas::sys::is_culib_present()) };
        if !driver {
            return Err(Error::Unavailable(
                "the NVIDIA driver's library (libcuda.so.1) was not found".into(),
            ));
        }
        if !blas {
            return Err(Error::Unavailable("cuBLAS 13 (libcublas.so.13) was not found".into()));
        }
        let context = CudaContext::new(ordinal).map_err(|e| Error::driver("cuDevicePrimaryCtxRetain", e))?;
        let stream = context.new_stream().map_err(|e| Error::driver("cuStreamCreate", e))?;
        let mut modules = Modules { modules: Vec::new(), context: context.clone() };
        for fatbin in FATBINS {
            // In words, since the driver reads it by words.
            let word = |bytes: &[u8]| {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                u64::from_ne_bytes(word)
            };
            let image: Vec<u64> = fatbin.chunks(8).map(word).collect();
            // SAFETY: a whole fatbin, as nvcc wrote it.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            modules.modules.push(module.map_err(|e| Error::driver("cuModuleLoadData", e))?);
        }
        let blas = Blas::new(&context, &stream)?;
        let attribute =
            |which| context.attribute(which).map_err(|e| Error::driver("cuDeviceGetAttribute", e));
        let multiprocessors =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared_memory =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(Self {
            blas,
            kernels: RefCell::default(),
            spare: Spare::default(),
            pieces: RefCell::default(),
            workspace: RefCell::default(),
            modules,
            stream,
            context,
            multiprocessors,
            shared_memory,
            capability,
            recording: Cell::new(false),
            squares: Cell::new(false),
        })
    }

    /// The card's name, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn name(&self) -> Result<String> {
        self.context.name().map_err(|e| Error::driver("cuDeviceGetName", e))
    }

    /// Bytes of device memory that are free, and all.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| Error::driver("cuMemGetInfo", e))
    }

    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Bytes of shared memory that a block may have.
    pub(crate) fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// Whether the card and its code of this kernel are Hopper's or later: kernels that begin before the one in front of
    /// them has ended, clusters.
    pub(crate) fn is_hopper(&self, kernel: Kernel) -> Result<bool> {
        self.begins_early(self.function(kernel, 0)?)
    }

    fn begins_early(&self, function: CUfunction) -> Result<bool> {
        Ok(self.capability.0 >= 9 && waits_itself(function)?)
    }

    /// Whether a kernel of a file `*.sm_90a.cu` has code for this card.
    pub(crate) fn is_sm_90a(&self, kernel: Kernel) -> Result<bool> {
        Ok(self.capability == (9, 0) && self.is_hopper(kernel)?)
    }

    pub(crate) fn blas(&self) -> blas_sys::cublasHandle_t {
        self.blas.handle
    }

    pub(crate) fn stream(&self) -> CUstream {
        self.stream.cu_stream()
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) fn has_squares(&self) -> bool {
        self.squares.get()
    }

    pub(crate) fn set_squares(&self, squares: bool) {
        self.squares.set(squares);
    }

    pub(crate) fn set_recording(&self, recording: bool) {
        self.recording.set(recording);
    }

    /// What a recording cannot hold is refused while there is one.
    pub(crate) fn not_recording(&self, what: &str) -> Result<()> {
        match self.recording.get() {
            true => Err(Error::Refused(format!("{what} while launches are recorded"))),
            false => Ok(()),
        }
    }

    pub(crate) fn pieces(&self) -> RefMut<'_, Pieces> {
        self.pieces.borrow_mut()
    }

    pub(crate) fn spare(&self) -> &Spare {
        &self.spare
    }

    /// Room for `elements` f32 of a launcher's own, which the next launcher overwrites. It only ever grows, so a model
    /// that has run its largest batch allocates nothing more.
    pub(crate) fn workspace(&self, elements: usize) -> Result<u64> {
        let mut workspace = self.workspace.borrow_mut();
        if workspace.room.as_ref().is_none_or(|buffer| buffer.len() < elements) {
            // What is queued may still use the old one, and what was recorded will.
            self.not_recording("an allocation")?;
            self.synchronize()?;
            let old = workspace.room.take();
            if std::mem::take(&mut workspace.is_recorded) {
                workspace.recorded.extend(old);
            }
            workspace.room = Some(self.alloc(elements.next_power_of_two(), Float::F32)?);
        }
        workspace.is_recorded |= self.recording.get();
        Ok(workspace.room.as_ref().map_or(0, |buffer| buffer.pointer(0)))
    }

    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| Error::driver("cuCtxSetCurrent", e))
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Lost`].
    pub fn alloc(&self, len: usize, float: Float) -> Result<Buffer> {
        let bytes = len.checked_mul(float.bytes()).ok_or(Error::OutOfMemory { bytes: u64::MAX, free: 0 })?;
        let memory = self.memory_of(bytes)?;
        if bytes > 0 {
            // SAFETY: `bytes` were allocated just now.
            unsafe { result::memset_d8_async(memory.pointer(), 0, bytes, self.stream.cu_stream()) }
                .map_err(|e| Error::driver("cuMemsetD8Async", e))?;
        }
        Ok(Buffer::new(memory, len, float))
    }

    /// Buffers of these lengths, zero, end to end in one allocation (but for gaps to whole cache lines), so that one launch
    /// can pass over all of them.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn flat(&self, lens: &[usize], float: Float) -> Result<Vec<Buffer>> {
        Ok(self.alloc(Buffer::len_of_parts(lens), float)?.split(lens))
    }

    /// Fills a flat group with zeros.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If it is none.
    pub fn zero(&self, group: &mut [Buffer]) -> Result<()> {
        let Some(float) = group.first().map(Buffer::float) else { return Ok(()) };
        let (at, count) = span(group, float);
        self.zero_bytes(at, count * float.bytes())
    }

    /// Fills rows with zeros.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If they do not lie within their buffer.
    pub fn zero_rows(&self, rows: RowsMut) -> Result<()> {
        let float = rows.view().float();
        let at = rows.pointer(rows.rows, rows.cols, float);
        for row in 0..rows.rows {
            self.zero_bytes(at + (row * rows.stride * float.bytes()) as u64, rows.cols * float.bytes())?;
        }
        Ok(())
    }

    fn zero_bytes(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the callers name bytes of their buffers.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(|e| Error::driver("cuMemsetD8Async", e))
    }

    /// Room for `len` integers, with anything in it.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn ints(&self, len: usize) -> Result<Ints> {
        Ok(Ints::new(self.memory_of(len * size_of::<i32>())?, len))
    }

    pub(crate) fn memory_of(&self, bytes: usize) -> Result<Memory> {
        self.not_recording("an allocation")?;
        self.bind()?;
        Memory::new(&self.context, bytes)
    }

    /// Copies values into a buffer from element `offset` on, rounded to its type.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, buffer: &mut Buffer, offset: usize, values: &[f32]) -> Result<()> {
        assert!(
            offset + values.len() <= buffer.len(),
            "{} values at {offset} of {}",
            values.len(),
            buffer.len()
        );
        let at = buffer.pointer(offset);
        match buffer.float() {
            Float::F32 => self.upload(at, values),
            Float::BF16 => self
                .upload(at, &values.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
            Float::F16 => {
                self.upload(at, &values.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect::<Vec<_>>())
            }
        }
    }

    /// Copies integers to the start of a buffer.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write_ints(&self, to: &mut Ints, values: &[i32]) -> Result<()> {
        assert!(values.len() <= to.len(), "{} integers in a buffer of {}", values.len(), to.len());
        self.upload(to.pointer(0), values)
    }

    /// Copies integers into a buffer from element `offset` on.
    pub(crate) fn write_ints_at(&self, to: &Ints, offset: usize, values: &[i32]) -> Result<()> {
        assert!(offset + values.len() <= to.len(), "{} integers at {offset} of {}", values.len(), to.len());
        self.upload(to.pointer(offset), values)
    }

    /// Copies `count` integers within a buffer; the two places do not overlap.
    pub(crate) fn copy_ints(&self, ints: &Ints, from: usize, to: usize, count: usize) -> Result<()> {
        assert!(from.max(to) + count <= ints.len(), "{count} integers from {from} to {to} of {}", ints.len());
        self.bind()?;
        // SAFETY: both places lie within the buffer.
        unsafe {
            result::memcpy_dtod_async(
                ints.pointer(to),
                ints.pointer(from),
                4 * count,
                self.stream.cu_stream(),
            )
        }
        .map_err(|e| Error::driver("cuMemcpyDtoDAsync", e))
    }

    fn upload<T: Copy>(&self, to: u64, values: &[T]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        self.not_recording("a copy from the host")?;
        self.bind()?;
        // SAFETY: the caller checked the range. From pageable memory the driver has copied `values` when it returns.
        unsafe { result::memcpy_htod_async(to, values, self.stream.cu_stream()) }
            .map_err(|e| Error::driver("cuMemcpyHtoDAsync", e))
    }

    /// Copies out of a buffer from element `offset` on, once everything queued is done.
    ///
    /// # Errors
    /// [`Error::Lost`]; it may come from anything that was queued before.
    ///
    /// # Panics
    /// If the buffer has not so many.
    pub fn read(&self, buffer: &Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        assert!(
            offset + values.len() <= buffer.len(),
            "{} values at {offset} of {}",
            values.len(),
            buffer.len()
        );
        let at = buffer.pointer(offset);
        if buffer.float() == Float::F32 {
            return self.download(at, values);
        }
        let mut bits = vec![0u16; values.len()];
        self.download(at, &mut bits)?;
        let bf16 = buffer.float() == Float::BF16;
        for (value, bits) in values.iter_mut().zip(bits) {
            *value =
                if bf16 { half::bf16::from_bits(bits).to_f32() } else { half::f16::from_bits(bits).to_f32() };
        }
        Ok(())
    }

    pub(crate) fn download<T: Copy>(&self, from: u64, values: &mut [T]) -> Result<()> {
        self.not_recording("a copy to the host")?;
        if !values.is_empty() {
            self.bind()?;
            // SAFETY: the caller checked the range; `synchronize` waits before anyone looks at the values.
            unsafe { result::memcpy_dtoh_async(values, from, self.stream.cu_stream()) }
                .map_err(|e| Error::driver("cuMemcpyDtoHAsync", e))?;
        }
        self.synchronize()
    }

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| Error::driver("cuStreamSynchronize", e))
    }

    /// Queues a kernel. `params` is its only argument, passed by value.
    pub(crate) fn launch<P: Copy>(&self, kernel: Kernel, grid: Grid, params: &P) -> Result<()> {
        let [x, y, z] = grid.blocks;
        if x * y * z == 0 {
            return Ok(());
        }
        Error::check("the number of blocks of a launch", x, 1..=i32::MAX as usize, "at most 2147483647")?;
        Error::check(
            "the number of rows of blocks of a launch",
            y.max(z),
            1..=MAX_GRID_ROWS,
            "at most 65535",
        )?;
        self.bind()?;
        let function = self.function(kernel, grid.shared)?;
        let mut argument = *params;
        let mut arguments: [*mut c_void; 1] = [(&raw mut argument).cast()];
        let mut attributes = Vec::with_capacity(2);
        let mut set = |id, value| attributes.push(CUlaunchAttribute { id, pad: [0; 4], value });
        if grid.behind && self.begins_early(function)? {
            set(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            );
        }
        if grid.cluster > 1 {
            let size = ClusterSize { x: grid.cluster as u32, y: 1, z: 1 };
            set(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                CUlaunchAttributeValue { clusterDim: size },
            );
        }
        let config = CUlaunchConfig {
            gridDimX: x as u32,
            gridDimY: y as u32,
            gridDimZ: z as u32,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the kernel takes one struct, whose Rust form build.rs made from its header. What its pointers point
        // to was checked by the launcher.
        unsafe { cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|e| Error::driver(&kernel.name(), e))
    }

    fn function(&self, kernel: Kernel, shared: u32) -> Result<CUfunction> {
        if let Some((function, allowed)) = self.kernels.borrow().get(&kernel)
            && shared <= *allowed
        {
            return Ok(*function);
        }
        let name = kernel.name();
        let symbol = CString::new(name.clone()).map_err(|_| Error::Refused(format!("kernel {name}")))?;
        let mut found = None;
        for module in &self.modules.modules {
            // SAFETY: the module is loaded.
            match unsafe { result::module::get_function(*module, symbol.clone()) } {
                Ok(function) => {
                    found = Some(function);
                    break;
                }
                Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => {}
                Err(error) => return Err(Error::driver("cuModuleGetFunction", error)),
            }
        }
        let function = found.ok_or_else(|| Error::Refused(format!("there is no kernel {name}")))?;
        // What a kernel has by itself counts, too, towards the 48 KiB that need no leave.
        if shared > 16 << 10 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(|e| Error::driver("cuFuncSetAttribute", e))?;
        }
        self.kernels.borrow_mut().insert(kernel, (function, shared));
        Ok(function)
    }
}
