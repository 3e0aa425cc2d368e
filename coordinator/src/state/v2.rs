//! Version 2 of states: no months of the ledger, and no log of settlements.
//!
//! Members of a group come from it at different entries of their log, and apply what follows. So that
//! they come to the same, a state of version 2 goes on under its rules, as the release that wrote it
//! did, until the log itself says that version 3 begins: `Command::Upgrade`, which every coordinator of
//! this release asks for. Rows are shared with version 3: whoever changes one of them copies the old
//! one here first, and `fixture_tests` fails until it is done.

use super::codec::{CodecError, Source, Stored, stored};
use super::ledger::{Account, Ledger, Posting};
use super::movements::Months;
use super::settlements::Settlements;
use super::table::Table;
use super::{
    Outcome, State, audit, cluster, deployments, leases, members, plans, prices, proposals,
    requests, rollups, tenants, tokens, workers,
};
use trireme_shared::ids::{NanoUsd, PostingId};

pub(super) const VERSION: u16 = 2;

/// What version 2 kept of each.
pub(super) const REQUEST_ROWS_MAX: usize = 4_000_000;
pub(super) const LEDGER_POSTINGS_MAX: usize = 4_000_000;

struct LedgerV2 {
    postings: Table<PostingId, Posting>,
    balances: Table<Account, NanoUsd>,
    opening: Table<Account, NanoUsd>,
    last: PostingId,
}

stored!(LedgerV2 {
    postings,
    balances,
    opening,
    last
});

struct StateV2 {
    identity: cluster::Identity,
    members: members::Members,
    tokens: tokens::JoinTokens,
    workers: workers::Workers,
    deployments: deployments::Deployments,
    plans: plans::Plans,
    tenants: tenants::Tenants,
    prices: prices::Prices,
    ledger: LedgerV2,
    requests: requests::Requests,
    rollups: rollups::Rollups,
    leases: leases::Leases,
    now_ms: u64,
    audit: audit::Audit,
    proposals: proposals::Window,
}

stored!(StateV2 {
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
    rollups,
    leases,
    now_ms,
    audit,
    proposals
});

/// What follows the version.
pub(super) fn load(input: &mut Source<'_>) -> Result<State, CodecError> {
    let old = StateV2::load(input)?;
    Ok(State {
        identity: old.identity,
        members: old.members,
        tokens: old.tokens,
        workers: old.workers,
        deployments: old.deployments,
        plans: old.plans,
        tenants: old.tenants,
        prices: old.prices,
        ledger: Ledger {
            postings: old.ledger.postings,
            balances: old.ledger.balances,
            opening: old.ledger.opening,
            last: old.ledger.last,
            months: Months::not_yet(),
        },
        requests: old.requests,
        settlements: Settlements::not_yet(),
        rollups: old.rollups,
        leases: old.leases,
        now_ms: old.now_ms,
        audit: old.audit,
        proposals: old.proposals,
    })
}

/// Version 3 begins: months are made of the postings there are, what was before those counts to none,
/// and from here on settlements are written down. A second time changes nothing.
pub(super) fn upgrade(state: &mut State) -> Outcome {
    if state.ledger.months.kept {
        return Outcome::Done;
    }
    let mut months = Months::default();
    for (account, amount) in state.ledger.opening.iter() {
        months.carry(account, *amount);
    }
    for posting in state.ledger.postings.values() {
        months.note(posting);
    }
    state.ledger.months = months;
    state.settlements.begin(state.requests.last);
    Outcome::Done
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
