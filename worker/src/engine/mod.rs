//! Runs one rank: its step loop and, on the driver, the batcher, the KV page pool and the sampler.
//!
//! `rank` is the thread's life, `step` one rank's part of a step, `driver` the loop around the pure
//! `batcher` (`sequence`, `pages`, `waiting`, `shares`, `draft`), `plan` what ranks tell each other, `logits` what they send of them, `sampler` logits to token,
//! `clients` and `mailbox` the way to and from the agent. Below it lie `model` and `parallel`.

pub mod batcher;
mod clients;
mod draft;
mod driver;
mod logits;
mod mailbox;
pub mod pages;
pub mod plan;
pub mod prefix;
mod rank;
pub mod sampler;
pub mod sequence;
mod shares;
mod step;
mod waiting;

#[cfg(test)]
mod tests;

use crate::backend::Isa;
use crate::model::RankModel;
use crate::parallel::Abort;
use crate::parallel::mesh::{IncomingLinks, RankLinks};
use mailbox::{Refused, Submission};
use rank::{RankError, Shared};
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use tokio::sync::mpsc;
use trireme_shared::limits;
use trireme_shared::plan::Assignment;
use trireme_shared::transport::Endpoint;
use trireme_shared::wire::control::{EngineStats, RankState};
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest};

/// What the agent hands to the engine to start a rank.
pub struct RankSpec {
    pub assignment: Assignment,
    pub threads: usize,
    /// Compute threads of all workers of this host; 0 where only this one's are known.
    pub host_threads: usize,
    pub isa: Isa,
    /// This worker's QUIC endpoint, to dial peers.
    pub endpoint: Endpoint,
    /// Links that peers open to this worker.
    pub incoming: IncomingLinks,
    /// Runtime for QUIC links and model fetching.
    pub runtime: tokio::runtime::Handle,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
}

/// A running rank. Dropping it aborts the epoch on this worker.
pub struct RankHandle {
    shared: Arc<Shared>,
    /// Closed when the thread has ended.
    ended: std_mpsc::Receiver<()>,
}

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
    pub fn start(spec: RankSpec) -> Self {
        let runtime = spec.runtime.clone();
        let assignment = spec.assignment.clone();
        Self::start_with(assignment, Abort::default(), runtime, |shared| {
            rank::prepare(shared, spec)
        })
    }

    /// Starts a rank whose model and links `prepare` brings, on the rank's own thread.
    fn start_with(
        assignment: Assignment,
        abort: Abort,
        runtime: tokio::runtime::Handle,
        prepare: impl FnOnce(&Shared) -> Result<(RankModel, RankLinks), RankError> + Send + 'static,
    ) -> Self {
        let name = format!("rank-{}", assignment.index);
        let shared = Arc::new(Shared::new(assignment, abort));
        let (alive, ended) = std_mpsc::channel::<()>();
        let theirs = shared.clone();
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            rank::run(&theirs, &runtime, || prepare(&theirs));
            drop(alive);
        });
        if let Err(error) = spawned {
            shared.mailbox.close();
            shared.state.send_replace(RankState::Failed {
                reason: format!(
                    "no thread for the rank: {error}; raise the limit on processes (ulimit -u)"
                ),
            });
        }
        Self { shared, ended }
    }

    /// The current state; `changed()` on the receiver wakes at each change.
    pub fn state(&self) -> tokio::sync::watch::Receiver<RankState> {
        self.shared.state.subscribe()
    }

    /// The driver's counters; `None` on other ranks.
    pub fn stats(&self) -> Option<EngineStats> {
        self.is_driver().then(|| *self.shared.stats.borrow())
    }

    fn is_driver(&self) -> bool {
        self.shared.assignment.index == 0
    }

    /// Queues a sequence on the driver. Its events come through the receiver; dropping the receiver
    /// cancels the sequence and frees its pages. A stream that ends without a last event means the
    /// same as `Failed` with `ReplicaLost`. A driver that is not ready (yet, or any more) refuses
    /// with `WrongEpoch`.
    pub fn submit(
        &self,
        request: GenerateRequest,
    ) -> Result<mpsc::Receiver<GenerateEvent>, SubmitError> {
        if !self.is_driver() {
            return Err(SubmitError::NotDriver);
        }
        let plan = &self.shared.assignment.plan;
        let ours = (plan.deployment, plan.replica, plan.epoch);
        if (request.deployment, request.replica, request.epoch) != ours {
            return Err(SubmitError::WrongEpoch);
        }
        let Some(fits) = self.shared.limits.get() else {
            return Err(SubmitError::WrongEpoch);
        };
        sequence::check(&request, fits.vocab, fits.context).map_err(SubmitError::Invalid)?;
        let (events, stream) = mpsc::channel(limits::STREAM_EVENTS_MAX);
        match self.shared.mailbox.submit(Submission { request, events }) {
            Ok(()) => Ok(stream),
            Err(Refused::Full) => Err(SubmitError::Overloaded),
            Err(Refused::Closed) => Err(SubmitError::WrongEpoch),
        }
    }

    /// Ends the epoch: raises abort, fails what runs with `ReplicaLost`, joins the thread and frees
    /// weights and pages. Blocks at most `limits::RANK_STOP_DEADLINE`.
    pub fn stop(self) {
        self.shared.end();
        // Nothing is ever sent: the thread's end closes the channel.
        let waited = self.ended.recv_timeout(limits::RANK_STOP_DEADLINE);
        if waited == Err(std_mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                rank = self.shared.assignment.index,
                "the rank's thread has not ended yet; its memory is freed when it does"
            );
        }
    }
}

impl Drop for RankHandle {
    fn drop(&mut self) {
        self.shared.end();
    }
}
