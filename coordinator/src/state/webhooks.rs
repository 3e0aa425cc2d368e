//! Webhooks: where tenants want to be told of their accounts, and what they are yet to be told.
//!
//! An event is made in `apply`, with what it tells of, and named by it: whoever hears of it twice sees that
//! it is one. It stays until it was delivered or given up (`Command::NoteDelivery`); who delivers is
//! `crate::webhooks`. The secrets that sign are kept as they are, since a hash could not sign.
//!
//! Kept true: of a month each threshold of a budget, and its statement, are told once, whatever becomes of
//! the budget or the webhook; a tenant has at most `limits::WEBHOOK_EVENTS_MAX` waiting events, the
//! oldest making room; without a webhook there are none.

use super::codec::{Newer, stored, stored_value};
use super::leases::Subject;
use super::ledger::Account;
use super::meters::{Bucket, month, month_name};
use super::table::Table;
use super::{Outcome, Refusal, State};
use crate::planted::{self, Bug};
use std::time::Duration;
use trireme_shared::ids::{EventSeq, NanoUsd, TenantId};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Percent of a month's budget of which a tenant is told that they are spent.
pub const BUDGET_THRESHOLDS: [u8; 3] = [50, 80, 100];

/// What signs a webhook's events.
pub type Secret = [u8; limits::WEBHOOK_SECRET_BYTES];

/// What a tenant wants to be told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Topics {
    /// Thresholds of the month's budget.
    pub budget: bool,
    /// Statements of months that have ended.
    pub statements: bool,
}

/// Where a tenant is told. No `Debug`: it holds a secret.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Webhook {
    pub url: String,
    pub topics: Topics,
    pub secret: Secret,
    /// Seconds since 1970, like all times here.
    pub created_at: u64,
    pub delivered: u64,
    pub delivered_at: Option<u64>,
    /// Events that made room for newer ones.
    pub dropped: u64,
    /// Events that were tried as often as they may be.
    pub given_up: u64,
    pub failing: Option<Failing>,
}

/// Since when nothing was delivered that was tried, and what went wrong last.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Failing {
    pub since: u64,
    pub error: String,
}

/// What an event tells. Months are counted from January 1970 (UTC).
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Tells {
    /// That many percent of the month's budget are spent.
    Budget {
        month: u64,
        percent: u8,
        spent: NanoUsd,
        budget: NanoUsd,
    },
    /// The month has ended: nothing more comes to its statement.
    Statement {
        month: u64,
        charges: NanoUsd,
        closing: NanoUsd,
    },
    /// That the tenant asked for an event.
    Test,
}

/// One thing to be told.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Event {
    pub seq: EventSeq,
    pub tenant: TenantId,
    /// Milliseconds since 1970, by the state's clock.
    pub made_at_ms: u64,
    pub tells: Tells,
    /// Tries that failed.
    pub failures: u32,
    /// When to try next, milliseconds since 1970.
    pub due_at_ms: u64,
}

impl Event {
    /// By what it tells: the same event has it wherever it is made.
    pub fn id(&self) -> String {
        Self::id_of(self.tenant, self.seq, &self.tells)
    }

    /// The same, of an event that may be gone by now.
    pub fn id_of(tenant: TenantId, seq: EventSeq, tells: &Tells) -> String {
        match tells {
            Tells::Budget { month, percent, .. } => {
                format!("budget-{tenant}-{}-{percent}", month_name(*month))
            }
            Tells::Statement { month, .. } => format!("statement-{tenant}-{}", month_name(*month)),
            Tells::Test => format!("test-{tenant}-{seq}"),
        }
    }
}

/// What is known of a tenant that has or had a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Known {
    /// The month whose budget it was last told of, and up to which threshold.
    month: u64,
    percent: u8,
    /// What it may still ask for: each of its acts costs every member a write.
    acts: Bucket,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Webhooks {
    /// False in a state of version 3 or older until it is raised: then no webhook is taken.
    pub kept: bool,
    pub rows: Table<TenantId, Webhook>,
    pub events: Table<(TenantId, EventSeq), Event>,
    pub last: EventSeq,
    known: Table<TenantId, Known>,
    /// Statements of the months before are told, or nobody wanted to be.
    month: u64,
}

