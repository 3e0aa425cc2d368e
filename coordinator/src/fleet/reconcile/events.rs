//! What the reconciler hears and what it decides.

use crate::placement::Candidate;
use std::sync::Arc;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, WorkerId};
use trireme_shared::model::Manifest;
use trireme_shared::plan::{Assignment, DeploymentSpec, ReplicaPlan};
use trireme_shared::wire::control::RankReport;

/// A replica of a deployment.
pub type ReplicaKey = (DeploymentId, Replica);

/// Numbers the connections of this process, so that a late "lost" is not taken for the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// This coordinator leads, or does not, in this term of the group.
    Leading { term: u64, leads: bool },
    /// The state has this deployment: it is new, or was replaced. Its model is not open yet.
    Deployed {
        id: DeploymentId,
        spec: DeploymentSpec,
    },
    /// The state has it no more.
    Undeployed { id: DeploymentId },
    /// Its model was opened, or is at hand.
    ModelOpened {
        id: DeploymentId,
        spec: DeploymentSpec,
        manifest: Arc<Manifest>,
    },
    /// Its model cannot be opened (yet).
    ModelUnavailable {
        id: DeploymentId,
        spec: DeploymentSpec,
        reason: String,
    },
    /// The newest plan of a replica in the state.
    Plan { plan: Box<ReplicaPlan> },
    WorkerConnected {
        candidate: Candidate,
        connection: ConnectionId,
    },
    WorkerLost {
        worker: WorkerId,
        connection: ConnectionId,
        reason: String,
    },
    Ranks {
        worker: WorkerId,
        reports: Vec<RankReport>,
    },
    /// The proposed plan did not become the replica's; one that did comes as `Plan`.
    PlanRefused {
        attempt: u64,
        key: ReplicaKey,
        current: Option<Epoch>,
        reason: String,
    },
    ProbeEnded {
        key: ReplicaKey,
        epoch: Epoch,
        result: Result<(), String>,
    },
    /// A stream of this epoch brought a token.
    TokensSeen { key: ReplicaKey, epoch: Epoch },
    /// Time went on.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Propose this plan; answer with `Plan`, or `PlanRefused` of the same attempt.
    Commit {
        attempt: u64,
        plan: Box<ReplicaPlan>,
        previous: Option<Epoch>,
    },
    /// By the leader of this term.
    Assign {
        worker: WorkerId,
        term: u64,
        assignment: Box<Assignment>,
    },
    /// By the leader of this term.
    Release {
        worker: WorkerId,
        term: u64,
        deployment: DeploymentId,
        replica: Replica,
        epoch: Epoch,
    },
    /// Ask the driver for one token; answer with `ProbeEnded`.
    Probe { route: Route },
    /// To be logged.
    Up { key: ReplicaKey, epoch: Epoch },
    /// To be logged.
    Down {
        key: ReplicaKey,
        epoch: Epoch,
        reason: String,
    },
}

/// Where a replica's driver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub key: ReplicaKey,
    pub epoch: Epoch,
    pub driver: WorkerId,
    pub address: String,
    /// New sequences may go there. A route that is not ready still carries its running ones.
    pub ready: bool,
}
