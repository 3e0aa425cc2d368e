//! Finding the other ranks: from an assignment to every link its rank needs.
//!
//! Kept true: a rank either gets all its links or an error that names who is missing; links reach
//! only the ranks that the plan names, proven by the plan's nonce and the worker's certificate.
//!
//! Neighbours: `topology` says which links, `shm` and `quic` make them, `incoming` holds those that
//! peers open, and the engine uses the [`RankLinks`].

mod build;

pub use super::incoming::IncomingLinks;
pub use super::topology::Shape;
pub use build::in_process;

use super::channel::{PlanReceiver, PlanSender, SampledReceiver, SampledSender};
use super::stage::{StageReceiver, StageSender};
use super::{Abort, Collective, WaitPolicy};
use std::time::Duration;
use trireme_shared::ids::WorkerId;
use trireme_shared::limits::MESH_DEADLINE;
use trireme_shared::plan::Assignment;
use trireme_shared::transport::Endpoint;

/// Everything one rank talks through. Take it apart freely: the parts may go to different threads.
pub struct RankLinks {
    /// The ranks of this stage ([`super::Solo`] where there is one).
    pub collective: Box<dyn Collective>,
    /// `None` in the first stage.
    pub from_previous: Option<StageReceiver>,
    /// `None` in the last stage.
    pub to_next: Option<StageSender>,
    pub plans: PlanLinks,
    pub sampled: SampledLinks,
}

/// This rank's side of the step-plan links.
pub enum PlanLinks {
    /// Index 0: a sender to every other rank, in index order; empty if it is alone.
    Driver(Vec<PlanSender>),
    Follower(PlanReceiver),
}

/// This rank's side of the sampled-token link, which exists with more than one stage.
pub enum SampledLinks {
    /// One stage only, or a rank that neither samples nor drives.
    None,
    /// Rank 0 of the last stage.
    Sender(SampledSender),
    /// The driver.
    Receiver(SampledReceiver),
}

/// How to connect and then wait.
#[derive(Clone, Copy, Debug)]
pub struct MeshOptions {
    pub wait: WaitPolicy,
    /// How long to look for the other ranks.
    pub deadline: Duration,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            wait: WaitPolicy::default(),
            deadline: MESH_DEADLINE,
        }
    }
}

/// Why a rank could not be linked with its peers.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("{} did not connect within {waited:?}; see the logs of those workers", list(.ranks))]
    Missing {
        ranks: Vec<MissingRank>,
        waited: Duration,
    },
    #[error("the plan is not usable: {0}")]
    Plan(String),
    #[error(
        "cannot share memory with rank {peer}: {source}. Make room in /dev/shm, or deploy with \
         the link set to quic"
    )]
    SharedMemory { peer: usize, source: std::io::Error },
    #[error("the epoch was ended")]
    Aborted,
}

/// A rank that did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRank {
    /// Its index in the plan.
    pub index: usize,
    pub worker: WorkerId,
    pub address: String,
    /// What was last seen of it.
    pub detail: String,
}

fn list(ranks: &[MissingRank]) -> String {
    let one = |rank: &MissingRank| {
        format!(
            "rank {} (worker {} at {}: {})",
            rank.index, rank.worker, rank.address, rank.detail
        )
    };
    ranks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Builds all the links of `assignment`'s rank. Ranks on one host meet in shared memory unless the
/// plan says QUIC; the lower index creates or dials, the higher opens or accepts.
///
/// Every rank of the plan must call this within `options.deadline` of the others. Loading may take
/// much longer on one worker than on another, so connect before loading, or beside it.
pub async fn connect(
    assignment: &Assignment,
    endpoint: &Endpoint,
    incoming: &IncomingLinks,
    options: &MeshOptions,
    abort: &Abort,
) -> Result<RankLinks, MeshError> {
    build::connect(assignment, endpoint, incoming, options, abort).await
}
