//! The compute threads of one rank.
//!
//! [`Pool::run`] splits a region's tasks over the calling thread and the workers and returns when
//! all are done. Each thread has an equal share, of which it takes half of what is left at a time;
//! who is done takes half of what another has left. So threads that run as they should touch nothing
//! of each other's but the ticket that opens a region, and where a core is slow or late the others
//! take over its share: the caller never waits for a worker that has not begun, and ranks that share
//! cores slow each other down by the work in hand and no more. Idle workers spin briefly, then yield,
//! then park: an idle rank uses no CPU.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use trireme_shared::limits::{COMPUTE_SPINS, COMPUTE_YIELDS};

type Call = dyn Fn(Range<usize>) + Sync;

/// Bits of a bound of a share.
const BOUND_BITS: u32 = 12;
/// A region has at most so many units: each is one task, or as many as are needed.
const UNITS_MAX: usize = (1 << BOUND_BITS) - 1;

/// Units `begin..end` of the region of a generation: `generation << 24 | begin << 12 | end`. At a
/// hundred thousand regions a second generations last for four months, and are not compared over such a
/// time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share(u64);

impl Share {
    fn new(generation: u64, units: Range<usize>) -> Self {
        Self(
            (generation << (2 * BOUND_BITS))
                | (units.start as u64) << BOUND_BITS
                | units.end as u64,
        )
    }

    fn generation(self) -> u64 {
        self.0 >> (2 * BOUND_BITS)
    }

    fn units(self) -> Range<usize> {
        let bound = |shift: u32| (self.0 >> shift) as usize & UNITS_MAX;
        bound(BOUND_BITS)..bound(0)
    }
}

struct Job {
    call: *const Call,
    tasks: usize,
    /// Tasks of a unit.
    unit: usize,
}

/// What only one thread changes while all is well, in cache lines of its own.
#[repr(align(128))]
struct Seat {
    /// What is left of this thread's share of the region it names. Of a later region all is left.
    left: AtomicU64,
    /// Units that this thread has done, of all regions.
    done: AtomicU64,
    parked: AtomicBool,
}

/// The ticket and the job lie in one cache line.
#[repr(C, align(128))]
struct Shared {
    /// All units of the region that was opened last.
    ticket: AtomicU64,
    /// Written by the caller between regions; read by who took units of the region.
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// The caller's first.
    seats: Vec<Seat>,
}

