//! Whether this machine can run the CUDA build, found out before that is loaded: the driver, its version, a device,
//! the CUDA libraries. Nothing here links to CUDA; everything is looked up at run time, and what does not hold has a
//! code of its own.
//!
//! A driver can hang, so the probe runs on a thread that is waited for only so long. While one hangs, nobody else waits.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, spawn};

/// A place to look for the CUDA libraries in.
#[napi(object, object_to_js = false)]
pub struct NativeLibraryPlace {
    /// What named it, for messages: `CUDA_HOME`.
    pub source: String,
    /// The folder; without one, wherever the dynamic loader looks by itself.
    pub folder: Option<String>,
}

/// A GPU.
#[napi(object, object_from_js = false)]
pub struct NativeCudaDevice {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// `9.0`.
    pub compute_capability: String,
    /// All of its memory.
    pub memory_bytes: f64,
}

/// What was found, as far as the probe came.
#[napi(object, object_from_js = false)]
#[derive(Default)]
pub struct NativeCudaProbe {
    /// What does not hold; none, if all does.
    pub code: Option<&'static str>,
    /// What was found, what was expected and what to do.
    pub reason: Option<String>,
    /// `580.82.07 (CUDA 13.0)`.
    pub driver: Option<String>,
    /// The first device, which is the one that is used.
    pub device: Option<NativeCudaDevice>,
    /// The libraries' files. They stay loaded, so that the CUDA addon finds them by their names.
    pub libraries: Vec<String>,
}

/// What does not hold.
struct Failure {
    code: &'static str,
    reason: String,
}

