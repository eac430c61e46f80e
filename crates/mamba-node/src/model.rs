//! A loaded model and what can be asked of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mamba::engine::{Cancel, Event, Session, Task, TokenEvent};
use mamba::{Error, Mamba};
use napi::bindgen_prelude::*;
use napi::threadsafe_function::UnknownReturnValue;
use napi_derive::napi;

use crate::callback::{Callback, Result, caught, internal, spawn, to_js};
use crate::convert::{
    Ids, NativeEmbedOptions, NativeEvent, NativeGenerateOptions, NativeInput, NativeStanding, NativeToken,
    input,
};
use crate::session::NativeSession;
use crate::stats::NativeStats;

/// Disposes of the model when nothing in this environment refers to it any more: neither the handle, which
/// goes with garbage collection or the environment, nor a request under way.
#[derive(Clone)]
pub struct Handle(Arc<Disposing>);

struct Disposing(Mamba);

impl Drop for Disposing {
    fn drop(&mut self) {
        self.0.dispose(|| {});
    }
}

impl Handle {
    pub fn new(model: Mamba) -> Self {
        Self(Arc::new(Disposing(model)))
    }

    fn model(&self) -> &Mamba {
        &self.0.0
    }
}

/// Tokens that JavaScript has not taken yet.
type Untaken = Arc<Mutex<Vec<TokenEvent>>>;

fn lock(untaken: &Untaken) -> MutexGuard<'_, Vec<TokenEvent>> {
    untaken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something under way.
#[napi]
pub struct NativeJob {
    cancel: Cancel,
    untaken: Untaken,
}

impl NativeJob {
    pub fn new(cancel: Cancel) -> Self {
        Self { cancel, untaken: Untaken::default() }
    }
}

#[napi]
impl NativeJob {
    /// Ends it within one step; its callback then gets `ABORTED`, unless it is done by then.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether a generation is to rest; a few tokens may still come.
    #[napi(catch_unwind)]
    pub fn pause(&self, paused: bool) {
        self.cancel.pause(paused);
    }

    /// The tokens that came since the last call. The next one after it is told of, with the event `tokens`.
    #[napi(catch_unwind)]
    pub fn take(&self) -> Vec<NativeToken> {
        let tokens = std::mem::take(&mut *lock(&self.untaken));
        tokens.into_iter().map(NativeToken::from).collect()
    }
}

/// What is known of a model.
#[napi(object, object_from_js = false)]
pub struct NativeInfo {
    /// JSON with the official field names.
    pub config: String,
    /// `f32`, `bf16`, `f16`.
    pub dtype: &'static str,
    /// `cpu`, `cuda`.
    pub device: String,
    /// Threads that compute.
    pub threads: u32,
    /// Row length of logits.
    pub vocab_size: u32,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Hexadecimal.
    pub fingerprint: String,
    /// Bytes of all weights.
    pub weight_bytes: f64,
    /// Bytes of one state.
    pub state_bytes: f64,
    /// Number of parameters.
    pub parameters: f64,
    /// Names of the adapters.
    pub adapters: Vec<String>,
    /// Tokens of the tokenizer, where there is one.
    pub tokenizer_size: Option<u32>,
}

/// A loaded model.
#[napi(custom_finalize)]
pub struct NativeModel {
    /// `None` once it was disposed of: the tokenizer need not wait for garbage collection either.
    handle: Option<Handle>,
    /// What V8 was told that this small object holds.
    external_bytes: i64,
}

impl ObjectFinalize for NativeModel {
    fn finalize(self, env: Env) -> napi::Result<()> {
        env.adjust_external_memory(-self.external_bytes)?;
        Ok(())
    }
}

type OnEvent<'a> = Function<'a, NativeEvent, UnknownReturnValue>;

impl NativeModel {
    pub fn new(handle: Handle, env: &Env) -> napi::Result<Self> {
        let external_bytes = handle.model().info().weight_bytes as i64;
        env.adjust_external_memory(external_bytes)?;
        Ok(Self { handle: Some(handle), external_bytes })
    }

    fn handle(&self) -> Result<&Handle> {
        self.handle.as_ref().ok_or_else(|| to_js(Error::ModelDisposed))
    }

    fn model(&self) -> Result<&Mamba> {
        self.handle().map(Handle::model)
    }

    fn submit(&self, standing: NativeStanding, task: Task, on_event: &OnEvent<'_>) -> Result<NativeJob> {
        let standing = standing.into_core().map_err(to_js)?;
        let callback = Callback::new(on_event, self.handle()?.clone())?;
        let cancel = Cancel::default();
        let job = NativeJob::new(cancel.clone());
        let untaken = job.untaken.clone();
        self.model()?
            .submit_as(standing, task, cancel.clone(), move |event| {
                let there = callback.call(match event {
                    Event::Token(token) => {
                        let mut untaken = lock(&untaken);
                        untaken.push(token);
                        if untaken.len() > 1 {
                            return; // it has been told
                        }
                        Ok(NativeEvent::Tokens)
                    }
                    Event::Done(output) => Ok(output.into()),
                    Event::Failed(error) => Err(error),
                });
                if !there {
                    cancel.cancel();
                }
            })
            .map_err(to_js)?;
        Ok(job)
    }
}