stored_value!(EventSeq);
stored!(Webhooks {
    kept,
    rows,
    events,
    last,
    known,
    month
});

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            kept: true,
            rows: Table::default(),
            events: Table::default(),
            last: EventSeq(0),
            known: Table::default(),
            month: 0,
        }
    }
}

impl Newer for Webhooks {
    fn not_yet() -> Self {
        Self {
            kept: false,
            ..Self::default()
        }
    }
}

impl Webhooks {
    /// Version 4 begins.
    pub fn begin(&mut self, now_ms: u64) {
        self.kept = true;
        self.month = month(now_ms);
    }

    /// Whether a tenant may do something to its webhook now.
    fn may_act(&self, tenant: TenantId, now_ms: u64) -> Result<(), Refusal> {
        if !self.kept {
            return Err(Refusal::OlderVersion);
        }
        let known = self.known.get(&tenant).copied().unwrap_or_default();
        match known
            .acts
            .wait_ms(1, limits::WEBHOOK_ACTS_PER_MINUTE, now_ms)
        {
            Some(0) => Ok(()),
            wait => Err(Refusal::TooManyActs {
                retry_after_ms: wait.unwrap_or_default(),
            }),
        }
    }

    /// Takes one of a tenant's acts.
    fn act(&mut self, tenant: TenantId, now_ms: u64) -> Result<(), Refusal> {
        self.may_act(tenant, now_ms)?;
        let acts = &mut self.known.or_default(tenant).acts;
        acts.take(1, limits::WEBHOOK_ACTS_PER_MINUTE, now_ms);
        Ok(())
    }

    pub fn of(&self, tenant: TenantId) -> impl DoubleEndedIterator<Item = &Event> {
        let all = (tenant, EventSeq(0))..=(tenant, EventSeq(u64::MAX));
        self.events.range(all).map(|(_, event)| event)
    }

    /// Has an event wait, due at once. None where the tenant has no webhook.
    fn push(&mut self, tenant: TenantId, tells: Tells, now_ms: u64) -> Option<EventSeq> {
        if !self.rows.contains_key(&tenant) {
            return None;
        }
        let seq = EventSeq(self.last.0 + 1);
        self.last = seq;
        let event = Event {
            seq,
            tenant,
            made_at_ms: now_ms,
            tells,
            failures: 0,
            due_at_ms: now_ms,
        };
        self.events.insert((tenant, seq), event);
        let too_many = self
            .of(tenant)
            .count()
            .saturating_sub(limits::WEBHOOK_EVENTS_MAX);
        let oldest: Vec<EventSeq> = self.of(tenant).take(too_many).map(|e| e.seq).collect();
        for seq in oldest {
            self.events.remove(&(tenant, seq));
            if let Some(webhook) = self.rows.get_mut(&tenant) {
                webhook.dropped += 1;
            }
        }
        Some(seq)
    }

    fn remove(&mut self, tenant: TenantId) -> bool {
        let waiting: Vec<EventSeq> = self.of(tenant).map(|event| event.seq).collect();
        for seq in waiting {
            self.events.remove(&(tenant, seq));
        }
        self.rows.remove(&tenant).is_some()
    }

    pub fn check(&self) -> Result<(), String> {
        for ((tenant, seq), event) in self.events.iter() {
            if (*tenant, *seq) != (event.tenant, event.seq) || *seq > self.last {
                return Err(format!("event {seq} of {tenant} has another's number"));
            }
            if !self.rows.contains_key(tenant) {
                return Err(format!("event {seq} waits for a webhook that is gone"));
            }
        }
        let crowded = |tenant: &&TenantId| self.of(**tenant).count() > limits::WEBHOOK_EVENTS_MAX;
        if let Some(tenant) = self.rows.keys().find(crowded) {
            return Err(format!("{tenant} has more waiting events than it may"));
        }
        let mut ids: Vec<String> = self.events.values().map(Event::id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(format!("event {} waits twice", two[0])),
            None => Ok(()),
        }
    }
}

