//! How long and in which way a rank's thread waits for a peer.
//!
//! Kept true: every wait ends, by what it waits for, by the deadline, by the peer being gone or by
//! [`Abort`]. Spinning answers within a microsecond but burns a core, parking costs 60-100 us and
//! burns nothing; so a wait spins briefly, yields briefly, then parks in bounded slices.

use super::{Abort, LinkError};
use std::time::{Duration, Instant};
use trireme_shared::limits;
use trireme_shared::plan::Assignment;

/// How a wait divides its time. Chosen once per rank, from how crowded its host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitPolicy {
    /// Time spent polling without giving the core away.
    pub spin: Duration,
    /// Time spent polling with `sched_yield` between polls, after `spin`.
    pub yielding: Duration,
    /// Longest single sleep after that; bounds how late an abort is noticed.
    pub park_slice: Duration,
    /// A wait inside a step in which not one byte moves for this long fails.
    pub deadline: Duration,
}

impl WaitPolicy {
    /// Every compute thread of the host has a core of its own: spin through the imbalance of a layer.
    pub const fn roomy() -> Self {
        Self {
            spin: limits::LINK_SPIN,
            yielding: limits::LINK_YIELD,
            park_slice: limits::LINK_PARK_SLICE,
            deadline: limits::STEP_DEADLINE,
        }
    }

    /// More compute threads than cores: a spinning waiter keeps the rank it waits for off its core.
    pub const fn crowded() -> Self {
        Self {
            spin: limits::LINK_SPIN_CROWDED,
            yielding: limits::LINK_YIELD,
            park_slice: limits::LINK_PARK_SLICE,
            deadline: limits::STEP_DEADLINE,
        }
    }

    /// The policy for a host that runs `compute_threads` (of all its ranks) on `cores`.
    pub fn for_host(compute_threads: usize, cores: usize) -> Self {
        if compute_threads > cores {
            Self::crowded()
        } else {
            Self::roomy()
        }
    }

    /// The same for a wait that another thread of this process must end (QUIC's driver): polls as
    /// long, but offers the core at each poll, since with no core to spare the thread polled for
    /// would wait for the poller.
    pub fn beside_a_driver(self) -> Self {
        Self {
            spin: self.spin.min(limits::LINK_SPIN_CROWDED),
            yielding: self.spin.max(self.yielding),
            ..self
        }
    }

    /// The policy for this rank, taking every rank of the plan on the same host to run
    /// `threads_per_rank` compute threads. `host_threads` is what is known of the whole host, other
    /// replicas' workers included; 0 if nothing is.
    pub fn for_assignment(
        assignment: &Assignment,
        threads_per_rank: usize,
        host_threads: usize,
    ) -> Self {
        let ranks = &assignment.plan.ranks;
        let here = ranks.get(usize::from(assignment.index)).map(|r| &r.host);
        let neighbours = ranks.iter().filter(|r| Some(&r.host) == here).count();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self::for_host(host_threads.max(neighbours * threads_per_rank), cores)
    }
}

impl Default for WaitPolicy {
    fn default() -> Self {
        Self::roomy()
    }
}

/// Whether the peer owes us bytes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Inside a step: silence beyond the policy's deadline is an error.
    Step,
    /// Between steps: there may be nothing to say for hours.
    Idle,
}

/// Everything a link needs to wait for its peer.
#[derive(Clone, Debug)]
pub struct Waits {
    /// The peer, for errors: its index in the plan.
    pub peer: usize,
    pub abort: Abort,
    pub policy: WaitPolicy,
}

impl Waits {
    pub(super) fn check_abort(&self) -> Result<(), LinkError> {
        if self.abort.is_raised() {
            return Err(LinkError::Aborted);
        }
        Ok(())
    }

    /// Returns once `poll` says true. `park(slice)` sleeps up to `slice` or until the peer acts, and
    /// says whether the peer may still be alive.
    pub(super) fn until(
        &self,
        patience: Patience,
        mut poll: impl FnMut() -> Result<bool, LinkError>,
        mut park: impl FnMut(Duration) -> bool,
    ) -> Result<(), LinkError> {
        if poll()? {
            return Ok(());
        }
        let started = Instant::now();
        let policy = &self.policy;
        while started.elapsed() < policy.spin {
            // A clock read costs as much as a poll; a few polls to each keeps the answer quick.
            for _ in 0..8 {
                std::hint::spin_loop();
                if poll()? {
                    return Ok(());
                }
            }
        }
        while started.elapsed() < policy.spin + policy.yielding {
            std::thread::yield_now();
            if poll()? {
                return Ok(());
            }
        }
        loop {
            self.check_abort()?;
            let slice = match patience {
                Patience::Idle => policy.park_slice,
                Patience::Step => {
                    let left = policy.deadline.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        return Err(LinkError::Deadline {
                            peer: self.peer,
                            waited: policy.deadline,
                        });
                    }
                    policy.park_slice.min(left)
                }
            };
            let alive = park(slice);
            if poll()? {
                return Ok(());
            }
            if !alive {
                return Err(LinkError::Closed { peer: self.peer });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(policy: WaitPolicy) -> Waits {
        Waits {
            peer: 3,
            abort: Abort::default(),
            policy,
        }
    }

    #[test]
    fn a_crowded_host_spins_less() {
        assert_eq!(WaitPolicy::for_host(2, 2), WaitPolicy::roomy());
        assert_eq!(WaitPolicy::for_host(3, 2), WaitPolicy::crowded());
        assert!(WaitPolicy::crowded().spin < WaitPolicy::roomy().spin);
    }

    #[test]
    fn a_step_wait_ends_by_deadline_and_an_idle_wait_does_not() {
        let policy = WaitPolicy {
            spin: Duration::ZERO,
            yielding: Duration::ZERO,
            park_slice: Duration::from_millis(1),
            deadline: Duration::from_millis(5),
        };
        let stepped = waits(policy).until(
            Patience::Step,
            || Ok(false),
            |slice| {
                std::thread::sleep(slice);
                true
            },
        );
        assert!(matches!(stepped, Err(LinkError::Deadline { peer: 3, .. })));

        let mut parks = 0;
        let idle = waits(policy).until(
            Patience::Idle,
            || Ok(false),
            |slice| {
                std::thread::sleep(slice);
                parks += 1;
                parks < 20
            },
        );
        assert!(matches!(idle, Err(LinkError::Closed { peer: 3 })));
        assert_eq!(parks, 20);
    }

    #[test]
    fn bytes_that_came_before_the_peer_died_are_taken() {
        let arrived = std::cell::Cell::new(false);
        let outcome = waits(WaitPolicy::crowded()).until(
            Patience::Step,
            || Ok(arrived.get()),
            |_| {
                arrived.set(true);
                false
            },
        );
        assert!(outcome.is_ok());
    }
}
