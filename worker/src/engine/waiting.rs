//! The waiting room: whose sequence runs next, and whose is refused when too many wait. Pure.
//!
//! Start-time fair queuing (Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996) over tenants
//! with weights, on tokens as they are really processed and not as a request may cost at most, as the
//! virtual token counter does (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Each
//! tenant has a counter of tokens served, divided by its weight; the next to run is the tenant's whose
//! counter is lowest, and of its own the oldest of the highest priority. A token is a token: of a prompt or
//! generated. Neighbours: `batcher` charges here what it puts into plans; `mailbox` refuses by the same rule.
//!
//! Kept true:
//!
//! - Work-conserving: whoever waits alone is next, whatever it has had.
//! - Let B be the most that sequences of one tenant can still be served once they have begun: as many
//!   as run at once, times the longest. Two tenants f and g that both wait throughout some time are then
//!   served, in tokens divided by weight, the same but for `B/f's weight + B/g's weight`, however long
//!   it is. For the virtual time `now` is never above the counter of one that waits, nor below that by
//!   which any tenant last had one begin: from then on it gets ahead by what it has begun, no more.
//! - Idle time is no credit: a tenant that had nobody waiting begins, when one comes, at `now` at the
//!   least; and where nobody waits that is the highest counter, since what was served then was nobody
//!   else's. Nor is leaving: a tenant ahead of `now` keeps its counter when it has nothing left here,
//!   until the others have caught up. Others' counters go with their last sequence.
//! - Sequences that had begun and were preempted go before all others, the oldest first: they are part
//!   of what their tenant had begun already. (One whose client is behind is passed over; B holds
//!   for those whose clients read.)
//! - Where one too many waits, the newest of the lowest priority is refused of the tenant with the most
//!   waiting for its weight, so that a flood turns itself away. One that had begun is never refused.

use super::sequence::SequenceId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use trireme_shared::ids::TenantId;
use trireme_shared::limits;
use trireme_shared::wire::generate::Priority;

/// Tokens divided by weight, in parts of 2^-32 token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served(u128);

impl Served {
    fn new(tokens: usize, weight: u32) -> Self {
        Self(((tokens as u128) << 32) / u128::from(weight.max(1)))
    }
}

#[derive(Debug, Default)]
struct Tenant {
    /// As its newest sequence said.
    weight: u32,
    served: Served,
    /// Those that have not begun, the higher priority first and of one by arrival.
    waiting: BTreeSet<(Reverse<Priority>, SequenceId)>,
    /// All of its sequences at this driver.
    here: usize,
}

#[derive(Debug)]
pub struct WaitingRoom {
    most: usize,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Those that had begun, by age.
    preempted: BTreeSet<SequenceId>,
    /// Virtual time: the highest counter by which any had a sequence begin. It only grows.
    now: Served,
}

