//! Requests, and how their prices came about.

use super::money::{posting, posting_type, reason_of};
use super::tenant_name;
use crate::state::{
    self, Account, Counts, Ended, OpenRequest, Posting, RequestRow, Settlement, State,
};
use trireme_shared::api::{
    AdminRequestReport, HowPriced, OwnPosting, PricePart, PricedPart, RequestReport, RequestStatus,
    RequestSummary, SettlementReport, WorkReport,
};
use trireme_shared::ids::{NanoUsd, TenantId};

fn own_posting(of: &Posting, tenant: TenantId) -> OwnPosting {
    let own = |(account, _): &&(Account, NanoUsd)| *account == Account::Tenant(tenant);
    OwnPosting {
        id: of.id,
        posted_at: of.at_ms / 1_000,
        kind: posting_type(&of.kind),
        amount_nano_usd: of.lines.iter().find(own).map_or(NanoUsd(0), |(_, a)| *a),
        reason: reason_of(&of.kind).0,
    }
}

fn status(of: Ended) -> RequestStatus {
    match of {
        Ended::Finished => RequestStatus::Finished,
        Ended::Exhausted => RequestStatus::Exhausted,
        Ended::Disconnected => RequestStatus::Disconnected,
        Ended::Failed => RequestStatus::Failed,
        Ended::GatewayLost => RequestStatus::GatewayLost,
    }
}

pub fn settled(row: &RequestRow) -> RequestSummary {
    RequestSummary {
        id: row.request.clone(),
        caller_id: row.caller_id.clone(),
        status: status(row.ended),
        model: row.model.clone(),
        key: row.key,
        began_at: row.began_at_ms / 1_000,
        ended_at: Some(row.ended_at_ms / 1_000),
        prompt_tokens: row.counts.prompt.0,
        cached_tokens: row.counts.cached.0,
        completion_tokens: row.counts.completion.0,
        cost_nano_usd: row.cost,
        charged_nano_usd: row.charged,
        refunded_nano_usd: row.refunded,
    }
}

fn price_of(state: &State, open: &OpenRequest) -> state::PriceList {
    state.price(&open.progress.model, open.progress.began_at_ms / 1_000)
}

pub fn running(state: &State, open: &OpenRequest) -> RequestSummary {
    let (told, price) = (&open.progress, price_of(state, open));
    RequestSummary {
        id: told.request.clone(),
        caller_id: told.caller_id.clone(),
        status: RequestStatus::Running,
        model: told.model.clone(),
        key: told.key,
        began_at: told.began_at_ms / 1_000,
        ended_at: None,
        prompt_tokens: told.counts.prompt.0,
        cached_tokens: told.counts.cached.0,
        completion_tokens: told.counts.completion.0,
        cost_nano_usd: price.cost(&told.counts),
        charged_nano_usd: NanoUsd(0),
        refunded_nano_usd: NanoUsd(0),
    }
}

fn how_priced(price: &state::PriceList, counts: &Counts) -> HowPriced {
    let priced = price.break_down(counts);
    let part = |part, of: state::Priced| PricePart {
        part,
        tokens: of.tokens.0,
        price_nano_usd: of.price,
        amount_femto_usd: of.amount_femto_usd(),
    };
    HowPriced {
        parts: vec![
            part(PricedPart::Input, priced.input),
            part(PricedPart::CachedInput, priced.cached_input),
            part(PricedPart::Output, priced.output),
        ],
        sum_femto_usd: priced.sum_femto_usd(),
        rounded_nano_usd: priced.rounded(),
        minimum_nano_usd: priced.minimum,
        cost_nano_usd: priced.cost(),
    }
}

/// As its tenant is told of it.
pub fn request(state: &State, row: &RequestRow) -> RequestReport {
    let postings = row.postings.iter().filter_map(|id| state.posting(*id));
    RequestReport {
        request: settled(row),
        how_priced: how_priced(&row.price, &row.counts),
        postings: postings.map(|p| own_posting(p, row.tenant)).collect(),
        attempts: row.attempts.clone(),
    }
}

/// As its tenant is told of it.
pub fn open_request(state: &State, open: &OpenRequest) -> RequestReport {
    RequestReport {
        request: running(state, open),
        how_priced: how_priced(&price_of(state, open), &open.progress.counts),
        postings: Vec::new(),
        attempts: Vec::new(),
    }
}

fn work(of: &[state::Work]) -> Vec<WorkReport> {
    let report = |work: &state::Work| WorkReport {
        provider: work.provider.clone(),
        units: work.units,
    };
    of.iter().map(report).collect()
}

pub fn admin_request(state: &State, row: &RequestRow) -> AdminRequestReport {
    let postings = row.postings.iter().filter_map(|id| state.posting(*id));
    AdminRequestReport {
        tenant: row.tenant,
        tenant_name: tenant_name(state, row.tenant),
        request: settled(row),
        how_priced: how_priced(&row.price, &row.counts),
        postings: postings.map(|p| posting(state, p)).collect(),
        attempts: row.attempts.clone(),
        work: work(&row.work),
    }
}

pub fn admin_open_request(state: &State, open: &OpenRequest) -> AdminRequestReport {
    let report = open_request(state, open);
    AdminRequestReport {
        tenant: open.progress.tenant,
        tenant_name: tenant_name(state, open.progress.tenant),
        request: report.request,
        how_priced: report.how_priced,
        postings: Vec::new(),
        attempts: Vec::new(),
        work: work(&open.progress.work),
    }
}

/// Of a request so old that its row is gone only its key still tells whose it was.
pub fn settlement(state: &State, of: &Settlement) -> SettlementReport {
    let row = state.request(of.request);
    let of_key = || state.key(of.key).map(|key| key.tenant);
    let tenant = row.map(|row| row.tenant).or_else(of_key);
    SettlementReport {
        sequence: of.seq,
        settled_at_ms: of.at_ms,
        tenant,
        tenant_name: tenant.map(|id| tenant_name(state, id)),
        key: of.key,
        model: row.map(|row| row.model.clone()),
        request: row.map(|row| row.request.clone()),
        caller_id: row.and_then(|row| row.caller_id.clone()),
        status: status(of.ended),
        prompt_tokens: of.added.prompt.0,
        cached_tokens: of.added.cached.0,
        completion_tokens: of.added.completion.0,
        charged_nano_usd: of.charged,
    }
}
