//! The replicated state machine: `Command -> apply -> Outcome`. Pure: no clock, no randomness, no
//! I/O; time, ids and secrets' hashes arrive inside commands, so that every replay and every
//! member of a later Raft group reaches the same state, byte for byte.
//!
//! What it keeps true, in release builds too: an epoch only grows and has at most one plan; a
//! usage record counts once; ids are never given twice.
//!
//! Neighbours: `journal` stores commands and applies them; `gateway` reads keys and deployments;
//! `fleet` reads and proposes everything else.

pub mod apply;
pub mod command;
pub mod journal;
pub mod records;

pub use command::{Command, Outcome, Refusal};
pub use records::{
    ApiKey, Cluster, CoordinatorRecord, Deployment, PriceList, Principal, Tenant, TokenRecord,
    TokenRole, UsageId, UsageRecord, UsageTotals, WorkerRecord,
};

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, KeyId, Replica, TenantId, TokenRecordId, WorkerId,
};
use trireme_shared::plan::ReplicaPlan;
use wincode::{SchemaRead, SchemaWrite};

/// The account, the key and the deployment a usage total stands under.
pub type UsageKey = (TenantId, KeyId, DeploymentId);

/// Everything the group must not lose. Only ordered maps and integers, so that equal states encode
/// to equal bytes.
#[derive(Clone, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct State {
    pub(super) cluster: Option<Cluster>,
    pub(super) coordinators: BTreeMap<CoordinatorId, CoordinatorRecord>,
    pub(super) tokens: BTreeMap<TokenRecordId, TokenRecord>,
    pub(super) workers: BTreeMap<WorkerId, WorkerRecord>,
    pub(super) deployments: BTreeMap<DeploymentId, Deployment>,
    pub(super) deployment_names: BTreeMap<String, DeploymentId>,
    pub(super) plans: BTreeMap<(DeploymentId, Replica), ReplicaPlan>,
    /// Counts over the whole cluster, so that it grows for each replica whatever becomes of it.
    pub(super) last_epoch: Epoch,
    pub(super) tenants: BTreeMap<TenantId, Tenant>,
    pub(super) tenant_names: BTreeMap<String, TenantId>,
    pub(super) keys: BTreeMap<KeyId, ApiKey>,
    pub(super) key_hashes: BTreeMap<[u8; 32], KeyId>,
    pub(super) usage: BTreeMap<UsageKey, UsageTotals>,
    /// The newest `limits::USAGE_WINDOW` usage ids, both ways: by id, and by order of arrival.
    pub(super) usage_seen: BTreeMap<UsageId, u64>,
    pub(super) usage_order: BTreeMap<u64, UsageId>,
    pub(super) last_ids: LastIds,
}

/// The newest number given out of each kind; none is given twice.
#[derive(Clone, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct LastIds {
    pub token: u32,
    pub worker: u32,
    pub deployment: u32,
    pub tenant: u32,
    pub key: u32,
    pub usage: u64,
}

impl State {
    /// Looks up the SHA-256 of a presented key.
    pub fn authenticate(&self, key_hash: &[u8; 32]) -> Option<Principal> {
        if let Some(cluster) = &self.cluster
            && same_bytes(&cluster.admin_key_hash, key_hash)
        {
            return Some(Principal::Admin);
        }
        // An attacker cannot choose a SHA-256 prefix by prefix, so an ordered lookup leaks nothing.
        let id = *self.key_hashes.get(key_hash)?;
        let key = self.keys.get(&id)?;
        let tenant = self.tenants.get(&key.tenant)?;
        Some(Principal::Tenant {
            tenant: key.tenant,
            name: tenant.name.clone(),
            key: id,
        })
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub fn coordinators(&self) -> impl Iterator<Item = &CoordinatorRecord> {
        self.coordinators.values()
    }

    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    pub fn token(&self, id: TokenRecordId) -> Option<&TokenRecord> {
        self.tokens.get(&id)
    }

    pub fn workers(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.values()
    }

    pub fn worker(&self, id: WorkerId) -> Option<&WorkerRecord> {
        self.workers.get(&id)
    }

    pub fn deployments(&self) -> impl Iterator<Item = &Deployment> {
        self.deployments.values()
    }

    pub fn deployment(&self, id: DeploymentId) -> Option<&Deployment> {
        self.deployments.get(&id)
    }

    /// By the name it is served under.
    pub fn deployment_named(&self, name: &str) -> Option<&Deployment> {
        self.deployments.get(self.deployment_names.get(name)?)
    }

    /// The newest committed plan of a replica.
    pub fn plan(&self, deployment: DeploymentId, replica: Replica) -> Option<&ReplicaPlan> {
        self.plans.get(&(deployment, replica))
    }

    pub fn plans(&self) -> impl Iterator<Item = &ReplicaPlan> {
        self.plans.values()
    }

    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// Totals in the order of their keys.
    pub fn usage(&self) -> impl Iterator<Item = (&UsageKey, &UsageTotals)> {
        self.usage.iter()
    }

    /// SHA-256 of the encoded state: equal for equal histories.
    pub fn digest(&self) -> Result<[u8; 32], command::CodecError> {
        Ok(Sha256::digest(command::encode_state(self)?).into())
    }
}

impl std::fmt::Debug for State {
    /// Counts only: the state holds the cluster's CA key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("workers", &self.workers.len())
            .field("deployments", &self.deployments.len())
            .field("plans", &self.plans.len())
            .field("last_epoch", &self.last_epoch)
            .field("tenants", &self.tenants.len())
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

/// Compares without an early exit, so that the time taken tells nothing of where they differ.
pub(super) fn same_bytes(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y)) == 0
}
