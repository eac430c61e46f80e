//! The CPU backend's threads: the engine's own thread and `count − 1` workers beside it.
//!
//! A decode step is some hundred short parallel sections of a few microseconds, so handing one out must not
//! go through the operating system: workers spin for a moment before they sleep. One pool belongs to one
//! model; nothing here is global.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// The option `threads`, by default one for each processor that the process may use.
///
/// # Errors
/// `OPTION_INVALID` unless it is 1 to 1024.
pub fn count(asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(threads @ 1..=1024) => Ok(threads),
        Some(threads) => Err(Error::option("threads", threads, "1 to 1024")),
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

/// How often a worker looks for work before it sleeps (about 50 µs) and a caller looks for the end of a
/// section before it lets others run.
const SPINS: usize = 2_000;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// A parallel section. It lives on its caller's stack for as long as the section runs.
struct Section<'a> {
    job: Job<'a>,
    tasks: usize,
}

struct Shared {
    /// The section's number in the upper half, how many of its tasks are not yet taken in the lower one.
    ticket: AtomicU64,
    section: AtomicPtr<Section<'static>>,
    done: AtomicUsize,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    stop: AtomicBool,
}

/// A pool of threads.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// A pool that computes on `count` threads, the caller's included.
    ///
    /// # Errors
    /// `DEVICE_UNAVAILABLE` when the operating system gives no thread.
    pub fn new(count: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            section: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for i in 1..count {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("mamba-cpu-{i}"))
                .spawn(move || work(&shared))
                .map_err(|error| Error::DeviceUnavailable {
                    device: "cpu".into(),
                    reason: format!("no thread {i} of {count}: {error}"),
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads that compute, the caller's included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(0) … job(tasks − 1)`, each once, on all threads, and returns when all have returned. Floats too
    /// small for their exponent (states that fade away) count as zero within: some processors are a hundred times
    /// slower with them. The caller's own setting is back when this returns.
    /// Tasks are handed out in order, one at a time. Not to be called from within a task.
    ///
    /// # Panics
    /// If a task did.
    pub fn run(&mut self, tasks: usize, job: Job) {
        let _flushed = FlushedDenormals::new();
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(job);
            return;
        }
        let shared = &*self.shared;
        let section = Section { job, tasks };
        shared.done.store(0, Ordering::Relaxed);
        shared.section.store((&raw const section).cast_mut().cast(), Ordering::Relaxed);
        let number = (shared.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        shared.ticket.store(number | tasks as u64, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        while take_task(shared) {}
        let mut spins = 0;
        while shared.done.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of the CPU backend panicked");
        }
    }
}

/// Runs the next task of the open section; false when none is left.
fn take_task(shared: &Shared) -> bool {
    let ticket = shared.ticket.load(Ordering::Acquire);
    let left = ticket as u32;
    if left == 0 {
        return false;
    }
    let section = shared.section.load(Ordering::Relaxed);
    if shared.ticket.compare_exchange(ticket, ticket - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return true; // someone else was faster; look again
    }
    // SAFETY: the exchange succeeded, so this section is still the one that `ticket` names: its caller opens
    // the next only when all tasks are done, and this one, just taken, is not. So the pointer, read in
    // between, is this section's, and the section outlives this task.
    let Section { job, tasks } = unsafe { &*section };
    let task = *tasks - left as usize;
    if catch_unwind(AssertUnwindSafe(|| job(task))).is_err() {
        shared.panicked.store(true, Ordering::Relaxed);
    }
    shared.done.fetch_add(1, Ordering::Release);
    true
}

fn work(shared: &Shared) {
    let _flushed = FlushedDenormals::new();
    let mut spins = 0;
    while !shared.stop.load(Ordering::Acquire) {
        if take_task(shared) {
            spins = 0;
        } else if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            // Announced before the last look: a caller that opens a section after that look sees a sleeper
            // and wakes it, and a wake-up that comes before `park` makes it return at once.
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            let work = shared.ticket.load(Ordering::SeqCst) as u32 != 0 || shared.stop.load(Ordering::SeqCst);
            if !work {
                std::thread::park();
            }
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            spins = 0;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// While it lives, this thread takes denormals for zero, and makes none.
struct FlushedDenormals {
    #[cfg(target_arch = "x86_64")]
    before: u32,
    /// Of this thread.
    unsendable: PhantomData<*const ()>,
}

#[cfg(target_arch = "x86_64")]
impl FlushedDenormals {
    fn new() -> Self {
        const FLUSH_RESULTS: u32 = 1 << 15;
        const FLUSH_INPUTS: u32 = 1 << 6;
        let mut before = 0u32;
        // SAFETY: reads and writes the thread's own control register; rounding and exceptions stay as they are.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack));
            let flushed = before | FLUSH_RESULTS | FLUSH_INPUTS;
            asm!("ldmxcsr [{}]", in(reg) &raw const flushed, options(nostack));
        }
        Self { before, unsendable: PhantomData }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FlushedDenormals {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const self.before, options(nostack)) }
    }
}

/// Other processors are not slower with them.
#[cfg(not(target_arch = "x86_64"))]
impl FlushedDenormals {
    fn new() -> Self {
        Self { unsendable: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_runs_once_in_many_short_sections() {
        for count in [1, 2, 5] {
            let mut pool = Threads::new(count).unwrap();
            for tasks in (0..300).chain([5_000]) {
                let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    runs.iter().all(|r| r.load(Ordering::Relaxed) == 1),
                    "{count} threads, {tasks} tasks"
                );
                if tasks % 100 == 99 {
                    std::thread::sleep(std::time::Duration::from_millis(2)); // let the workers fall asleep
                }
            }
        }
    }

    #[test]
    fn a_panicking_task_is_reported_and_the_pool_lives_on() {
        let mut pool = Threads::new(3).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|i| assert_ne!(i, 20))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(50, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 1225);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn denormals_are_zero_within_and_only_there() {
        use std::hint::black_box;
        let tiny = || black_box(1e-30f32) * black_box(1e-12f32);
        for count in [1, 3] {
            let mut pool = Threads::new(count).unwrap();
            let sums: Vec<_> = (0..100).map(|_| AtomicUsize::new(7)).collect();
            pool.run(100, &|i| sums[i].store(tiny().to_bits() as usize, Ordering::Relaxed));
            assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == 0), "{count} threads");
            assert_ne!(tiny(), 0.0, "{count} threads");
            let panic = catch_unwind(AssertUnwindSafe(|| pool.run(2, &|_| panic!("on purpose"))));
            assert!(panic.is_err() && tiny() != 0.0, "{count} threads");
        }
    }
}
