//! The life of one replica: waiting for a plan, its plan on the way to the state, running.
//! Pure; `reconcile` owns the slots and moves them.

use super::reconcile::{ConnectionId, Effect, ReplicaKey, Route};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use trireme_shared::api::ReplicaReport;
use trireme_shared::ids::{Epoch, Replica, WorkerId};
use trireme_shared::limits;
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::wire::control::{EngineStats, RankReport, RankState};

pub(super) enum Phase {
    /// `why` is for status.
    Waiting {
        why: String,
    },
    /// A plan with these workers is being made durable.
    Committing {
        attempt: u64,
        workers: BTreeSet<WorkerId>,
    },
    Running(Box<Running>),
}

pub(super) struct Slot {
    pub(super) phase: Phase,
    /// Of the newest plan in the state.
    pub(super) epoch: Option<Epoch>,
    /// The newest epoch that this coordinator ended, as leader; the state has it until the next plan.
    pub(super) ended: Option<Epoch>,
    /// In a row.
    failures: u32,
    pub(super) retry_at: Option<Instant>,
    /// Workers not heard from since then are not planned with: a rank's failure is often the first
    /// sign that another worker died, noticed before that one's connection times out.
    pub(super) failed_at: Option<Instant>,
    pub(super) last_failure: Option<String>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            phase: Phase::Waiting {
                why: "workers to connect".into(),
            },
            epoch: None,
            ended: None,
            failures: 0,
            retry_at: None,
            failed_at: None,
            last_failure: None,
        }
    }
}

/// A replica whose plan is in the state, as this coordinator sees it.
pub(super) struct Running {
    pub(super) plan: ReplicaPlan,
    /// This coordinator made the plan, and hands it out; others' plans are adopted as they run.
    own: bool,
    /// In the order of `plan.ranks`.
    ranks: Vec<SeenRank>,
    stats: Option<EngineStats>,
    /// When a rank last got further, before all were ready; when the last became ready, after.
    progress_at: Instant,
    pub(super) ready_since: Option<Instant>,
    last_token: Option<Instant>,
    pub(super) probe_sent: Option<Instant>,
    pub(super) probe_failed_at: Option<Instant>,
}

/// One rank, from its worker's reports to this coordinator.
struct SeenRank {
    state: RankState,
    /// Reported under this epoch over the worker's present connection.
    here: bool,
    /// Reported under this epoch before.
    known: bool,
    /// The connection over which it was last assigned.
    assigned: Option<ConnectionId>,
}

/// What the leader has to do about a rank.
pub(super) enum Need {
    Nothing,
    Assign,
    /// It ran and does not any more.
    Replan,
}

impl Slot {
    pub(super) fn is_committing(&self, of: u64) -> bool {
        matches!(self.phase, Phase::Committing { attempt, .. } if attempt == of)
    }

    pub(super) fn workers(&self) -> Vec<WorkerId> {
        match &self.phase {
            Phase::Waiting { .. } => Vec::new(),
            Phase::Committing { workers, .. } => workers.iter().copied().collect(),
            Phase::Running(running) => running.plan.ranks.iter().map(|r| r.worker).collect(),
        }
    }

    pub(super) fn uses(&self, worker: WorkerId) -> bool {
        match &self.phase {
            Phase::Waiting { .. } => false,
            Phase::Committing { workers, .. } => workers.contains(&worker),
            Phase::Running(running) => running.plan.ranks.iter().any(|r| r.worker == worker),
        }
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Running(running) => running.is_fresh(now),
            _ => false,
        }
    }

    /// Back to waiting. The first failure is retried at once; further ones at growing intervals.
    pub(super) fn failed(&mut self, reason: String, now: Instant) {
        if let Phase::Running(running) = &self.phase
            && running
                .ready_since
                .is_some_and(|at| now.saturating_duration_since(at) >= limits::REPLICA_SOUND_AFTER)
        {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + backoff(self.failures));
        self.failed_at = Some(now);
        self.phase = Phase::Waiting {
            why: format!("another attempt: {reason}"),
        };
        self.last_failure = Some(reason);
    }

    /// As the admin API shows it. The plan's nonce is zeroed: whoever knows it can open the replica's
    /// links.
    pub(super) fn view(&self, replica: Replica, now: Instant) -> ReplicaReport {
        let running = match &self.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        };
        let waiting_for = match &self.phase {
            Phase::Waiting { why } => Some(why.clone()),
            Phase::Committing { .. } => Some("its plan to be recorded".into()),
            Phase::Running(running) => running.missing(),
        };
        ReplicaReport {
            replica,
            epoch: self.epoch,
            ready: self.is_ready(now),
            waiting_for,
            plan: running.map(|r| ReplicaPlan {
                nonce: [0; 16],
                ..r.plan.clone()
            }),
            ranks: running.map(|r| r.states()).unwrap_or_default(),
            stats: running.and_then(|r| r.stats),
        }
    }
}

/// Nothing, then `REPLAN_BACKOFF_MIN`, doubling up to `REPLAN_BACKOFF_MAX`.
fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => {
            let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
            limits::REPLAN_BACKOFF_MIN
                .saturating_mul(factor)
                .min(limits::REPLAN_BACKOFF_MAX)
        }
    }
}

impl Running {
    /// `own`: this coordinator made the plan.
    pub(super) fn new(plan: ReplicaPlan, own: bool, now: Instant) -> Self {
        let unreported = || SeenRank {
            state: RankState::Fetching {
                done_bytes: 0,
                total_bytes: 0,
            },
            here: false,
            known: false,
            assigned: None,
        };
        Self {
            ranks: plan.ranks.iter().map(|_| unreported()).collect(),
            plan,
            own,
            stats: None,
            progress_at: now,
            ready_since: None,
            last_token: None,
            probe_sent: None,
            probe_failed_at: None,
        }
    }

