//! What tenants must have been told, by the model: each event by its id, once, in the order in which they
//! came about.

use super::{Told, month};
use std::collections::{BTreeMap, BTreeSet};
use trireme_coordinator::state::{Command, Outcome, State, Topics};
use trireme_shared::ids::TenantId;

/// As many wait of one tenant, and as often is one tried.
const WAITING_MAX: usize = 32;
const TRIES_MAX: u32 = 10;

/// Who wants to be told of what, and since which month.
struct Webhook {
    topics: Topics,
    since: u64,
}

/// See the module.
#[derive(Default)]
pub struct Tellings {
    webhooks: BTreeMap<TenantId, Webhook>,
    /// Ids of all events that ever came about.
    made: BTreeSet<String>,
    /// Of those that nobody took yet: the id, and how often it failed.
    waiting: BTreeMap<(TenantId, u64), (String, u32)>,
    last: u64,
    /// The first month in which an account's money moved.
    moved: BTreeMap<TenantId, u64>,
    now: u64,
}

impl Tellings {
    fn make(&mut self, tenant: TenantId, id: String) {
        if !self.made.insert(id.clone()) {
            return;
        }
        self.last += 1;
        self.waiting.insert((tenant, self.last), (id, 0));
        let of_tenant = self.waiting.keys().filter(|(of, _)| *of == tenant);
        let of_tenant: Vec<_> = of_tenant.copied().collect();
        let too_many = of_tenant.len().saturating_sub(WAITING_MAX);
        for oldest in &of_tenant[..too_many] {
            self.waiting.remove(oldest);
        }
    }

    /// A tenant's money moved.
    pub fn moved(&mut self, tenant: TenantId, now_ms: u64) {
        self.moved.entry(tenant).or_insert_with(|| month(now_ms));
    }

    /// A tenant has spent so much of its budget this month.
    pub fn spent(&mut self, tenant: TenantId, spent: i128, budget: Option<i128>, now_ms: u64) {
        let webhook = self.webhooks.get(&tenant);
        let Some(budget) = budget.filter(|budget| *budget > 0) else {
            return;
        };
        if !webhook.is_some_and(|webhook| webhook.topics.budget) {
            return;
        }
        for percent in [50, 80, 100] {
            if spent * 100 >= budget * percent {
                let id = format!("budget-{tenant}-{}-{percent}", name(month(now_ms)));
                self.make(tenant, id);
            }
        }
    }

    pub fn on(&mut self, command: &Command, outcome: &Outcome, now_ms: u64) -> Told {
        match (command, outcome) {
            (Command::PutWebhook { tenant, topics, .. }, Outcome::Webhook { fresh }) => {
                let known = self.webhooks.remove(tenant);
                if known.is_none() && !fresh {
                    return Err(format!("{tenant} has a webhook and no secret"));
                }
                let since = known.map_or(month(now_ms), |webhook| webhook.since);
                let topics = *topics;
                self.webhooks.insert(*tenant, Webhook { topics, since });
            }
            (Command::RemoveWebhook { tenant }, _) => {
                self.webhooks.remove(tenant);
                self.waiting.retain(|(of, _), _| of != tenant);
            }
            (Command::TestWebhook { tenant }, Outcome::Event(seq)) => {
                self.make(*tenant, format!("test-{tenant}-{seq}"));
            }
            (
                Command::NoteDelivery {
                    tenant,
                    event,
                    failures,
                    error,
                },
                _,
            ) => {
                let of = (*tenant, event.0);
                let tried = self.waiting.get_mut(&of);
                let over = match (tried, error) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some((_, failed)), Some(_)) => {
                        *failed += u32::from(failed == failures);
                        *failed == TRIES_MAX
                    }
                };
                if over {
                    self.waiting.remove(&of);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// After each command: months end whatever it was.
    pub fn turn(&mut self, now_ms: u64) {
        let (before, now) = (self.now, month(now_ms));
        self.now = self.now.max(now);
        let wanted = self.webhooks.iter().filter(|(_, w)| w.topics.statements);
        let wanted: Vec<_> = wanted
            .filter_map(|(tenant, w)| Some((*tenant, w.since.max(*self.moved.get(tenant)?))))
            .collect();
        for (tenant, since) in wanted {
            for ended in before.max(since).max(now.saturating_sub(12))..now {
                self.make(tenant, format!("statement-{tenant}-{}", name(ended)));
            }
        }
    }

    /// Whether the state has come to the same.
    pub fn agrees(&self, state: &State) -> Told {
        let is: Vec<_> = state
            .webhook_events()
            .map(|event| ((event.tenant, event.seq.0), (event.id(), event.failures)))
            .collect();
        let should: Vec<_> = self.waiting.clone().into_iter().collect();
        if is != should {
            return Err(format!(
                "events: {is:?} by the state, {should:?} by the model"
            ));
        }
        match state.webhook_event_last().0 == self.last {
            true => Ok(()),
            false => Err(format!(
                "{} events were made, not {}",
                state.webhook_event_last(),
                self.last
            )),
        }
    }
}

/// `2026-11`
fn name(month: u64) -> String {
    let (year, of_year) = (1970 + month / 12, 1 + month % 12);
    format!("{year}-{of_year:02}")
}
