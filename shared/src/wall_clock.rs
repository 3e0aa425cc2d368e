//! The clock on the wall: what time it is, and waiting for a moment.

use crate::limits::WALL_CLOCK_LOOK;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 before that.
pub fn unix_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970; 0 before that.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Waits until it is `at`, give or take `WALL_CLOCK_LOOK`. A timer alone would come too late where the
/// machine was suspended or its clock was set: it runs by another clock.
pub async fn wait_until(at: SystemTime) {
    while let Ok(left) = at.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(WALL_CLOCK_LOOK)).await;
    }
}
