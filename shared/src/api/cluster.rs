//! The cluster: members, nodes, join tokens, deployments, its CA. See the table of routes above (`api`).

use crate::ids::*;
use crate::plan::{DeploymentSpec, ReplicaPlan};
use crate::wire::control::{EngineStats, Inventory, RankState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusReport {
    pub cluster: String,
    /// Of the coordinator that answers.
    pub version: String,
    /// The member that leads; `null` where a majority does not reach each other.
    pub leader: Option<CoordinatorId>,
    /// Raft's, as the coordinator that answers knows it.
    pub term: u64,
    /// The newest entry that is certain; `log` is of the coordinator that answers.
    pub commit: u64,
    pub log: LogReport,
    /// No leader confirmed that this is the newest state.
    pub stale: bool,
    pub coordinators: Vec<CoordinatorStatus>,
    pub workers: Vec<WorkerReport>,
    pub deployments: Vec<DeploymentReport>,
}

/// Positions in a coordinator's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogReport {
    pub first: u64,
    pub last: u64,
    pub applied: u64,
    /// The entry that the newest snapshot ends with.
    pub snapshot: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    Leader,
    Follower,
    /// Gets the log and does not vote.
    Learner,
    /// Has its number and is not in the group yet.
    Joining,
    /// On its way out.
    Removed,
}

/// A member of the group. Positions are its leader's knowledge of it: `null` without a leader.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CoordinatorStatus {
    pub id: CoordinatorId,
    /// Of the coordinator that answers only.
    pub pid: Option<u32>,
    /// `http://ip:port`; empty until it said so.
    pub http: String,
    /// `ip:port`; empty until it said so.
    pub control: String,
    pub version: String,
    pub role: MemberRole,
    /// Should vote.
    pub wants_vote: bool,
    /// Heard of within the last election timeout.
    pub active: Option<bool>,
    /// The newest entry that it has.
    pub last: Option<u64>,
    /// Entries it is behind its leader.
    pub lag: Option<u64>,
    /// Seconds since 1970.
    pub joined_at: u64,
    /// Seconds since 1970; `null` until it has said.
    pub certificate_expires_at: Option<u64>,
}

/// A coordinator's process.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CoordinatorReport {
    pub id: CoordinatorId,
    pub pid: u32,
    pub http: String,
    pub control: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerReport {
    pub id: WorkerId,
    pub connected: bool,
    /// `ip:port` where peers reach it; empty before it first connected.
    pub address: String,
    pub inventory: Option<Inventory>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeploymentReport {
    pub id: DeploymentId,
    pub spec: DeploymentSpec,
    pub replicas: Vec<ReplicaReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplicaReport {
    pub replica: Replica,
    pub epoch: Option<Epoch>,
    /// Every rank reports `Ready`, and a token has come through every stage.
    pub ready: bool,
    /// Why there is no plan yet, in words.
    pub waiting_for: Option<String>,
    pub plan: Option<ReplicaPlan>,
    /// In the order of `plan.ranks`.
    pub ranks: Vec<RankState>,
    pub stats: Option<EngineStats>,
}

/// What a certificate lets a node be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Worker,
    Coordinator,
}

/// What a join token lets a node be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    Worker,
    /// Votes as soon as it has caught up.
    Coordinator,
    /// A coordinator that does not vote until it is promoted.
    Learner,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub role: TokenRole,
    /// Whose machines join with it.
    #[serde(default)]
    pub provider: Option<String>,
    /// How many nodes may join with it.
    pub uses: u32,
    pub ttl_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    pub id: TokenRecordId,
    /// `<CA fingerprint>.<id>.<secret>`; shown once.
    pub token: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenReport {
    pub id: TokenRecordId,
    pub role: TokenRole,
    pub provider: Option<String>,
    pub uses_left: u32,
    pub expires_at: u64,
    pub revoked: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberRequest {
    /// It shall not vote until it is promoted.
    #[serde(default)]
    pub learner: bool,
    pub ttl_seconds: u64,
}

/// A token for one coordinator, and what to run with it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemberInvited {
    pub token: TokenCreated,
    /// Control addresses of the coordinators there are.
    pub join: Vec<String>,
    /// The command line, its own folder and addresses to be filled in. It holds the token.
    pub command: String,
}

/// What is no more, as it was named in the path.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    pub removed: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeReport {
    /// `w3` or `c2`.
    pub id: String,
    pub role: Role,
    /// Where others reach it; empty where that is not known here.
    pub address: String,
    /// Workers: connected to the coordinator that answers. Coordinators: heard of by the leader.
    pub connected: Option<bool>,
    pub provider: Option<String>,
    /// Seconds since 1970.
    pub joined_at: u64,
    /// Lower-case hex SHA-256 of its newest certificate.
    pub certificate: Option<String>,
    /// Seconds since 1970.
    pub certificate_expires_at: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CaReport {
    pub authorities: Vec<AuthorityReport>,
    /// What a rotation is at, in words; `null` where none is under way.
    pub rotation: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuthorityReport {
    /// Lower-case hex SHA-256 of its certificate.
    pub fingerprint: String,
    /// It signs certificates; exactly one does.
    pub signs: bool,
    /// Seconds since 1970.
    pub created_at: u64,
    pub expires_at: u64,
}

/// A key for one write.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct IdempotencyKey {
    pub key: String,
}

/// What a coordinator writes to `<data-dir>/coordinator.json` (mode 0600) when it listens.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CoordinatorFile {
    pub id: CoordinatorId,
    pub pid: u32,
    /// `http://ip:port`
    pub http: String,
    /// `ip:port` for `cluster join`
    pub control: String,
    /// `None` on a coordinator that joined: only the one that founded the cluster has it.
    pub admin_key: Option<String>,
}
