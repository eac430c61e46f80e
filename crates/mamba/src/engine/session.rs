//! A conversation: a state of constant size that goes on from call to call.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ModelInfo;
use crate::error::{Error, Result};
use crate::generate::SessionSnapshot;

/// A session. Clones are the same session; [`Session::fork`] makes another one.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: Mutex<Context>,
    busy: AtomicBool,
    info: Arc<ModelInfo>,
}

/// What a session remembers. The state is never changed in place, so forks share it.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The state after all tokens but the pending one; `None` before the first.
    pub state: Option<Arc<[f32]>>,
    /// Length of the context, the pending token included.
    pub tokens: u64,
    /// The last token, which the state does not know yet: its logits are needed when generation goes on.
    pub pending: Option<u32>,
    /// Key of the random draws.
    pub seed: u64,
    /// The last ids of the context, the pending one included: for penalties, and for the text of an
    /// unfinished character.
    pub window: Vec<u32>,
}

impl Context {
    /// Adds ids; the window keeps the last 256, or `penalty_window` where that is more, and never shrinks.
    pub fn remember(&mut self, ids: &[u32], penalty_window: usize) {
        self.tokens += ids.len() as u64;
        let keep = self.window.len().max(penalty_window).max(256);
        self.window.extend_from_slice(ids);
        let excess = self.window.len().saturating_sub(keep);
        self.window.drain(..excess);
    }
}

/// A session while a request uses it; gives it back when dropped.
pub(crate) struct Loan {
    session: Session,
}

impl Loan {
    pub fn context(&self) -> Context {
        self.session.context().clone()
    }

    pub fn store(&self, context: Context) {
        *self.session.context() = context;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.session.inner.busy.store(false, Ordering::Release);
    }
}

impl Session {
    pub(super) fn new(info: Arc<ModelInfo>) -> Self {
        Self::with(
            Context { state: None, tokens: 0, pending: None, seed: new_seed(), window: Vec::new() },
            info,
        )
    }

    fn with(context: Context, info: Arc<ModelInfo>) -> Self {
        let (context, busy) = (Mutex::new(context), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { context, busy, info }) }
    }

    pub(super) fn from_snapshot(snapshot: SessionSnapshot, info: Arc<ModelInfo>) -> Result<Self> {
        snapshot.check_model(&info.spec, &info.fingerprint)?;
        let (tokens, window) = (snapshot.tokens, snapshot.window.len());
        if tokens >= 1 << 53 || window as u64 > tokens || (snapshot.pending.is_some() && window == 0) {
            let reason = format!("it counts {tokens} tokens and holds the last {window} of them");
            return Err(Error::SessionInvalid { reason });
        }
        let vocab_size = info.vocab_size;
        let ids = snapshot.window.iter().chain(&snapshot.pending);
        if let Some((position, id)) = ids.enumerate().find(|(_, id)| **id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id: i64::from(*id), position, vocab_size });
        }
        let consumed = snapshot.tokens.saturating_sub(u64::from(snapshot.pending.is_some()));
        let context = Context {
            state: (consumed > 0).then_some(snapshot.state),
            tokens: snapshot.tokens,
            pending: snapshot.pending,
            seed: snapshot.seed,
            window: snapshot.window,
        };
        Ok(Self::with(context, info))
    }

    fn context(&self) -> MutexGuard<'_, Context> {
        self.inner.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the session for one request.
    pub(super) fn lend(&self, info: &Arc<ModelInfo>) -> Result<Loan> {
        if !Arc::ptr_eq(&self.inner.info, info) {
            return Err(Error::SessionMismatch {
                what: "the model handle".into(),
                found: "another model's".into(),
                expected: "the one that made or restored the session".into(),
            });
        }
        if self.inner.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::SessionBusy);
        }
        Ok(Loan { session: self.clone() })
    }

    fn idle(&self) -> Result<()> {
        if self.inner.busy.load(Ordering::Acquire) { Err(Error::SessionBusy) } else { Ok(()) }
    }

    /// Another session with the same context, in constant time.
    ///
    /// # Errors
    /// `SESSION_BUSY` while a request runs on it.
    pub fn fork(&self) -> Result<Self> {
        self.idle()?;
        Ok(Self::with(self.context().clone(), self.inner.info.clone()))
    }

    /// Length of the context in tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.context().tokens
    }

    /// Length of [`Session::to_bytes`]: the same for any context.
    #[must_use]
    pub fn byte_length(&self) -> usize {
        self.snapshot().byte_length()
    }

    /// The session in the format `node-mamba-session/1`.
    ///
    /// # Errors
    /// `SESSION_BUSY` while a request runs on it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.idle()?;
        Ok(self.snapshot().to_bytes())
    }

    /// Writes [`Session::to_bytes`] to a file, atomically.
    ///
    /// # Errors
    /// `SESSION_BUSY`, `DISK_FULL`, `IO_ERROR`; the file that was there stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.idle()?;
        self.snapshot().save(path)
    }

    fn snapshot(&self) -> SessionSnapshot {
        let Context { state, tokens, pending, seed, window } = self.context().clone();
        let info = &self.inner.info;
        SessionSnapshot {
            state: state.unwrap_or_else(|| vec![0.0; info.spec.elements()].into()),
            spec: info.spec.clone(),
            tokens,
            pending,
            seed,
            window,
            fingerprint: info.fingerprint,
            dtype: info.dtype.name().into(),
            device: info.device.clone(),
        }
    }
}

/// A seed that nobody asked for: from the entropy that the standard library draws for its hash maps.
pub(crate) fn new_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
