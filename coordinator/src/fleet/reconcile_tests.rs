//! Scenarios: events with times, then what the reconciler did about them.

use super::*;
use crate::placement::tests::{manifest, spec, worker};
use std::time::Duration;
use trireme_shared::model::Quantize;
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::wire::control::RankState;

const D: DeploymentId = DeploymentId(1);
const KEY: ReplicaKey = (D, Replica(0));

/// A fleet whose state takes every plan at once. Its coordinator has led for long.
struct Scene {
    core: Reconciler,
    now: Instant,
    epoch: u64,
    connections: u64,
    /// All effects so far, the newest last; `take` empties it.
    effects: Vec<Effect>,
    refuse_plans: bool,
}

impl Scene {
    fn new(tp: u16, pp: u16, replicas: u16) -> Self {
        let mut scene = Self {
            core: Reconciler::default(),
            now: Instant::now(),
            epoch: 0,
            connections: 0,
            effects: Vec::new(),
            refuse_plans: false,
        };
        scene.deploy(spec(tp, pp, replicas));
        scene.lead(1);
        scene.after(limits::LEADER_SETTLE);
        scene
    }

    /// Another coordinator of the same cluster, which has seen nothing yet but the state: `plans`.
    fn beside(&self, plans: &[ReplicaPlan]) -> Self {
        let mut other = Self {
            core: Reconciler::default(),
            now: self.now,
            epoch: self.epoch,
            connections: 0,
            effects: Vec::new(),
            refuse_plans: false,
        };
        other.deploy(self.core.spec(D).unwrap().clone());
        for plan in plans {
            let plan = Box::new(plan.clone());
            other.on(Event::Plan { plan });
        }
        other
    }

    fn deploy(&mut self, spec: DeploymentSpec) {
        let deployed = Event::Deployed {
            id: D,
            spec: spec.clone(),
        };
        self.on(deployed);
        let manifest = Arc::new(manifest());
        self.on(Event::ModelOpened {
            id: D,
            spec,
            manifest,
        });
    }

    fn lead(&mut self, term: u64) {
        self.on(Event::Leading { term, leads: true });
    }

    fn plan(&self) -> ReplicaPlan {
        match &self.core.slots[&KEY].phase {
            Phase::Running(running) => running.plan.clone(),
            _ => panic!("not planned: {}", self.why()),
        }
    }

    fn on(&mut self, event: Event) {
        let mut queue = self.core.on(event, self.now);
        while !queue.is_empty() {
            let mut next = Vec::new();
            for effect in queue {
                if let Effect::Commit { attempt, plan, .. } = &effect {
                    let event = self.commit(*attempt, plan);
                    next.extend(self.core.on(event, self.now));
                }
                self.effects.push(effect);
            }
            queue = next;
        }
    }

    fn commit(&mut self, attempt: u64, plan: &ReplicaPlan) -> Event {
        if self.refuse_plans {
            return Event::PlanRefused {
                attempt,
                key: (plan.deployment, plan.replica),
                current: None,
                reason: "no".into(),
            };
        }
        self.epoch += 1;
        let mut plan = plan.clone();
        plan.epoch = Epoch(self.epoch);
        let plan = Box::new(plan);
        Event::Plan { plan }
    }

    /// Lets time go on, in steps of a process that runs.
    fn after(&mut self, wait: Duration) -> &mut Self {
        let end = self.now + wait;
        while self.now < end {
            self.now = end.min(self.now + seconds(1));
            self.on(Event::Tick);
        }
        self
    }