// SAFETY: `job` is written only while all units of all regions are done, and read only by a thread
// that took units which it has not counted as done yet. The ticket's release store comes before it
// takes any, its release store of `done` before the next write.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is followed only as above; the closure it points to is borrowed by
// the caller of `run` until all units are done, and is `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    fn new(threads: usize) -> Self {
        let nothing: &'static Call = &|_| {};
        let seat = || Seat {
            left: AtomicU64::new(0),
            done: AtomicU64::new(0),
            parked: AtomicBool::new(false),
        };
        Self {
            ticket: AtomicU64::new(0),
            job: UnsafeCell::new(Job {
                call: nothing,
                tasks: 0,
                unit: 1,
            }),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            seats: (0..threads).map(|_| seat()).collect(),
        }
    }

    /// Takes half of what `seat` has left of the region `all`, its thread from the front and others
    /// from the back. None where nothing is left, as it is when the region is over.
    fn take(&self, seat: usize, all: Share, is_own: bool) -> Option<Range<usize>> {
        let (units, seats) = (all.units().end, self.seats.len());
        let left = &self.seats[seat].left;
        let mut now = left.load(Ordering::Acquire);
        loop {
            let Range { start, end } = match Share(now).generation().cmp(&all.generation()) {
                std::cmp::Ordering::Less => units * seat / seats..units * (seat + 1) / seats,
                std::cmp::Ordering::Equal => Share(now).units(),
                // Whoever asks slept through the end of its region.
                std::cmp::Ordering::Greater => return None,
            };
            let half = (end - start).div_ceil(2);
            let (taken, rest) = match is_own {
                _ if half == 0 => return None,
                true => (start..start + half, start + half..end),
                false => (end - half..end, start..end - half),
            };
            let rest = Share::new(all.generation(), rest).0;
            match left.compare_exchange(now, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(taken),
                Err(changed) => now = changed,
            }
        }
    }

    /// Does what is left of the region `all`, the thread's own share first.
    fn work(&self, thread: usize, all: Share) {
        for at in 0..self.seats.len() {
            let seat = (thread + at) % self.seats.len();
            while let Some(units) = self.take(seat, all, at == 0) {
                let _done = Done {
                    shared: self,
                    thread,
                    units: units.len(),
                };
                // SAFETY: these units are taken and not counted as done, so the job is theirs and
                // the closure is borrowed.
                let Job { call, tasks, unit } = unsafe { &*self.job.get() };
                let tasks = units.start * unit..(units.end * unit).min(*tasks);
                // SAFETY: as above.
                unsafe { (**call)(tasks) };
            }
        }
    }

    /// Units that all threads have done.
    fn done(&self) -> u64 {
        let done = self.seats.iter().map(|s| s.done.load(Ordering::Acquire));
        done.fold(0, u64::wrapping_add)
    }

    fn worker(&self, thread: usize) {
        let parked = &self.seats[thread].parked;
        let (mut idle, mut seen) = (0u32, 0);
        while !self.stop.load(Ordering::SeqCst) {
            let all = Share(self.ticket.load(Ordering::Acquire));
            if all.generation() != seen {
                seen = all.generation();
                self.work(thread, all);
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < COMPUTE_SPINS {
                std::hint::spin_loop();
            } else if idle < COMPUTE_SPINS + COMPUTE_YIELDS {
                std::thread::yield_now();
            } else {
                parked.store(true, Ordering::SeqCst);
                let news = Share(self.ticket.load(Ordering::SeqCst)).generation() != seen;
                if !news && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                parked.store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

/// Counts units as done, also when a task panics, or the caller would wait for ever.
struct Done<'a> {
    shared: &'a Shared,
    thread: usize,
    units: usize,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.panicked.store(true, Ordering::SeqCst);
        }
        let done = &self.shared.seats[self.thread].done;
        let count = done.load(Ordering::Relaxed);
        done.store(count.wrapping_add(self.units as u64), Ordering::Release);
    }
}

/// Waits until `done` units are done; on unwinding too, since the units borrow the closure.
struct Wait<'a> {
    shared: &'a Shared,
    all: Share,
    done: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Self { shared, all, done } = *self;
        // A panic of the caller's own task: nobody is to begin what is left.
        if std::thread::panicking() {
            for seat in 0..shared.seats.len() {
                while let Some(units) = shared.take(seat, all, false) {
                    drop(Done {
                        shared,
                        thread: 0,
                        units: units.len(),
                    });
                }
            }
        }
        let mut spins = 0u32;
        while shared.done() != done {
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
        let mut pool = Self {
            shared: Arc::new(Shared::new(threads)),
            workers: Vec::new(),
        };
        for thread in 1..threads {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("compute-{thread}"))
                .spawn(move || shared.worker(thread))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.shared.seats.len()
    }

    /// Calls `call` with ranges that cover `0..tasks` once, on all threads.
    ///
    /// # Panics
    /// If a task panicked, on whichever thread.
    pub(super) fn run(&mut self, tasks: usize, call: &(dyn Fn(Range<usize>) + Sync)) {
        if tasks <= 1 || self.threads() == 1 {
            if tasks > 0 {
                call(0..tasks);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `Wait` waits until nobody can follow the pointer.
        let call: *const Call =
            unsafe { std::mem::transmute::<*const (dyn Fn(Range<usize>) + Sync), _>(call) };
        let unit = tasks.div_ceil(UNITS_MAX);
        let units = tasks.div_ceil(unit);
        // SAFETY: all units of earlier regions are done (`&mut self`, and `Wait` waited).
        unsafe { *shared.job.get() = Job { call, tasks, unit } };
        let last = Share(shared.ticket.load(Ordering::Relaxed));
        let all = Share::new(last.generation() + 1, 0..units);
        let wait = Wait {
            shared,
            all,
            done: shared.done().wrapping_add(units as u64),
        };
        shared.ticket.store(all.0, Ordering::SeqCst);
        for (seat, worker) in shared.seats[1..].iter().zip(&self.workers) {
            if seat.parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.work(0, all);
        drop(wait);
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
    use std::sync::atomic::AtomicUsize;

    fn run_and_count(pool: &mut Pool, tasks: usize) {
        let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|range| {
            for task in range {
                hits[task].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once_over_many_regions() {
        let mut pool = Pool::new(4).unwrap();
        for round in 0..2_000usize {
            run_and_count(&mut pool, round % 37);
        }
        for tasks in [UNITS_MAX - 1, UNITS_MAX, UNITS_MAX + 1, 3 * UNITS_MAX + 5] {
            run_and_count(&mut pool, tasks);
        }
    }

    #[test]
    fn the_caller_does_the_shares_of_workers_that_do_not_come() {
        let mut pool = Pool {
            shared: Arc::new(Shared::new(3)),
            workers: Vec::new(),
        };
        for tasks in 0..50 {
            run_and_count(&mut pool, tasks);
        }
    }

    #[test]
    fn who_sleeps_through_the_end_of_a_region_takes_nothing_of_the_next() {
        let shared = Shared::new(2);
        let (old, new) = (Share::new(1, 0..4), Share::new(2, 0..6));
        assert_eq!(shared.take(1, old, true), Some(2..3));
        assert_eq!(shared.take(1, new, true), Some(3..5));
        assert_eq!(shared.take(1, old, true), None);
        // The rest of the share is there, and the other one is whole.
        assert_eq!(shared.take(1, new, false), Some(5..6));
        assert_eq!(shared.take(1, new, true), None);
        assert_eq!(shared.take(0, new, false), Some(1..3));
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
            wait(|| {
                shared.seats[1..]
                    .iter()
                    .all(|s| s.parked.load(Ordering::SeqCst))
            });
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
