//! The agent's loop: carries out what `core` decides. The only place of this room that waits on
//! everything at once; it sleeps unless something happens.

use super::control::{ControlLink, Heard};
use super::core::{Core, Effect, Event};
use super::generate::Admission;
use super::rank::CurrentRank;
use super::worker_file;
use crate::engine::{RankHandle, RankSpec};
use crate::parallel::mesh::IncomingLinks;
use crate::{WorkerConfig, WorkerError};
use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::WorkerId;
use trireme_shared::limits::{
    DRAIN_DEADLINE, GOODBYE_DEADLINE, HEARTBEAT_INTERVAL, WORKER_EXIT_DEADLINE,
};
use trireme_shared::plan::Assignment;
use trireme_shared::transport::Endpoint;
use trireme_shared::wire::control::{RankReport, RankState, ToCoordinator};

pub struct Agent {
    pub config: WorkerConfig,
    pub worker: WorkerId,
    pub endpoint: Endpoint,
    pub incoming: IncomingLinks,
    pub rank: CurrentRank,
    pub admission: Admission,
    pub control: ControlLink,
}

/// What changes while the agent runs.
#[derive(Default)]
struct Now {
    core: Core,
    /// The coordinator has welcomed us and the link still stands.
    connected: bool,
    state: Option<watch::Receiver<RankState>>,
    /// The kind of state last reported; progress within one kind waits for the next heartbeat.
    reported: Option<Discriminant<RankState>>,
    stopping: Option<JoinHandle<()>>,
    drain: Drain,
    exiting: bool,
}

/// How far a drain has come.
#[derive(Clone, Copy, Default, PartialEq)]
enum Drain {
    #[default]
    NotAsked,
    /// Streams may end until then.
    Until(Instant),
    Over,
}

