//! A session.

use mamba::engine::Session;
use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, caught, internal, spawn, to_js};
use crate::convert::Bytes;

/// A session of a model.
#[napi(custom_finalize)]
pub struct NativeSession {
    session: Session,
    /// What V8 was told that this small object holds: a state, though a new session has none yet and a fork
    /// shares its parent's until either goes on.
    external_bytes: i64,
}

impl ObjectFinalize for NativeSession {
    fn finalize(self, env: Env) -> napi::Result<()> {
        env.adjust_external_memory(-self.external_bytes)?;
        Ok(())
    }
}

impl NativeSession {
    pub fn new(session: Session, state_bytes: i64, env: &Env) -> napi::Result<Self> {
        env.adjust_external_memory(state_bytes)?;
        Ok(Self { session, external_bytes: state_bytes })
    }

    pub fn core(&self) -> Session {
        self.session.clone()
    }
}

#[napi]
impl NativeSession {
    /// Length of the context.
    #[napi(catch_unwind)]
    pub fn tokens(&self) -> f64 {
        self.session.tokens() as f64
    }

    /// Length of `to_bytes`.
    #[napi(catch_unwind)]
    pub fn byte_length(&self) -> f64 {
        self.session.byte_length() as f64
    }

    /// Another session with the same context.
    #[napi(catch_unwind)]
    pub fn fork(&self, env: Env) -> Result<NativeSession> {
        let fork = self.session.fork().map_err(to_js)?;
        Self::new(fork, self.external_bytes, &env).map_err(internal)
    }

    /// The session as bytes.
    #[napi(catch_unwind, ts_return_type = "Uint8Array")]
    pub fn to_bytes(&self) -> Result<Bytes> {
        self.session.to_bytes().map(Bytes).map_err(to_js)
    }

    /// Writes it to a file.
    #[napi(catch_unwind)]
    pub fn save(
        &self,
        path: String,
        #[napi(ts_arg_type = "NativeCallback<void>")] on_done: Function<'_, (), UnknownReturnValue>,
    ) -> Result<()> {
        // A fork, so that what is written is what the session is now, whatever happens to it meanwhile.
        let session = self.session.fork().map_err(to_js)?;
        let callback = Callback::new(&on_done, ())?;
        spawn("mamba-save", move || {
            callback.call(caught(|| session.save(path.as_ref())));
        })
    }
}