    fn connect(&mut self, id: u32) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.on(Event::WorkerConnected {
            candidate: worker(id, "a"),
            connection,
        });
        connection
    }

    fn lose(&mut self, id: u32, connection: ConnectionId) {
        self.on(Event::WorkerLost {
            worker: WorkerId(id),
            connection,
            reason: "gone".into(),
        });
    }

    fn report(&mut self, id: u32, epoch: u64, state: RankState) {
        let report = RankReport {
            deployment: D,
            replica: Replica(0),
            epoch: Epoch(epoch),
            state,
            stats: None,
        };
        self.on(Event::Ranks {
            worker: WorkerId(id),
            reports: vec![report],
        });
    }

    fn alive(&mut self, id: u32) {
        self.on(Event::Ranks {
            worker: WorkerId(id),
            reports: Vec::new(),
        });
    }

    fn probe_ok(&mut self) {
        let epoch = Epoch(self.epoch);
        self.on(Event::ProbeEnded {
            key: KEY,
            epoch,
            result: Ok(()),
        });
    }

    /// Workers with an assignment, in order of assigning; forgets all effects.
    fn take_assigned(&mut self) -> Vec<(u32, u64)> {
        let of = |e: Effect| match e {
            Effect::Assign {
                worker, assignment, ..
            } => Some((worker.0, assignment.plan.epoch.0)),
            _ => None,
        };
        self.effects.drain(..).filter_map(of).collect()
    }

    fn probes(&self) -> usize {
        let probe = |e: &&Effect| matches!(e, Effect::Probe { .. });
        self.effects.iter().filter(probe).count()
    }

    fn ready(&self) -> bool {
        self.core.is_ready(D, self.now)
    }

    fn why(&self) -> String {
        let view = &self.core.replicas(D, self.now)[0];
        view.waiting_for.clone().unwrap_or_default()
    }

    /// Two connected workers whose replica is ready.
    fn two_ready() -> (Self, ConnectionId, ConnectionId) {
        let mut s = Self::new(2, 1, 1);
        let (a, b) = (s.connect(1), s.connect(2));
        s.report(1, 1, RankState::Ready);
        s.report(2, 1, RankState::Ready);
        s.probe_ok();
        assert!(s.ready());
        s.effects.clear();
        (s, a, b)
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn failed() -> RankState {
    RankState::Failed {
        reason: "no such file".into(),
    }
}

#[test]
fn a_deployments_precision_reaches_its_workers() {
    let mut s = Scene::new(1, 1, 1);
    let mut asked = spec(1, 1, 1);
    asked.precision.quantize = Some(Quantize::Q8);
    s.deploy(asked.clone());
    s.connect(1);
    let assigned = s.effects.iter().filter_map(|e| match e {
        Effect::Assign { assignment, .. } => Some(assignment.plan.precision),
        _ => None,
    });
    assert!(assigned.eq([asked.precision]));
}

#[test]
fn a_replica_is_ready_only_after_a_token_came_through() {
    let mut s = Scene::new(2, 1, 1);
    assert!(s.why().contains("needs 2 more"), "{}", s.why());
    s.connect(1);
    assert!(s.why().contains("needs 1 more"), "{}", s.why());
    assert_eq!(s.take_assigned(), []);
    s.connect(2);
    assert_eq!(s.take_assigned(), [(1, 1), (2, 1)]);
    s.report(1, 1, RankState::Ready);
    s.report(2, 1, RankState::Connecting);
    assert_eq!(s.probes(), 0);
    assert!(s.core.routes(s.now).is_empty());
    s.report(2, 1, RankState::Ready);
    assert_eq!(s.probes(), 1);
    assert!(!s.ready());
    assert!(!s.core.routes(s.now)[0].ready);
    s.probe_ok();
    assert!(s.ready());
    assert!(s.core.routes(s.now)[0].ready);
}

#[test]
fn a_worker_lost_while_loading_is_replaced_at_once_by_a_spare() {
    let mut s = Scene::new(2, 1, 1);
    let a = s.connect(1);
    s.connect(2);
    s.connect(3);
    s.take_assigned();
    let loading = RankState::Loading {
        done_bytes: 1,
        total_bytes: 2,
    };
    s.report(2, 1, loading);
    s.lose(1, a);
    // The survivor is released from epoch 1 before epoch 2 starts on it.
    let release = Effect::Release {
        worker: WorkerId(2),
        term: 1,
        deployment: D,
        replica: Replica(0),
        epoch: Epoch(1),
    };
    assert!(s.effects.contains(&release));
    assert_eq!(s.take_assigned(), [(2, 2), (3, 2)]);
    // What was still under way from epoch 1 changes nothing.
    s.report(2, 1, failed());
    s.report(2, 2, RankState::Ready);
    s.report(3, 2, RankState::Ready);
    assert_eq!(s.probes(), 1);
}

#[test]
fn a_worker_lost_while_ready_and_back_again_gets_a_new_epoch() {
    let (mut s, a, _) = Scene::two_ready();
    s.lose(1, a);
    assert!(!s.ready());
    assert!(s.core.routes(s.now).is_empty(), "streams must move on");
    assert!(s.effects.iter().any(|e| matches!(e, Effect::Down { .. })));
    assert!(s.why().contains("needs 1 more"), "{}", s.why());
    assert!(s.why().contains("worker w1 was lost"), "{}", s.why());
    assert_eq!(s.take_assigned(), []);
    s.after(seconds(60));
    assert_eq!(s.take_assigned(), []);
    s.connect(1);
    assert_eq!(s.take_assigned(), [(1, 2), (2, 2)]);
}

#[test]
fn a_late_loss_of_an_older_connection_is_not_the_newer_ones() {
    let (mut s, a, _) = Scene::two_ready();
    s.connect(1);
    assert!(!s.ready(), "nobody knows yet what it runs");
    s.report(1, 1, RankState::Ready);
    s.lose(1, a);
    assert!(s.ready());
    assert_eq!(s.take_assigned(), []);
    assert_eq!(s.core.replicas(D, s.now)[0].epoch, Some(Epoch(1)));
}

#[test]
fn a_failed_rank_waits_for_signs_of_life_so_that_a_dying_worker_is_not_planned() {
    let (mut s, _, b) = Scene::two_ready();
    s.connect(3);
    s.take_assigned();
    // Worker 2 was killed; worker 1 notices first.
    s.after(Duration::from_millis(200));
    s.report(1, 1, failed());
    assert_eq!(s.take_assigned(), []);
    s.after(Duration::from_millis(300));
    s.alive(1);
    assert_eq!(s.take_assigned(), [], "2 is silent, 3 not heard yet");
    s.alive(3);
    assert_eq!(s.take_assigned(), [(1, 2), (3, 2)]);
    s.after(seconds(2));
    s.lose(2, b);
    assert_eq!(s.take_assigned(), [], "it was not part of epoch 2");
}

#[test]
fn a_load_that_keeps_failing_is_tried_ever_more_rarely_and_says_why() {
    let mut s = Scene::new(1, 1, 1);
    s.connect(1);
    let mut starts = Vec::new();
    let began = s.now;
    while s.now - began < seconds(200) {
        for (_, epoch) in s.take_assigned() {
            starts.push(s.now - began);
            s.report(1, epoch, failed());
        }
        s.after(Duration::from_millis(100));
        s.alive(1);
    }
    let gaps: Vec<_> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[0] <= Duration::from_millis(100), "the first at once");
    assert!(gaps.windows(2).all(|g| g[0] <= g[1]), "{gaps:?}");
    let last = *gaps.last().unwrap();
    assert!(last >= limits::REPLAN_BACKOFF_MAX, "{gaps:?}");
    assert!(last <= limits::REPLAN_BACKOFF_MAX + seconds(1), "{gaps:?}");
    assert!(s.why().contains("no such file"), "{}", s.why());
}

