//! Decides what the fleet does next: which replica to plan, what to assign, release and probe.
//! Pure: events and the time go in, effects come out; `fleet::Fleet` performs them.
//!
//! Every coordinator runs it. All follow the plans in the replicated state and know from the workers'
//! reports which replicas serve; the leader alone plans, ends epochs and gives orders. Whoever begins
//! to lead (or starts) adopts what runs: no order goes to a worker that reports the plan's epoch.
//!
//! What it keeps true: a worker runs a rank of one replica at most; an assignment goes out only
//! after its plan is in the state; a replica is ready only while tokens really come through every
//! stage of it; after a failure a replica is planned again as soon as enough workers are there, at
//! growing intervals where it keeps failing.
//!
//! Neighbours: `placement` makes plans; `slot` keeps one replica's life; `follow` feeds the state;
//! `carry` follows `routes`.

mod adopt;
mod events;

pub use events::{ConnectionId, Effect, Event, ReplicaKey, Route};

use super::slot::{Phase, Running, Slot};
use crate::placement::{Candidate, plan_replica};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use trireme_shared::api::ReplicaReport;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, WorkerId};
use trireme_shared::limits;
use trireme_shared::model::Manifest;
use trireme_shared::plan::DeploymentSpec;
use trireme_shared::wire::control::RankReport;

/// What a follower's replicas without a plan wait for.
const BY_LEADER: &str = "its plan by the leading coordinator";

struct Worker {
    candidate: Candidate,
    connection: ConnectionId,
    /// When it last said anything.
    heard_at: Instant,
    /// It has reported over this connection.
    spoke: bool,
}

struct Deployed {
    spec: DeploymentSpec,
    /// `None` while the model is not open.
    manifest: Option<Arc<Manifest>>,
    /// What is waited for then.
    unavailable: String,
}

/// The reconciler's core.
#[derive(Default)]
pub struct Reconciler {
    /// The group's, as this coordinator knows it.
    term: u64,
    /// Since when this coordinator leads, or leads again after it stood still; `None` while it
    /// follows.
    leads_since: Option<Instant>,
    last_event: Option<Instant>,
    workers: BTreeMap<WorkerId, Worker>,
    deployments: BTreeMap<DeploymentId, Deployed>,
    slots: BTreeMap<ReplicaKey, Slot>,
    last_connect: Option<Instant>,
    /// Numbers the proposals, so that a late answer is not taken for a newer one's.
    last_attempt: u64,
    /// Something changed that may let a waiting replica be planned.
    look_again: bool,
}

