//! Version 1 of commands and states (releases before the coordinator was a group), and what becomes
//! of them. Read only. Rows that version 2 kept as they were, and plans and specs of
//! `trireme_shared::plan`, are shared with it: whoever changes one of them copies the old one here
//! first, and `fixture_tests` fails until it is done.

use super::cluster::{Cluster, ClusterId};
use super::codec::{CodecError, version_of};
use super::command::{Command, Outcome, Proposal, ProposalId};
use super::deployments::{Deployment, PriceList};
use super::ledger::{Account, UsageKey, UsageRecord, UsageTotals};
use super::members::{Certificate, CoordinatorRecord};
use super::table::Table;
use super::tenants::{ApiKey, Tenant};
use super::tokens::TokenRecord;
use super::workers::WorkerRecord;
use super::{State, TokenRole, proposals};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, KeyId, NanoUsd, Replica, TenantId, TokenRecordId, WorkerId,
};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};
use wincode::SchemaRead;
use wincode::config::Configuration;

pub(super) const VERSION: u16 = 1;

/// How long a worker's certificate held when there was no renewal.
const CERTIFICATE_SECONDS: u64 = 30 * 86_400;

/// A version 1 state is one value: its tables are read as wholes. What a table may ask for at once is a
/// compile-time parameter of wincode, so there is one for each size of state: 16 times its bytes, as on
/// the wire.
const SMALL_BYTES: usize = 64 << 10;
const MEDIUM_BYTES: usize = 4 << 20;
type Small = Configuration<true, { 16 * SMALL_BYTES }>;
type Medium = Configuration<true, { 16 * MEDIUM_BYTES }>;
type Large = Configuration<true, { 1 << 30 }>;

#[derive(SchemaRead)]
enum CommandV1 {
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
        spec: DeploymentSpec,
        price: PriceList,
        now: u64,
    },
    CommitPlan {
        plan: Box<ReplicaPlan>,
        previous: Option<Epoch>,
    },
    CreateKey {
        tenant: String,
        key_hash: [u8; 32],
        now: u64,
    },
    RecordUsage {
        id: [u8; 16],
        usage: UsageRecord,
    },
}

