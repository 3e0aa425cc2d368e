//! The part of the reconciler that changes of leaders are about: plans from the state, and what a
//! leader owes a replica that has one. It makes no difference who made the plan.

use super::super::slot::{Need, Phase, Running, Slot};
use super::{BY_LEADER, Effect, Reconciler, ReplicaKey};
use std::time::Instant;
use trireme_shared::ids::{Epoch, WorkerId};
use trireme_shared::limits;
use trireme_shared::plan::{Assignment, ReplicaPlan};

impl Reconciler {
    pub(super) fn leading(
        &mut self,
        term: u64,
        leads: bool,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let goes_on = leads && self.leads_since.is_some() && term == self.term;
        self.term = term;
        self.look_again = true;
        if goes_on {
            return;
        }
        self.leads_since = leads.then_some(now);
        for slot in self.slots.values_mut() {
            // The next leader may adopt what this one gave up: it sees other workers.
            slot.ended = None;
            if let (false, Phase::Committing { .. }) = (leads, &slot.phase) {
                slot.phase = Phase::Waiting {
                    why: BY_LEADER.into(),
                };
            }
        }
        self.adopt_all(now, effects);
    }

    /// Until it reports (again), nobody knows whether the worker runs its rank.
    pub(super) fn out_of_sight(
        &mut self,
        worker: WorkerId,
        lost: Option<&str>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        for key in self.running_on(worker) {
            if let Some(Phase::Running(running)) = self.slots.get_mut(&key).map(|s| &mut s.phase) {
                running.absent(worker);
            }
            self.adopt(key, lost, now, effects);
        }
    }

    pub(super) fn running_on(&self, worker: WorkerId) -> Vec<ReplicaKey> {
        let uses = |slot: &Slot| matches!(slot.phase, Phase::Running(_)) && slot.uses(worker);
        let hit = self.slots.iter().filter(|(_, slot)| uses(slot));
        hit.map(|(key, _)| *key).collect()
    }

    /// No plan of this epoch is to come: a newer one than the state's is not known here yet.
    pub(super) fn is_over(&self, key: ReplicaKey, epoch: Epoch) -> bool {
        let newest = self.slots.get(&key).and_then(|slot| slot.epoch);
        newest.is_none_or(|newest| epoch <= newest)
    }

    pub(super) fn term_if_leading(&self) -> Option<u64> {
        self.leads_since.map(|_| self.term)
    }

    /// The newest plan in the state, told at every change of it.
    pub(super) fn plan(&mut self, plan: ReplicaPlan, now: Instant, effects: &mut Vec<Effect>) {
        let key = (plan.deployment, plan.replica);
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        let old = slot.epoch.is_some_and(|newest| plan.epoch < newest);
        if old || slot.ended.is_some_and(|ended| plan.epoch <= ended) {
            return;
        }
        let own = match &slot.phase {
            Phase::Running(running) if running.plan.epoch == plan.epoch => return,
            Phase::Committing { .. } => true,
            _ => false,
        };
        slot.epoch = Some(plan.epoch);
        slot.phase = Phase::Running(Box::new(Running::new(plan, own, now)));
        self.adopt(key, None, now, effects);
    }

    pub(super) fn adopt_all(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let keys: Vec<_> = self.slots.keys().copied().collect();
        for key in keys {
            self.adopt(key, None, now, effects);
        }
    }

    /// What a leader owes a replica whose plan is in the state: its end if it cannot run, and the
    /// assignment to workers that do not report it. `lost`: why a worker's connection ended just now.
    pub(super) fn adopt(
        &mut self,
        key: ReplicaKey,
        lost: Option<&str>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(since), term) = (self.leads_since, self.term) else {
            return;
        };
        let Some(Phase::Running(running)) = self.slots.get_mut(&key).map(|s| &mut s.phase) else {
            return;
        };
        let mut end = running.gave_up();
        let mut gone = None;
        let mut needs = Vec::new();
        for (index, rank) in running.plan.ranks.iter().enumerate() {
            let Some(worker) = self.workers.get(&rank.worker) else {
                gone = gone.or(Some(rank.worker));
                continue;
            };
            if (&worker.candidate.address, &worker.candidate.host) != (&rank.address, &rank.host) {
                end = end.or(Some(format!("worker {} was started anew", rank.worker)));
            }
            match running.need(index, worker.connection, worker.spoke) {
                Need::Nothing => {}
                Need::Assign => needs.push((index, worker.connection)),
                Need::Replan => {
                    end = end.or(Some(format!("worker {} no longer runs it", rank.worker)));
                }
            }
        }
        if let Some(reason) = end {
            return self.down(key, reason, now, effects);
        }
        if let Some(worker) = gone {
            // Right after a change of leaders or a restart it may be on its way back.
            if now.saturating_duration_since(since) >= limits::LEADER_SETTLE {
                let why = lost.unwrap_or("it did not come back");
                self.down(
                    key,
                    format!("worker {worker} was lost: {why}"),
                    now,
                    effects,
                );
                // The culprit is known and gone: the survivors need not prove that they live.
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.failed_at = None;
                }
            }
            return;
        }
        for (index, connection) in needs {
            running.assigned(index, connection);
            effects.push(Effect::Assign {
                worker: running.plan.ranks[index].worker,
                term,
                assignment: Box::new(Assignment {
                    plan: running.plan.clone(),
                    index: index as u16,
                }),
            });
        }
    }
}
