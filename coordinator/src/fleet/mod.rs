//! Drives workers to the plan, and carries requests to drivers.
//!
//! What it keeps true: the reconciler's effects are performed in the order it decided them; what is
//! handed to workers is in the state first. `follow` feeds what the state and the group tell,
//! `reconcile` (with `slot`) decides, `control` talks with workers, `dispatch`, `carry`, `progress` and
//! `drivers` move sequences, `work` says whose workers did how much of them, `models` opens what is to be
//! planned, `admin`, `accounts` and `status` serve the admin API, `trust` says which authorities and nodes count,
//! `inventory` keeps what workers offer. All of it runs on every coordinator; `reconcile` knows what the
//! leader alone does.

pub mod dispatch;
pub mod reconcile;

mod accounts;
mod admin;
mod carry;
mod control;
mod drivers;
mod follow;
mod inventory;
mod models;
mod progress;
mod slot;
mod status;
mod trust;
mod webhooks;
pub mod work;

use crate::places::SharedPlaces;
use crate::raft::group::{Group, GroupError};
use crate::state::{Command, Outcome};
use dispatch::Dispatch;
use reconcile::{ConnectionId, Effect, Event, Reconciler, Route};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use trireme_shared::api::CoordinatorReport;
use trireme_shared::ids::{DeploymentId, Epoch, WorkerId};
use trireme_shared::limits;
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::transport::Endpoint;
use trireme_shared::wire::control::{Inventory, ToWorker};

/// Why an administrative act was refused; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("{0}")]
    Refused(String),
    /// What the act is about does not exist.
    #[error("{0}")]
    Unknown(String),
    /// The act took effect before, under the same proposal id, or may have.
    #[error("{0}")]
    Earlier(String),
    #[error("{why}")]
    TooOften { why: String, retry_after_ms: u64 },
    /// It can be asked again in a moment.
    #[error("{0}")]
    NotYet(String),
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// What a fleet needs to know of its surroundings.
pub struct FleetSetup {
    pub group: Group,
    /// This coordinator, as status shows it.
    pub this: CoordinatorReport,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
}

/// The fleet as the gateway sees it. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    group: Group,
    this: CoordinatorReport,
    cache_dir: Option<PathBuf>,
    opened: models::OpenedModels,
    signer: trust::Signer,
    /// Cancelled once workers may report.
    live: CancellationToken,
    /// Ends the tasks that nobody waits for.
    stop: CancellationToken,
    driven: Mutex<Driven>,
    routes: watch::Sender<Vec<Route>>,
    /// Set once workers can be reached.
    endpoint: OnceLock<Endpoint>,
    /// A worker has said what it offers.
    hello: Notify,
    drivers: drivers::Drivers,
    /// One permit for each sequence that is carried.
    carrying: Arc<Semaphore>,
    /// Who has how many of those.
    places: SharedPlaces,
}

/// The core and the lines to workers, behind one lock so that effects keep their order.
#[derive(Default)]
struct Driven {
    core: Reconciler,
    followed: follow::Followed,
    lines: BTreeMap<WorkerId, Line>,
    /// The last word of each worker on itself, connected or not.
    inventories: BTreeMap<WorkerId, (String, Inventory)>,
    last_connection: u64,
}

/// A connected worker's queue of orders.
struct Line {
    connection: ConnectionId,
    orders: mpsc::Sender<ToWorker>,
    /// Ends the conversation.
    cut: CancellationToken,
    /// Authorities that it said it trusts (SHA-256 of their certificates).
    trusts: Vec<[u8; 32]>,
}

