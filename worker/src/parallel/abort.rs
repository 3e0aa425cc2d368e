//! The flag that ends an epoch: set by the agent, read by every wait of the rank's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cheap to clone; once raised it stays raised.
#[derive(Clone, Debug, Default)]
pub struct Abort(Arc<AtomicBool>);

impl Abort {
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
