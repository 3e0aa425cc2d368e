//! Version 1 of commands and states (releases before the coordinator was a group), and what becomes
//! of them. Read only. Rows that version 2 kept as they were are shared with it, plans and
//! specs with all versions up to 4 (`v4`): whoever changes one of them copies the old one here first, and
//! `fixture_tests` fails until it is done.

use super::cluster::{Cluster, ClusterId};
use super::codec::{CodecError, version_of};
use super::command::{Command, Outcome, Proposal, ProposalId};
use super::deployments::Deployment;
use super::ledger::Account;
use super::members::{Certificate, CoordinatorRecord};
use super::rollups::{UsageKey, UsageTotals};
use super::settings::{KeySettings, TenantSettings};
use super::table::Table;
use super::tenants::{ApiKey, Tenant};
use super::tokens::TokenRecord;
use super::workers::WorkerRecord;
use super::{State, apply, proposals};
use records::{
    ApiKeyV1, CommandV1, DeploymentV1, StateV1, TenantV1, TokenV1, UsageKeyV1, UsageV1, WorkerV1,
};
use sha2::{Digest, Sha256};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{DeploymentId, KeyId, NanoUsd, TenantId, TokenRecordId, WorkerId};
use wincode::config::Configuration;

mod records;

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

/// Does to the state what a logged command did. `index` names it in its log.
pub(super) fn replay(state: &mut State, index: u64, bytes: &[u8]) -> Result<(), CodecError> {
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
    let id = ProposalId(first_half(hasher));
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
        CommandV1::PutDeployment { spec, now: at, .. } => {
            now = at;
            Command::PutDeploymentV4 { spec }
        }
        CommandV1::CommitPlan { plan, previous } => Command::CommitPlanV4 { plan, previous },
        CommandV1::CreateKey {
            tenant,
            key_hash,
            now: at,
        } => {
            now = at;
            Command::CreateKey {
                tenant,
                key_hash,
                settings: KeySettings::default(),
            }
        }
        CommandV1::RecordUsage { id, usage } => return count(state, ProposalId(id), &usage),
    };
    let proposal = Proposal {
        id,
        base: state.commands(),
        at_ms: now.saturating_mul(1_000),
        origin: None,
        command,
    };
    apply(state, &proposal);
    Ok(())
}

/// Counts what a request used, unless the snapshot has counted it or it is of nobody.
fn count(state: &mut State, id: ProposalId, usage: &UsageV1) -> Result<(), CodecError> {
    let known = state.tenants.keys.get(&usage.key);
    let owned = known.is_some_and(|key| key.tenant == usage.tenant);
    if state.proposals.orders.contains_key(&id) || !owned {
        return Ok(());
    }
    let totals = UsageTotals {
        requests: 1,
        prompt: usage.prompt,
        cached: usage.cached,
        completion: usage.completion,
        cost: usage.cost,
    };
    carry_over(state, (usage.tenant, usage.key, usage.deployment), totals)?;
    state.proposals.remember(id, Outcome::Done);
    Ok(())
}

/// Version 1 had totals without dates and no ledger: they are usage of the first day there is, and what
/// they say is owed stands in the opening balances.
fn carry_over(state: &mut State, of: UsageKeyV1, totals: UsageTotals) -> Result<(), CodecError> {
    let (tenant, key, deployment) = of;
    let lines = [
        (
            Account::Tenant(tenant),
            NanoUsd(totals.cost.0.saturating_neg()),
        ),
        (Account::Platform, NanoUsd(-totals.cost.0.saturating_neg())),
    ];
    let opened = state.ledger.open(&lines);
    opened.map_err(|_| CodecError::Damaged("its totals are out of range".into()))?;
    let name = state
        .deployment(deployment)
        .map(|d| d.spec.model.name.clone());
    let of = UsageKey {
        tenant,
        slot: 0,
        model: name.unwrap_or_else(|| deployment.to_string()),
        key,
    };
    let sum = state.rollups.days.or_default(of);
    *sum = sum.plus(totals);
    Ok(())
}

/// `body` is what follows the version.
pub(super) fn decode_state(body: &[u8]) -> Result<State, CodecError> {
    let bytes = body.len();
    let old = if bytes <= SMALL_BYTES {
        wincode::config::deserialize_exact(body, Small::new())
    } else if bytes <= MEDIUM_BYTES {
        wincode::config::deserialize_exact(body, Medium::new())
    } else {
        wincode::config::deserialize_exact(body, Large::new())
    };
    let old: StateV1 = old.map_err(|e| CodecError::Damaged(e.to_string()))?;
    convert(old)
}

fn convert(old: StateV1) -> Result<State, CodecError> {
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
    state.deployments.rows = old.deployments.into_iter().map(deployment).collect();
    state.deployments.names = old.deployment_names.into_iter().collect();
    state.deployments.last = old.last_ids.deployment;
    let plans = old.plans.into_iter();
    state.plans.rows = plans.map(|(key, plan)| (key, plan.into())).collect();
    state.plans.last_epoch = old.last_epoch;
    state.tenants.rows = old.tenants.into_iter().map(tenant).collect();
    state.tenants.names = old.tenant_names.into_iter().collect();
    state.tenants.keys = old.keys.into_iter().map(key).collect();
    state.tenants.key_hashes = old.key_hashes.into_iter().collect();
    state.tenants.last_tenant = old.last_ids.tenant;
    state.tenants.last_key = old.last_ids.key;
    for (of, totals) in old.usage {
        carry_over(&mut state, of, totals)?;
    }
    let counted = |(order, id)| (order, (ProposalId(id), Outcome::Done));
    let outcomes: Table<_, _> = old.usage_order.into_iter().map(counted).collect();
    state.proposals = proposals::Window::rebuild(old.last_ids.usage, outcomes)?;
    Ok(state)
}

fn deployment((id, old): (DeploymentId, DeploymentV1)) -> (DeploymentId, Deployment) {
    let record = Deployment {
        id: old.id,
        spec: old.spec.into(),
        created_at: old.created_at,
    };
    (id, record)
}

fn tenant((id, old): (TenantId, TenantV1)) -> (TenantId, Tenant) {
    let record = Tenant {
        id: old.id,
        name: old.name,
        created_at: old.created_at,
        settings: TenantSettings::default(),
        excused: NanoUsd(0),
    };
    (id, record)
}

fn key((id, old): (KeyId, ApiKeyV1)) -> (KeyId, ApiKey) {
    let record = ApiKey {
        id: old.id,
        tenant: old.tenant,
        created_at: old.created_at,
        settings: KeySettings::default(),
        revoked_at: None,
        replaces: None,
        line: old.id,
    };
    (id, record)
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
