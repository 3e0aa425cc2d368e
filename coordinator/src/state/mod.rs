//! The replicated state machine: `Proposal -> apply -> (Outcome, Effects)`. Pure: no clock, no
//! randomness, no hash order, no float, no I/O; time, ids and secrets' hashes arrive inside proposals,
//! so that every replay and every member of the group reaches the same state, byte for byte.
//!
//! An area of the state is a file each (its rows, what changes them, what it keeps true); `apply`
//! ties them. In short: a proposal takes effect once; an epoch only grows and has at most one plan;
//! ids are never given twice; the ledger sums to zero; acts stand in the audit log's chain. A clone
//! of a `State` costs nothing to speak of (`table`).
//!
//! Neighbours: `journal` stores proposals and applies them; `gateway` reads keys and deployments;
//! `fleet` reads and proposes everything else.

mod acts;
pub mod apply;
pub mod audit;
mod billing;
pub mod cluster;
pub mod codec;
pub mod command;
pub mod deployments;
pub mod grants;
pub mod import;
pub mod leases;
pub mod ledger;
pub mod members;
mod meters;
mod movements;
mod plans;
pub mod prices;
mod proposals;
mod read;
pub mod requests;
pub mod rollups;
mod sample;
pub mod settings;
mod settle;
pub mod settlements;
mod table;
pub mod tenants;
pub mod tokens;
mod v1;
pub mod v4;
mod versions;
pub mod webhooks;
pub mod workers;

pub use apply::apply;
pub use audit::{AuditHead, AuditRecord};
pub use cluster::{Authority, AuthorityStage, Cluster, ClusterId};
pub use command::{
    Applied, Command, Effect, Origin, Outcome, Proposal, ProposalId, Refusal, Report, Return,
};
pub use deployments::Deployment;
pub use grants::{Answer, Ask, Left, Rate, Rates, Resets, Shortage};
pub use leases::{Amounts, Gateway, Subject};
pub use ledger::{Account, Posting, PostingKind};
pub use members::{Certificate, CoordinatorRecord};
pub use meters::month_name;
pub use movements::Movements;
pub use prices::{CostBreakdown, DEFAULT_PRICES, PriceList, Priced};
pub use requests::{Counts, Ended, Final, OpenRequest, Progress, RequestRow, Work};
pub use rollups::{UsageKey, UsageTotals};
pub use settings::{KeySettings, Limits, Payment, Scopes, TenantSettings, TenantStatus};
pub use settlements::Settlement;
pub use tenants::{ApiKey, KeyFault, Principal, Tenant};
pub use tokens::{TokenRecord, TokenRole};
pub use webhooks::{Topics, Webhook};
pub use workers::WorkerRecord;

use codec::{CodecError, stored};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, DeploymentId, Epoch, Replica, TokenRecordId, WorkerId};
use trireme_shared::plan::ReplicaPlan;

/// Everything the group must not lose. Only ordered tables and integers, so that equal states encode
/// to equal bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct State {
    identity: cluster::Identity,
    members: members::Members,
    tokens: tokens::JoinTokens,
    workers: workers::Workers,
    deployments: deployments::Deployments,
    plans: plans::Plans,
    tenants: tenants::Tenants,
    prices: prices::Prices,
    ledger: ledger::Ledger,
    requests: requests::Requests,
    settlements: settlements::Settlements,
    rollups: rollups::Rollups,
    leases: leases::Leases,
    webhooks: webhooks::Webhooks,
    /// The newest time that a proposal brought, milliseconds since 1970.
    now_ms: u64,
    audit: audit::Audit,
    proposals: proposals::Window,
}

stored!(State {
    identity,
    members,
    tokens,
    workers,
    deployments,
    plans,
    tenants,
    prices,
    ledger,
    requests,
    settlements since 3,
    rollups,
    leases,
    webhooks since 4,
    now_ms,
    audit,
    proposals
});

impl State {
    /// Looks up the SHA-256 of a presented key; `now` in seconds since 1970.
    pub fn authenticate(&self, key_hash: &[u8; 32], now: u64) -> Result<Principal, KeyFault> {
        if let Some(cluster) = self.cluster()
            && same_bytes(&cluster.admin_key_hash, key_hash)
        {
            return Ok(Principal::Admin);
        }
        self.tenants.of_key(key_hash, now)
    }

    /// Proposals applied so far: what a new proposal takes as its `base`.
    pub fn commands(&self) -> u64 {
        self.proposals.commands
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.identity.cluster.as_ref()
    }

    /// The CA that signs; `None` before the cluster is set up.
    pub fn signing_authority(&self) -> Option<&Authority> {
        self.identity.signing()
    }

