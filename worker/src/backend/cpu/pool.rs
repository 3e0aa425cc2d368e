//! The compute threads of one rank.
//!
//! [`Pool::run`] splits a region's tasks over the calling thread and the workers and returns when
//! all are done. The caller never waits for a worker that has not begun: a worker enters a region
//! by a compare-and-swap while it is open, and the caller, out of tasks, closes it and waits for
//! those inside only. So ranks that share cores slow each other down by the work in hand and no
//! more. Idle workers spin briefly, then yield, then park: an idle rank uses no CPU.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use trireme_shared::limits::{COMPUTE_SPINS, COMPUTE_YIELDS};

type Call = dyn Fn(Range<usize>) + Sync;

/// Threads inside the region now.
const ACTIVE: u64 = 0xffff;
/// Workers may enter.
const OPEN: u64 = 1 << 16;
/// One region after another; above the other fields.
const GENERATION: u64 = 1 << 17;

struct Job {
    call: *const Call,
    tasks: usize,
}

struct Shared {
    /// `GENERATION * n | OPEN | ACTIVE`
    state: AtomicU64,
    /// First task nobody took.
    next: AtomicUsize,
    threads: usize,
    /// Written by the caller while the region is closed and empty; read by threads inside it.
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    panicked: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no thread is inside a region (`ACTIVE` is 0 and `OPEN` is
// clear), and is published by the release store of `state` that opens the next one.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only followed inside a region, during which the closure it
// points to is borrowed by the caller of `run`; the closure is `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes tasks until none is left: large pieces first, single tasks at the end, so that there
    /// are few contended operations and little waiting for the last.
    fn work(&self, job: &Job) {
        // SAFETY: the caller of `run` keeps the closure alive until nobody is in the region.
        let call = unsafe { &*job.call };
        let mut first = self.next.load(Ordering::Relaxed);
        while first < job.tasks {
            let take = ((job.tasks - first) / (2 * self.threads)).max(1);
            match self.next.compare_exchange_weak(
                first,
                first + take,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    call(first..first + take);
                    first = self.next.load(Ordering::Relaxed);
                }
                Err(now) => first = now,
            }
        }
    }

    /// Enters the open region, if there is one.
    fn enter(&self) -> bool {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    fn worker(&self, index: usize) {
        let mut idle = 0u32;
        let mut seen = u64::MAX;
        while !self.stop.load(Ordering::SeqCst) {
            let generation = self.state.load(Ordering::Relaxed) / GENERATION;
            if generation != seen && self.enter() {
                // Leaves even when a task panics, or the caller would wait for ever.
                let _leave = Leave(self);
                seen = self.state.load(Ordering::Relaxed) / GENERATION;
                // SAFETY: inside the region, the job is published and nobody writes it.
                self.work(unsafe { &*self.job.get() });
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < COMPUTE_SPINS {
                std::hint::spin_loop();
            } else if idle < COMPUTE_SPINS + COMPUTE_YIELDS {
                std::thread::yield_now();
            } else {
                self.parked[index].store(true, Ordering::SeqCst);
                let now = self.state.load(Ordering::SeqCst);
                let news = now & OPEN != 0 && now / GENERATION != seen;
                if !news && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::SeqCst);
        }
        self.0.state.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Closes the region and waits for those inside; on unwinding too, since they borrow the closure.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        // A panic of the caller's own task: let the others stop early.
        if std::thread::panicking() {
            shared.next.store(usize::MAX, Ordering::Relaxed);
        }
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & ACTIVE != 0 {
            spins += 1;
            if spins < COMPUTE_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// The calling thread and `threads - 1` workers.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` workers; 0 counts as 1.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let nothing: &'static Call = &|_| {};
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            threads,
            job: UnsafeCell::new(Job {
                call: nothing,
                tasks: 0,
            }),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
        };
        for index in 0..threads - 1 {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("compute-{}", index + 1))
                .spawn(move || shared.worker(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `call` with ranges that cover `0..tasks` once, on all threads.
    ///
    /// # Panics
    /// If a task panicked, on whichever thread.
    pub(super) fn run(&mut self, tasks: usize, call: &(dyn Fn(Range<usize>) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            if tasks > 0 {
                call(0..tasks);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `Close` waits until nobody can follow the pointer.
        let call: *const Call =
            unsafe { std::mem::transmute::<*const (dyn Fn(Range<usize>) + Sync), _>(call) };
        let job = Job { call, tasks };
        // SAFETY: the last region is closed and empty (`&mut self`, and `Close` waited).
        unsafe { *shared.job.get() = Job { ..job } };
        shared.next.store(0, Ordering::Relaxed);
        let generation = shared.state.load(Ordering::Relaxed) / GENERATION + 1;
        shared
            .state
            .store((generation * GENERATION) | OPEN, Ordering::SeqCst);
        let close = Close(shared);
        for (parked, worker) in shared.parked.iter().zip(&self.workers) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        // SAFETY: nobody writes the job while the region is open.
        shared.work(unsafe { &*shared.job.get() });
        drop(close);
        assert!(
            !shared.panicked.load(Ordering::SeqCst),
            "a compute thread panicked"
        );
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A panic was already reported by `run`.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_over_many_regions() {
        let mut pool = Pool::new(4).unwrap();
        for round in 0..2_000usize {
            let tasks = round % 37;
            let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|range| {
                for task in range {
                    hits[task].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    /// Yields until `happened`.
    fn wait(happened: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !happened() {
            assert!(begun.elapsed().as_secs() < 60, "it never happened");
            std::thread::yield_now();
        }
    }

    /// Each region has a task for each thread, and none ends before all have begun.
    #[test]
    fn workers_without_work_park_and_the_next_region_wakes_them() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let shared = pool.shared.clone();
            wait(|| shared.parked.iter().all(|p| p.load(Ordering::SeqCst)));
            let begun = AtomicUsize::new(0);
            pool.run(3, &|range| {
                assert_eq!(range.len(), 1);
                begun.fetch_add(1, Ordering::SeqCst);
                wait(|| begun.load(Ordering::SeqCst) == 3);
            });
        }
    }

    #[test]
    fn a_panicking_task_panics_the_caller_and_nothing_hangs() {
        let mut pool = Pool::new(3).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|range| assert!(!range.contains(&40), "planted"));
        }));
        assert!(outcome.is_err());
        drop(pool);
    }
}