impl Fleet {
    /// A fleet without workers: administrative acts and status work, `serve` makes it live.
    pub fn new(setup: FleetSetup) -> Self {
        let shared = Shared {
            group: setup.group,
            this: setup.this,
            cache_dir: setup.cache_dir,
            opened: models::OpenedModels::default(),
            signer: trust::Signer::default(),
            live: CancellationToken::new(),
            stop: CancellationToken::new(),
            driven: Mutex::default(),
            routes: watch::Sender::default(),
            endpoint: OnceLock::new(),
            hello: Notify::new(),
            drivers: drivers::Drivers::default(),
            carrying: Arc::new(Semaphore::new(limits::DISPATCH_TASKS_MAX)),
            places: SharedPlaces::new(limits::DISPATCH_TASKS_MAX),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Takes in what the state knows, then lets workers in and carries the sequences of `queue` until `shutdown`.
    pub async fn serve(
        &self,
        endpoint: Endpoint,
        queue: mpsc::Receiver<Dispatch>,
        shutdown: CancellationToken,
    ) {
        // Only the first caller's endpoint counts; there is one `serve` per process.
        let _ = self.shared.endpoint.set(endpoint.clone());
        let _stop = self.shared.stop.clone().drop_guard();
        // What is known is fed before the first worker reports what it runs.
        self.catch_up();
        self.shared.live.cancel();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = carry::serve(self.clone(), queue) => {}
            () = self.follow() => {}
            () = self.keep_inventories() => {}
            () = self.tick() => {}
        }
    }

    /// A token has come through every stage of at least one replica, recently.
    pub fn is_ready(&self, deployment: DeploymentId) -> bool {
        self.lock().core.is_ready(deployment, Instant::now())
    }

    /// Waits until no sequence is carried any more, at most `limits::DRAIN_DEADLINE`. The gateway
    /// must have stopped taking requests. Gives how many were cut off.
    pub async fn drain(&self) -> usize {
        let all = limits::DISPATCH_TASKS_MAX as u32;
        let idle = self.shared.carrying.acquire_many(all);
        let ended = tokio::time::timeout(limits::DRAIN_DEADLINE, idle).await;
        match ended {
            Ok(_) => 0,
            Err(_) => limits::DISPATCH_TASKS_MAX - self.shared.carrying.available_permits(),
        }
    }

    async fn tick(&self) {
        let mut interval = tokio::time::interval(limits::RECONCILE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.feed(Event::Tick);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Driven> {
        self.shared
            .driven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an event to the core and performs what it decides. Never blocks.
    fn feed(&self, event: Event) {
        let mut driven = self.lock();
        self.feed_locked(&mut driven, event);
    }

    fn feed_locked(&self, driven: &mut Driven, event: Event) {
        let now = Instant::now();
        for effect in driven.core.on(event, now) {
            self.perform(driven, effect);
        }
        let routes = driven.core.routes(now);
        self.shared.routes.send_if_modified(|old| {
            let changed = *old != routes;
            if changed {
                *old = routes;
            }
            changed
        });
    }

    fn perform(&self, driven: &Driven, effect: Effect) {
        match effect {
            Effect::Commit {
                attempt,
                plan,
                previous,
            } => {
                let term = driven.followed.term;
                tokio::spawn(self.clone().commit(attempt, *plan, previous, term));
            }
            Effect::Assign {
                worker,
                term,
                assignment,
            } => {
                let plan = &assignment.plan;
                tracing::info!(%worker, replica = %plan.replica, epoch = %plan.epoch,
                    rank = assignment.index, "assigned");
                driven.order(worker, ToWorker::Assign { term, assignment });
            }
            Effect::Release {
                worker,
                term,
                deployment,
                replica,
                epoch,
            } => driven.order(
                worker,
                ToWorker::Release {
                    term,
                    deployment,
                    replica,
                    epoch,
                },
            ),
            Effect::Probe { route } => {
                let fleet = self.clone();
                tokio::spawn(async move {
                    let result = carry::probe(&fleet, &route).await;
                    let (key, epoch) = (route.key, route.epoch);
                    fleet.feed(Event::ProbeEnded { key, epoch, result });
                });
            }
            Effect::Up { key, epoch } => {
                tracing::info!(deployment = %key.0, replica = %key.1, %epoch, "replica ready");
            }
            Effect::Down { key, epoch, reason } => {
                tracing::warn!(deployment = %key.0, replica = %key.1, %epoch, reason, "replica down");
            }
        }
    }

    /// Proposes as leader of `term`. The wish of a leader that was deposed must not be carried to
    /// the next one: that one sees other workers.
    async fn commit(self, attempt: u64, mut plan: ReplicaPlan, previous: Option<Epoch>, term: u64) {
        let key = (plan.deployment, plan.replica);
        let random = getrandom::fill(&mut plan.nonce).map_err(|e| e.to_string());
        let outcome = match random {
            Ok(()) => {
                let plan = Box::new(plan);
                let command = Command::CommitPlan { plan, previous };
                let mut leadership = self.shared.group.leadership();
                tokio::select! {
                    outcome = self.shared.group.propose(command) => outcome,
                    _ = leadership.wait_for(|l| !l.is_me || l.term != term) => return,
                }
            }
            Err(reason) => Err(GroupError::Random(reason)),
        };
        let refused = match outcome {
            // The plan comes back from the state, as it does to every coordinator.
            Ok(Outcome::Planned(_)) => return self.catch_up(),
            Ok(Outcome::Refused(why)) => why.to_string(),
            Ok(other) => format!("unexpected outcome {other:?}"),
            Err(error) => error.to_string(),
        };
        let current = |s: &crate::state::State| s.plan(key.0, key.1).map(|p| p.epoch);
        self.feed(Event::PlanRefused {
            attempt,
            key,
            current: self.shared.group.read(current),
            reason: refused,
        });
    }
}

impl Driven {
    /// Queues an order. A worker that does not take its orders is cut off, and planned around.
    fn order(&self, worker: WorkerId, order: ToWorker) {
        if let Some(line) = self.lines.get(&worker)
            && line.orders.try_send(order).is_err()
        {
            line.cut.cancel();
        }
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