#[test]
fn a_flapping_worker_is_planned_ever_more_rarely_but_a_sound_replica_starts_afresh() {
    let mut s = Scene::new(1, 1, 1);
    let mut plans = 0;
    for _ in 0..100 {
        let connection = s.connect(1);
        plans += s.take_assigned().len();
        s.after(Duration::from_millis(100));
        plans += s.take_assigned().len();
        s.lose(1, connection);
    }
    assert!(
        (2..12).contains(&plans),
        "{plans} plans in 10 s of flapping"
    );
    s.connect(1);
    s.after(seconds(40));
    let assigned = s.take_assigned();
    assert_eq!(assigned.len(), 1);
    s.report(1, s.epoch, RankState::Ready);
    s.probe_ok();
    s.now += seconds(31);
    s.report(1, s.epoch, failed());
    s.now += Duration::from_millis(100);
    s.alive(1);
    assert_eq!(s.take_assigned().len(), 1, "no backoff after a sound life");
}

#[test]
fn readiness_fades_without_tokens_and_a_stuck_replica_is_planned_again() {
    let (mut s, ..) = Scene::two_ready();
    s.after(seconds(9));
    assert_eq!(s.probes(), 0);
    s.after(seconds(2));
    assert_eq!(s.probes(), 1);
    s.after(seconds(1));
    assert_eq!(s.probes(), 1, "one at a time");
    assert!(s.ready());
    // Others' tokens keep it ready without a probe's answer.
    let epoch = Epoch(1);
    s.on(Event::TokensSeen { key: KEY, epoch });
    s.after(seconds(29));
    assert!(s.ready());
    s.after(seconds(2));
    assert!(!s.ready());
    assert!(!s.core.routes(s.now)[0].ready, "running streams stay");
    s.take_assigned();
    s.after(seconds(60));
    s.alive(1);
    s.alive(2);
    s.now += Duration::from_millis(1);
    s.alive(1);
    s.alive(2);
    assert_eq!(s.take_assigned(), [(1, 2), (2, 2)]);
}

