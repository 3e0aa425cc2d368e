//! What requests used, and the money that follows: a double-entry ledger. Each posting moves money
//! between accounts and sums to zero; an account's balance is the sum of its lines.
//!
//! Kept true, in release builds too: a posting sums to zero; balances are those sums (step by step
//! here, in full by `check`). Once per request: the proposal's id sees to that.

use super::codec::stored;
use super::table::Table;
use super::{Outcome, Refusal};
use trireme_shared::ids::{DeploymentId, KeyId, NanoUsd, RequestId, TenantId, Tokens};
use wincode::{SchemaRead, SchemaWrite};

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

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct UsageTotals {
    pub requests: u64,
    pub prompt: Tokens,
    pub cached: Tokens,
    pub completion: Tokens,
    pub cost: NanoUsd,
}

/// The account, the key and the deployment a usage total stands under.
pub type UsageKey = (TenantId, KeyId, DeploymentId);

/// Whose money it is. A negative balance is owed by its owner, a positive one to its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub enum Account {
    Tenant(TenantId),
    /// Whoever runs the cluster.
    Platform,
    /// Whoever lends machines to it.
    Provider(String),
}

/// One movement of money.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Posting {
    /// Counted from 1.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// A request's id, or words.
    pub reason: String,
    /// What each account gets (or gives, below zero). Sums to zero.
    pub lines: Vec<(Account, NanoUsd)>,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub usage: Table<UsageKey, UsageTotals>,
    pub postings: Table<u64, Posting>,
    pub balances: Table<Account, NanoUsd>,
    pub last: u64,
}

stored!(Ledger {
    usage,
    postings,
    balances,
    last
});

impl Ledger {
    /// Counts what a request used and debits its tenant.
    pub fn record_usage(&mut self, usage: &UsageRecord, at_ms: u64) -> Result<Outcome, Refusal> {
        if usage.cost.0 < 0 {
            return Err(Refusal::NegativeCost);
        }
        let lines = vec![
            (Account::Tenant(usage.tenant), NanoUsd(-usage.cost.0)),
            (Account::Platform, usage.cost),
        ];
        self.post(at_ms, usage.request.as_str(), lines)?;
        let key = (usage.tenant, usage.key, usage.deployment);
        let total = self.usage.or_default(key);
        total.requests = total.requests.saturating_add(1);
        total.prompt.0 = total.prompt.0.saturating_add(usage.prompt.0);
        total.cached.0 = total.cached.0.saturating_add(usage.cached.0);
        total.completion.0 = total.completion.0.saturating_add(usage.completion.0);
        total.cost.0 = total.cost.0.saturating_add(usage.cost.0);
        Ok(Outcome::Done)
    }

    /// Moves money; refuses what would overflow a balance, before anything is changed.
    ///
    /// # Panics
    /// If the lines do not sum to zero: whoever posts must see to that.
    pub fn post(
        &mut self,
        at_ms: u64,
        reason: &str,
        lines: Vec<(Account, NanoUsd)>,
    ) -> Result<u64, Refusal> {
        assert_eq!(sum(&lines), 0, "a posting sums to zero");
        let mut changed = std::collections::BTreeMap::new();
        for (account, amount) in &lines {
            let balance = changed
                .get(account)
                .copied()
                .unwrap_or_else(|| self.balance(account));
            let balance = balance.0.checked_add(amount.0);
            changed.insert(account, NanoUsd(balance.ok_or(Refusal::BalanceRange)?));
        }
        for (account, balance) in changed {
            self.balances.insert(account.clone(), balance);
        }
        self.last += 1;
        let id = self.last;
        let reason = reason.to_owned();
        let posting = Posting {
            id,
            at_ms,
            reason,
            lines,
        };
        let old = self.postings.insert(id, posting);
        assert!(old.is_none(), "a posting's number is given once");
        Ok(id)
    }

    /// Zero for an account without postings.
    pub fn balance(&self, account: &Account) -> NanoUsd {
        self.balances.get(account).copied().unwrap_or_default()
    }

    pub fn check(&self) -> Result<(), String> {
        let mut sums = std::collections::BTreeMap::<&Account, i128>::new();
        for (id, posting) in self.postings.iter() {
            if *id != posting.id || *id > self.last {
                return Err(format!("posting {id} has another number"));
            }
            if sum(&posting.lines) != 0 {
                return Err(format!("posting {id} does not sum to zero"));
            }
            for (account, amount) in &posting.lines {
                *sums.entry(account).or_default() += i128::from(amount.0);
            }
        }
        let stored = self.balances.iter().map(|(a, b)| (a, i128::from(b.0)));
        if stored.eq(sums) {
            Ok(())
        } else {
            Err("balances are not the sums of their postings".into())
        }
    }
}

fn sum(lines: &[(Account, NanoUsd)]) -> i128 {
    lines.iter().map(|(_, amount)| i128::from(amount.0)).sum()
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
