//! Errors and callbacks: how results reach JavaScript from any thread.

use mamba::Error;
use napi::bindgen_prelude::*;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode, UnknownReturnValue};

/// The `code` of an error that JavaScript gets.
pub struct Code(&'static str);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.0
    }
}

impl From<Status> for Code {
    fn from(_: Status) -> Self {
        Self("INTERNAL")
    }
}

/// What every entry point returns.
pub type Result<T> = napi::Result<T, Code>;

/// The core's error as JavaScript gets it.
pub fn to_js(error: Error) -> napi::Error<Code> {
    napi::Error::new(Code(error.code()), error.to_string())
}

/// A failure of Node-API itself.
pub fn internal(error: napi::Error) -> napi::Error<Code> {
    napi::Error::new(Code("INTERNAL"), error.reason.to_string())
}

/// A JavaScript function `(error, value)` that any thread may call with a `T`, which becomes a `V` on the
/// environment's thread. While it exists, it keeps the event loop alive; after the environment is gone, calls
/// do nothing.
pub struct Callback<T: 'static, V: ToNapiValue + 'static = T>(
    ThreadsafeFunction<T, UnknownReturnValue, V, Code>,
);

impl<T: ToNapiValue + 'static> Callback<T> {
    /// `keep` lives as long as the callback, and is dropped on the environment's thread.
    pub fn new<K: 'static>(function: &Function<'_, T, UnknownReturnValue>, keep: K) -> Result<Self> {
        Self::with(function, move |value, _| {
            let _ = &keep;
            Ok(value)
        })
    }
}

impl<T: 'static, V: ToNapiValue + 'static> Callback<T, V> {
    /// `convert` runs, and is dropped, on the environment's thread.
    pub fn with(
        function: &Function<'_, V, UnknownReturnValue>,
        mut convert: impl FnMut(T, Env) -> napi::Result<V> + 'static,
    ) -> Result<Self> {
        function
            .build_threadsafe_function::<T>()
            .error_status::<Code>()
            .callee_handled::<true>()
            .build_callback(move |context| convert(context.value, context.env))
            .map(Self)
            .map_err(internal)
    }

    /// Queues a call; false when the environment is gone.
    pub fn call(&self, result: mamba::Result<T>) -> bool {
        self.0.call(result.map_err(to_js), ThreadsafeFunctionCallMode::NonBlocking) == Status::Ok
    }
}

/// Runs `work` on a thread of its own.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(|error| {
        to_js(Error::Internal { message: format!("cannot start the thread {name}: {error}") })
    })
}

/// The result of `work`, a panic included.
pub fn caught<T>(work: impl FnOnce() -> mamba::Result<T>) -> mamba::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::panic(&*panic)))
}
