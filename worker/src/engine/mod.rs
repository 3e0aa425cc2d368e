//! Runs one rank: its step loop and, on the driver, the batcher, the KV page pool and the sampler.

pub mod batcher;
pub mod pages;
pub mod plan;
pub mod sampler;
mod sequence;

use crate::backend::Isa;
use crate::parallel::mesh::IncomingLinks;
use trireme_shared::plan::Assignment;
use trireme_shared::transport::Endpoint;
use trireme_shared::wire::control::{EngineStats, RankState};
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest};

/// What the agent hands to the engine to start a rank.
pub struct RankSpec {
    pub assignment: Assignment,
    pub threads: usize,
    pub isa: Isa,
    /// This worker's QUIC endpoint, to dial peers.
    pub endpoint: Endpoint,
    /// Links that peers open to this worker.
    pub incoming: IncomingLinks,
    /// Runtime for QUIC links and model fetching.
    pub runtime: tokio::runtime::Handle,
}

/// A running rank. Dropping it aborts the epoch on this worker.
pub struct RankHandle {}

/// Why a driver refuses a request before it becomes a stream.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("this worker is not the driver of that replica")]
    NotDriver,
    #[error("this driver runs another epoch")]
    WrongEpoch,
    #[error("the waiting room is full")]
    Overloaded,
    #[error("the request is not valid: {0}")]
    Invalid(String),
}

impl RankHandle {
    /// Starts the rank's own thread, which resolves the model, loads the share, meets its peers and
    /// runs steps. Returns at once; `state` tells how far it is.
    pub fn start(_spec: RankSpec) -> Self {
        Self {}
    }

    /// The current state; `changed()` on the receiver wakes at each change.
    pub fn state(&self) -> tokio::sync::watch::Receiver<RankState> {
        unreachable!()
    }

    /// The driver's counters; `None` on other ranks.
    pub fn stats(&self) -> Option<EngineStats> {
        None
    }

    /// Queues a sequence on the driver. Its events come through the receiver; dropping the receiver
    /// cancels the sequence and frees its pages.
    pub fn submit(
        &self,
        _request: GenerateRequest,
    ) -> Result<tokio::sync::mpsc::Receiver<GenerateEvent>, SubmitError> {
        Err(SubmitError::NotDriver)
    }

    /// Ends the epoch: raises abort, fails what runs with `ReplicaLost`, joins the thread and frees
    /// weights and pages. Blocks at most a few seconds.
    pub fn stop(self) {}
}