#[test]
fn a_first_token_that_does_not_come_fails_the_replica() {
    let mut s = Scene::new(1, 1, 1);
    s.connect(1);
    s.report(1, 1, RankState::Ready);
    let result = Err("refused".into());
    s.on(Event::ProbeEnded {
        key: KEY,
        epoch: Epoch(1),
        result,
    });
    assert!(s.why().contains("first token did not come"), "{}", s.why());
}

#[test]
fn another_spec_replaces_every_replica_and_the_same_one_none() {
    let (mut s, ..) = Scene::two_ready();
    s.deploy(spec(2, 1, 1));
    assert!(s.ready());
    assert!(s.effects.is_empty());
    s.deploy(spec(1, 1, 2));
    let released = |e: &&Effect| matches!(e, Effect::Release { .. });
    assert_eq!(s.effects.iter().filter(released).count(), 2);
    assert_eq!(s.take_assigned(), [(1, 2), (2, 3)]);
    assert_eq!(s.core.replicas(D, s.now).len(), 2);
}

#[test]
fn with_workers_missing_the_rest_is_planned_once_the_fleet_is_quiet() {
    let mut s = Scene::new(1, 1, 3);
    s.connect(1);
    s.connect(2);
    assert_eq!(s.take_assigned(), []);
    s.after(limits::PLAN_SETTLE);
    assert_eq!(s.take_assigned().len(), 2);
}

#[test]
fn a_refused_plan_is_tried_again_and_a_late_answer_is_ignored() {
    let mut s = Scene::new(1, 1, 1);
    s.refuse_plans = true;
    s.connect(1);
    assert!(s.why().contains("plan was refused"), "{}", s.why());
    s.refuse_plans = false;
    s.alive(1);
    s.after(limits::REPLAN_BACKOFF_MIN);
    s.alive(1);
    s.after(limits::REPLAN_BACKOFF_MIN);
    let assigned = s.take_assigned();
    assert_eq!(assigned.len(), 1, "{}", s.why());
    let current = None;
    let reason = String::new();
    s.on(Event::PlanRefused {
        attempt: 1,
        key: KEY,
        current,
        reason,
    });
    assert_eq!(s.core.replicas(D, s.now)[0].epoch, Some(Epoch(1)));
}

#[test]
fn a_worker_that_still_runs_an_old_epoch_is_told_to_stop() {
    let mut s = Scene::new(2, 1, 1);
    s.connect(1);
    s.report(1, 77, RankState::Ready);
    let released = |e: &&Effect| {
        matches!(
            e,
            Effect::Release {
                epoch: Epoch(77),
                ..
            }
        )
    };
    assert_eq!(s.effects.iter().filter(released).count(), 1);
}

fn orders(scene: &Scene) -> usize {
    let order = |e: &&Effect| matches!(e, Effect::Assign { .. } | Effect::Release { .. });
    scene.effects.iter().filter(order).count()
}

