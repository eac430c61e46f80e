//! The end of the process. When it exits, the CUDA libraries take themselves apart while other threads may still be
//! inside of them, and a call that is under way then crashes. So whoever uses the device does it under [`at_work`], and a
//! handler that runs before the libraries' own waits for those who do, and lets nobody begin anew.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Work that takes longer is left to its fate: an exit must not hang.
const LONGEST: Duration = Duration::from_secs(5);

static EXITING: AtomicBool = AtomicBool::new(false);
static WORK: RwLock<()> = RwLock::new(());

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, an exit waits.
#[derive(Debug)]
pub struct AtWork(#[allow(dead_code)] Option<RwLockReadGuard<'static, ()>>);

impl Drop for AtWork {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Begins work that must not be under way when the process ends. Once it is ending, this does not return.
pub fn at_work() -> AtWork {
    let outermost = DEPTH.replace(DEPTH.get() + 1) == 0;
    AtWork(outermost.then(|| {
        let guard = WORK.read().unwrap_or_else(PoisonError::into_inner);
        if !EXITING.load(Ordering::SeqCst) {
            return guard;
        }
        drop(guard);
        loop {
            std::thread::park();
        }
    }))
}

/// From now on an exit waits for those [`at_work`]. To be called once the libraries are loaded: handlers run in reverse
/// order.
pub fn watch() {
    static ONCE: Once = Once::new();
    extern "C" fn wait() {
        EXITING.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while WORK.try_write().is_err() && begun.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    ONCE.call_once(|| {
        // SAFETY: a function of this library, which is never unloaded while the process lives. Without memory for it, an
        // exit is as it was.
        unsafe { libc::atexit(wait) };
    });
}
