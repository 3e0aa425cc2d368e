//! Decides what the fleet does next: which replica to plan, what to assign, release and probe.
//! Pure: events and the time go in, effects come out; `fleet::Fleet` performs them.
//!
//! What it keeps true: a worker runs a rank of one replica at most; an assignment goes out only
//! after its plan is in the journal; a replica is ready only while tokens really come through every
//! stage of it; after a failure a replica is planned again as soon as enough workers are there, at
//! growing intervals where it keeps failing.
//!
//! Neighbours: `placement` makes plans; `slot` keeps one replica's life; `carry` follows `routes`.

use super::slot::{Phase, Running, Slot};
use crate::placement::{Candidate, plan_replica};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use trireme_shared::api::ReplicaReport;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, WorkerId};
use trireme_shared::limits;
use trireme_shared::model::Manifest;
use trireme_shared::plan::{Assignment, DeploymentSpec, ReplicaPlan};
use trireme_shared::wire::control::RankReport;

/// A replica of a deployment.
pub type ReplicaKey = (DeploymentId, Replica);

/// Numbers the connections of this process, so that a late "lost" is not taken for the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A deployment was put, or found in the journal at start, and its model opened. `epochs` are
    /// those of the plans the journal holds for it.
    Deployed {
        id: DeploymentId,
        spec: DeploymentSpec,
        manifest: Arc<Manifest>,
        epochs: BTreeMap<Replica, Epoch>,
    },
    /// A deployment's model cannot be opened (yet).
    ModelUnavailable {
        id: DeploymentId,
        spec: DeploymentSpec,
        reason: String,
    },
    WorkerConnected {
        candidate: Candidate,
        connection: ConnectionId,
    },
    WorkerLost {
        worker: WorkerId,
        connection: ConnectionId,
        reason: String,
    },
    Ranks {
        worker: WorkerId,
        reports: Vec<RankReport>,
    },
    /// The journal holds the plan; its epoch is set.
    Planned { attempt: u64, plan: ReplicaPlan },
    PlanRefused {
        attempt: u64,
        key: ReplicaKey,
        current: Option<Epoch>,
        reason: String,
    },
    ProbeEnded {
        key: ReplicaKey,
        epoch: Epoch,
        result: Result<(), String>,
    },
    /// A stream of this epoch brought a token.
    TokensSeen { key: ReplicaKey, epoch: Epoch },
    /// Time went on.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Propose this plan; answer with `Planned` or `PlanRefused` of the same attempt.
    Commit {
        attempt: u64,
        plan: Box<ReplicaPlan>,
        previous: Option<Epoch>,
    },
    Assign {
        worker: WorkerId,
        assignment: Box<Assignment>,
    },
    Release {
        worker: WorkerId,
        deployment: DeploymentId,
        replica: Replica,
        epoch: Epoch,
    },
    /// Ask the driver for one token; answer with `ProbeEnded`.
    Probe { route: Route },
    /// To be logged.
    Up { key: ReplicaKey, epoch: Epoch },
    /// To be logged.
    Down {
        key: ReplicaKey,
        epoch: Epoch,
        reason: String,
    },
}

/// Where a replica's driver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub key: ReplicaKey,
    pub epoch: Epoch,
    pub driver: WorkerId,
    pub address: String,
    /// New sequences may go there. A route that is not ready still carries its running ones.
    pub ready: bool,
}

struct Worker {
    candidate: Candidate,
    connection: ConnectionId,
    /// When it last said anything.
    heard_at: Instant,
}

struct Deployed {
    spec: DeploymentSpec,
    /// `None` while the model cannot be opened.
    manifest: Option<Arc<Manifest>>,
    unavailable: String,
}