/// A follower beside the leader of `two_ready`, with the same workers.
fn follower(leader: &Scene) -> (Scene, ConnectionId, ConnectionId) {
    let mut s = leader.beside(&[leader.plan()]);
    let (a, b) = (s.connect(1), s.connect(2));
    s.report(1, 1, RankState::Ready);
    assert!(!s.ready());
    s.report(2, 1, RankState::Ready);
    assert_eq!(s.probes(), 1);
    s.probe_ok();
    assert!(s.ready());
    assert_eq!(s.core.routes(s.now), leader.core.routes(leader.now));
    assert_eq!(orders(&s), 0);
    s.effects.clear();
    (s, a, b)
}

#[test]
fn a_follower_knows_the_routes_and_gives_no_orders() {
    let (leader, ..) = Scene::two_ready();
    let (mut s, a, _) = follower(&leader);
    // A worker that this coordinator alone does not see: nothing new goes there, nothing is cut.
    s.lose(1, a);
    assert!(!s.ready());
    assert!(!s.core.routes(s.now)[0].ready);
    assert!(s.why().contains("w1 to report again"), "{}", s.why());
    s.after(seconds(30));
    s.connect(1);
    s.report(1, 1, RankState::Ready);
    s.probe_ok();
    assert!(s.ready());
    // Failures and leftovers are the leader's to see to.
    s.connect(3);
    s.report(3, 77, RankState::Ready);
    s.report(2, 1, failed());
    s.after(seconds(100));
    s.alive(1);
    assert!(!s.ready());
    assert_eq!(orders(&s), 0);
    let commits = |e: &&Effect| matches!(e, Effect::Commit { .. } | Effect::Down { .. });
    assert_eq!(s.effects.iter().filter(commits).count(), 0);
    // The leader plans anew; its plan comes by the state, and an older one is old news.
    let mut plan = leader.plan();
    plan.epoch = Epoch(2);
    s.on(Event::Plan {
        plan: Box::new(plan),
    });
    s.on(Event::Plan {
        plan: Box::new(leader.plan()),
    });
    s.report(1, 2, RankState::Ready);
    s.report(2, 2, RankState::Ready);
    assert_eq!(s.core.routes(s.now)[0].epoch, Epoch(2));
    assert_eq!(orders(&s), 0);
}

#[test]
fn a_follower_that_takes_over_changes_nothing_that_runs() {
    let (leader, ..) = Scene::two_ready();
    let (mut s, _, b) = follower(&leader);
    s.lead(2);
    s.after(seconds(60));
    assert!(s.core.routes(s.now)[0].epoch == Epoch(1));
    assert_eq!(orders(&s), 0);
    // From now on it is the one that acts, in its own term.
    s.lose(2, b);
    let release = Effect::Release {
        worker: WorkerId(1),
        term: 2,
        deployment: D,
        replica: Replica(0),
        epoch: Epoch(1),
    };
    assert!(s.effects.contains(&release));
    s.connect(2);
    s.epoch = 1;
    s.after(seconds(1));
    assert_eq!(s.take_assigned(), [(1, 2), (2, 2)]);
}

#[test]
fn a_restarted_coordinator_adopts_what_runs() {
    let (before, ..) = Scene::two_ready();
    let mut s = before.beside(&[before.plan()]);
    s.lead(2);
    s.connect(1);
    s.report(1, 1, RankState::Ready);
    // Worker 2 is slow to notice: it is waited for.
    s.after(limits::LEADER_SETTLE - Duration::from_millis(1));
    s.connect(2);
    s.report(2, 1, RankState::Ready);
    s.probe_ok();
    s.after(seconds(10));
    assert!(s.ready());
    assert_eq!(s.core.replicas(D, s.now)[0].epoch, Some(Epoch(1)));
    assert_eq!(orders(&s), 0);
}

