//! Whose workers did how much of a request, for its charge to be shared by.
//!
//! Kept true: a log only grows, so that what is told of it is cumulative; every token that was put
//! through a replica counts once for each time it was, by the plan of the replica that did it; what the
//! client hears of a token is counted before it hears it. `carry` fills logs, the gateway reads them.
//!
//! The unit: a token through a whole layer is `LAYER_UNITS`, whatever the split, so that replicas with
//! other plans count alike. Of that, a rank has half by its share of the stage's KV heads (attention)
//! and half by its share of its FFN columns. The embedding and the output matrix count nothing: a
//! provider is paid for layers.

use super::reconcile::Route;
use crate::state::{State, Work};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trireme_shared::ids::WorkerId;
use trireme_shared::limits;
use trireme_shared::model::Span;
use trireme_shared::plan::ReplicaPlan;

/// Units of one phase (attention, FFN) of one layer for one token.
const PHASE_UNITS: u64 = 1 << 15;

/// Units of one layer for one token.
#[cfg(test)]
pub(super) const LAYER_UNITS: u64 = 2 * PHASE_UNITS;

/// What was done for one HTTP request, by all of its sequences on all of their ways. Cheap to clone;
/// all clones are one log.
#[derive(Clone, Debug, Default)]
pub struct WorkLog(Arc<Mutex<BTreeMap<Option<String>, u64>>>);

impl WorkLog {
    /// By provider, in their order, each once; at most `limits::REQUEST_PROVIDERS_MAX`.
    pub fn so_far(&self) -> Vec<Work> {
        let units = |(provider, units): (&Option<String>, &u64)| Work {
            provider: provider.clone(),
            units: *units,
        };
        self.lock().iter().map(units).collect()
    }

    fn add(&self, of: &TokenUnits, tokens: u64) {
        let mut log = self.lock();
        for (provider, units) in &of.0 {
            let sum = log.entry(provider.clone()).or_default();
            *sum = sum.saturating_add(units.saturating_mul(tokens));
        }
        // The first ones are kept, as the state does: one that is dropped has so many before it for
        // good, and so never comes back with less than it had.
        while log.len() > limits::REQUEST_PROVIDERS_MAX {
            log.pop_last();
        }
    }

    /// For tests of whoever reads logs.
    #[cfg(test)]
    pub fn note(&self, provider: &str, units: u64) {
        let provider = Some(provider.to_owned());
        self.add(&TokenUnits([(provider, units)].into()), 1);
    }

    /// A panic elsewhere leaves the sums whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<String>, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units that each provider's workers do for one token of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenUnits(BTreeMap<Option<String>, u64>);

impl TokenUnits {
    /// By the route's plan and its workers' records. Nothing where the state has that plan no more: its
    /// replica is being taken down, and the attempt is over before long. A worker that was removed
    /// counts as the platform's own.
    pub(super) fn of_route(state: &State, route: &Route) -> Self {
        let plan = state.plan(route.key.0, route.key.1);
        let plan = plan.filter(|plan| plan.epoch == route.epoch);
        let provider = |worker| state.worker(worker).and_then(|w| w.provider.clone());
        plan.map_or_else(Self::default, |plan| Self::of(plan, provider))
    }

    fn of(plan: &ReplicaPlan, provider: impl Fn(WorkerId) -> Option<String>) -> Self {
        let mut units = BTreeMap::new();
        for rank in &plan.ranks {
            let share = &rank.share;
            let stage = || plan.ranks.iter().map(|r| &r.share);
            let stage = || stage().filter(|s| s.stage == share.stage);
            let heads = stage().map(|s| s.kv_heads.end).max().unwrap_or(0);
            let columns = stage().map(|s| s.ffn.end).max().unwrap_or(0);
            let layer = part(share.kv_heads, heads) + part(share.ffn, columns);
            let sum: &mut u64 = units.entry(provider(rank.worker)).or_default();
            *sum += u64::from(share.layers.len()) * layer;
        }
        Self(units)
    }
}

/// A span's part of a phase. The parts of spans that cover `whole` sum to `PHASE_UNITS`.
fn part(span: Span, whole: u32) -> u64 {
    let upto = |end: u32| PHASE_UNITS * u64::from(end) / u64::from(whole.max(1));
    upto(span.end) - upto(span.start)
}

/// Counts what one attempt at a sequence, on one replica, does.
pub(super) struct Tally {
    log: WorkLog,
    units: TokenUnits,
    prompt: u64,
    /// Tokens that earlier attempts brought: computed again here, and work again.
    emitted: u64,
    started: bool,
}

impl Tally {
    pub(super) fn new(log: WorkLog, units: TokenUnits, prompt: usize, emitted: usize) -> Self {
        Self {
            log,
            units,
            prompt: prompt as u64,
            emitted: emitted as u64,
            started: false,
        }
    }

    /// The driver works on the sequence: its prompt, but for what was cached, and what was emitted.
    pub(super) fn started(&mut self, cached_tokens: u32) {
        if !std::mem::replace(&mut self.started, true) {
            let fresh = self.prompt.saturating_sub(u64::from(cached_tokens));
            self.log.add(&self.units, fresh + self.emitted);
        }
    }

    /// It made a token that the client has not seen.
    pub(super) fn token(&self) {
        self.log.add(&self.units, 1);
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
