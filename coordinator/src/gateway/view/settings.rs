//! Tenants and keys: what is set for them, and what is left.

use super::{nano_usd, tenant_name};
use crate::state::{self, Account, ApiKey, State, Subject};
use trireme_shared::api::{
    KeyReport, KeySettings, KeyStatus, Left, Limits, Payment, Scope, TenantReport, TenantSettings,
    TenantStatus,
};
use trireme_shared::ids::Tokens;

fn limits(of: &state::Limits) -> Limits {
    Limits {
        requests_per_minute: of.requests_per_minute,
        tokens_per_minute: of.tokens_per_minute.map(|t| t.0),
        tokens_per_day: of.tokens_per_day.map(|t| t.0),
        concurrency: of.concurrency,
    }
}

fn stored_limits(of: &Limits) -> state::Limits {
    state::Limits {
        requests_per_minute: of.requests_per_minute,
        tokens_per_minute: of.tokens_per_minute.map(Tokens),
        tokens_per_day: of.tokens_per_day.map(Tokens),
        concurrency: of.concurrency,
    }
}

fn left(of: Option<state::Left>) -> Left {
    let of = of.unwrap_or_default();
    Left {
        funds_nano_usd: of.funds.map(nano_usd),
        monthly_budget_nano_usd: of.monthly_budget.map(nano_usd),
        requests_per_minute: of.requests_per_minute,
        tokens_per_minute: of.tokens_per_minute.map(|t| t.0),
        tokens_per_day: of.tokens_per_day.map(|t| t.0),
        concurrency: of.concurrency,
    }
}

fn tenant_settings(of: &state::TenantSettings) -> TenantSettings {
    TenantSettings {
        status: match of.status {
            state::TenantStatus::Active => TenantStatus::Active,
            state::TenantStatus::Suspended => TenantStatus::Suspended,
        },
        payment: match of.payment {
            state::Payment::Prepaid => Payment::Prepaid,
            state::Payment::Credit { limit } => Payment::Credit {
                limit_nano_usd: limit,
            },
        },
        monthly_budget_nano_usd: of.monthly_budget,
        weight: of.weight,
        limits: limits(&of.limits),
    }
}

pub fn stored_tenant_settings(of: &TenantSettings) -> state::TenantSettings {
    state::TenantSettings {
        status: match of.status {
            TenantStatus::Active => state::TenantStatus::Active,
            TenantStatus::Suspended => state::TenantStatus::Suspended,
        },
        payment: match of.payment {
            Payment::Prepaid => state::Payment::Prepaid,
            Payment::Credit { limit_nano_usd } => state::Payment::Credit {
                limit: limit_nano_usd,
            },
        },
        monthly_budget: of.monthly_budget_nano_usd,
        weight: of.weight,
        limits: stored_limits(&of.limits),
    }
}

pub fn tenant(state: &State, of: &state::Tenant, now_ms: u64) -> TenantReport {
    let subject = Subject::Tenant(of.id);
    TenantReport {
        id: of.id,
        name: of.name.clone(),
        created_at: of.created_at,
        settings: tenant_settings(&of.settings),
        balance_nano_usd: state.balance(&Account::Tenant(of.id)),
        month_spend_nano_usd: state.month_spend(subject, now_ms),
        left: left(state.left(subject, now_ms)),
    }
}

fn key_settings(of: &state::KeySettings) -> KeySettings {
    let inference = of.scopes.inference.then_some(Scope::Inference);
    let billing = of.scopes.billing.then_some(Scope::Billing);
    KeySettings {
        name: of.name.clone(),
        expires_at: of.expires_at,
        scopes: inference.into_iter().chain(billing).collect(),
        models: of.models.clone(),
        limits: limits(&of.limits),
        monthly_budget_nano_usd: of.monthly_budget,
    }
}

pub fn stored_key_settings(of: &KeySettings) -> state::KeySettings {
    state::KeySettings {
        name: of.name.clone(),
        expires_at: of.expires_at,
        scopes: state::Scopes {
            inference: of.scopes.contains(&Scope::Inference),
            billing: of.scopes.contains(&Scope::Billing),
        },
        models: of.models.clone(),
        limits: stored_limits(&of.limits),
        monthly_budget: of.monthly_budget_nano_usd,
    }
}

pub fn key(state: &State, of: &ApiKey, now_ms: u64) -> KeyReport {
    let line = Subject::Key(of.line);
    KeyReport {
        id: of.id,
        tenant: of.tenant,
        tenant_name: tenant_name(state, of.tenant),
        status: match of.fault(now_ms / 1_000) {
            None => KeyStatus::Works,
            Some(state::KeyFault::Revoked) => KeyStatus::Revoked,
            Some(_) => KeyStatus::Expired,
        },
        created_at: of.created_at,
        revoked_at: of.revoked_at,
        replaces: of.replaces,
        settings: key_settings(&of.settings),
        month_spend_nano_usd: state.month_spend(line, now_ms),
        left: left(state.left(line, now_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::ids::NanoUsd;

    #[test]
    fn settings_come_back_as_they_were_set() {
        let of = Limits {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(2),
            tokens_per_day: Some(3),
            concurrency: Some(4),
        };
        for payment in [
            Payment::Prepaid,
            Payment::Credit {
                limit_nano_usd: NanoUsd(5),
            },
        ] {
            let set = TenantSettings {
                status: TenantStatus::Suspended,
                payment,
                monthly_budget_nano_usd: Some(NanoUsd(6)),
                weight: 7,
                limits: of.clone(),
            };
            assert_eq!(tenant_settings(&stored_tenant_settings(&set)), set);
        }
        let set = KeySettings {
            name: "n".into(),
            expires_at: Some(8),
            scopes: vec![Scope::Billing],
            models: Some(vec!["m".into()]),
            limits: of,
            monthly_budget_nano_usd: Some(NanoUsd(9)),
        };
        assert_eq!(key_settings(&stored_key_settings(&set)), set);
    }
}