#[derive(Clone, Copy, SchemaRead)]
enum RoleV1 {
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
struct StateV1 {
    cluster: Option<ClusterV1>,
    coordinators: BTreeMap<CoordinatorId, CoordinatorV1>,
    tokens: BTreeMap<TokenRecordId, TokenV1>,
    workers: BTreeMap<WorkerId, WorkerV1>,
    deployments: BTreeMap<DeploymentId, Deployment>,
    deployment_names: BTreeMap<String, DeploymentId>,
    plans: BTreeMap<(DeploymentId, Replica), ReplicaPlan>,
    last_epoch: Epoch,
    tenants: BTreeMap<TenantId, Tenant>,
    tenant_names: BTreeMap<String, TenantId>,
    keys: BTreeMap<KeyId, ApiKey>,
    key_hashes: BTreeMap<[u8; 32], KeyId>,
    usage: BTreeMap<UsageKey, UsageTotals>,
    /// The same window as `usage_order`, by id.
    _usage_seen: BTreeMap<[u8; 16], u64>,
    usage_order: BTreeMap<u64, [u8; 16]>,
    last_ids: LastIdsV1,
}

#[derive(SchemaRead)]
struct LastIdsV1 {
    token: u32,
    worker: u32,
    deployment: u32,
    tenant: u32,
    key: u32,
    usage: u64,
}

#[derive(SchemaRead)]
struct ClusterV1 {
    name: String,
    ca_pem: String,
    admin_key_hash: [u8; 32],
}

#[derive(SchemaRead)]
struct CoordinatorV1 {
    id: CoordinatorId,
    http: String,
    control: String,
}

#[derive(SchemaRead)]
struct TokenV1 {
    id: TokenRecordId,
    secret_hash: [u8; 32],
    role: RoleV1,
    uses_left: u32,
    expires_at: u64,
    revoked: bool,
}

#[derive(SchemaRead)]
struct WorkerV1 {
    id: WorkerId,
    name: String,
    joined_at: u64,
    token: TokenRecordId,
    certificate: Option<String>,
}

/// The identity of a cluster that had none: every member must come to the same.
fn cluster_id(ca_pem: &str) -> ClusterId {
    let mut hasher = Sha256::new();
    hasher.update(b"trireme cluster of version 1\0");
    hasher.update(ca_pem.as_bytes());
    ClusterId(first_half(hasher))
}

fn first_half(hasher: Sha256) -> [u8; 16] {
    let digest: [u8; 32] = hasher.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// The proposal that does what a logged command did. `index` names it in its log; `base` is the
/// count of commands of the state it will be applied to.
pub(super) fn decode_command(index: u64, base: u64, bytes: &[u8]) -> Result<Proposal, CodecError> {
    let (found, body) = version_of(bytes)?;
    if found != VERSION {
        let known = VERSION;
        return Err(CodecError::Version { found, known });
    }
    let old: CommandV1 =
        wincode::deserialize_exact(body).map_err(|e| CodecError::Damaged(e.to_string()))?;
    let mut hasher = Sha256::new();
    hasher.update(b"trireme command of version 1\0");
    hasher.update(index.to_le_bytes());
    let mut id = ProposalId(first_half(hasher));
    let mut now = 0;
    let command = match old {
        CommandV1::Bootstrap {
            name,
            ca_pem,
            admin_key_hash,
        } => Command::Bootstrap {
            name,
            cluster: cluster_id(&ca_pem),
            authority_pem: ca_pem,
            admin_key_hash,
        },
        CommandV1::PutCoordinator { id, http, control } => Command::PutCoordinator {
            id,
            http,
            control,
            version: String::new(),
        },
        CommandV1::CreateToken {
            secret_hash,
            role,
            uses,
            expires_at,
        } => Command::CreateToken {
            secret_hash,
            role: role.into(),
            provider: None,
            uses,
            expires_at,
        },
        CommandV1::RevokeToken { id } => Command::RevokeToken { id },
        CommandV1::JoinWorker {
            token,
            secret_hash,
            now: at,
        } => {
            now = at;
            Command::JoinWorker { token, secret_hash }
        }
        CommandV1::PutCertificate {
            worker,
            fingerprint,
        } => Command::PutCertificate {
            node: NodeId::Worker(worker),
            fingerprint,
            // Unknown: it ends with its certificate's own date.
            expires_at: u64::MAX,
        },
        CommandV1::PutDeployment {
            spec,
            price,
            now: at,
        } => {
            now = at;
            Command::PutDeployment { spec, price }
        }
        CommandV1::CommitPlan { plan, previous } => Command::CommitPlan { plan, previous },
        CommandV1::CreateKey {
            tenant,
            key_hash,
            now: at,
        } => {
            now = at;
            Command::CreateKey { tenant, key_hash }
        }
        CommandV1::RecordUsage { id: own, usage } => {
            // So that a record the snapshot has counted is not counted again.
            id = ProposalId(own);
            Command::RecordUsage { usage }
        }
    };
    Ok(Proposal {
        id,
        base,
        at_ms: now.saturating_mul(1_000),
        origin: None,
        command,
    })
}

/// `body` is what follows the version.
pub(super) fn decode_state(body: &[u8]) -> Result<State, CodecError> {
    let old = match body.len() {
        ..=SMALL_BYTES => wincode::config::deserialize_exact(body, Small::new()),
        ..=MEDIUM_BYTES => wincode::config::deserialize_exact(body, Medium::new()),
        _ => wincode::config::deserialize_exact(body, Large::new()),
    };
    let old: StateV1 = old.map_err(|e| CodecError::Damaged(e.to_string()))?;
    convert(old)
}

fn convert(old: StateV1) -> Result<State, CodecError> {
    let damaged = |what: &str| CodecError::Damaged(what.into());
    let mut state = State::default();
    if let Some(cluster) = old.cluster {
        let new = Cluster {
            id: cluster_id(&cluster.ca_pem),
            name: cluster.name,
            admin_key_hash: cluster.admin_key_hash,
        };
        let found = state.identity.found(new, &cluster.ca_pem);
        found.map_err(|why| CodecError::Damaged(why.to_string()))?;
        // It said where it listens at the end of its start; a crash may have come before.
        state.members.seat(None, true, 0);
    }
    for (id, row) in old.coordinators {
        let known = state.members.coordinators.get(&id);
        let record = CoordinatorRecord {
            id: row.id,
            http: row.http,
            control: row.control,
            version: String::new(),
            wants_vote: true,
            joined_at: known.map_or(0, |k| k.joined_at),
            token: None,
            certificate: None,
        };
        state.members.last = state.members.last.max(id.0);
        state.members.coordinators.insert(id, record);
    }
    state.tokens.rows = old.tokens.into_iter().map(token).collect();
    state.tokens.last = old.last_ids.token;
    state.workers.rows = old.workers.into_iter().map(worker).collect();
    state.workers.last = old.last_ids.worker;
    state.deployments.rows = old.deployments.into_iter().collect();
    state.deployments.names = old.deployment_names.into_iter().collect();
    state.deployments.last = old.last_ids.deployment;
    state.plans.rows = old.plans.into_iter().collect();
    state.plans.last_epoch = old.last_epoch;
    state.tenants.rows = old.tenants.into_iter().collect();
    state.tenants.names = old.tenant_names.into_iter().collect();
    state.tenants.keys = old.keys.into_iter().collect();
    state.tenants.key_hashes = old.key_hashes.into_iter().collect();
    state.tenants.last_tenant = old.last_ids.tenant;
    state.tenants.last_key = old.last_ids.key;
    // Version 1 had totals and no ledger: what they say is owed stands in one posting a tenant.
    let mut owed = BTreeMap::<TenantId, i64>::new();
    for ((tenant, _, _), totals) in &old.usage {
        let sum = owed.entry(*tenant).or_default();
        *sum = sum.saturating_add(totals.cost.0);
    }
    for (tenant, cost) in owed {
        let lines = vec![
            (Account::Tenant(tenant), NanoUsd(-cost)),
            (Account::Platform, NanoUsd(cost)),
        ];
        let posted = state.ledger.post(0, "carried over from version 1", lines);
        posted.map_err(|_| damaged("its totals are out of range"))?;
    }
    state.ledger.usage = old.usage.into_iter().collect();
    let counted = |(order, id)| (order, (ProposalId(id), Outcome::Done));
    let outcomes: Table<_, _> = old.usage_order.into_iter().map(counted).collect();
    state.proposals = proposals::Window::rebuild(old.last_ids.usage, outcomes)?;
    Ok(state)
}

fn token((id, old): (TokenRecordId, TokenV1)) -> (TokenRecordId, TokenRecord) {
    let record = TokenRecord {
        id: old.id,
        secret_hash: old.secret_hash,
        role: old.role.into(),
        provider: None,
        uses_left: old.uses_left,
        expires_at: old.expires_at,
        revoked: old.revoked,
    };
    (id, record)
}

fn worker((id, old): (WorkerId, WorkerV1)) -> (WorkerId, WorkerRecord) {
    let certificate = old.certificate.map(|fingerprint| Certificate {
        fingerprint,
        expires_at: old.joined_at.saturating_add(CERTIFICATE_SECONDS),
    });
    let record = WorkerRecord {
        id: old.id,
        name: old.name,
        joined_at: old.joined_at,
        token: old.token,
        provider: None,
        certificate,
        inventory: None,
    };
    (id, record)
}