    /// All CAs whose certificates are accepted, the signing one among them, by fingerprint.
    pub fn trusted_authorities(&self) -> impl Iterator<Item = &Authority> {
        self.identity.authorities.values()
    }

    pub fn coordinators(&self) -> impl Iterator<Item = &CoordinatorRecord> {
        self.members.coordinators.values()
    }

    pub fn coordinator(&self, id: CoordinatorId) -> Option<&CoordinatorRecord> {
        self.members.coordinators.get(&id)
    }

    /// Nodes whose certificates are refused, whatever they say.
    pub fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.members.removed.keys().copied()
    }

    pub fn is_removed(&self, node: NodeId) -> bool {
        self.members.removed.contains_key(&node)
    }

    /// Whether the node is a member now.
    pub fn is_member(&self, node: NodeId) -> bool {
        match node {
            NodeId::Coordinator(id) => self.coordinator(id).is_some(),
            NodeId::Worker(id) => self.worker(id).is_some(),
        }
    }

    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.rows.values()
    }

    pub fn token(&self, id: TokenRecordId) -> Option<&TokenRecord> {
        self.tokens.rows.get(&id)
    }

    pub fn workers(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.rows.values()
    }

    pub fn worker(&self, id: WorkerId) -> Option<&WorkerRecord> {
        self.workers.rows.get(&id)
    }

    pub fn deployments(&self) -> impl Iterator<Item = &Deployment> {
        self.deployments.rows.values()
    }

    pub fn deployment(&self, id: DeploymentId) -> Option<&Deployment> {
        self.deployments.rows.get(&id)
    }

    /// By the name it is served under.
    pub fn deployment_named(&self, name: &str) -> Option<&Deployment> {
        self.deployments.named(name)
    }

    /// The newest committed plan of a replica.
    pub fn plan(&self, deployment: DeploymentId, replica: Replica) -> Option<&ReplicaPlan> {
        self.plans.rows.get(&(deployment, replica))
    }

    pub fn plans(&self) -> impl Iterator<Item = &ReplicaPlan> {
        self.plans.rows.values()
    }

    /// The newest epoch given.
    pub fn last_epoch(&self) -> Epoch {
        self.plans.last_epoch
    }

    /// The newest records, oldest first.
    pub fn audit_records(&self) -> impl DoubleEndedIterator<Item = &AuditRecord> {
        self.audit.records.values()
    }

    pub fn audit_head(&self) -> AuditHead {
        self.audit.head
    }

    /// The same state, but for the private keys of its authorities: what a backup holds.
    pub fn without_authority_keys(&self) -> Self {
        Self {
            identity: self.identity.without_keys(),
            ..self.clone()
        }
    }

    /// SHA-256 of the encoded state: equal for equal histories.
    pub fn digest(&self) -> Result<[u8; 32], CodecError> {
        codec::digest(self)
    }

    /// Checks every invariant in full; takes as long as the state is large. For tests, the simulator
    /// and restored backups.
    pub fn check(&self) -> Result<(), String> {
        self.identity.check()?;
        self.members.check()?;
        self.workers.check()?;
        self.deployments.check()?;
        self.plans.check()?;
        self.tenants.check()?;
        self.prices.check()?;
        self.ledger.check()?;
        self.requests.check()?;
        self.leases.check()?;
        self.check_billing()?;
        self.settlements.check(self.requests())?;
        self.webhooks.check()?;
        self.audit.check()?;
        self.proposals.check()?;
        let gone = |id: &&WorkerId| self.is_removed(NodeId::Worker(**id));
        if let Some(id) = self.workers.rows.keys().find(gone) {
            return Err(format!("{id} is removed and a member"));
        }
        let orphaned = |p: &&ReplicaPlan| self.deployment(p.deployment).is_none();
        match self.plans().find(orphaned) {
            Some(plan) => Err(format!("{} has a plan and is gone", plan.deployment)),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for State {
    /// Counts only: the state holds the cluster's CA keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("commands", &self.commands())
            .field("coordinators", &self.members.coordinators.len())
            .field("workers", &self.workers.rows.len())
            .field("deployments", &self.deployments.rows.len())
            .field("plans", &self.plans.rows.len())
            .field("last_epoch", &self.plans.last_epoch)
            .field("tenants", &self.tenants.rows.len())
            .field("keys", &self.tenants.keys.len())
            .field("requests", &self.requests.rows.len())
            .field("postings", &self.ledger.postings.len())
            .finish_non_exhaustive()
    }
}

/// The next number of a kind.
fn next(counter: &mut u32) -> u32 {
    *counter = counter
        .checked_add(1)
        .expect("four thousand million ids of one kind are never given");
    *counter
}

/// Compares without an early exit, so that the time taken tells nothing of where they differ.
fn same_bytes(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod fixture_tests;
