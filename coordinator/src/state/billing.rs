//! The commands of billing: what they change in which areas, and in which order.

use super::apply::Changed;
use super::command::Report;
use super::grants::{Answer, Shortage};
use super::leases::Subject;
use super::ledger::{Account, PostingKind};
use super::requests::{Ended, Progress};
use super::settings::{TenantSettings, TenantStatus};
use super::settle::{bounds, settle};
use super::{Effect, Outcome, Proposal, Refusal, State, webhooks};
use trireme_shared::ids::{CoordinatorId, GatewayLife, NanoUsd, RequestId, TenantId};
use trireme_shared::limits;

/// Why money was moved, and who said so.
pub(super) struct Reason {
    reason: String,
    by: String,
}

impl Reason {
    pub fn of(proposal: &Proposal, reason: &str) -> Result<Self, Refusal> {
        if reason.is_empty() {
            return Err(Refusal::NoReason);
        }
        let by = proposal.origin.as_ref().map(|o| o.who.clone());
        Ok(Self {
            reason: reason.to_owned(),
            by: by.unwrap_or_else(|| "unknown".into()),
        })
    }
}

impl State {
    /// What a tenant has and may owe, beside what is lent.
    fn free_funds(&self, tenant: TenantId) -> Result<i128, Refusal> {
        let subject = Subject::Tenant(tenant);
        let bounds = bounds(&self.tenants, &self.ledger, subject);
        let funds = bounds.and_then(|b| b.funds);
        let funds = funds.ok_or(Refusal::UnknownTenant(tenant))?;
        Ok(funds - i128::from(self.leases.lent(subject).money.0))
    }

    fn post(
        &mut self,
        now_ms: u64,
        kind: PostingKind,
        from: Account,
        to: Account,
        amount: NanoUsd,
    ) -> Changed {
        let lines = vec![(to, amount), (from, NanoUsd(-amount.0))];
        let posting = self.ledger.post(now_ms, kind, lines)?;
        Ok((Outcome::Posting(posting), Vec::new()))
    }
}

pub(super) fn put_tenant(
    state: &mut State,
    name: &str,
    settings: &TenantSettings,
    now_ms: u64,
) -> Changed {
    let id = state.tenants.put(name, settings, now_ms / 1_000)?;
    let overdrawn = -state.free_funds(id)?;
    if let Some(tenant) = state.tenants.rows.get_mut(&id) {
        tenant.excused = NanoUsd(i64::try_from(overdrawn.max(0)).unwrap_or(i64::MAX));
    }
    webhooks::look_at_budget(state, id, now_ms);
    Ok((Outcome::Tenant(id), vec![Effect::Keys]))
}

/// Below zero it takes money back, as far as it is not spent or lent.
pub(super) fn credit(
    state: &mut State,
    tenant: TenantId,
    amount: NanoUsd,
    reason: Reason,
    now_ms: u64,
) -> Changed {
    let free = state.free_funds(tenant)?;
    if amount.0 == 0 || amount.0 == i64::MIN {
        return Err(Refusal::NoAmount);
    }
    if amount.0 < 0 && free < -i128::from(amount.0) {
        return Err(Refusal::Overdraft);
    }
    let Reason { reason, by } = reason;
    let kind = PostingKind::Credit { reason, by };
    state.post(
        now_ms,
        kind,
        Account::Funding,
        Account::Tenant(tenant),
        amount,
    )
}

pub(super) fn refund(
    state: &mut State,
    request: &RequestId,
    amount: NanoUsd,
    reason: Reason,
    now_ms: u64,
) -> Changed {
    let row = state.requests.by_id(request);
    let mut row = row
        .ok_or_else(|| Refusal::UnknownRequest(request.clone()))?
        .clone();
    if amount.0 <= 0 {
        return Err(Refusal::NoAmount);
    }
    if amount.0 > row.charged.0 - row.refunded.0 {
        return Err(Refusal::RefundTooLarge);
    }
    let Reason { reason, by } = reason;
    let kind = PostingKind::Refund {
        number: row.number,
        reason,
        by,
    };
    let to = Account::Tenant(row.tenant);
    let (outcome, effects) = state.post(now_ms, kind, Account::Platform, to, amount)?;
    row.refunded.0 += amount.0;
    if let Outcome::Posting(posting) = outcome {
        row.postings.push(posting);
    }
    state.requests.put(row);
    Ok((outcome, effects))
}