/// The reconciler's core.
#[derive(Default)]
pub struct Reconciler {
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
        match event {
            Event::Deployed {
                id,
                spec,
                manifest,
                epochs,
            } => self.deployed(
                id,
                spec,
                Some(manifest),
                String::new(),
                &epochs,
                &mut effects,
            ),
            Event::ModelUnavailable { id, spec, reason } => {
                self.deployed(id, spec, None, reason, &BTreeMap::new(), &mut effects);
            }
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
            Event::Planned { attempt, plan } => self.planned(attempt, plan, now, &mut effects),
            Event::PlanRefused {
                attempt,
                key,
                current,
                reason,
            } => {
                if let Some(slot) = self.slots.get_mut(&key)
                    && slot.is_committing(attempt)
                {
                    slot.epoch = current;
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

    fn deployed(
        &mut self,
        id: DeploymentId,
        spec: DeploymentSpec,
        manifest: Option<Arc<Manifest>>,
        unavailable: String,
        epochs: &BTreeMap<Replica, Epoch>,
        effects: &mut Vec<Effect>,
    ) {
        self.look_again = true;
        let same = self.deployments.get(&id).is_some_and(|d| d.spec == spec);
        if !same {
            let keys: Vec<_> = self.slots_of(id).map(|(key, _)| *key).collect();
            for key in keys {
                if let Some(slot) = self.slots.remove(&key) {
                    self.release(key, &slot, "its deployment was replaced", effects);
                }
            }
        }
        for replica in (0..spec.replicas).map(Replica) {
            let slot = self.slots.entry((id, replica)).or_default();
            if let (Some(epoch), Phase::Waiting { .. }) = (epochs.get(&replica), &slot.phase) {
                slot.epoch = Some(*epoch);
            }
        }
        let deployed = Deployed {
            spec,
            manifest,
            unavailable,
        };
        self.deployments.insert(id, deployed);
    }

    fn connected(
        &mut self,
        candidate: Candidate,
        connection: ConnectionId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let id = candidate.worker;
        if self.workers.contains_key(&id) {
            // It is a new process, or the old connection broke unseen: its rank is of no use.
            self.drop_worker(id, "reconnected", now, effects);
        }
        let worker = Worker {
            candidate,
            connection,
            heard_at: now,
        };
        self.workers.insert(id, worker);
        self.last_connect = Some(now);
        self.look_again = true;
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
            self.drop_worker(worker, reason, now, effects);
        }
    }

    fn drop_worker(
        &mut self,
        worker: WorkerId,
        reason: &str,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.workers.remove(&worker);
        let hit: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.uses(worker))
            .map(|(key, _)| *key)
            .collect();
        for key in hit {
            let reason = format!("worker {worker} was lost: {reason}");
            self.down(key, reason, now, effects);
            // The culprit is known and gone: the survivors need not prove that they live.
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.failed_at = None;
            }
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
        self.look_again |= self.slots.values().any(|slot| slot.failed_at.is_some());
        let busy = self.slots.values().any(|slot| slot.uses(worker));
        for report in reports {
            let key = (report.deployment, report.replica);
            let epoch = report.epoch;
            let Some(running) = self.running(key, epoch) else {
                // Left over from an epoch that ended while this worker was away.
                if !busy {
                    effects.push(Effect::Release {
                        worker,
                        deployment: report.deployment,
                        replica: report.replica,
                        epoch,
                    });
                }
                continue;
            };
            let was_up = running.all_ready();
            match running.report(worker, report, now) {
                Some(reason) => self.down(key, format!("worker {worker}: {reason}"), now, effects),
                None if !was_up && running.all_ready() => running.probe_now(now, key, effects),
                None => {}
            }
        }
    }

    fn planned(
        &mut self,
        attempt: u64,
        plan: ReplicaPlan,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let key = (plan.deployment, plan.replica);
        let here = |worker| self.workers.contains_key(&worker);
        let missing = plan.ranks.iter().map(|r| r.worker).find(|w| !here(*w));
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        if !slot.is_committing(attempt) {
            // A worker was lost meanwhile. Only the epoch matters now.
            slot.epoch = slot.epoch.max(Some(plan.epoch));
            return;
        }
        assert!(
            slot.epoch.is_none_or(|old| old < plan.epoch),
            "an epoch only grows"
        );
        slot.epoch = Some(plan.epoch);
        if let Some(worker) = missing {
            slot.failed(format!("worker {worker} was lost"), now);
            self.look_again = true;
            return;
        }
        for (index, rank) in plan.ranks.iter().enumerate() {
            effects.push(Effect::Assign {
                worker: rank.worker,
                assignment: Box::new(Assignment {
                    plan: plan.clone(),
                    index: index as u16,
                }),
            });
        }
        slot.phase = Phase::Running(Box::new(Running::new(plan, now)));
    }

    fn probe_ended(
        &mut self,
        key: ReplicaKey,
        epoch: Epoch,
        result: Result<(), String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
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
            Err(reason) if running.ready_since.is_none() => {
                let reason = format!("its first token did not come: {reason}");
                self.down(key, reason, now, effects);
            }
            // It worked before: asked again soon, and given up by `REPLICA_STUCK_MAX`.
            Err(_) => running.probe_failed_at = Some(now),
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.look_again = true;
        let mut stuck = Vec::new();
        for (key, slot) in &mut self.slots {
            let Phase::Running(running) = &mut slot.phase else {
                continue;
            };
            if let Some(reason) = running.overdue(now) {
                stuck.push((*key, reason));
            } else if running.probe_due(now) {
                running.probe_now(now, *key, effects);
            }
        }
        for (key, reason) in stuck {
            self.down(key, reason, now, effects);
        }
    }

    /// Ends a replica's epoch, and tells the workers that are still there.
    fn down(&mut self, key: ReplicaKey, reason: String, now: Instant, effects: &mut Vec<Effect>) {
        let Some(mut slot) = self.slots.remove(&key) else {
            return;
        };
        self.release(key, &slot, &reason, effects);
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
        for rank in &running.plan.ranks {
            if self.workers.contains_key(&rank.worker) {
                effects.push(Effect::Release {
                    worker: rank.worker,
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