impl Reconciler {
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let last = self.last_event.replace(now);
        let stood_still =
            last.is_some_and(|at| now.saturating_duration_since(at) >= limits::PEER_SILENCE_MAX);
        if let (true, Some(since)) = (stood_still, &mut self.leads_since) {
            // Stopped or suspended: it lost its workers by its own fault, or leads no more.
            *since = now;
        }
        match event {
            Event::Leading { term, leads } => self.leading(term, leads, now, &mut effects),
            Event::Deployed { id, spec } => self.deployed(id, spec, &mut effects),
            Event::Undeployed { id } => {
                self.deployments.remove(&id);
                self.drop_slots(id, "its deployment was removed", &mut effects);
                self.look_again = true;
            }
            Event::ModelOpened { id, spec, manifest } => {
                self.opened(id, &spec, Ok(manifest));
            }
            Event::ModelUnavailable { id, spec, reason } => self.opened(id, &spec, Err(reason)),
            Event::Plan { plan } => self.plan(*plan, now, &mut effects),
            Event::WorkerConnected {
                candidate,
                connection,
            } => self.connected(candidate, connection, now, &mut effects),
            Event::WorkerLost {
                worker,
                connection,
                reason,
            } => self.lost(worker, connection, &reason, now, &mut effects),
            Event::Ranks { worker, reports } => self.ranks(worker, reports, now, &mut effects),
            Event::PlanRefused {
                attempt,
                key,
                current,
                reason,
            } => {
                if let Some(slot) = self.slots.get_mut(&key)
                    && slot.is_committing(attempt)
                {
                    slot.epoch = slot.epoch.max(current);
                    slot.failed(format!("its plan was refused: {reason}"), now);
                }
            }
            Event::ProbeEnded { key, epoch, result } => {
                self.probe_ended(key, epoch, result, now, &mut effects);
            }
            Event::TokensSeen { key, epoch } => {
                if let Some(running) = self.running(key, epoch) {
                    running.token_seen(now);
                }
            }
            Event::Tick => self.tick(now, &mut effects),
        }
        if std::mem::take(&mut self.look_again) {
            self.plan_waiting(now, &mut effects);
        }
        effects
    }

    /// Replicas whose ranks all run, ready for new sequences or not.
    pub fn routes(&self, now: Instant) -> Vec<Route> {
        self.slots
            .iter()
            .filter_map(|(key, slot)| route_of(*key, slot, now))
            .collect()
    }

    pub fn is_ready(&self, deployment: DeploymentId, now: Instant) -> bool {
        self.slots_of(deployment)
            .any(|(_, slot)| slot.is_ready(now))
    }

    /// The replicas of a deployment in order.
    pub fn replicas(&self, deployment: DeploymentId, now: Instant) -> Vec<ReplicaReport> {
        self.slots_of(deployment)
            .map(|((_, replica), slot)| slot.view(*replica, now))
            .collect()
    }

    fn slots_of(&self, deployment: DeploymentId) -> impl Iterator<Item = (&ReplicaKey, &Slot)> {
        self.slots
            .range((deployment, Replica(0))..=(deployment, Replica(u16::MAX)))
    }

    fn running(&mut self, key: ReplicaKey, epoch: Epoch) -> Option<&mut Running> {
        match &mut self.slots.get_mut(&key)?.phase {
            Phase::Running(running) if running.plan.epoch == epoch => Some(running),
            _ => None,
        }
    }

    /// What this core knows of a deployment.
    pub fn spec(&self, id: DeploymentId) -> Option<&DeploymentSpec> {
        self.deployments.get(&id).map(|d| &d.spec)
    }

    fn deployed(&mut self, id: DeploymentId, spec: DeploymentSpec, effects: &mut Vec<Effect>) {
        if self.spec(id) == Some(&spec) {
            return;
        }
        self.look_again = true;
        self.drop_slots(id, "its deployment was replaced", effects);
        for replica in (0..spec.replicas).map(Replica) {
            self.slots.insert((id, replica), Slot::default());
        }
        let deployed = Deployed {
            spec,
            manifest: None,
            unavailable: "its model to be opened".into(),
        };
        self.deployments.insert(id, deployed);
    }

    fn drop_slots(&mut self, id: DeploymentId, reason: &str, effects: &mut Vec<Effect>) {
        let keys: Vec<_> = self.slots_of(id).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(slot) = self.slots.remove(&key) {
                self.release(key, &slot, reason, effects);
            }
        }
    }

    /// Of a spec that was replaced meanwhile it is old news.
    fn opened(
        &mut self,
        id: DeploymentId,
        spec: &DeploymentSpec,
        model: Result<Arc<Manifest>, String>,
    ) {
        if let Some(deployed) = self.deployments.get_mut(&id).filter(|d| d.spec == *spec) {
            self.look_again = true;
            match model {
                Ok(manifest) => deployed.manifest = Some(manifest),
                Err(reason) => deployed.unavailable = reason,
            }
        }
    }

    fn connected(
        &mut self,
        candidate: Candidate,
        connection: ConnectionId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let id = candidate.worker;
        let worker = Worker {
            candidate,
            connection,
            heard_at: now,
            spoke: false,
        };
        self.workers.insert(id, worker);
        self.last_connect = Some(now);
        self.look_again = true;
        self.out_of_sight(id, None, now, effects);
    }

    fn lost(
        &mut self,
        worker: WorkerId,
        connection: ConnectionId,
        reason: &str,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let current = self.workers.get(&worker).map(|w| w.connection);
        if current == Some(connection) {
            self.workers.remove(&worker);
            self.look_again = true;
            self.out_of_sight(worker, Some(reason), now, effects);
        }
    }

    fn ranks(
        &mut self,
        worker: WorkerId,
        reports: Vec<RankReport>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.workers.get_mut(&worker) else {
            return;
        };
        known.heard_at = now;
        known.spoke = true;
        self.look_again |= self.slots.values().any(|slot| slot.failed_at.is_some());
        let busy = self.slots.values().any(|slot| slot.uses(worker));
        let mut silent: BTreeSet<ReplicaKey> = self.running_on(worker).into_iter().collect();
        for report in reports {
            let key = (report.deployment, report.replica);
            let epoch = report.epoch;
            if let Some(running) = self.running(key, epoch) {
                silent.remove(&key);
                let was_up = running.all_ready();
                running.report(worker, report, now);
                if !was_up && running.all_ready() && running.probe_sent.is_none() {
                    running.probe_now(now, key, effects);
                }
                self.adopt(key, None, now, effects);
            } else if let Some(term) = self.term_if_leading()
                && !busy
                && self.is_over(key, epoch)
            {
                // Left over from an epoch that ended while this worker was away.
                effects.push(Effect::Release {
                    worker,
                    term,
                    deployment: key.0,
                    replica: key.1,
                    epoch,
                });
            }
        }
        for key in silent {
            if let Some(Phase::Running(running)) = self.slots.get_mut(&key).map(|s| &mut s.phase) {
                running.absent(worker);
            }
            self.adopt(key, None, now, effects);
        }
    }

    fn probe_ended(
        &mut self,
        key: ReplicaKey,
        epoch: Epoch,
        result: Result<(), String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let leads = self.leads_since.is_some();
        let Some(running) = self.running(key, epoch) else {
            return;
        };
        running.probe_sent = None;
        match result {
            Ok(()) => {
                if running.ready_since.is_none() {
                    effects.push(Effect::Up { key, epoch });
                }
                running.token_seen(now);
            }
            Err(reason) if leads && running.is_unproven() => {
                let reason = format!("its first token did not come: {reason}");
                self.down(key, reason, now, effects);
            }
            // It may work for others: asked again soon, and given up by `REPLICA_STUCK_MAX`.
            Err(_) => running.probe_failed_at = Some(now),
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.look_again = true;
        self.adopt_all(now, effects);
        let since = self.leads_since;
        let mut stuck = Vec::new();
        for (key, slot) in &mut self.slots {
            let Phase::Running(running) = &mut slot.phase else {
                continue;
            };
            if let Some(reason) = since.and_then(|since| running.overdue(now, since)) {
                stuck.push((*key, reason));
            } else if running.probe_due(now) {
                running.probe_now(now, *key, effects);
            }
        }
        for (key, reason) in stuck {
            self.down(key, reason, now, effects);
        }
    }

    /// Ends a replica's epoch, as leader, and tells the workers that are still there.
    fn down(&mut self, key: ReplicaKey, reason: String, now: Instant, effects: &mut Vec<Effect>) {
        let Some(mut slot) = self.slots.remove(&key) else {
            return;
        };
        self.release(key, &slot, &reason, effects);
        slot.ended = slot.epoch;
        slot.failed(reason, now);
        self.slots.insert(key, slot);
        self.look_again = true;
    }

    fn release(&self, key: ReplicaKey, slot: &Slot, reason: &str, effects: &mut Vec<Effect>) {
        let Phase::Running(running) = &slot.phase else {
            return;
        };
        let epoch = running.plan.epoch;
        effects.push(Effect::Down {
            key,
            epoch,
            reason: reason.to_owned(),
        });
        let Some(term) = self.term_if_leading() else {
            return;
        };
        for rank in &running.plan.ranks {
            if self.workers.contains_key(&rank.worker) {
                effects.push(Effect::Release {
                    worker: rank.worker,
                    term,
                    deployment: key.0,
                    replica: key.1,
                    epoch,
                });
            }
        }
    }

    fn plan_waiting(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let needed: usize = self
            .deployments
            .values()
            .map(|d| ranks_of(&d.spec) * usize::from(d.spec.replicas))
            .sum();
        let settling = self.workers.len() < needed
            && self
                .last_connect
                .is_some_and(|at| now.saturating_duration_since(at) < limits::PLAN_SETTLE);
        let mut used: BTreeSet<WorkerId> = BTreeSet::new();
        for slot in self.slots.values() {
            used.extend(slot.workers());
        }
        for (key, slot) in &mut self.slots {
            let Phase::Waiting { why } = &mut slot.phase else {
                continue;
            };
            let Some(deployed) = self.deployments.get(&key.0) else {
                continue;
            };
            let Some(manifest) = &deployed.manifest else {
                *why = deployed.unavailable.clone();
                continue;
            };
            if slot.retry_at.is_some_and(|at| now < at) {
                continue;
            }
            let heard = |w: &&Worker| slot.failed_at.is_none_or(|at| w.heard_at > at);
            let free: Vec<Candidate> = self
                .workers
                .values()
                .filter(|w| !used.contains(&w.candidate.worker))
                .filter(heard)
                .map(|w| w.candidate.clone())
                .collect();
            match plan_replica(manifest, &deployed.spec, key.0, key.1, &free) {
                Ok(_) if self.leads_since.is_none() => BY_LEADER.clone_into(why),
                Ok(_) if settling => "more workers to connect".clone_into(why),
                Ok(plan) => {
                    used.extend(plan.ranks.iter().map(|r| r.worker));
                    self.last_attempt += 1;
                    slot.phase = Phase::Committing {
                        attempt: self.last_attempt,
                        workers: plan.ranks.iter().map(|r| r.worker).collect(),
                    };
                    effects.push(Effect::Commit {
                        attempt: self.last_attempt,
                        plan: Box::new(plan),
                        previous: slot.epoch,
                    });
                }
                Err(error) => {
                    *why = slot.last_failure.as_ref().map_or_else(
                        || error.to_string(),
                        |failure| format!("{error} (before: {failure})"),
                    )
                }
            }
        }
    }
}

fn ranks_of(spec: &DeploymentSpec) -> usize {
    usize::from(spec.tensor_parallel) * usize::from(spec.pipeline_parallel)
}

fn route_of(key: ReplicaKey, slot: &Slot, now: Instant) -> Option<Route> {
    let Phase::Running(running) = &slot.phase else {
        return None;
    };
    let mut route = running.route(key)?;
    route.ready = slot.is_ready(now);
    Some(route)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