pub(super) fn payout(
    state: &mut State,
    provider: &str,
    amount: NanoUsd,
    reason: Reason,
    now_ms: u64,
) -> Changed {
    if amount.0 <= 0 {
        return Err(Refusal::NoAmount);
    }
    let from = Account::Provider(provider.to_owned());
    if state.ledger.balance(&from) < amount {
        return Err(Refusal::Overdraft);
    }
    let Reason { reason, by } = reason;
    let kind = PostingKind::Payout { reason, by };
    state.post(now_ms, kind, from, Account::Funding, amount)
}

/// A coordinator has one gateway: lives that it had before are over.
pub(super) fn open_gateway(state: &mut State, coordinator: CoordinatorId, now_ms: u64) -> Changed {
    state.members.member(coordinator)?;
    let earlier = state.leases.gateways.values();
    let earlier = earlier.filter(|g| g.coordinator == coordinator);
    let earlier: Vec<GatewayLife> = earlier.map(|g| g.life).collect();
    for life in earlier {
        end(state, life, now_ms);
    }
    let life = state.leases.open(coordinator, now_ms);
    Ok((Outcome::Gateway(life), Vec::new()))
}

pub(super) fn close_gateway(state: &mut State, life: GatewayLife, now_ms: u64) -> Changed {
    match state.leases.gateways.contains_key(&life) {
        true => end(state, life, now_ms),
        false => return Err(Refusal::GatewayGone(life)),
    }
    Ok((Outcome::Done, Vec::new()))
}

pub(super) fn reap_gateway(state: &mut State, life: GatewayLife, now_ms: u64) -> Changed {
    let gateway = state.leases.gateways.get(&life);
    let gateway = gateway.ok_or(Refusal::GatewayGone(life))?;
    let skew = limits::GATEWAY_LEASE_SKEW.as_millis() as u64;
    if now_ms < gateway.expires_at_ms.saturating_add(skew) {
        return Err(Refusal::GatewayAlive(life));
    }
    end(state, life, now_ms);
    Ok((Outcome::Done, Vec::new()))
}

/// Its requests are settled at what was last told of them, and its leases go back.
fn end(state: &mut State, life: GatewayLife, now_ms: u64) {
    for told in state.requests.open_of(life) {
        settle(state, life, &told, Ended::GatewayLost, now_ms);
    }
    state.leases.close(life);
}

/// Returns and settlements come first, so that what they free can be lent again at once. What is told
/// of a request that cannot be is skipped, so that it does not cost the others their settlement.
pub(super) fn report(state: &mut State, report: &Report, now_ms: u64) -> Changed {
    let Report {
        life,
        asks,
        returns,
        progress,
        finals,
    } = report;
    let items = asks.len() + returns.len() + progress.len() + finals.len();
    if items > limits::REPORT_ITEMS_MAX {
        return Err(Refusal::ReportTooLong);
    }
    state.leases.renew(*life, now_ms)?;
    for back in returns {
        state.leases.give_back(back.subject, *life, back.unneeded);
    }
    for told in progress {
        if fits(state, told) {
            state.requests.note(*life, told);
        }
    }
    for last in finals {
        if fits(state, &last.progress) {
            settle(state, *life, &last.progress, last.ended, now_ms);
        }
    }
    let answers = asks.iter().map(|ask| {
        let closed = Answer::Denied {
            why: Shortage::Closed,
            retry_after_ms: None,
        };
        if is_closed(state, ask.subject) {
            return closed;
        }
        match bounds(&state.tenants, &state.ledger, ask.subject) {
            Some(bounds) => state.leases.grant(*life, ask, &bounds, now_ms),
            None => closed,
        }
    });
    let answers = answers.collect();
    Ok((Outcome::Reported { answers }, Vec::new()))
}

/// Whether that can have been told of a request.
fn fits(state: &State, told: &Progress) -> bool {
    let key = state.tenants.keys.get(&told.key);
    key.is_some_and(|key| key.tenant == told.tenant)
        && !state.requests.is_of_another(told)
        && !state.requests.is_forgotten(told)
}

/// Whether nothing may be lent: the tenant is suspended, or there is no such subject.
pub(super) fn is_closed(state: &State, subject: Subject) -> bool {
    let tenant = match subject {
        Subject::Tenant(id) => Some(id),
        Subject::Key(line) => state.tenants.keys.get(&line).map(|key| key.tenant),
    };
    let tenant = tenant.and_then(|id| state.tenants.rows.get(&id));
    tenant.is_none_or(|t| t.settings.status == TenantStatus::Suspended)
}

#[cfg(test)]
#[path = "billing_tests.rs"]
mod tests;
