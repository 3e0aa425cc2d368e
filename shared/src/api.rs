//! JSON bodies of the admin API: what `cluster status`, `plan`, `token` and `up` read and write.
//!
//! | method and path | body -> answer |
//! |---|---|
//! | GET /admin/v1/status | -> `StatusReport` |
//! | GET /admin/v1/plan | -> `Vec<ReplicaPlan>` (nonces zeroed) |
//! | PUT /admin/v1/deployments | `DeploymentSpec` -> `DeploymentReport` |
//! | GET, POST /admin/v1/tokens | `TokenRequest` -> `TokenCreated`; list: `Vec<TokenReport>` |
//! | DELETE /admin/v1/tokens/{id} | -> `TokenReport` |
//! | POST /admin/v1/keys | `KeyRequest` -> `KeyCreated` |
//!
//! All take the admin key as `Authorization: Bearer`. Errors have OpenAI's shape.

use crate::ids::*;
use crate::plan::{DeploymentSpec, ReplicaPlan};
use crate::wire::control::{EngineStats, Inventory, RankState};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub cluster: String,
    pub version: String,
    pub coordinators: Vec<CoordinatorReport>,
    pub workers: Vec<WorkerReport>,
    pub deployments: Vec<DeploymentReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CoordinatorReport {
    pub id: CoordinatorId,
    pub pid: u32,
    pub http: String,
    pub control: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerReport {
    pub id: WorkerId,
    pub connected: bool,
    /// `ip:port` where peers reach it; empty before it first connected.
    pub address: String,
    pub inventory: Option<Inventory>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeploymentReport {
    pub id: DeploymentId,
    pub spec: DeploymentSpec,
    pub replicas: Vec<ReplicaReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Worker,
    Coordinator,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub role: Role,
    /// How many nodes may join with it.
    pub uses: u32,
    pub ttl_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenCreated {
    pub id: TokenRecordId,
    /// `<CA fingerprint>.<id>.<secret>`; shown once.
    pub token: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenReport {
    pub id: TokenRecordId,
    pub role: Role,
    pub uses_left: u32,
    pub expires_at: u64,
    pub revoked: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Created if it does not exist.
    pub tenant: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyCreated {
    pub tenant: TenantId,
    pub key_id: KeyId,
    /// Shown once; only its hash is kept.
    pub key: String,
}

/// What a coordinator writes to `<data-dir>/coordinator.json` (mode 0600) when it listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CoordinatorFile {
    pub id: CoordinatorId,
    pub pid: u32,
    /// `http://ip:port`
    pub http: String,
    /// `ip:port` for `cluster join`
    pub control: String,
    pub admin_key: String,
}
