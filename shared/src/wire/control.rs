//! Worker and coordinator: registration, heartbeats, assignments. One bidirectional stream per worker
//! and coordinator, opened by the worker; frames of `ToCoordinator` one way and `ToWorker` the other.

use crate::ids::{CoordinatorId, DeploymentId, Epoch, Replica, WorkerId};
use crate::plan::Assignment;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wincode::{SchemaRead, SchemaWrite};

/// Where a coordinator listens for nodes.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct CoordinatorAddress {
    pub id: CoordinatorId,
    /// `host:port`, QUIC.
    pub control: String,
}

/// What a worker offers.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct Inventory {
    /// Equal for processes that can share memory (boot id and the device of `/dev/shm`).
    pub host: String,
    pub hostname: String,
    pub pid: u32,
    /// Compute threads offered.
    pub threads: u32,
    /// Bytes the worker may use for weights and KV.
    pub memory_bytes: u64,
    /// Best instruction set the CPU backend will use, e.g. `avx512-vnni`.
    pub isa: String,
    /// UDP port of the worker's own QUIC endpoint.
    pub data_port: u16,
    /// `ip:port` to advertise instead of the address the coordinator sees.
    pub advertise: Option<String>,
    pub version: String,
}

/// How far one rank has come.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
#[serde(rename_all = "snake_case")]
pub enum RankState {
    /// Fetching the model file.
    Fetching { done_bytes: u64, total_bytes: u64 },
    /// Reading and packing weights.
    Loading { done_bytes: u64, total_bytes: u64 },
    /// Weights in memory; finding the other ranks.
    Connecting,
    /// The rank runs steps.
    Ready,
    /// The rank gave up; the text says why and what to do.
    Failed { reason: String },
}

/// A driver's counters. Gauges are of now, counts since the rank started.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    SchemaRead,
    SchemaWrite,
)]
pub struct EngineStats {
    pub running: u32,
    pub waiting: u32,
    pub kv_pages_total: u32,
    pub kv_pages_used: u32,
    pub steps: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
}

/// A replica as one of its ranks reports it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct RankReport {
    pub deployment: DeploymentId,
    pub replica: Replica,
    pub epoch: Epoch,
    pub state: RankState,
    /// From the driver only.
    pub stats: Option<EngineStats>,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum ToCoordinator {
    /// First frame of the stream.
    Hello { inventory: Inventory },
    /// Sent every `limits::HEARTBEAT_INTERVAL` and at once when a rank's state changes.
    Heartbeat { ranks: Vec<RankReport> },
    /// Asks for a new certificate before the old one ends.
    Renew {
        /// PKCS#10, DER.
        csr: Vec<u8>,
    },
    /// Which CA certificates (SHA-256) this worker trusts now: after a `Welcome` or a `Trust`.
    Trusting { fingerprints: Vec<[u8; 32]> },
    /// The worker has finished its running work and is leaving.
    Goodbye,
}

/// Orders carry the Raft term of the leader that gives them: a worker obeys none of a lower term
/// than the highest that any coordinator told it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum ToWorker {
    /// Answer to `Hello`.
    Welcome {
        worker: WorkerId,
        term: u64,
        /// The whole group, this coordinator among them: a worker holds a connection to each.
        coordinators: Vec<CoordinatorAddress>,
        /// CA certificates (DER) to trust.
        authorities: Vec<Vec<u8>>,
        /// Workers that must not be let in any more.
        removed: Vec<WorkerId>,
    },
    /// The group changed, or its term did.
    Coordinators {
        term: u64,
        coordinators: Vec<CoordinatorAddress>,
    },
    /// Run this rank; replaces whatever the worker ran before.
    Assign {
        term: u64,
        assignment: Box<Assignment>,
    },
    /// Stop this rank and free what it holds, if it is still of this epoch or an older one.
    Release {
        term: u64,
        deployment: DeploymentId,
        replica: Replica,
        epoch: Epoch,
    },
    /// Finish running work, say `Goodbye` and exit.
    Drain { term: u64 },
    /// Answer to `Renew`.
    Certificate {
        /// DER.
        certificate: Vec<u8>,
        /// CA certificates (DER) to trust.
        authorities: Vec<Vec<u8>>,
    },
    /// Trust these CA certificates (DER), and no others; answered by `Trusting`.
    Trust { authorities: Vec<Vec<u8>> },
    /// These workers were removed: end their connections, and let them in no more.
    Removed { workers: Vec<WorkerId> },
}
