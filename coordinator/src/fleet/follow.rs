//! Follows the replicated state and the group's leadership: what they tell becomes the reconciler's
//! events and the workers' news, on every coordinator alike.
//!
//! What it keeps true: the core hears of a deployment before its plans, and of all plans in the state
//! before it begins to lead; after it stops leading it hears of all plans again.

use super::reconcile::{Event, ReplicaKey};
use super::{Driven, Fleet, trust};
use crate::raft::group::{Kind, Leadership};
use crate::state::State;
use std::collections::BTreeMap;
use trireme_shared::ids::{DeploymentId, Epoch, WorkerId};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};
use trireme_shared::wire::control::{CoordinatorAddress, ToWorker};

/// What was fed so far.
#[derive(Default)]
pub(super) struct Followed {
    pub(super) term: u64,
    leads: bool,
    /// The group, as workers are told of it.
    pub(super) coordinators: Vec<CoordinatorAddress>,
    /// The authorities and removed workers that workers were told of.
    authorities: Vec<Vec<u8>>,
    removed: Vec<WorkerId>,
    deployments: BTreeMap<DeploymentId, DeploymentSpec>,
    plans: BTreeMap<ReplicaKey, Epoch>,
}

/// What the state has that was not fed yet.
struct News {
    deployments: Vec<(DeploymentId, DeploymentSpec)>,
    removed: Vec<DeploymentId>,
    plans: Vec<ReplicaPlan>,
    coordinators: Option<Vec<CoordinatorAddress>>,
    authorities: Option<Vec<Vec<u8>>>,
    removed_workers: Option<Vec<WorkerId>>,
}

impl Fleet {
    /// Follows until the process ends.
    pub(super) async fn follow(&self) {
        let group = &self.shared.group;
        let kinds = [
            Kind::Deployments,
            Kind::Plans,
            Kind::Members,
            Kind::Workers,
            Kind::Authorities,
        ];
        let mut changes = kinds.map(|kind| group.changes(kind));
        let mut leadership = group.leadership();
        loop {
            for change in &mut changes {
                change.mark_unchanged();
            }
            leadership.borrow_and_update();
            self.catch_up();
            let any = changes.iter_mut().map(|c| Box::pin(c.changed()));
            let any = futures_util::future::select_all(any);
            let goes_on = tokio::select! {
                (changed, _, _) = any => changed.is_ok(),
                changed = leadership.changed() => changed.is_ok(),
            };
            if !goes_on {
                // The state has ended, and with it the coordinator.
                return std::future::pending().await;
            }
        }
    }

    /// Feeds what is new in the state and in the leadership. Whoever proposed a command may call it
    /// rather than wait for `follow`'s turn.
    pub(super) fn catch_up(&self) {
        let mut driven = self.lock();
        // Looked at before the state, which is then at least as new: a leader's state has all that
        // was committed before its term.
        let now: Leadership = *self.shared.group.leadership().borrow();
        let (term, leads) = (now.term, now.is_me);
        let turned = (term, leads) != (driven.followed.term, driven.followed.leads);
        driven.followed.term = term;
        driven.followed.leads = leads;
        if turned && !leads {
            driven.followed.plans.clear();
            self.feed_locked(&mut driven, Event::Leading { term, leads });
        }
        let news = self.shared.group.read(|s| driven.followed.news(s));
        for id in news.removed {
            self.feed_locked(&mut driven, Event::Undeployed { id });
        }
        for (id, spec) in news.deployments {
            self.deployed(&mut driven, id, spec);
        }
        for plan in news.plans {
            let plan = Box::new(plan);
            self.feed_locked(&mut driven, Event::Plan { plan });
        }
        if turned && leads {
            tracing::info!(term, "this coordinator leads");
            self.feed_locked(&mut driven, Event::Leading { term, leads });
        }
        if let Some(workers) = news.removed_workers {
            for worker in &workers {
                driven.dismiss(*worker);
            }
            driven.tell(&ToWorker::Removed { workers });
        }
        if let Some(authorities) = news.authorities {
            driven.tell(&ToWorker::Trust { authorities });
        }
        if turned || news.coordinators.is_some() {
            driven.tell(&ToWorker::Coordinators {
                term: driven.followed.term,
                coordinators: driven.followed.coordinators.clone(),
            });
        }
    }

    fn deployed(&self, driven: &mut Driven, id: DeploymentId, spec: DeploymentSpec) {
        let event = Event::Deployed {
            id,
            spec: spec.clone(),
        };
        self.feed_locked(driven, event);
        match self.at_hand(&spec.model) {
            Some(manifest) => {
                let event = Event::ModelOpened { id, spec, manifest };
                self.feed_locked(driven, event);
            }
            None => self.open_in_background(id, spec),
        }
    }
}

impl Followed {
    /// What `state` has that was not fed; it counts as fed from now on.
    fn news(&mut self, state: &State) -> News {
        let gone = |id: &&DeploymentId| state.deployment(**id).is_none();
        let removed: Vec<_> = self.deployments.keys().filter(gone).copied().collect();
        for id in &removed {
            self.deployments.remove(id);
        }
        let mut deployments = Vec::new();
        for deployment in state.deployments() {
            let (id, spec) = (deployment.id, &deployment.spec);
            if self.deployments.get(&id) != Some(spec) {
                self.deployments.insert(id, spec.clone());
                deployments.push((id, spec.clone()));
            }
        }
        let mut plans = Vec::new();
        for plan in state.plans() {
            let key = (plan.deployment, plan.replica);
            if self.plans.get(&key) != Some(&plan.epoch) {
                self.plans.insert(key, plan.epoch);
                plans.push(plan.clone());
            }
        }
        let coordinators = renewed(&mut self.coordinators, trust::coordinators(state));
        let authorities = renewed(&mut self.authorities, trust::trusted(state));
        let removed_workers = renewed(&mut self.removed, trust::removed_workers(state));
        News {
            deployments,
            removed,
            plans,
            coordinators,
            authorities,
            removed_workers,
        }
    }
}

/// The new value where it is another one.
fn renewed<T: PartialEq + Clone>(old: &mut T, new: T) -> Option<T> {
    if *old == new {
        return None;
    }
    old.clone_from(&new);
    Some(new)
}

impl Driven {
    /// Tells every connected worker.
    fn tell(&self, news: &ToWorker) {
        for worker in self.lines.keys() {
            self.order(*worker, news.clone());
        }
    }

    /// Ends the conversation with a worker that was removed.
    fn dismiss(&self, worker: WorkerId) {
        if let Some(line) = self.lines.get(&worker) {
            line.cut.cancel();
        }
    }
}
