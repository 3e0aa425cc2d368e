//! Versions of states: how one that an older release wrote goes on, and becomes one of this release.
//!
//! Members of a group come from an older version at different entries of their log, and apply what
//! follows. So that they come to the same, a state goes on under the rules of its version, as the release
//! that wrote it did, until the log itself says that a newer one begins: `Command::UpgradeTo`, which every
//! coordinator of this release asks for. Version 3 brought months of the ledger and the log of
//! settlements, version 4 webhooks, version 5 the precision of deployments and their plans. What a version did
//! not have is not in its bytes (`codec::stored!`).
//! Rows are shared by all of them: whoever changes one copies the old one here first, and `fixture_tests`
//! fails until it is done.

use super::codec::STATE_VERSION;
use super::movements::Months;
use super::{Outcome, Refusal, State};

/// The oldest one that is read by the areas themselves; `v1` reads the one before it.
pub(super) const OLDEST: u16 = 2;

/// What `Command::Upgrade` raises to: what it meant in the only release that asked for it.
pub(super) const OF_UPGRADE: u16 = 3;

/// What version 2 kept of each.
pub(super) const REQUEST_ROWS_MAX_V2: usize = 4_000_000;
pub(super) const LEDGER_POSTINGS_MAX_V2: usize = 4_000_000;

impl State {
    /// The version by whose rules it goes on. Version 5 brought none: a state that was read as version 4 is of it.
    pub fn version(&self) -> u16 {
        match (self.settlements.kept, self.webhooks.kept) {
            (false, _) => OLDEST,
            (true, false) => 3,
            (true, true) => STATE_VERSION,
        }
    }

    /// Whether it keeps all that this release does: not before `Command::UpgradeTo` where an older one
    /// wrote it.
    pub fn is_current(&self) -> bool {
        self.version() == STATE_VERSION
    }
}

/// That version begins, and those between. Once it has, asking again changes nothing.
pub(super) fn raise(state: &mut State, to: u16) -> Result<Outcome, Refusal> {
    if to > STATE_VERSION {
        return Err(Refusal::NewerVersion(to));
    }
    let from = state.version();
    if from < 3 && to >= 3 {
        keep_months(state);
        state.settlements.begin(state.requests.last);
    }
    if from < 4 && to >= 4 {
        state.webhooks.begin(state.now_ms);
    }
    Ok(Outcome::Done)
}

/// Months are made of the postings there are; what was before those counts to none.
fn keep_months(state: &mut State) {
    let mut months = Months::default();
    for (account, amount) in state.ledger.opening.iter() {
        months.carry(account, *amount);
    }
    for posting in state.ledger.postings.values() {
        months.note(posting);
    }
    state.ledger.months = months;
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;