#[test]
fn a_probe_that_fails_on_an_adopted_replica_does_not_end_it() {
    let (before, ..) = Scene::two_ready();
    let (mut s, ..) = follower(&before);
    s = s.beside(&[before.plan()]);
    s.lead(2);
    for worker in [1, 2] {
        s.connect(worker);
        s.report(worker, 1, RankState::Ready);
    }
    let result = Err("its waiting room is full".into());
    s.on(Event::ProbeEnded {
        key: KEY,
        epoch: Epoch(1),
        result,
    });
    assert_eq!(s.probes(), 1);
    s.after(limits::REPLAN_BACKOFF_MIN);
    assert_eq!(s.probes(), 2, "asked again");
    assert_eq!(orders(&s), 0);
}

#[test]
fn a_new_leader_plans_around_a_worker_that_is_really_gone() {
    let (before, ..) = Scene::two_ready();
    let mut s = before.beside(&[before.plan()]);
    s.lead(2);
    for worker in [1, 3] {
        s.connect(worker);
    }
    s.report(1, 1, RankState::Ready);
    s.after(limits::LEADER_SETTLE - Duration::from_millis(1));
    assert_eq!(s.take_assigned(), []);
    s.after(Duration::from_millis(1));
    assert!(s.effects.iter().any(|e| matches!(e, Effect::Down { .. })));
    assert_eq!(s.take_assigned(), [(1, 2), (3, 2)]);
}

#[test]
fn a_worker_that_came_back_as_another_process_ends_the_epoch_at_once() {
    let (before, ..) = Scene::two_ready();
    let mut s = before.beside(&[before.plan()]);
    s.lead(2);
    s.connect(1);
    let mut candidate = worker(2, "a");
    candidate.address = "10.9.9.9:9".into();
    let connection = ConnectionId(9);
    s.on(Event::WorkerConnected {
        candidate,
        connection,
    });
    assert!(s.effects.iter().any(|e| matches!(e, Effect::Down { .. })));
}

#[test]
fn a_new_leader_hands_out_a_plan_that_the_last_one_could_not() {
    let (before, ..) = Scene::two_ready();
    let mut s = before.beside(&[before.plan()]);
    for worker in [1, 2] {
        s.connect(worker);
    }
    s.report(1, 1, RankState::Ready);
    s.alive(2);
    s.lead(2);
    assert_eq!(s.take_assigned(), [(2, 1)], "the same epoch");
    // Its next heartbeat may have been on the way before the order was.
    s.alive(2);
    s.after(seconds(1));
    assert_eq!(s.take_assigned(), []);
    s.report(2, 1, RankState::Ready);
    s.probe_ok();
    assert!(s.ready());
    // A rank that ran and is not reported any more is gone.
    s.alive(2);
    assert!(s.effects.iter().any(|e| matches!(e, Effect::Down { .. })));
}

#[test]
fn a_leader_that_is_deposed_follows_what_it_had_given_up() {
    let (mut s, a, _) = Scene::two_ready();
    let plan = s.plan();
    s.lose(1, a);
    // The state goes on telling the plan, which this leader has ended.
    s.on(Event::Plan {
        plan: Box::new(plan.clone()),
    });
    assert!(s.why().contains("needs 1 more"), "{}", s.why());
    s.on(Event::Leading {
        term: 2,
        leads: false,
    });
    s.on(Event::Plan {
        plan: Box::new(plan),
    });
    s.effects.clear();
    s.connect(1);
    s.report(1, 1, RankState::Ready);
    s.report(2, 1, RankState::Ready);
    s.probe_ok();
    assert!(s.ready(), "the new leader saw no failure");
    assert_eq!(orders(&s), 0);
}

#[test]
fn a_coordinator_that_stood_still_gives_its_workers_time_to_come_back() {
    let (mut s, a, b) = Scene::two_ready();
    // It was stopped or its machine suspended; all connections are dead.
    s.now += seconds(20);
    s.lose(1, a);
    s.lose(2, b);
    s.after(seconds(2));
    s.connect(1);
    s.connect(2);
    s.report(1, 1, RankState::Ready);
    s.report(2, 1, RankState::Ready);
    s.probe_ok();
    assert!(s.ready());
    assert_eq!(orders(&s), 0);
}
