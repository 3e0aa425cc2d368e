//! What an administrator sets for tenants and keys. Kept true: what is set is in range.

use super::Refusal;
use trireme_shared::ids::{NanoUsd, Tokens};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// What a tenant may owe that came about with its first key: a million dollars, so that a cluster
/// can be tried without an account.
pub const DEFAULT_CREDIT: NanoUsd = NanoUsd(1_000_000_000_000_000);

/// Bounds on what a tenant or a key may use; `None` is no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Limits {
    /// Requests begun in any minute; all of them at once after a quiet one.
    pub requests_per_minute: Option<u64>,
    /// Prompt and generated tokens in any minute.
    pub tokens_per_minute: Option<Tokens>,
    /// Prompt and generated tokens in a day of UTC.
    pub tokens_per_day: Option<Tokens>,
    /// Requests that run at once.
    pub concurrency: Option<u64>,
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let all = [
            self.requests_per_minute,
            self.tokens_per_minute.map(|t| t.0),
            self.tokens_per_day.map(|t| t.0),
            self.concurrency,
        ];
        match all.iter().flatten().any(|l| *l > limits::RATE_LIMIT_MAX) {
            true => Err(Refusal::LimitRange),
            false => Ok(()),
        }
    }
}

/// Whether a tenant is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum TenantStatus {
    Active,
    /// Its keys let nobody in; what runs is finished and charged.
    Suspended,
}

/// When a tenant pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Payment {
    /// Its balance never falls below zero.
    Prepaid,
    /// Its balance never falls below minus the limit.
    Credit { limit: NanoUsd },
}

/// What an administrator sets for a tenant.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct TenantSettings {
    pub status: TenantStatus,
    pub payment: Payment,
    /// What it may be charged in a month of UTC.
    pub monthly_budget: Option<NanoUsd>,
    /// Its share of the machines against other tenants', where they wait or run, from 1.
    pub weight: u32,
    pub limits: Limits,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            status: TenantStatus::Active,
            payment: Payment::Credit {
                limit: DEFAULT_CREDIT,
            },
            monthly_budget: None,
            weight: 1,
            limits: Limits::default(),
        }
    }
}

impl TenantSettings {
    /// What it may owe.
    pub fn credit(&self) -> NanoUsd {
        match self.payment {
            Payment::Prepaid => NanoUsd(0),
            Payment::Credit { limit } => limit,
        }
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        let budget = self.monthly_budget.unwrap_or_default();
        if self.credit().0 < 0 || budget.0 < 0 || !(1..=limits::WEIGHT_MAX).contains(&self.weight) {
            return Err(Refusal::LimitRange);
        }
        self.limits.check()
    }
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Scopes {
    /// `/v1`.
    pub inference: bool,
    /// The tenant's own usage, requests and statements.
    pub billing: bool,
}

/// What an administrator sets for a key.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct KeySettings {
    /// For people.
    pub name: String,
    /// Seconds since 1970; the key works before this second.
    pub expires_at: Option<u64>,
    pub scopes: Scopes,
    /// Names of the models it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// Within its tenant's, and in common with the keys it replaced.
    pub limits: Limits,
    /// What it may be charged in a month of UTC, in common with the keys it replaced.
    pub monthly_budget: Option<NanoUsd>,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            expires_at: None,
            scopes: Scopes {
                inference: true,
                billing: true,
            },
            models: None,
            limits: Limits::default(),
            monthly_budget: None,
        }
    }
}

impl KeySettings {
    /// Whether it may use the model of that name.
    pub fn allows(&self, model: &str) -> bool {
        let named = |models: &Vec<String>| models.iter().any(|named| named == model);
        self.models.as_ref().is_none_or(named)
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.monthly_budget.unwrap_or_default().0 < 0 {
            true => Err(Refusal::LimitRange),
            false => self.limits.check(),
        }
    }
}
