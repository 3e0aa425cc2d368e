//! What version 1 wrote.

use super::super::TokenRole;
use super::super::rollups::UsageTotals;
use super::super::v4::{PlanV4, SpecV4};
use std::collections::BTreeMap;
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, KeyId, NanoUsd, Replica, RequestId, TenantId,
    TokenRecordId, Tokens, WorkerId,
};
use wincode::SchemaRead;

#[derive(SchemaRead)]
pub(super) enum CommandV1 {
    Bootstrap {
        name: String,
        ca_pem: String,
        admin_key_hash: [u8; 32],
    },
    PutCoordinator {
        id: CoordinatorId,
        http: String,
        control: String,
    },
    CreateToken {
        secret_hash: [u8; 32],
        role: RoleV1,
        uses: u32,
        expires_at: u64,
    },
    RevokeToken {
        id: TokenRecordId,
    },
    JoinWorker {
        token: TokenRecordId,
        secret_hash: [u8; 32],
        now: u64,
    },
    PutCertificate {
        worker: WorkerId,
        fingerprint: String,
    },
    PutDeployment {
        spec: SpecV4,
        /// Nobody could choose it: it was the default, which still is.
        _price: PriceListV1,
        now: u64,
    },
    CommitPlan {
        plan: Box<PlanV4>,
        previous: Option<Epoch>,
    },
    CreateKey {
        tenant: String,
        key_hash: [u8; 32],
        now: u64,
    },
    RecordUsage {
        id: [u8; 16],
        usage: UsageV1,
    },
}

#[derive(SchemaRead)]
pub(super) struct PriceListV1 {
    _input: NanoUsd,
    _cached_input: NanoUsd,
    _output: NanoUsd,
}

#[derive(SchemaRead)]
pub(super) struct UsageV1 {
    _request: RequestId,
    pub tenant: TenantId,
    pub key: KeyId,
    pub deployment: DeploymentId,
    pub prompt: Tokens,
    pub cached: Tokens,
    pub completion: Tokens,
    pub cost: NanoUsd,
}

pub(super) type UsageKeyV1 = (TenantId, KeyId, DeploymentId);

#[derive(Clone, Copy, SchemaRead)]
pub(super) enum RoleV1 {
    Worker,
    Coordinator,
}

impl From<RoleV1> for TokenRole {
    fn from(role: RoleV1) -> Self {
        match role {
            RoleV1::Worker => Self::Worker,
            RoleV1::Coordinator => Self::Coordinator,
        }
    }
}

#[derive(SchemaRead)]
pub(super) struct StateV1 {
    pub cluster: Option<ClusterV1>,
    pub coordinators: BTreeMap<CoordinatorId, CoordinatorV1>,
    pub tokens: BTreeMap<TokenRecordId, TokenV1>,
    pub workers: BTreeMap<WorkerId, WorkerV1>,
    pub deployments: BTreeMap<DeploymentId, DeploymentV1>,
    pub deployment_names: BTreeMap<String, DeploymentId>,
    pub plans: BTreeMap<(DeploymentId, Replica), PlanV4>,
    pub last_epoch: Epoch,
    pub tenants: BTreeMap<TenantId, TenantV1>,
    pub tenant_names: BTreeMap<String, TenantId>,
    pub keys: BTreeMap<KeyId, ApiKeyV1>,
    pub key_hashes: BTreeMap<[u8; 32], KeyId>,
    pub usage: BTreeMap<UsageKeyV1, UsageTotals>,
    /// The same window as `usage_order`, by id.
    _usage_seen: BTreeMap<[u8; 16], u64>,
    pub usage_order: BTreeMap<u64, [u8; 16]>,
    pub last_ids: LastIdsV1,
}

#[derive(SchemaRead)]
pub(super) struct LastIdsV1 {
    pub token: u32,
    pub worker: u32,
    pub deployment: u32,
    pub tenant: u32,
    pub key: u32,
    pub usage: u64,
}

#[derive(SchemaRead)]
pub(super) struct ClusterV1 {
    pub name: String,
    pub ca_pem: String,
    pub admin_key_hash: [u8; 32],
}

#[derive(SchemaRead)]
pub(super) struct CoordinatorV1 {
    pub id: CoordinatorId,
    pub http: String,
    pub control: String,
}

#[derive(SchemaRead)]
pub(super) struct TokenV1 {
    pub id: TokenRecordId,
    pub secret_hash: [u8; 32],
    pub role: RoleV1,
    pub uses_left: u32,
    pub expires_at: u64,
    pub revoked: bool,
}

#[derive(SchemaRead)]
pub(super) struct WorkerV1 {
    pub id: WorkerId,
    pub name: String,
    pub joined_at: u64,
    pub token: TokenRecordId,
    pub certificate: Option<String>,
}

#[derive(SchemaRead)]
pub(super) struct DeploymentV1 {
    pub id: DeploymentId,
    pub spec: SpecV4,
    _price: PriceListV1,
    pub created_at: u64,
}

#[derive(SchemaRead)]
pub(super) struct TenantV1 {
    pub id: TenantId,
    pub name: String,
    pub created_at: u64,
}

#[derive(SchemaRead)]
pub(super) struct ApiKeyV1 {
    pub id: KeyId,
    pub tenant: TenantId,
    pub created_at: u64,
}
