//! Waiting for a moment by the clock on the wall.

use crate::limits::WALL_CLOCK_LOOK;
use std::time::SystemTime;

/// Waits until it is `at`, give or take `WALL_CLOCK_LOOK`. A timer alone would come too late where the
/// machine was suspended or its clock was set: it runs by another clock.
pub async fn wait_until(at: SystemTime) {
    while let Ok(left) = at.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(WALL_CLOCK_LOOK)).await;
    }
}
