//! The rows of the state: what is kept of clusters, nodes, deployments, tenants, keys and usage.

use trireme_shared::api::Role;
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, KeyId, NanoUsd, RequestId, TenantId, TokenRecordId, Tokens,
    WorkerId,
};
use trireme_shared::plan::DeploymentSpec;
use wincode::{SchemaRead, SchemaWrite};

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

/// What the cluster is. Holds the CA's private key: it has no `Debug`.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Cluster {
    pub name: String,
    /// Certificate and private key of the cluster's CA; every coordinator signs with it.
    pub ca_pem: String,
    /// SHA-256 of the admin key.
    pub admin_key_hash: [u8; 32],
}

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct CoordinatorRecord {
    pub id: CoordinatorId,
    /// `http://ip:port`
    pub http: String,
    /// `ip:port`
    pub control: String,
}

/// What a join token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum TokenRole {
    Worker,
    Coordinator,
}

impl From<Role> for TokenRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Coordinator => Self::Coordinator,
        }
    }
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Worker => Self::Worker,
            TokenRole::Coordinator => Self::Coordinator,
        }
    }
}

/// A join token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct TokenRecord {
    pub id: TokenRecordId,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    pub role: TokenRole,
    pub uses_left: u32,
    /// Seconds since 1970; the token works before this second.
    pub expires_at: u64,
    pub revoked: bool,
}

/// A worker that has joined, connected or not.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct WorkerRecord {
    pub id: WorkerId,
    /// `w<id>` until someone names it.
    pub name: String,
    /// Seconds since 1970.
    pub joined_at: u64,
    /// The token it joined with.
    pub token: TokenRecordId,
    /// Lower-case hex SHA-256 of its newest certificate (DER); `None` until one was signed.
    pub certificate: Option<String>,
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

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub created_at: u64,
}

/// An API key without the key.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ApiKey {
    pub id: KeyId,
    pub tenant: TenantId,
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

/// Names one usage record, so that proposing it again does not count it again. Drawn at random by
/// the journal and not made from `UsageRecord::request`: a caller chooses that one
/// (`x-request-id`), and by repeating it could have its later requests taken for retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct UsageId(pub [u8; 16]);

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct UsageTotals {
    pub requests: u64,
    pub prompt: Tokens,
    pub cached: Tokens,
    pub completion: Tokens,
    pub cost: NanoUsd,
}