impl Failure {
    fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Looks at the driver, the device and the libraries, and waits at most `timeout_ms` for them.
#[napi(catch_unwind)]
pub fn probe_cuda_sync(places: Vec<NativeLibraryPlace>, timeout_ms: u32) -> NativeCudaProbe {
    probe(places, timeout_ms)
}

/// The same, without blocking the caller.
#[napi(catch_unwind)]
pub fn probe_cuda(
    places: Vec<NativeLibraryPlace>,
    timeout_ms: u32,
    #[napi(ts_arg_type = "NativeCallback<NativeCudaProbe>")] on_done: Function<
        '_,
        NativeCudaProbe,
        UnknownReturnValue,
    >,
) -> Result<()> {
    let callback = Callback::new(&on_done, ())?;
    spawn("mamba-probe", move || {
        callback.call(Ok(probe(places, timeout_ms)));
    })
}

/// Of a probe that took too long: what its thread will send.
static LATE: Mutex<Option<Receiver<NativeCudaProbe>>> = Mutex::new(None);

fn probe(places: Vec<NativeLibraryPlace>, timeout_ms: u32) -> NativeCudaProbe {
    let failed = |reason: String| NativeCudaProbe {
        code: Some("CUDA_DRIVER_ERROR"),
        reason: Some(reason),
        ..NativeCudaProbe::default()
    };
    let late = || LATE.lock().unwrap_or_else(PoisonError::into_inner);
    let hangs = late().as_ref().is_some_and(|late| matches!(late.try_recv(), Err(TryRecvError::Empty)));
    if hangs {
        return failed(
            "the NVIDIA driver has not answered an earlier look at it yet; see whether nvidia-smi does, and restart \
             the machine if not"
                .into(),
        );
    }
    let (sender, receiver) = mpsc::channel();
    let started = spawn("mamba-probe-driver", move || {
        let mut found = NativeCudaProbe::default();
        if let Err(failure) = platform::probe(&places, &mut found) {
            (found.code, found.reason) = (Some(failure.code), Some(failure.reason));
        }
        let _ = sender.send(found);
    });
    if let Err(error) = started {
        return failed(error.reason.to_string());
    }
    match receiver.recv_timeout(Duration::from_millis(timeout_ms.into())) {
        Ok(found) => found,
        Err(RecvTimeoutError::Disconnected) => {
            failed("the thread that asked the NVIDIA driver panicked".into())
        }
        Err(RecvTimeoutError::Timeout) => {
            *late() = Some(receiver);
            failed(format!(
                "the NVIDIA driver did not answer within {} s; see whether nvidia-smi does, and restart the machine if \
                 not",
                f64::from(timeout_ms) / 1e3
            ))
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
mod platform {
    use super::{Failure, NativeCudaProbe, NativeLibraryPlace};

    pub fn probe(_: &[NativeLibraryPlace], _: &mut NativeCudaProbe) -> Result<(), Failure> {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        Err(Failure::new(
            "CUDA_UNSUPPORTED_PLATFORM",
            format!(
                "the CUDA build exists for Linux x64 with glibc only, and this is {os} {arch}; use the CPU"
            ),
        ))
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
mod platform {
    use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
    use std::fs;
    use std::path::Path;

    use super::{Failure, NativeCudaDevice, NativeCudaProbe, NativeLibraryPlace};

    const DRIVER: &str = "libcuda.so.1";
    /// In the order in which they need each other.
    const LIBRARIES: [&str; 2] = ["libcublasLt.so.13", "libcublas.so.13"];
    /// As cuDriverGetVersion counts: CUDA 13.0, so driver 580.
    const DRIVER_VERSION: c_int = 13000;
    /// Major, minor: Ampere, the first with bf16.
    const COMPUTE_CAPABILITY: (c_int, c_int) = (8, 0);
    const UPDATE_DRIVER: &str = "install NVIDIA's driver 580 or newer";

    // CUresult and CUdevice_attribute of cuda.h.
    const SUCCESS: c_int = 0;
    const ERROR_STUB_LIBRARY: c_int = 34;
    const ERROR_NO_DEVICE: c_int = 100;
    const ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    const ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: c_int = 76;

    pub fn probe(places: &[NativeLibraryPlace], found: &mut NativeCudaProbe) -> Result<(), Failure> {
        let driver = Driver::open()?;
        let version = driver.version()?;
        let cuda = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
        let driver_version = match kernel_module_version() {
            Some(module) => format!("{module} ({cuda})"),
            None => cuda,
        };
        found.driver = Some(driver_version.clone());
        if version < DRIVER_VERSION {
            return Err(Failure::new(
                "CUDA_DRIVER_TOO_OLD",
                format!(
                    "NVIDIA's driver is {driver_version}, expected 580 (CUDA 13.0) or newer; {UPDATE_DRIVER}"
                ),
            ));
        }
        driver.init()?;
        let (device, capability) = driver.first_device()?;
        let name = device.name.clone();
        found.device = Some(device);
        if capability < COMPUTE_CAPABILITY {
            return Err(Failure::new(
                "CUDA_DEVICE_TOO_OLD",
                format!(
                    "the GPU {name} has compute capability {}.{}, expected 8.0 or newer (Ampere: A100, RTX 30, and \
                     later); if there is another GPU, name it in CUDA_VISIBLE_DEVICES",
                    capability.0, capability.1
                ),
            ));
        }
        found.libraries = load_libraries(places)?;
        Ok(())
    }

    /// A library that the dynamic loader has loaded.
    struct Library(*mut c_void);

    impl Library {
        /// Whoever asks for its name later gets it. Its symbols are seen by nobody who does not: another addon may bring
        /// another version of CUDA.
        fn open(name: &str) -> Result<Self, String> {
            let name = CString::new(name).map_err(|_| "its path holds a zero byte".to_string())?;
            // SAFETY: the name ends in a zero. What a library runs when it is loaded is its own affair.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() { Err(last_error()) } else { Ok(Self(handle)) }
        }

        /// One of the driver's functions.
        ///
        /// # Safety
        /// `F` is the function's type, an `extern "C" fn`, and the library stays open.
        unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, Failure> {
            // SAFETY: the handle is open, since only `close` closes it and takes it.
            let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
            if symbol.is_null() {
                return Err(Failure::new(
                    "CUDA_DRIVER_ERROR",
                    format!(
                        "{} has no {}, so it is not NVIDIA's driver; {UPDATE_DRIVER}",
                        self.path().as_deref().unwrap_or(DRIVER),
                        name.to_string_lossy()
                    ),
                ));
            }
            const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
            // SAFETY: the caller says that this is the function's type, which is a pointer.
            Ok(unsafe { std::mem::transmute_copy(&symbol) })
        }

        /// Its file, which the loader chose where only a name was given.
        fn path(&self) -> Option<String> {
            let mut map: *const LinkMap = std::ptr::null();
            // SAFETY: RTLD_DI_LINKMAP writes a pointer to the entry of an open handle.
            let status = unsafe { libc::dlinfo(self.0, libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
            if status != 0 || map.is_null() {
                return None;
            }
            // SAFETY: the entry lives as long as the library, its name ends in a zero.
            let name = unsafe { CStr::from_ptr((*map).name) };
            Some(name.to_string_lossy().into_owned())
        }

        fn close(self) {
            // SAFETY: the handle is open and not used any more; no symbol of it was kept.
            unsafe { libc::dlclose(self.0) };
        }
    }

    /// The beginning of link.h's `struct link_map`.
    #[repr(C)]
    struct LinkMap {
        address: usize,
        name: *const c_char,
    }

    fn last_error() -> String {
        // SAFETY: the text is this thread's, and valid until its next call of the loader.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return "no reason given".into();
        }
        // SAFETY: as above; it ends in a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// The functions of the driver that the probe calls.
    struct Driver {
        get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
        init: unsafe extern "C" fn(c_uint) -> c_int,
        get_count: unsafe extern "C" fn(*mut c_int) -> c_int,
        get_device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
        get_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
        get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
        total_memory: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
        error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    }

    impl Driver {
        fn open() -> Result<Self, Failure> {
            let library = Library::open(DRIVER).map_err(|error| {
                Failure::new(
                    "CUDA_DRIVER_MISSING",
                    format!(
                        "NVIDIA's driver is not there ({error}); {UPDATE_DRIVER}, in a container start it with the \
                         NVIDIA container toolkit (--gpus all)"
                    ),
                )
            })?;
            // SAFETY: these are the declarations of cuda.h, which never change under the same name, with CUresult and
            // CUdevice as int. The library is never closed.
            unsafe {
                Ok(Self {
                    get_version: library.function(c"cuDriverGetVersion")?,
                    init: library.function(c"cuInit")?,
                    get_count: library.function(c"cuDeviceGetCount")?,
                    get_device: library.function(c"cuDeviceGet")?,
                    get_attribute: library.function(c"cuDeviceGetAttribute")?,
                    get_name: library.function(c"cuDeviceGetName")?,
                    total_memory: library.function(c"cuDeviceTotalMem_v2")?,
                    error_name: library.function(c"cuGetErrorName")?,
                })
            }
        }

        /// 13000 is CUDA 13.0.
        fn version(&self) -> Result<c_int, Failure> {
            let mut version = 0;
            // SAFETY: it writes one int; it may be called before cuInit.
            self.checked("cuDriverGetVersion", unsafe { (self.get_version)(&raw mut version) })?;
            Ok(version)
        }

        fn init(&self) -> Result<(), Failure> {
            // SAFETY: 0 is the only value that the flags may have. It may be called again.
            match unsafe { (self.init)(0) } {
                ERROR_NO_DEVICE => Err(no_device()),
                ERROR_STUB_LIBRARY => Err(Failure::new(
                    "CUDA_DRIVER_MISSING",
                    format!(
                        "{DRIVER} is the CUDA toolkit's stub, not NVIDIA's driver; {UPDATE_DRIVER}, and take the \
                         folder `stubs` out of LD_LIBRARY_PATH"
                    ),
                )),
                status => self.checked("cuInit", status),
            }
        }

        /// The first device and its compute capability.
        fn first_device(&self) -> Result<(NativeCudaDevice, (c_int, c_int)), Failure> {
            let (mut count, mut device, mut memory_bytes, mut name) = (0, 0, 0, [0_u8; 256]);
            // SAFETY: it writes one int.
            self.checked("cuDeviceGetCount", unsafe { (self.get_count)(&raw mut count) })?;
            if count < 1 {
                return Err(no_device());
            }
            // SAFETY: it writes one int; there is a device 0.
            self.checked("cuDeviceGet", unsafe { (self.get_device)(&raw mut device, 0) })?;
            let attribute = |which| {
                let mut value = 0;
                // SAFETY: it writes one int.
                let status = unsafe { (self.get_attribute)(&raw mut value, which, device) };
                self.checked("cuDeviceGetAttribute", status).map(|()| value)
            };
            let capability = (
                attribute(ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            );
            // SAFETY: it writes at most as many bytes as it is told, of which we keep the last one zero.
            let status =
                unsafe { (self.get_name)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device) };
            self.checked("cuDeviceGetName", status)?;
            // SAFETY: it writes one size_t.
            let status = unsafe { (self.total_memory)(&raw mut memory_bytes, device) };
            self.checked("cuDeviceTotalMem", status)?;
            let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
            Ok((
                NativeCudaDevice {
                    name: name.into_owned(),
                    compute_capability: format!("{}.{}", capability.0, capability.1),
                    memory_bytes: memory_bytes as f64,
                },
                capability,
            ))
        }

        fn checked(&self, function: &str, status: c_int) -> Result<(), Failure> {
            if status == SUCCESS {
                return Ok(());
            }
            let mut name: *const c_char = std::ptr::null();
            // SAFETY: it writes a pointer to a constant, or null.
            unsafe { (self.error_name)(status, &raw mut name) };
            let name = if name.is_null() {
                String::new()
            } else {
                // SAFETY: a constant text of the driver's.
                format!(", {}", unsafe { CStr::from_ptr(name) }.to_string_lossy())
            };
            Err(Failure::new(
                "CUDA_DRIVER_ERROR",
                format!(
                    "NVIDIA's driver fails: {function} gave {status}{name}, expected 0; see whether nvidia-smi works, \
                     and restart the machine after an update of the driver"
                ),
            ))
        }
    }

    fn no_device() -> Failure {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES")
            .map_or(String::new(), |devices| format!(" (CUDA_VISIBLE_DEVICES is '{devices}')"));
        Failure::new(
            "CUDA_NO_DEVICE",
            format!(
                "NVIDIA's driver sees no GPU{visible}, expected at least one; see what nvidia-smi -L lists, in a \
                 container start it with --gpus all"
            ),
        )
    }

    /// `580.82.07`, which is what people call the driver's version; the driver's own interface tells CUDA's alone.
    fn kernel_module_version() -> Option<String> {
        let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
        let is_version =
            |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
        text.lines().next()?.split_whitespace().find(is_version).map(Into::into)
    }

    /// Loads all of [`LIBRARIES`] from the first place that has them.
    fn load_libraries(places: &[NativeLibraryPlace]) -> Result<Vec<String>, Failure> {
        let mut tried = String::new();
        for place in places {
            let failed = match load_from(place.folder.as_deref()) {
                Ok(libraries) => return Ok(libraries),
                Err(failed) => failed,
            };
            let folder = place.folder.as_ref().map_or(String::new(), |folder| format!(" {folder}"));
            tried.push_str(&format!("\n- {}{folder}: {failed}", place.source));
        }
        Err(Failure::new(
            "CUDA_LIBRARY_MISSING",
            format!(
                "{} cannot be loaded, expected those of CUDA 13; install the CUDA toolkit 13, or with pip the package \
                 nvidia-cublas (13.x), or name the folder that holds them in NODE_MAMBA_CUDA_PATH. Tried:{tried}",
                LIBRARIES.join(" and ")
            ),
        ))
    }

    fn load_from(folder: Option<&str>) -> Result<Vec<String>, String> {
        let names = LIBRARIES.map(|name| match folder {
            Some(folder) => Path::new(folder).join(name).to_string_lossy().into_owned(),
            None => name.to_string(),
        });
        if folder.is_some()
            && let Some(missing) = names.iter().position(|path| !Path::new(path).exists())
        {
            return Err(format!("no {}", LIBRARIES[missing]));
        }
        let mut loaded = Vec::<Library>::new();
        for name in &names {
            match Library::open(name) {
                Ok(library) => loaded.push(library),
                Err(error) => {
                    // Otherwise another place's libraries would be bound to these.
                    loaded.into_iter().rev().for_each(Library::close);
                    return Err(error);
                }
            }
        }
        Ok(loaded.iter().zip(&names).map(|(library, name)| library.path().unwrap_or(name.clone())).collect())
    }
}