#[napi]
impl NativeModel {
    /// What is known of it.
    #[napi(catch_unwind)]
    pub fn info(&self) -> Result<NativeInfo> {
        let model = self.model()?;
        let info = model.info();
        Ok(NativeInfo {
            config: info.config.to_official_json().to_string(),
            dtype: info.dtype.name(),
            device: info.device.clone(),
            threads: info.threads as u32,
            vocab_size: info.vocab_size as u32,
            eos_token_ids: info.eos_token_ids.clone(),
            fingerprint: info.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
            weight_bytes: info.weight_bytes as f64,
            state_bytes: info.state_bytes as f64,
            parameters: info.parameters as f64,
            adapters: model.adapters().to_vec(),
            tokenizer_size: model.tokenizer().ok().map(|text| text.vocab_size() as u32),
        })
    }

    /// Ids of a text.
    #[napi(catch_unwind, ts_return_type = "Uint32Array")]
    pub fn encode(&self, text: String) -> Result<Ids> {
        let tokenizer = self.model()?.tokenizer().map_err(to_js)?;
        tokenizer.encode(&text).map(Ids).map_err(to_js)
    }

    /// Text of ids.
    #[napi(catch_unwind)]
    pub fn decode(&self, ids: Uint32Array, skip_special: bool) -> Result<String> {
        let tokenizer = self.model()?.tokenizer().map_err(to_js)?;
        tokenizer.decode(&ids, skip_special).map_err(to_js)
    }

    /// Continues a prompt.
    #[napi(catch_unwind)]
    pub fn generate(
        &self,
        prompt: NativeInput,
        mut options: NativeGenerateOptions,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        let standing = std::mem::take(&mut options.standing);
        let task = Task::Generate { prompt: input(prompt), options: options.into() };
        self.submit(standing, task, &on_event)
    }

    /// Continues a session.
    #[napi(catch_unwind)]
    pub fn generate_from(
        &self,
        session: &NativeSession,
        mut options: NativeGenerateOptions,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        let standing = std::mem::take(&mut options.standing);
        let task = Task::Continue { session: session.core(), options: options.into() };
        self.submit(standing, task, &on_event)
    }

    /// Adds to a session's context.
    #[napi(catch_unwind)]
    pub fn append(
        &self,
        session: &NativeSession,
        text: NativeInput,
        standing: NativeStanding,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        self.submit(standing, Task::Append { session: session.core(), input: input(text) }, &on_event)
    }

    /// Keeps the state after a text in the prefix cache.
    #[napi(catch_unwind)]
    pub fn cache_prefix(
        &self,
        text: NativeInput,
        standing: NativeStanding,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        self.submit(standing, Task::CachePrefix { input: input(text) }, &on_event)
    }

    /// What the engine does and how fast.
    #[napi(catch_unwind)]
    pub fn stats(&self) -> Result<NativeStats> {
        Ok(self.model()?.stats().into())
    }

    /// Logits.
    #[napi(catch_unwind)]
    pub fn forward(
        &self,
        text: NativeInput,
        all: bool,
        standing: NativeStanding,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        self.submit(standing, Task::Forward { input: input(text), all }, &on_event)
    }

    /// Log-probabilities of a text's tokens.
    #[napi(catch_unwind)]
    pub fn score(
        &self,
        text: NativeInput,
        standing: NativeStanding,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        self.submit(standing, Task::Score { input: input(text) }, &on_event)
    }

    /// Vectors.
    #[napi(catch_unwind)]
    pub fn embed(
        &self,
        texts: Vec<NativeInput>,
        options: NativeEmbedOptions,
        standing: NativeStanding,
        #[napi(ts_arg_type = "NativeCallback<NativeEvent>")] on_event: OnEvent<'_>,
    ) -> Result<NativeJob> {
        let options = options.into_core().map_err(to_js)?;
        self.submit(
            standing,
            Task::Embed { inputs: texts.into_iter().map(input).collect(), options },
            &on_event,
        )
    }

    /// An empty session.
    #[napi(catch_unwind)]
    pub fn session(&self, env: Env) -> Result<NativeSession> {
        let model = self.model()?;
        NativeSession::new(model.session(), model.info().state_bytes as i64, &env).map_err(internal)
    }

    /// A session from its file or its bytes.
    #[napi(catch_unwind)]
    pub fn restore(
        &self,
        from: Either<String, Uint8Array>,
        #[napi(ts_arg_type = "NativeCallback<NativeSession>")] on_done: Function<
            '_,
            NativeSession,
            UnknownReturnValue,
        >,
    ) -> Result<()> {
        let model = self.model()?.clone();
        let (keep, state_bytes) = (self.handle()?.clone(), model.info().state_bytes);
        let callback = Callback::with(&on_done, move |session: Session, env| {
            let _ = &keep;
            NativeSession::new(session, state_bytes as i64, &env)
        })?;
        // Bytes are copied: JavaScript may change its own meanwhile.
        let from = match from {
            Either::A(path) => Either::A(path),
            Either::B(bytes) => Either::B(bytes.to_vec()),
        };
        spawn("mamba-restore", move || {
            callback.call(caught(|| match from {
                Either::A(path) => model.restore_file(path.as_ref()),
                Either::B(bytes) => model.restore(&bytes),
            }));
        })
    }

    /// Ends everything under way and frees the memory; `on_done` is called when it is free.
    #[napi(catch_unwind)]
    pub fn dispose(
        &mut self,
        env: Env,
        #[napi(ts_arg_type = "NativeCallback<void>")] on_done: Function<'_, (), UnknownReturnValue>,
    ) -> Result<()> {
        let callback = Callback::new(&on_done, ())?;
        let handle = self.handle.take().ok_or_else(|| to_js(Error::ModelDisposed))?;
        handle.model().dispose(move || {
            callback.call(Ok(()));
        });
        env.adjust_external_memory(-std::mem::take(&mut self.external_bytes)).map_err(internal)?;
        Ok(())
    }
}
