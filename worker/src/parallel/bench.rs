//! How fast two ranks exchange bytes on this machine: round trips over a link, as the all-reduces
//! of decoding make them.
//!
//! Kept true: both ends run on threads of their own and each byte is really copied; times are whole
//! round trips, so half of one is a message.

use super::ring::{RingBytes, pair};
use super::{Abort, Link, LinkError, WaitPolicy, Waits};
use std::time::{Duration, Instant};
use trireme_shared::limits::LINK_RING_BYTES;

/// Times of one round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrips {
    pub p50: Duration,
    pub p99: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot map memory for the bench: {0}")]
    Memory(#[from] std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Round trips of `bytes` over shared memory between two threads that wait as `policy` says. The
/// rings are those between processes; only the file is missing.
pub fn link_bench(
    policy: WaitPolicy,
    bytes: usize,
    rounds: usize,
) -> Result<RoundTrips, BenchError> {
    let waits = |peer| Waits {
        peer,
        abort: Abort::default(),
        policy,
    };
    let ring = RingBytes {
        forward: LINK_RING_BYTES,
        backward: LINK_RING_BYTES,
    };
    let (near, far) = pair(ring, waits(1), waits(0))?;
    Ok(round_trips(near, far, bytes, rounds)?)
}

/// Round trips of `bytes` from `near` to an echo at `far`; the first tenth is not counted.
pub fn round_trips(
    mut near: impl Link,
    mut far: impl Link,
    bytes: usize,
    rounds: usize,
) -> Result<RoundTrips, LinkError> {
    let rounds = rounds.max(10);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; bytes];
            while far.read_exact(&mut buffer).is_ok() && far.write_all(&buffer).is_ok() {}
        });
        let (sent, mut back) = (vec![1; bytes], vec![0; bytes]);
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let started = Instant::now();
            near.write_all(&sent)?;
            near.read_exact(&mut back)?;
            times.push(started.elapsed());
        }
        drop(near);
        times.drain(..rounds / 10);
        times.sort_unstable();
        Ok(RoundTrips {
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bench_measures_and_ends() {
        let times = link_bench(WaitPolicy::crowded(), 2_304, 50).unwrap();
        assert!(times.p50 <= times.p99 && times.p50 > Duration::ZERO);
    }

    /// `cargo test --release -p trireme-worker link_times -- --ignored --nocapture`
    #[test]
    #[ignore = "prints times; wants an idle machine"]
    fn link_times() {
        let parked = WaitPolicy {
            spin: Duration::ZERO,
            yielding: Duration::ZERO,
            ..WaitPolicy::roomy()
        };
        for (name, policy) in [
            ("roomy", WaitPolicy::roomy()),
            ("crowded", WaitPolicy::crowded()),
            ("parked", parked),
        ] {
            for bytes in [4, 2_304, 65_536, 1_179_648] {
                let times = link_bench(policy, bytes, 2_000).unwrap();
                eprintln!("{name:8} {bytes:8} B: {times:?}");
            }
        }
    }
}
