//! What gateways were lent of their tenants' money and limits, so that they admit requests without
//! asking the group.
//!
//! Kept true: of a subject never more is lent than is there beside what is lent already; a lease is
//! never below zero, and ends with its gateway's life, whatever is left of it going back.

use super::Refusal;
use super::codec::{stored, stored_value};
use super::meters::Meter;
use super::settings::Limits;
use super::table::Table;
use crate::planted::{self, Bug};
use trireme_shared::ids::{CoordinatorId, GatewayLife, KeyId, NanoUsd, TenantId, Tokens};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum Subject {
    Tenant(TenantId),
    /// A line of keys, by its first (`ApiKey::line`).
    Key(KeyId),
}

/// So much of everything that is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Amounts {
    /// To be charged.
    pub money: NanoUsd,
    /// Requests to begin.
    pub requests: u64,
    /// Prompt and generated tokens.
    pub tokens: Tokens,
    /// Requests to run at once.
    pub slots: u64,
}

impl Amounts {
    /// With no part below zero.
    pub fn sound(mut self) -> Self {
        self.money.0 = self.money.0.max(0);
        self
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            money: NanoUsd(self.money.0.saturating_add(other.money.0)),
            requests: self.requests.saturating_add(other.requests),
            tokens: Tokens(self.tokens.0.saturating_add(other.tokens.0)),
            slots: self.slots.saturating_add(other.slots),
        }
    }

    /// Both must be sound. Each part at least zero.
    pub fn minus(self, other: Self) -> Self {
        Self {
            money: NanoUsd((self.money.0 - other.money.0).max(0)),
            requests: self.requests.saturating_sub(other.requests),
            tokens: Tokens(self.tokens.0.saturating_sub(other.tokens.0)),
            slots: self.slots.saturating_sub(other.slots),
        }
    }

    /// The smaller of each part.
    pub fn min(self, other: Self) -> Self {
        Self {
            money: self.money.min(other.money),
            requests: self.requests.min(other.requests),
            tokens: self.tokens.min(other.tokens),
            slots: self.slots.min(other.slots),
        }
    }
}

/// A run of a coordinator's gateway. It must be renewed, or its leases are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Gateway {
    pub life: GatewayLife,
    pub coordinator: CoordinatorId,
    /// Milliseconds since 1970 by the state's clock, like those below.
    pub opened_at_ms: u64,
    /// When it last reported.
    pub renewed_at_ms: u64,
    /// Until then its leases are its own, and `limits::GATEWAY_LEASE_SKEW` longer.
    pub expires_at_ms: u64,
}

/// What bounds a subject.
pub(super) struct Bounds<'a> {
    /// What it has and may owe; `None` for a key, which spends its tenant's.
    pub funds: Option<i128>,
    pub monthly_budget: Option<NanoUsd>,
    pub limits: &'a Limits,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Leases {
    pub gateways: Table<GatewayLife, Gateway>,
    /// What is lent and neither used nor returned; none is all zeros.
    pub rows: Table<(Subject, GatewayLife), Amounts>,
    pub meters: Table<Subject, Meter>,
    pub last: GatewayLife,
}

stored_value!(GatewayLife);
stored!(Leases {
    gateways,
    rows,
    meters,
    last
});

impl Leases {
    pub fn open(&mut self, coordinator: CoordinatorId, now_ms: u64) -> GatewayLife {
        let life = GatewayLife(self.last.0 + 1);
        self.last = life;
        let gateway = Gateway {
            life,
            coordinator,
            opened_at_ms: now_ms,
            renewed_at_ms: now_ms,
            expires_at_ms: expiry(now_ms),
        };
        self.gateways.insert(life, gateway);
        life
    }

    pub fn renew(&mut self, life: GatewayLife, now_ms: u64) -> Result<(), Refusal> {
        let gateway = self.gateways.get_mut(&life);
        let gateway = gateway.ok_or(Refusal::GatewayGone(life))?;
        gateway.renewed_at_ms = now_ms;
        gateway.expires_at_ms = expiry(now_ms);
        Ok(())
    }

    pub fn lease(&self, subject: Subject, life: GatewayLife) -> Amounts {
        self.rows.get(&(subject, life)).copied().unwrap_or_default()
    }

