//! Prices, accounts, postings and sums.

use super::tenant_name;
use crate::state::{self, Account, Posting, PostingKind, State, UsageTotals};
use trireme_shared::api::{
    PostingLine, PostingReport, PostingType, PriceList, ProviderReport, UsageSums,
};

pub fn price_list(of: state::PriceList) -> PriceList {
    PriceList {
        input_nano_usd: of.input,
        cached_input_nano_usd: of.cached_input,
        output_nano_usd: of.output,
        minimum_nano_usd: of.minimum,
    }
}

/// `tenant:NAME`, `provider:NAME`, `platform`, `funding`.
fn account_name(state: &State, account: &Account) -> String {
    match account {
        Account::Tenant(id) => format!("tenant:{}", tenant_name(state, *id)),
        Account::Provider(name) => format!("provider:{name}"),
        Account::Platform => "platform".into(),
        Account::Funding => "funding".into(),
    }
}

/// The reverse of `account_name`; `None` where it is no account's, or no tenant's that there is.
pub fn account(state: &State, name: &str) -> Option<Account> {
    match name.split_once(':') {
        Some(("tenant", name)) => Some(Account::Tenant(state.tenant_named(name)?.id)),
        Some(("provider", name)) => Some(Account::Provider(name.to_owned())),
        None if name == "platform" => Some(Account::Platform),
        None if name == "funding" => Some(Account::Funding),
        _ => None,
    }
}

pub(super) fn posting_type(kind: &PostingKind) -> PostingType {
    match kind {
        PostingKind::Request { .. } => PostingType::Request,
        PostingKind::Credit { .. } => PostingType::Credit,
        PostingKind::Refund { .. } => PostingType::Refund,
        PostingKind::Payout { .. } => PostingType::Payout,
    }
}

pub(super) fn reason_of(kind: &PostingKind) -> (Option<String>, Option<String>) {
    match kind {
        PostingKind::Request { .. } => (None, None),
        PostingKind::Credit { reason, by }
        | PostingKind::Refund { reason, by, .. }
        | PostingKind::Payout { reason, by } => (Some(reason.clone()), Some(by.clone())),
    }
}

pub fn posting(state: &State, of: &Posting) -> PostingReport {
    let number = match of.kind {
        PostingKind::Request { number } | PostingKind::Refund { number, .. } => Some(number),
        PostingKind::Credit { .. } | PostingKind::Payout { .. } => None,
    };
    let (reason, by) = reason_of(&of.kind);
    let lines = of.lines.iter().map(|(account, amount)| PostingLine {
        account: account_name(state, account),
        amount_nano_usd: *amount,
    });
    PostingReport {
        id: of.id,
        posted_at: of.at_ms / 1_000,
        kind: posting_type(&of.kind),
        request: number.and_then(|n| state.request(n).map(|row| row.request.clone())),
        reason,
        by,
        lines: lines.collect(),
    }
}

/// `month`: its number since January 1970.
pub fn provider(state: &State, name: &str, month: u64) -> ProviderReport {
    let account = Account::Provider(name.to_owned());
    let earned = state.movement(&account, month).requests;
    let own = |w: &&state::WorkerRecord| w.provider.as_deref() == Some(name);
    ProviderReport {
        balance_nano_usd: state.balance(&account),
        month_earned_nano_usd: earned,
        workers: state.workers().filter(own).count(),
        name: name.to_owned(),
    }
}

pub fn sums(of: &UsageTotals) -> UsageSums {
    UsageSums {
        requests: of.requests,
        prompt_tokens: of.prompt.0,
        cached_tokens: of.cached.0,
        completion_tokens: of.completion.0,
        cost_nano_usd: of.cost,
    }
}