impl WaitingRoom {
    /// For at most that many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            tenants: BTreeMap::new(),
            preempted: BTreeSet::new(),
            now: Served::default(),
        }
    }

    pub fn len(&self) -> usize {
        let fresh = self.tenants.values().map(|t| t.waiting.len());
        fresh.sum::<usize>() + self.preempted.len()
    }

    /// A new sequence, of a later id than all before it. Gives the one that must be refused for it,
    /// if any, which is no longer here; it may be the new one.
    pub fn arrive(
        &mut self,
        id: SequenceId,
        of: TenantId,
        weight: u32,
        priority: Priority,
    ) -> Option<SequenceId> {
        self.let_it_be_now();
        let tenant = self.tenants.entry(of).or_default();
        if tenant.waiting.is_empty() {
            tenant.served = tenant.served.max(self.now);
        }
        tenant.weight = weight;
        tenant.waiting.insert((Reverse(priority), id));
        tenant.here += 1;
        if self.len() <= self.most {
            return None;
        }
        let waiting = self.tenants.iter();
        let waiting = waiting.map(|(of, t)| (*of, t.weight, t.waiting.len()));
        let flooding = most_for_its_weight(waiting, of);
        let (_, refused) = self.tenants.get(&flooding)?.waiting.last().copied()?;
        self.leave(refused, flooding);
        Some(refused)
    }

    /// A sequence that had begun and waits again.
    pub fn preempted(&mut self, id: SequenceId) {
        self.preempted.insert(id);
    }

    pub fn iter(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let fresh = self.tenants.values().flat_map(|t| &t.waiting);
        let fresh = fresh.map(|(_, id)| id);
        fresh.chain(&self.preempted).copied()
    }

    /// The next to begin, or to go on, of those that can.
    pub fn next(&self, can_run: impl Fn(SequenceId) -> bool) -> Option<SequenceId> {
        let again = self.preempted.iter().copied().find(|id| can_run(*id));
        again.or_else(|| self.next_fresh(can_run))
    }

    /// The next to begin of those that can and have not begun.
    pub fn next_fresh(&self, can_run: impl Fn(SequenceId) -> bool) -> Option<SequenceId> {
        let first = |t: &Tenant| t.waiting.iter().map(|(_, id)| *id).find(|id| can_run(*id));
        let heads = self.tenants.values();
        let heads = heads.filter_map(|t| Some((t.served, first(t)?)));
        heads.min().map(|(_, id)| id)
    }

    /// 1 for one that has nothing here.
    pub fn weight(&self, of: TenantId) -> u32 {
        self.tenants.get(&of).map_or(1, |t| t.weight.max(1))
    }

    /// It runs, and waits no more.
    pub fn begin(&mut self, id: SequenceId, of: TenantId) {
        if self.wait_no_more(id, of) {
            self.now = self.now.max(self.served(of));
        }
    }

    /// Whether it waited, and had not begun.
    fn wait_no_more(&mut self, id: SequenceId, of: TenantId) -> bool {
        let mut places = Priority::ALL.map(|p| (Reverse(p), id)).into_iter();
        let tenant = self.tenants.get_mut(&of);
        !self.preempted.remove(&id)
            && tenant.is_some_and(|t| places.any(|place| t.waiting.remove(&place)))
    }

    /// Tokens of a tenant's sequences were put into a step.
    pub fn charge(&mut self, of: TenantId, tokens: usize) {
        if let Some(tenant) = self.tenants.get_mut(&of) {
            tenant.served.0 += Served::new(tokens, tenant.weight).0;
        }
    }

    /// A sequence ended or was cancelled, wherever it was.
    pub fn leave(&mut self, id: SequenceId, of: TenantId) {
        self.wait_no_more(id, of);
        let Some(tenant) = self.tenants.get_mut(&of) else {
            return;
        };
        tenant.here = tenant.here.saturating_sub(1);
        if tenant.here == 0 {
            self.forget();
        }
    }

    /// What a tenant has had; zero if it has nothing here.
    pub fn served(&self, of: TenantId) -> Served {
        self.tenants.get(&of).map_or(Served(0), |t| t.served)
    }

    /// Where nobody waits, nobody has a claim on what was served.
    fn let_it_be_now(&mut self) {
        if self.tenants.values().all(|t| t.waiting.is_empty()) {
            let served = self.tenants.values().map(|t| t.served);
            self.now = served.fold(self.now, Served::max);
        }
    }

    /// Drops the counters that say nothing any more, and the lowest of the others beyond a bound.
    fn forget(&mut self) {
        self.let_it_be_now();
        let now = self.now;
        self.tenants.retain(|_, t| t.here > 0 || t.served > now);
        let gone = self.tenants.iter().filter(|(_, t)| t.here == 0);
        let mut gone: Vec<_> = gone.map(|(of, t)| (t.served, *of)).collect();
        let over = gone.len().saturating_sub(limits::TENANTS_AHEAD_MAX);
        if over > 0 {
            gone.sort_unstable();
            for (_, of) in &gone[..over] {
                self.tenants.remove(of);
            }
        }
    }
}

/// The tenant with the most for its weight; of equals the newcomer, who is told to come again.
pub fn most_for_its_weight(
    waiting: impl Iterator<Item = (TenantId, u32, usize)>,
    newcomer: TenantId,
) -> TenantId {
    let mut most = (newcomer, 1, 0);
    for (of, weight, count) in waiting {
        let theirs = count as u128 * u128::from(most.1);
        let known = most.2 as u128 * u128::from(weight);
        if theirs > known || (theirs == known && of == newcomer) {
            most = (of, weight, count);
        }
    }
    most.0
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
