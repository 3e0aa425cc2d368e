//! How long to wait before the next attempt: doubling, bounded, and spread so that many workers that
//! lost one coordinator do not return in one instant.

use std::time::Duration;
use trireme_shared::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};

pub struct Backoff {
    seed: u64,
    attempt: u32,
}

impl Backoff {
    /// Workers with different seeds wait differently.
    pub fn new(seed: u64) -> Self {
        Self { seed, attempt: 0 }
    }

    /// After a success the next failure is the first again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next wait: between half and all of the doubled delay.
    pub fn next(&mut self) -> Duration {
        const DOUBLINGS_MAX: u32 = 16;
        let doublings = self.attempt.min(DOUBLINGS_MAX);
        let full = RECONNECT_DELAY_MIN
            .saturating_mul(1 << doublings)
            .min(RECONNECT_DELAY_MAX);
        self.attempt = self.attempt.saturating_add(1);
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let share = (mix(self.seed) >> 40) as f64 / (1u64 << 24) as f64;
        full.mul_f64(0.5 + share / 2.0)
    }
}

/// The finishing step of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_and_differ_between_workers() {
        let waits = |seed| -> Vec<_> {
            let mut backoff = Backoff::new(seed);
            (0..40).map(|_| backoff.next()).collect()
        };
        let (one, two) = (waits(1), waits(2));
        assert_ne!(one, two);
        for (attempt, wait) in one.iter().enumerate() {
            assert!(*wait >= RECONNECT_DELAY_MIN / 2 && *wait <= RECONNECT_DELAY_MAX);
            assert!(attempt < 10 || *wait >= RECONNECT_DELAY_MAX / 2);
        }
        let mut backoff = Backoff::new(1);
        (0..20).for_each(|_| {
            backoff.next();
        });
        backoff.reset();
        assert!(backoff.next() <= RECONNECT_DELAY_MIN);
    }
}
