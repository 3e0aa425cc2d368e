//! The money: a double-entry ledger. Each posting moves money between accounts and sums to zero; an
//! account's balance is its opening balance and the sum of its lines since.
//!
//! Kept true, in release builds too: a posting sums to zero; balances are those sums (step by step
//! here, in full by `check`). A posting is never changed: what was wrong is put right by another.

use super::Refusal;
use super::codec::{stored, stored_value};
use super::movements::Months;
use super::prices::WHOLE;
use super::requests::Work;
use super::table::Table;
use super::versions;
use crate::planted::{self, Bug};
use std::collections::BTreeMap;
use trireme_shared::ids::{BasisPoints, NanoUsd, PostingId, RequestNumber, TenantId};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Whose money it is. A negative balance is owed by its owner, a positive one to its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub enum Account {
    Tenant(TenantId),
    /// Whoever runs the cluster.
    Platform,
    /// Whoever lends machines to it.
    Provider(String),
    /// The world outside: where credits come from and payouts go to.
    Funding,
}

/// What a posting is for.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum PostingKind {
    /// A charge for a request; one more where more of it was delivered than was known.
    Request { number: RequestNumber },
    /// Money that a tenant paid in, or that was taken back.
    Credit { reason: String, by: String },
    /// Part of a request's charge, given back at the platform's expense.
    Refund {
        number: RequestNumber,
        reason: String,
        by: String,
    },
    /// A provider's earnings, paid out.
    Payout { reason: String, by: String },
}

/// One movement of money.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Posting {
    pub id: PostingId,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub kind: PostingKind,
    /// What each account gets (or gives, below zero). Sums to zero.
    pub lines: Vec<(Account, NanoUsd)>,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub postings: Table<PostingId, Posting>,
    pub balances: Table<Account, NanoUsd>,
    /// Sums of the postings that are no longer kept.
    pub opening: Table<Account, NanoUsd>,
    pub last: PostingId,
    /// Of all postings, kept or not.
    pub months: Months,
}

stored_value!(PostingId);
stored!(Ledger {
    postings,
    balances,
    opening,
    last,
    months since 3
});

impl Ledger {
    /// Moves money; refuses what would overflow a balance, before anything is changed.
    ///
    /// # Panics
    /// If the lines do not sum to zero: whoever posts must see to that.
    pub fn post(
        &mut self,
        at_ms: u64,
        kind: PostingKind,
        lines: Vec<(Account, NanoUsd)>,
    ) -> Result<PostingId, Refusal> {
        assert_eq!(sum(&lines), 0, "a posting sums to zero");
        for (account, balance) in self.after(&lines)? {
            self.balances.insert(account, balance);
        }
        let id = PostingId(self.last.0 + 1);
        self.last = id;
        let posting = Posting {
            id,
            at_ms,
            kind,
            lines,
        };
        self.months.note(&posting);
        let old = self.postings.insert(id, posting);
        assert!(old.is_none(), "a posting's number is given once");
        let most = match self.months.kept {
            true => limits::LEDGER_POSTINGS_MAX,
            false => versions::LEDGER_POSTINGS_MAX_V2,
        };
        self.trim(most, limits::FORGOTTEN_AT_ONCE);
        Ok(id)
    }

    /// Balances as they would be after those lines.
    fn after(&self, lines: &[(Account, NanoUsd)]) -> Result<BTreeMap<Account, NanoUsd>, Refusal> {
        let mut after = BTreeMap::new();
        for (account, amount) in lines {
            let balance = after.get(account).copied();
            let balance = balance.unwrap_or_else(|| self.balance(account));
            let balance = balance.0.checked_add(amount.0);
            let balance = NanoUsd(balance.ok_or(Refusal::BalanceRange)?);
            after.insert(account.clone(), balance);
        }
        Ok(after)
    }

    /// Takes over what an older release was owed, without a posting.
    pub fn open(&mut self, lines: &[(Account, NanoUsd)]) -> Result<(), Refusal> {
        assert_eq!(sum(lines), 0, "opening balances sum to zero");
        for (account, balance) in self.after(lines)? {
            self.balances.insert(account, balance);
        }
        self.carry(lines);
        for (account, amount) in lines {
            self.months.carry(account, *amount);
        }
        Ok(())
    }