    fn put(&mut self, subject: Subject, life: GatewayLife, lease: Amounts) {
        match lease == Amounts::default() {
            true => self.rows.remove(&(subject, life)),
            false => self.rows.insert((subject, life), lease),
        };
    }

    /// What all lives together have of a subject.
    pub fn lent(&self, subject: Subject) -> Amounts {
        let lives = (subject, GatewayLife(0))..=(subject, GatewayLife(u64::MAX));
        let leases = self.rows.range(lives).map(|(_, lease)| *lease);
        leases.fold(Amounts::default(), Amounts::plus)
    }

    pub fn meter(&self, subject: Subject) -> Meter {
        self.meters.get(&subject).copied().unwrap_or_default()
    }

    /// Lends more to a life; whether that is there is the caller's to know (`grants`).
    pub fn lend(
        &mut self,
        subject: Subject,
        life: GatewayLife,
        more: Amounts,
        limits: &Limits,
        now_ms: u64,
    ) {
        self.put(subject, life, self.lease(subject, life).plus(more));
        self.take_rates(subject, more.requests, more.tokens, limits, now_ms);
    }

    fn take_rates(
        &mut self,
        subject: Subject,
        requests: u64,
        tokens: Tokens,
        limits: &Limits,
        now_ms: u64,
    ) {
        if let Some(limit) = limits.requests_per_minute {
            let meter = self.meters.or_default(subject);
            meter.requests.take(requests, limit, now_ms);
        }
        if let Some(limit) = limits.tokens_per_minute {
            let meter = self.meters.or_default(subject);
            meter.tokens.take(tokens.0, limit.0, now_ms);
        }
    }

    /// Takes back what a life does not need, as far as it has it.
    pub fn give_back(&mut self, subject: Subject, life: GatewayLife, unneeded: Amounts) {
        let lease = self.lease(subject, life);
        let back = lease.min(unneeded.sound());
        self.put(subject, life, lease.minus(back));
        if let Some(meter) = self.meters.get_mut(&subject) {
            meter.requests.put_back(back.requests);
            meter.tokens.put_back(back.tokens.0);
        }
    }

    /// Counts what a request used: out of the life's lease, and beyond it out of what is lent to nobody.
    pub fn use_up(
        &mut self,
        subject: Subject,
        life: GatewayLife,
        used: Amounts,
        limits: &Limits,
        now_ms: u64,
    ) {
        let lease = self.lease(subject, life);
        let beyond = used.minus(lease);
        self.put(subject, life, lease.minus(used));
        self.take_rates(subject, beyond.requests, beyond.tokens, limits, now_ms);
        let meter = self.meters.or_default(subject);
        meter.spend(used.money, now_ms);
        meter.use_tokens(used.tokens, now_ms);
    }

    /// Ends a life: all its leases go back.
    pub fn close(&mut self, life: GatewayLife) {
        self.gateways.remove(&life);
        if planted::is(Bug::LeaseNotReturned) {
            return;
        }
        let of_life =
            |(subject, owner): &(Subject, GatewayLife)| (*owner == life).then_some(*subject);
        let subjects: Vec<Subject> = self.rows.keys().filter_map(of_life).collect();
        for subject in subjects {
            self.give_back(subject, life, self.lease(subject, life));
        }
    }

    pub fn check(&self) -> Result<(), String> {
        for ((subject, life), lease) in self.rows.iter() {
            if !self.gateways.contains_key(life) {
                return Err(format!(
                    "a lease of {subject:?} outlives its gateway {life}"
                ));
            }
            if lease.money.0 < 0 || *lease == Amounts::default() {
                return Err(format!(
                    "a lease of {subject:?} to {life} is below zero or empty"
                ));
            }
        }
        let given =
            |(life, gateway): (&GatewayLife, &Gateway)| *life == gateway.life && *life <= self.last;
        match self.gateways.iter().all(given) {
            true => Ok(()),
            false => Err("a gateway has another number, or one that was never given".into()),
        }
    }
}

/// When a life ends that is renewed now.
fn expiry(now_ms: u64) -> u64 {
    now_ms.saturating_add(limits::GATEWAY_LEASE.as_millis() as u64)
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
