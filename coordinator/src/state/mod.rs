//! The replicated state machine: `Command -> apply -> Outcome`. Pure: no clock, no randomness, no
//! I/O; time, ids and secrets' hashes arrive inside commands.

pub mod journal;

use trireme_shared::ids::{DeploymentId, KeyId, NanoUsd, RequestId, TenantId, Tokens};
use trireme_shared::plan::DeploymentSpec;
use wincode::{SchemaRead, SchemaWrite};

/// Everything the group must not lose.
#[derive(Clone, Debug, Default)]
pub struct State {}

/// Who an API key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    Admin,
    Tenant {
        tenant: TenantId,
        name: String,
        key: KeyId,
    },
}

/// Money for a million tokens of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PriceList {
    pub input: NanoUsd,
    pub cached_input: NanoUsd,
    pub output: NanoUsd,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Deployment {
    pub id: DeploymentId,
    pub spec: DeploymentSpec,
    pub price: PriceList,
    /// Seconds since 1970, for `/v1/models`.
    pub created_at: u64,
}

/// What one finished (or broken) request used. `cost` is by the deployment's price list.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct UsageRecord {
    pub request: RequestId,
    pub tenant: TenantId,
    pub key: KeyId,
    pub deployment: DeploymentId,
    pub prompt: Tokens,
    pub cached: Tokens,
    pub completion: Tokens,
    pub cost: NanoUsd,
}

impl State {
    /// Looks up the SHA-256 of a presented key.
    pub fn authenticate(&self, _key_hash: &[u8; 32]) -> Option<Principal> {
        None
    }
    pub fn deployments(&self) -> impl Iterator<Item = &Deployment> {
        std::iter::empty()
    }
    /// By the name it is served under.
    pub fn deployment_named(&self, name: &str) -> Option<&Deployment> {
        self.deployments().find(|d| d.spec.model.name == name)
    }
}
