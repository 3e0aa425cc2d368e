//! What moved each account's money, month by month and by kind: what statements are made of when the
//! postings themselves are long gone.
//!
//! Kept true: an account's balance is what it had before the first month, and the sum of its months
//! (`Ledger::check`).

use super::codec::{Newer, stored};
use super::ledger::{Account, Posting, PostingKind};
use super::meters::month;
use super::table::Table;
use trireme_shared::ids::NanoUsd;
use wincode::{SchemaRead, SchemaWrite};

/// What an account got (or gave, below zero) in one month of UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Movements {
    /// Charges for requests, and shares of them.
    pub requests: NanoUsd,
    pub credits: NanoUsd,
    pub refunds: NanoUsd,
    pub payouts: NanoUsd,
}

impl Movements {
    /// All of them. Sums of some movements can leave the range that a balance keeps, and wrap: what
    /// they come to in the end does not.
    pub fn sum(&self) -> NanoUsd {
        let all = [self.requests, self.credits, self.refunds, self.payouts];
        NanoUsd(
            all.iter()
                .fold(0, |sum: i64, part| sum.wrapping_add(part.0)),
        )
    }

    fn add(&mut self, kind: &PostingKind, amount: NanoUsd) {
        let part = match kind {
            PostingKind::Request { .. } => &mut self.requests,
            PostingKind::Credit { .. } => &mut self.credits,
            PostingKind::Refund { .. } => &mut self.refunds,
            PostingKind::Payout { .. } => &mut self.payouts,
        };
        part.0 = part.0.wrapping_add(amount.0);
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Months {
    /// False in a state of version 2 until it is raised: then nothing is written here.
    pub kept: bool,
    /// By account and month, counted from January 1970.
    pub rows: Table<(Account, u64), Movements>,
    /// What accounts had before their first month: what an older release knew no date of.
    pub before: Table<Account, NanoUsd>,
}

stored!(Months { kept, rows, before });

impl Default for Months {
    fn default() -> Self {
        Self {
            kept: true,
            rows: Table::default(),
            before: Table::default(),
        }
    }
}

impl Newer for Months {
    fn not_yet() -> Self {
        Self {
            kept: false,
            ..Self::default()
        }
    }
}

impl Months {
    pub fn note(&mut self, posting: &Posting) {
        if !self.kept {
            return;
        }
        for (account, amount) in &posting.lines {
            let of = (account.clone(), month(posting.at_ms));
            self.rows.or_default(of).add(&posting.kind, *amount);
        }
    }

    /// What an account had before any movement of a month.
    pub fn carry(&mut self, account: &Account, amount: NanoUsd) {
        if self.kept {
            let before = self.before.or_default(account.clone());
            before.0 = before.0.wrapping_add(amount.0);
        }
    }

    /// Of one account, oldest first.
    pub fn of(&self, account: &Account) -> impl DoubleEndedIterator<Item = (u64, &Movements)> {
        let months = (account.clone(), 0)..=(account.clone(), u64::MAX);
        let rows = self.rows.range(months);
        rows.map(|((_, month), movements)| (*month, movements))
    }

    /// What an account had when that month began.
    pub fn balance_before(&self, account: &Account, month: u64) -> NanoUsd {
        let before = self.before.get(account).copied().unwrap_or_default();
        let earlier = self.of(account).take_while(|(of, _)| *of < month);
        let sum = earlier.fold(before.0, |sum, (_, m)| sum.wrapping_add(m.sum().0));
        NanoUsd(sum)
    }
}