    pub(super) fn all_ready(&self) -> bool {
        let ready = |rank: &SeenRank| rank.here && rank.state == RankState::Ready;
        self.ranks.iter().all(ready)
    }

    /// A first token that does not come is the plan's fault: nobody else uses it yet.
    pub(super) fn is_unproven(&self) -> bool {
        self.own && self.ready_since.is_none()
    }

    fn rank_of(&mut self, worker: WorkerId) -> Option<(usize, &mut SeenRank)> {
        let index = self.plan.ranks.iter().position(|r| r.worker == worker)?;
        Some((index, self.ranks.get_mut(index)?))
    }

    /// Takes one rank's report.
    pub(super) fn report(&mut self, worker: WorkerId, report: RankReport, now: Instant) {
        let Some((index, rank)) = self.rank_of(worker) else {
            return;
        };
        rank.here = true;
        rank.known = true;
        let changed = rank.state != report.state;
        rank.state = report.state;
        if changed {
            self.progress_at = now;
        }
        if index == 0 && report.stats.is_some() {
            self.stats = report.stats;
        }
    }

    /// The worker does not say (any more) that it runs its rank.
    pub(super) fn absent(&mut self, worker: WorkerId) {
        if let Some((_, rank)) = self.rank_of(worker) {
            rank.here = false;
        }
    }

    /// The first rank that gave up, and why.
    pub(super) fn gave_up(&self) -> Option<String> {
        let placed = self.plan.ranks.iter().zip(&self.ranks);
        placed
            .filter_map(|(placement, rank)| match &rank.state {
                RankState::Failed { reason } => {
                    Some(format!("worker {}: {reason}", placement.worker))
                }
                _ => None,
            })
            .next()
    }

    /// What the leader owes this worker, all workers of the plan being connected. `spoke`: it has
    /// reported over this connection. Its own new plan is handed out without waiting for that.
    pub(super) fn need(&self, index: usize, connection: ConnectionId, spoke: bool) -> Need {
        match self.ranks.get(index) {
            Some(rank) if !rank.here => match rank {
                SeenRank { known: true, .. } if spoke => Need::Replan,
                SeenRank { known: true, .. } => Need::Nothing,
                SeenRank { assigned, .. } if *assigned == Some(connection) => Need::Nothing,
                _ if spoke || self.own => Need::Assign,
                _ => Need::Nothing,
            },
            _ => Need::Nothing,
        }
    }

    pub(super) fn assigned(&mut self, index: usize, connection: ConnectionId) {
        if let Some(rank) = self.ranks.get_mut(index) {
            rank.assigned = Some(connection);
        }
    }

    /// Whose report is waited for, in words, where it came before.
    fn missing(&self) -> Option<String> {
        let mut placed = self.plan.ranks.iter().zip(&self.ranks);
        let (placement, _) = placed.find(|(_, rank)| rank.known && !rank.here)?;
        Some(format!("worker {} to report again", placement.worker))
    }

    fn states(&self) -> Vec<RankState> {
        self.ranks.iter().map(|rank| rank.state.clone()).collect()
    }

    /// A token came out of the last stage, so every stage works.
    pub(super) fn token_seen(&mut self, now: Instant) {
        self.last_token = Some(now);
        self.ready_since.get_or_insert(now);
        self.probe_failed_at = None;
    }

    fn is_fresh(&self, now: Instant) -> bool {
        let fresh = |at| now.saturating_duration_since(at) < limits::REPLICA_FRESH_MAX;
        self.all_ready() && self.last_token.is_some_and(fresh)
    }

    pub(super) fn probe_due(&self, now: Instant) -> bool {
        let past = |at| now.saturating_duration_since(at) >= limits::PROBE_INTERVAL;
        self.all_ready()
            && self.probe_sent.is_none()
            && self.last_token.is_none_or(past)
            && self
                .probe_failed_at
                .is_none_or(|at| now.saturating_duration_since(at) >= limits::REPLAN_BACKOFF_MIN)
    }

    pub(super) fn probe_now(&mut self, now: Instant, key: ReplicaKey, effects: &mut Vec<Effect>) {
        if let Some(route) = self.route(key) {
            self.probe_sent = Some(now);
            effects.push(Effect::Probe { route });
        }
    }

    /// Why this replica has to be given up, if it has. Silence before `floor`, when this coordinator
    /// began to lead, does not count: it may have been out of touch.
    pub(super) fn overdue(&self, now: Instant, floor: Instant) -> Option<String> {
        let since = |at: Instant| now.saturating_duration_since(at.max(floor));
        if !self.all_ready() {
            let silent = since(self.progress_at);
            return (silent >= limits::REPLICA_START_SILENCE_MAX)
                .then(|| format!("no rank got any further for {} s", silent.as_secs()));
        }
        let silent = since(self.last_token.unwrap_or(self.progress_at));
        (silent >= limits::REPLICA_STUCK_MAX)
            .then(|| format!("no token came for {} s", silent.as_secs()))
    }

    /// Where its driver is, once every rank ran. A worker that is out of this coordinator's sight
    /// afterwards may serve on: whether the driver answers is what streams find out. `ready` is left
    /// to the caller.
    pub(super) fn route(&self, key: ReplicaKey) -> Option<Route> {
        if !self.all_ready() && self.ready_since.is_none() {
            return None;
        }
        let driver = self.plan.ranks.first()?;
        Some(Route {
            key,
            epoch: self.plan.epoch,
            driver: driver.worker,
            address: driver.address.clone(),
            ready: false,
        })
    }
}