/// How long after that many failures an event is tried again; `None` where it is given up.
pub fn pause(failures: u32) -> Option<Duration> {
    let at = usize::try_from(failures).ok()?.checked_sub(1)?;
    limits::WEBHOOK_PAUSES.get(at).copied()
}

/// Where a tenant shall be told from now on. The secret is taken where there was none or another is
/// wanted (`rotate`): the outcome says so.
pub(super) fn put(
    state: &mut State,
    tenant: TenantId,
    (url, topics): (&str, Topics),
    (secret, rotate): (&Secret, bool),
    now_ms: u64,
) -> Result<Outcome, Refusal> {
    if !state.tenants.rows.contains_key(&tenant) {
        return Err(Refusal::UnknownTenant(tenant));
    }
    let webhooks = &mut state.webhooks;
    let known = webhooks.rows.get(&tenant).cloned();
    if known.is_none() && webhooks.rows.len() >= limits::WEBHOOKS_MAX {
        return Err(Refusal::TooManyWebhooks);
    }
    webhooks.act(tenant, now_ms)?;
    let fresh = known.is_none() || rotate;
    let mut webhook = known.unwrap_or(Webhook {
        url: String::new(),
        topics,
        secret: *secret,
        created_at: now_ms / 1_000,
        delivered: 0,
        delivered_at: None,
        dropped: 0,
        given_up: 0,
        failing: None,
    });
    webhook.url = url.to_owned();
    webhook.topics = topics;
    if rotate {
        webhook.secret = *secret;
    }
    webhooks.rows.insert(tenant, webhook);
    look_at_budget(state, tenant, now_ms);
    Ok(Outcome::Webhook { fresh })
}

/// What waits for it is told to nobody.
pub(super) fn remove(state: &mut State, tenant: TenantId, now_ms: u64) -> Result<Outcome, Refusal> {
    if !state.webhooks.rows.contains_key(&tenant) {
        return Err(Refusal::NoWebhook);
    }
    state.webhooks.act(tenant, now_ms)?;
    state.webhooks.remove(tenant);
    Ok(Outcome::Done)
}

pub(super) fn test(state: &mut State, tenant: TenantId, now_ms: u64) -> Result<Outcome, Refusal> {
    if !state.webhooks.rows.contains_key(&tenant) {
        return Err(Refusal::NoWebhook);
    }
    state.webhooks.act(tenant, now_ms)?;
    let seq = state.webhooks.push(tenant, Tells::Test, now_ms);
    seq.map(Outcome::Event).ok_or(Refusal::NoWebhook)
}

/// What came of a try: delivered, it is gone; else it is tried again later, or given up. What is told of
/// an event that is gone, or of a try that was told of before, changes nothing.
pub(super) fn note_delivery(
    webhooks: &mut Webhooks,
    (tenant, seq): (TenantId, EventSeq),
    failures: u32,
    error: Option<&str>,
    now_ms: u64,
) -> Outcome {
    let (Some(event), Some(webhook)) = (
        webhooks.events.get_mut(&(tenant, seq)),
        webhooks.rows.get_mut(&tenant),
    ) else {
        return Outcome::Done;
    };
    let Some(error) = error else {
        webhook.delivered += 1;
        webhook.delivered_at = Some(now_ms / 1_000);
        webhook.failing = None;
        webhooks.events.remove(&(tenant, seq));
        return Outcome::Done;
    };
    if failures != event.failures {
        return Outcome::Done;
    }
    let since = webhook.failing.as_ref().map(|failing| failing.since);
    webhook.failing = Some(Failing {
        since: since.unwrap_or(now_ms / 1_000),
        error: error.to_owned(),
    });
    event.failures += 1;
    match pause(event.failures) {
        Some(pause) => event.due_at_ms = now_ms.saturating_add(pause.as_millis() as u64),
        None => {
            webhook.given_up += 1;
            webhooks.events.remove(&(tenant, seq));
        }
    }
    Outcome::Done
}

