//! Drives workers to the plan, and carries requests to drivers.
//!
//! What it keeps true: the reconciler's effects are performed in the order it decided them; what is
//! handed to workers is in the journal first. `reconcile` (with `slot`) decides, `control` talks with
//! workers, `dispatch`, `carry`, `progress` and `drivers` move sequences, `models` opens what is to be
//! planned, `admin` and `status` serve the admin API.

pub mod dispatch;
pub mod reconcile;

mod admin;
mod carry;
mod control;
mod drivers;
mod models;
mod progress;
mod slot;
mod status;

use crate::state::journal::{Journal, JournalError};
use crate::state::{Command, Outcome};
use dispatch::Dispatch;
use reconcile::{ConnectionId, Effect, Event, Reconciler, Route};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use trireme_shared::api::CoordinatorReport;
use trireme_shared::identity::ClusterAuthority;
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
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What a fleet needs to know of its surroundings.
pub struct FleetSetup {
    pub journal: Journal,
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
    journal: Journal,
    this: CoordinatorReport,
    cache_dir: Option<PathBuf>,
    driven: Mutex<Driven>,
    routes: watch::Sender<Vec<Route>>,
    /// Set once workers can be reached.
    endpoint: OnceLock<Endpoint>,
    drivers: drivers::Drivers,
    /// One permit for each sequence that is carried.
    carrying: Arc<Semaphore>,
}

/// The core and the lines to workers, behind one lock so that effects keep their order.
#[derive(Default)]
struct Driven {
    core: Reconciler,
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
}

impl Fleet {
    /// A fleet without workers: administrative acts and status work, `serve` makes it live.
    pub fn new(setup: FleetSetup) -> Self {
        let shared = Shared {
            journal: setup.journal,
            this: setup.this,
            cache_dir: setup.cache_dir,
            driven: Mutex::default(),
            routes: watch::Sender::default(),
            endpoint: OnceLock::new(),
            drivers: drivers::Drivers::default(),
            carrying: Arc::new(Semaphore::new(limits::DISPATCH_TASKS_MAX)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Accepts workers on `endpoint` and carries the sequences of `queue` until `shutdown`.
    pub async fn serve(
        &self,
        endpoint: Endpoint,
        authority: ClusterAuthority,
        queue: mpsc::Receiver<Dispatch>,
        shutdown: CancellationToken,
    ) {
        // Only the first caller's endpoint counts; there is one `serve` per process.
        let _ = self.shared.endpoint.set(endpoint.clone());
        self.restore_deployments(&shutdown);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = control::accept(self.clone(), endpoint, Arc::new(authority), shutdown.clone()) => {}
            () = carry::serve(self.clone(), queue) => {}
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
                tokio::spawn(self.clone().commit(attempt, *plan, previous));
            }
            Effect::Assign { worker, assignment } => {
                let plan = &assignment.plan;
                tracing::info!(%worker, replica = %plan.replica, epoch = %plan.epoch,
                    rank = assignment.index, "assigned");
                driven.order(worker, ToWorker::Assign(assignment));
            }
            Effect::Release {
                worker,
                deployment,
                replica,
                epoch,
            } => driven.order(
                worker,
                ToWorker::Release {
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

    async fn commit(self, attempt: u64, mut plan: ReplicaPlan, previous: Option<Epoch>) {
        let key = (plan.deployment, plan.replica);
        let random = getrandom::fill(&mut plan.nonce).map_err(|e| e.to_string());
        let outcome = match random {
            Ok(()) => {
                let plan = Box::new(plan.clone());
                let command = Command::CommitPlan { plan, previous };
                self.shared.journal.propose(command).await
            }
            Err(reason) => Err(JournalError::Storage(reason)),
        };
        let event = match outcome {
            Ok(Outcome::Planned(epoch)) => {
                plan.epoch = epoch;
                Event::Planned { attempt, plan }
            }
            other => Event::PlanRefused {
                attempt,
                key,
                current: self
                    .shared
                    .journal
                    .read(|s| s.plan(key.0, key.1).map(|p| p.epoch)),
                reason: match other {
                    Ok(Outcome::Refused(why)) => why.to_string(),
                    Ok(other) => format!("unexpected outcome {other:?}"),
                    Err(error) => error.to_string(),
                },
            },
        };
        self.feed(event);
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

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