    fn carry(&mut self, lines: &[(Account, NanoUsd)]) {
        for (account, amount) in lines {
            let opening = self.opening.or_default(account.clone());
            // Sums of some postings of one account can leave the range that all of them keep.
            opening.0 = opening.0.wrapping_add(amount.0);
        }
    }

    /// Keeps the newest `most` postings; older ones, so many at once, go into the opening balances.
    fn trim(&mut self, most: usize, at_once: usize) {
        let surplus = self.postings.len().saturating_sub(most);
        for _ in 0..surplus.min(at_once) {
            let Some((id, posting)) = self.postings.first().cloned() else {
                return;
            };
            self.postings.remove(&id);
            self.carry(&posting.lines);
        }
    }

    /// Zero for an account without postings.
    pub fn balance(&self, account: &Account) -> NanoUsd {
        self.balances.get(account).copied().unwrap_or_default()
    }

    pub fn check(&self) -> Result<(), String> {
        let mut sums = BTreeMap::<&Account, i64>::new();
        for (account, opening) in self.opening.iter() {
            sums.insert(account, opening.0);
        }
        for (id, posting) in self.postings.iter() {
            if *id != posting.id || *id > self.last {
                return Err(format!("posting {id} has another number"));
            }
            if sum(&posting.lines) != 0 {
                return Err(format!("posting {id} does not sum to zero"));
            }
            for (account, amount) in &posting.lines {
                let sum = sums.entry(account).or_default();
                *sum = sum.wrapping_add(amount.0);
            }
        }
        if !self.balances.iter().map(|(a, b)| (a, b.0)).eq(sums) {
            return Err("balances are not the sums of their postings".into());
        }
        self.check_months()?;
        let all: i128 = self.balances.values().map(|b| i128::from(b.0)).sum();
        match all {
            0 => Ok(()),
            _ => Err("the balances do not sum to zero".into()),
        }
    }

    fn check_months(&self) -> Result<(), String> {
        let end = |account: &Account| self.months.balance_before(account, u64::MAX);
        let differs = |(account, balance): (&Account, &NanoUsd)| end(account) != *balance;
        match self.months.kept && self.balances.iter().any(differs) {
            true => Err("balances are not the sums of their months".into()),
            false => Ok(()),
        }
    }
}

fn sum(lines: &[(Account, NanoUsd)]) -> i128 {
    lines.iter().map(|(_, amount)| i128::from(amount.0)).sum()
}

/// How a charge (above zero) is divided: the platform's fee first; the rest among those who worked for
/// it, by their units, each rounded down. What rounding leaves over is the platform's, as is the share
/// of machines that are nobody else's.
pub(super) fn charge_lines(
    tenant: TenantId,
    charge: NanoUsd,
    fee: BasisPoints,
    work: &[Work],
) -> Vec<(Account, NanoUsd)> {
    let whole = i128::from(WHOLE.0);
    let shared = i128::from(charge.0) * (whole - i128::from(fee.0.min(WHOLE.0))) / whole;
    let units: u128 = work.iter().map(|w| u128::from(w.units)).sum();
    let mut lines = vec![(Account::Tenant(tenant), NanoUsd(-charge.0))];
    let mut left = charge.0;
    for Work {
        provider,
        units: own,
    } in work
    {
        let Some(provider) = provider else {
            continue;
        };
        // At most 2^63 times 2^64, and, as a part of `charge`, not above it.
        let share = shared.unsigned_abs() * u128::from(*own) / units.max(1);
        let mut share = i64::try_from(share).unwrap_or(0);
        if planted::is(Bug::FloatRounding) {
            share = (shared as f64 * (*own as f64 / units as f64)).round() as i64;
        }
        if share > 0 {
            left -= share;
            lines.push((Account::Provider(provider.clone()), NanoUsd(share)));
        }
    }
    if planted::is(Bug::FloatRounding) && lines.len() > 1 {
        // The platform's own part is rounded for itself, and the tenant pays whatever comes out.
        left = (charge.0 as f64 * f64::from(fee.0) / f64::from(WHOLE.0)).round() as i64;
        lines[0].1 = NanoUsd(-left - lines[1..].iter().map(|(_, share)| share.0).sum::<i64>());
    }
    if left != 0 {
        lines.push((Account::Platform, NanoUsd(left)));
    }
    lines
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