/// Tells a tenant of thresholds of its budget that this month's charges have reached and that it was
/// not told of yet. To be called where charges or the budget may have changed.
pub(super) fn look_at_budget(state: &mut State, tenant: TenantId, now_ms: u64) {
    let wanted = state.webhooks.rows.get(&tenant);
    if !wanted.is_some_and(|webhook| webhook.topics.budget) {
        return;
    }
    let settings = state.tenants.rows.get(&tenant).map(|t| &t.settings);
    let Some(budget @ NanoUsd(1..)) = settings.and_then(|s| s.monthly_budget) else {
        return;
    };
    let spent = state.month_spend(Subject::Tenant(tenant), now_ms);
    let this = month(now_ms);
    let known = state.webhooks.known.get(&tenant).copied();
    let told = match known.filter(|known| known.month == this) {
        Some(known) if !planted::is(Bug::TellTwice) => known.percent,
        _ => 0,
    };
    let reached = |percent: &u8| {
        *percent > told && i128::from(spent.0) * 100 >= i128::from(budget.0) * i128::from(*percent)
    };
    for percent in BUDGET_THRESHOLDS.into_iter().filter(reached) {
        let tells = Tells::Budget {
            month: this,
            percent,
            spent,
            budget,
        };
        state.webhooks.push(tenant, tells, now_ms);
        let known = state.webhooks.known.or_default(tenant);
        (known.month, known.percent) = (this, percent);
    }
}

/// Tells tenants of the statements of months that have ended by the state's clock, once each, whether or
/// not the tenant does anything. Gateways renew their lives in any case, so that the clock goes on.
pub(super) fn turn_month(state: &mut State) {
    let now = month(state.now_ms);
    let from = state.webhooks.month;
    if !state.webhooks.kept || from >= now {
        return;
    }
    state.webhooks.month = now;
    // A clock that was wrong by years has nobody told of hundreds of empty months.
    let from = from.max(now.saturating_sub(limits::WEBHOOK_STATEMENTS_AT_ONCE));
    let wanted = state.webhooks.rows.iter();
    let wanted = wanted.filter(|(_, webhook)| webhook.topics.statements);
    let wanted: Vec<(TenantId, u64)> = wanted
        .map(|(tenant, webhook)| (*tenant, month(webhook.created_at.saturating_mul(1_000))))
        .collect();
    for (tenant, since) in wanted {
        let account = Account::Tenant(tenant);
        // Before anything moved its money, an account has no statements.
        let Some((first, _)) = state.movements(&account).next() else {
            continue;
        };
        for ended in from.max(since).max(first)..now {
            let tells = Tells::Statement {
                month: ended,
                charges: NanoUsd(state.movement(&account, ended).requests.0.wrapping_neg()),
                closing: state.balance_before(&account, ended + 1),
            };
            state.webhooks.push(tenant, tells, state.now_ms);
        }
    }
}

impl State {
    /// Where a tenant is told of its account.
    pub fn webhook(&self, tenant: TenantId) -> Option<&Webhook> {
        self.webhooks.rows.get(&tenant)
    }

    /// Whether a tenant may do something to its webhook at that time, milliseconds since 1970. What is
    /// proposed all the same is refused, but costs a write.
    pub fn may_act_on_webhook(&self, tenant: TenantId, now_ms: u64) -> Result<(), Refusal> {
        self.webhooks.may_act(tenant, self.now_ms.max(now_ms))
    }

    /// What a tenant is yet to be told, oldest first.
    pub fn webhook_events_of(&self, tenant: TenantId) -> impl DoubleEndedIterator<Item = &Event> {
        self.webhooks.of(tenant)
    }

    /// What all are yet to be told, by tenant.
    pub fn webhook_events(&self) -> impl Iterator<Item = &Event> {
        self.webhooks.events.values()
    }

    /// The newest event's number; 0 before the first. It is that of how many were ever made.
    pub fn webhook_event_last(&self) -> EventSeq {
        self.webhooks.last
    }
}

#[cfg(test)]
#[path = "webhooks_tests.rs"]
pub(crate) mod tests;
