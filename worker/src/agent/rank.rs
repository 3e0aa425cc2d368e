//! The one rank of this worker, shared between the agent's loop and the streams that use it.

use crate::engine::{RankHandle, SubmitError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};
use trireme_shared::wire::control::{EngineStats, RankState};
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest};

/// Cheap to clone. The lock is held for a moment only, never across an await or a stop.
#[derive(Clone, Default)]
pub struct CurrentRank(Arc<Mutex<Option<RankHandle>>>);

impl CurrentRank {
    /// `handle` becomes the rank; there was none.
    pub fn set(&self, handle: RankHandle) -> watch::Receiver<RankState> {
        let state = handle.state();
        *self.lock() = Some(handle);
        state
    }

    /// Takes the rank away, so that no stream finds it any more.
    pub fn take(&self) -> Option<RankHandle> {
        self.lock().take()
    }

    pub fn stats(&self) -> Option<EngineStats> {
        self.lock().as_ref()?.stats()
    }

    pub fn submit(
        &self,
        request: GenerateRequest,
    ) -> Result<mpsc::Receiver<GenerateEvent>, SubmitError> {
        match self.lock().as_ref() {
            Some(handle) => handle.submit(request),
            None => Err(SubmitError::NotDriver),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<RankHandle>> {
        // The value is only ever replaced whole, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