impl Agent {
    /// Serves until the coordinator or `shutdown` ends it.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let mut now = Now::default();
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        // After a pause (a suspended machine) one heartbeat is enough.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outcome = Ok(());
        while !now.exiting {
            tokio::select! {
                heard = self.control.heard.recv() => match heard {
                    Some(Heard::Up) => {
                        now.connected = true;
                        self.report(&mut now);
                        let address = self.endpoint.local_addr();
                        if let Err(error) = worker_file::write(&self.config, self.worker, address) {
                            outcome = Err(error);
                            break;
                        }
                    }
                    Some(Heard::Down) => now.connected = false,
                    Some(Heard::Message(message)) => self.on(&mut now, Event::Heard(message)),
                    Some(Heard::Fatal(error)) => {
                        outcome = Err(error);
                        break;
                    }
                    None => break,
                },
                _ = heartbeat.tick(), if now.connected => self.report(&mut now),
                () = changed(&mut now.state) => {
                    let kind = now.state.as_ref().map(|state| discriminant(&*state.borrow()));
                    if kind != now.reported {
                        self.report(&mut now);
                    }
                }
                () = ended(&mut now.stopping) => self.on(&mut now, Event::Stopped),
                () = shutdown.cancelled(), if now.drain == Drain::NotAsked => {
                    self.on(&mut now, Event::Shutdown);
                }
                () = drained(&self.admission, now.drain) => {
                    now.drain = Drain::Over;
                    self.on(&mut now, Event::Drained);
                }
            }
        }
        self.end(now).await;
        outcome
    }

    fn on(&mut self, now: &mut Now, event: Event) {
        let mut effects = VecDeque::from(now.core.on(event));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Start(assignment) => self.start(now, *assignment),
                Effect::Stop => match self.rank.take() {
                    Some(handle) => now.stop(handle),
                    None => effects.extend(now.core.on(Event::Stopped)),
                },
                Effect::Report => self.report(now),
                Effect::BeginDrain => {
                    tracing::info!("draining");
                    self.admission.close();
                    now.drain = Drain::Until(Instant::now() + DRAIN_DEADLINE);
                }
                Effect::SayGoodbye => {
                    if now.connected {
                        let _ = self.control.say.try_send(ToCoordinator::Goodbye);
                    }
                    // The last word: a heartbeat after it would look like a return.
                    now.connected = false;
                }
                Effect::Exit => now.exiting = true,
            }
        }
    }

    fn start(&mut self, now: &mut Now, assignment: Assignment) {
        let plan = &assignment.plan;
        tracing::info!(
            deployment = %plan.deployment, replica = %plan.replica, epoch = %plan.epoch,
            index = assignment.index, "starting a rank"
        );
        let handle = RankHandle::start(RankSpec {
            assignment,
            threads: self.config.threads,
            host_threads: self.config.host_threads,
            isa: self.config.isa,
            endpoint: self.endpoint.clone(),
            incoming: self.incoming.clone(),
            runtime: tokio::runtime::Handle::current(),
            cache_dir: self.config.cache_dir.clone(),
        });
        now.state = Some(self.rank.set(handle));
        now.reported = None;
        self.report(now);
    }

    /// A heartbeat, if somebody listens. One that finds the queue full is left out: the next says
    /// the same and more.
    fn report(&mut self, now: &mut Now) {
        if !now.connected {
            return;
        }
        let report = now.core.running().zip(now.state.as_mut());
        let ranks = report.map(|(key, state)| {
            let state = state.borrow_and_update().clone();
            now.reported = Some(discriminant(&state));
            RankReport {
                deployment: key.deployment,
                replica: key.replica,
                epoch: key.epoch,
                state,
                stats: self.rank.stats(),
            }
        });
        let ranks = ranks.into_iter().collect();
        let _ = self
            .control
            .say
            .try_send(ToCoordinator::Heartbeat { ranks });
    }

    /// Stops what still runs and closes everything, each with its deadline.
    async fn end(self, mut now: Now) {
        if let Some(handle) = self.rank.take() {
            now.stop(handle);
        }
        let stopped = timeout(WORKER_EXIT_DEADLINE, ended_once(&mut now.stopping)).await;
        if stopped.is_err() {
            tracing::warn!("the rank did not stop in time");
        }
        drop(self.control.say);
        drop(self.control.heard);
        let mut task = self.control.task;
        if timeout(GOODBYE_DEADLINE * 2, &mut task).await.is_err() {
            task.abort();
        }
        self.endpoint.close().await;
        tracing::info!("left");
    }
}

impl Now {
    /// Stopping blocks (it joins the rank's threads), so it has a thread of its own.
    fn stop(&mut self, handle: RankHandle) {
        self.state = None;
        self.reported = None;
        self.stopping = Some(tokio::task::spawn_blocking(move || handle.stop()));
    }
}

/// Waits for a change of the rank's state; for ever without a rank.
async fn changed(state: &mut Option<watch::Receiver<RankState>>) {
    if let Some(receiver) = state
        && receiver.changed().await.is_ok()
    {
        return;
    }
    // No rank, or one whose thread is gone: its last state stays, and heartbeats report it.
    std::future::pending().await
}

/// Waits until the rank that is being stopped is gone; for ever if none is.
async fn ended(stopping: &mut Option<JoinHandle<()>>) {
    if stopping.is_none() {
        std::future::pending().await
    }
    ended_once(stopping).await;
}

async fn ended_once(stopping: &mut Option<JoinHandle<()>>) {
    if let Some(task) = stopping {
        if let Err(error) = task.await {
            tracing::error!(%error, "stopping the rank failed");
        }
        *stopping = None;
    }
}

/// Returns once a drain's streams have ended or may not go on; never without a drain.
async fn drained(admission: &Admission, drain: Drain) {
    let Drain::Until(deadline) = drain else {
        return std::future::pending().await;
    };
    tokio::select! {
        () = admission.empty() => {}
        () = sleep_until(deadline) => {
            tracing::warn!("streams were cut off by the drain's deadline");
        }
    }
}
