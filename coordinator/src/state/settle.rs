//! Settling: what is known of a request becomes a row, a charge, and part of the sums.
//!
//! Kept true: a request is charged for the largest counts that were told of it, once; never more than
//! its tenant has and may owe, nor than the key's and the tenant's budgets have left, beside what is lent
//! to other gateways.

use super::State;
use super::leases::{Amounts, Bounds, Subject};
use super::ledger::{Account, Ledger, PostingKind, charge_lines};
use super::requests::{Ended, Progress, RequestRow, merge_counts, merge_work};
use super::rollups::{UsageKey, UsageTotals};
use super::settlements::Settlement;
use super::tenants::Tenants;
use super::{versions, webhooks};
use crate::planted::{self, Bug};
use trireme_shared::ids::{
    GatewayLife, KeyId, NanoUsd, PostingId, RequestNumber, SettlementSeq, TenantId,
};
use trireme_shared::limits;

/// Settles a request at what was told of it, now and before.
pub(super) fn settle(
    state: &mut State,
    life: GatewayLife,
    told: &Progress,
    ended: Ended,
    now_ms: u64,
) {
    let told = state.requests.merged(told);
    state.requests.close(&told.request);
    if planted::is(Bug::LoseOnDisconnect) && ended == Ended::Disconnected {
        return;
    }
    let known = state.requests.row_of(&told).cloned();
    let first = known.is_none();
    let before = known.unwrap_or_else(|| new_row(state, &told, ended));
    let mut row = before.clone();
    row.counts = merge_counts(before.counts, told.counts);
    row.work = merge_work(&before.work, &told.work);
    row.cost = before.cost.max(row.price.cost(&row.counts));
    if ended != Ended::GatewayLost {
        row.ended = ended;
    }
    let attempt = row.request != told.request && !row.attempts.contains(&told.request);
    if attempt {
        row.attempts.push(told.request.clone());
    }
    if !first && row == before {
        return;
    }
    row.ended_at_ms = now_ms;
    let due = NanoUsd(row.cost.0 - before.cost.0);
    let mut charged = NanoUsd(0);
    if let Some((charge, posting)) = charge(state, life, &told, &row, due, now_ms) {
        row.postings.push(posting);
        row.charged.0 += charge.0;
        charged = charge;
    }
    let more = row.counts.since(before.counts);
    let used = Amounts {
        money: charged,
        requests: u64::from(first || attempt),
        tokens: more.tokens(),
        slots: 0,
    };
    for subject in subjects(&state.tenants, told.tenant, told.key) {
        if let Some(bounds) = bounds(&state.tenants, &state.ledger, subject) {
            let limits = bounds.limits;
            state.leases.use_up(subject, life, used, limits, now_ms);
        }
    }
    let totals = UsageTotals {
        requests: u64::from(first),
        prompt: more.prompt,
        cached: more.cached,
        completion: more.completion,
        cost: charged,
    };
    let of = UsageKey {
        tenant: told.tenant,
        slot: 0,
        model: row.model.clone(),
        key: told.key,
    };
    state.rollups.add(of, totals, now_ms);
    if charged.0 > 0 {
        webhooks::look_at_budget(state, told.tenant, now_ms);
    }
    state.settlements.add(Settlement {
        seq: SettlementSeq(0),
        request: row.number,
        key: told.key,
        at_ms: now_ms,
        added: more,
        charged,
        ended,
    });
    state.requests.put(row);
    let most = match state.settlements.kept {
        true => limits::REQUEST_ROWS_MAX,
        false => versions::REQUEST_ROWS_MAX_V2,
    };
    state.requests.trim(most, limits::FORGOTTEN_AT_ONCE);
}

/// The row of a request of which nothing was charged yet.
fn new_row(state: &State, told: &Progress, ended: Ended) -> RequestRow {
    let began_s = told.began_at_ms / 1_000;
    RequestRow {
        number: RequestNumber(state.requests.last.0 + 1),
        request: told.request.clone(),
        caller_id: told.caller_id.clone(),
        tenant: told.tenant,
        key: told.key,
        model: told.model.clone(),
        began_at_ms: told.began_at_ms,
        ended_at_ms: 0,
        ended,
        counts: Default::default(),
        work: Vec::new(),
        price: state.prices.in_force(&told.model, began_s),
        cost: NanoUsd(0),
        charged: NanoUsd(0),
        refunded: NanoUsd(0),
        postings: Vec::new(),
        idempotency: told.idempotency,
        attempts: Vec::new(),
    }
}

/// Charges what is due, or what of it there is money for. `None` where that is nothing.
fn charge(
    state: &mut State,
    life: GatewayLife,
    told: &Progress,
    row: &RequestRow,
    due: NanoUsd,
    now_ms: u64,
) -> Option<(NanoUsd, PostingId)> {
    let mut charge = i128::from(due.0);
    for subject in subjects(&state.tenants, told.tenant, told.key) {
        let bounds = bounds(&state.tenants, &state.ledger, subject)?;
        charge = charge.min(state.leases.chargeable(subject, life, &bounds, now_ms));
    }
    let charge = NanoUsd(i64::try_from(charge).unwrap_or(due.0));
    if charge.0 <= 0 {
        return None;
    }
    let lines = charge_lines(told.tenant, charge, state.prices.fee, &row.work);
    let kind = PostingKind::Request { number: row.number };
    // A balance out of range, thousands of millions of dollars: the rest is free.
    let posting = state.ledger.post(now_ms, kind, lines.clone()).ok()?;
    for (account, share) in &lines {
        if let Account::Provider(provider) = account {
            state.rollups.earn(provider, *share, now_ms);
        }
    }
    Some((charge, posting))
}

/// Whose limits a request of that key counts against.
fn subjects(
    tenants: &Tenants,
    tenant: TenantId,
    key: KeyId,
) -> impl Iterator<Item = Subject> + use<> {
    let line = tenants.keys.get(&key).map(|key| Subject::Key(key.line));
    std::iter::once(Subject::Tenant(tenant)).chain(line)
}

/// What bounds a subject; `None` where there is none such.
pub(super) fn bounds<'a>(
    tenants: &'a Tenants,
    ledger: &Ledger,
    subject: Subject,
) -> Option<Bounds<'a>> {
    match subject {
        Subject::Tenant(id) => {
            let settings = &tenants.rows.get(&id)?.settings;
            let balance = ledger.balance(&Account::Tenant(id));
            Some(Bounds {
                funds: Some(i128::from(balance.0) + i128::from(settings.credit().0)),
                monthly_budget: settings.monthly_budget,
                limits: &settings.limits,
            })
        }
        Subject::Key(line) => {
            let settings = &tenants.keys.get(&line)?.settings;
            Some(Bounds {
                funds: None,
                monthly_budget: settings.monthly_budget,
                limits: &settings.limits,
            })
        }
    }
}
