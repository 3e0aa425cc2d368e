//! A replica's plan as both sides see it: which worker runs which rank, and how ranks are linked.

use crate::ids::{DeploymentId, Epoch, Replica, WorkerId};
use crate::model::{Precision, RankShare};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wincode::{SchemaRead, SchemaWrite};

/// How ranks exchange tensors.
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
#[serde(rename_all = "lowercase")]
pub enum LinkPolicy {
    /// Shared memory between ranks on one host, QUIC between hosts.
    #[default]
    Auto,
    /// QUIC everywhere.
    Quic,
}

/// Where to get the model: what the resolver in `shared::source` takes.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct ModelRef {
    /// The name it is served under.
    pub name: String,
    /// A catalogue name, path, `hf://`, `https://` or `pypi://` source.
    pub source: String,
    /// Lower-case hex of the file's SHA-256, where known; a worker that resolves another refuses.
    pub sha256: Option<String>,
}

/// What a deployment asks for.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct DeploymentSpec {
    pub model: ModelRef,
    pub tensor_parallel: u16,
    pub pipeline_parallel: u16,
    pub replicas: u16,
    pub link: LinkPolicy,
    /// How ranks keep the model's numbers.
    #[serde(default)]
    pub precision: Precision,
}

/// One rank of a plan: its share and the worker that runs it.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct RankPlacement {
    pub share: RankShare,
    pub worker: WorkerId,
    /// `ip:port` of the worker's QUIC endpoint, as its peers reach it.
    pub address: String,
    /// Workers with equal host ids can share memory.
    pub host: String,
    /// Bytes of weights this rank packs.
    pub weight_bytes: u64,
}

/// What one replica's ranks need to run together. Ranks are stage-major: index = stage * tp + rank;
/// rank 0 is the driver.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct ReplicaPlan {
    pub deployment: DeploymentId,
    pub replica: Replica,
    pub epoch: Epoch,
    pub model: ModelRef,
    pub tensor_parallel: u16,
    pub pipeline_parallel: u16,
    pub link: LinkPolicy,
    #[serde(default)]
    pub precision: Precision,
    pub ranks: Vec<RankPlacement>,
    /// KV pages every rank allocates (`limits::PAGE_TOKENS` tokens each).
    pub kv_pages: u32,
    /// Longest sequence this replica takes, in tokens: the model's context or what the pages hold.
    pub context: u32,
    /// Random per plan: names the replica's shared memory and authenticates its links.
    pub nonce: [u8; 16],
}

/// A plan and the receiver's own place in it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Assignment {
    pub plan: ReplicaPlan,
    /// Index into `plan.ranks`.
    pub index: u16,
}
