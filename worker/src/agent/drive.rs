//! The agent's loop: carries out what `core` decides. The only place of this room that waits on
//! everything at once; it sleeps unless something happens.

use super::control::{ControlLinks, Heard};
use super::core::{Core, Effect, Event};
use super::generate::Admission;
use super::rank::CurrentRank;
use super::renewal::Renewal;
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
use trireme_shared::identity::{NodeId, NodeIdentity};
use trireme_shared::ids::WorkerId;
use trireme_shared::limits::{DRAIN_DEADLINE, HEARTBEAT_INTERVAL, WORKER_EXIT_DEADLINE};
use trireme_shared::plan::Assignment;
use trireme_shared::transport::Endpoint;
use trireme_shared::wire::control::{
    CoordinatorAddress, RankReport, RankState, ToCoordinator, ToWorker,
};

pub struct Agent {
    pub config: WorkerConfig,
    pub worker: WorkerId,
    pub endpoint: Endpoint,
    pub incoming: IncomingLinks,
    pub rank: CurrentRank,
    pub admission: Admission,
    pub control: ControlLinks,
    pub renewal: Renewal,
    /// The coordinators as the data folder has them.
    pub group: Vec<CoordinatorAddress>,
}

/// What changes while the agent runs.
#[derive(Default)]
struct Now {
    core: Core,
    /// Goodbye was said: nothing more is.
    said_goodbye: bool,
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
    /// Serves until a coordinator or `shutdown` ends it.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let mut now = Now::default();
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        // After a pause (a suspended machine) one heartbeat is enough.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outcome = Ok(());
        while !now.exiting {
            tokio::select! {
                heard = self.control.heard() => {
                    if let Err(error) = self.heard(&mut now, heard) {
                        outcome = Err(error);
                        break;
                    }
                }
                _ = heartbeat.tick(), if self.control.is_up() => self.report(&mut now),
                () = self.renewal.due(), if self.control.is_up() => self.renew(),
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

    /// An error is the end.
    fn heard(&mut self, now: &mut Now, heard: Heard) -> Result<(), WorkerError> {
        match heard {
            Heard::Up => {
                self.report(now);
                worker_file::write(&self.config, self.worker, self.endpoint.local_addr())?;
            }
            Heard::Message(message) => {
                match &message {
                    ToWorker::Welcome {
                        authorities,
                        removed,
                        ..
                    } => {
                        self.trust(authorities);
                        self.cut_off(removed);
                    }
                    ToWorker::Trust { authorities } => self.trust(authorities),
                    ToWorker::Removed { workers } => self.cut_off(workers),
                    _ => {}
                }
                match &message {
                    ToWorker::Welcome { coordinators, .. }
                    | ToWorker::Coordinators { coordinators, .. }
                        if *coordinators != self.group =>
                    {
                        self.group.clone_from(coordinators);
                        worker_file::write_coordinators(&self.config.data_dir, coordinators)?;
                    }
                    ToWorker::Certificate {
                        certificate,
                        authorities,
                    } => self.renewed(certificate.clone(), authorities.clone()),
                    _ => {}
                }
                self.on(now, Event::Heard(message));
            }
            Heard::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    fn renew(&mut self) {
        match self.renewal.ask() {
            // Lost where no queue takes it: asked again by `due`.
            Ok(request) => drop(self.control.say_to_one(&request)),
            Err(error) => tracing::warn!(%error, "no new certificate can be asked for"),
        }
    }

    /// The old certificate still holds for half its life: a bad answer is no reason to end.
    fn renewed(&mut self, certificate: Vec<u8>, authorities: Vec<Vec<u8>>) {
        match self.renewal.take(certificate, authorities) {
            Ok(Some(identity)) => {
                tracing::info!(node = %identity.node(), "a new certificate");
                self.use_identity(&identity);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the new certificate is of no use"),
        }
    }

    /// Every coordinator tells which authorities count; the answer says what this worker made of it.
    fn trust(&mut self, authorities: &[Vec<u8>]) {
        match self.renewal.trust(authorities) {
            Ok(Some(identity)) => self.use_identity(&identity),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the cluster's authorities cannot be taken over yet")
            }
        }
        let fingerprints = self.renewal.trusted();
        self.control.say(&ToCoordinator::Trusting { fingerprints });
    }

    fn use_identity(&self, identity: &NodeIdentity) {
        if let Err(error) = self.endpoint.replace_identity(identity) {
            tracing::error!(%error, "the new certificate cannot be used");
        }
    }

    fn cut_off(&self, removed: &[WorkerId]) {
        for worker in removed {
            self.endpoint.remove_node(NodeId::Worker(*worker));
        }
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
                    self.control.say(&ToCoordinator::Goodbye);
                    // The last word: a heartbeat after it would look like a return.
                    now.said_goodbye = true;
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

    /// A heartbeat, to all that listen.
    fn report(&mut self, now: &mut Now) {
        if now.said_goodbye || !self.control.is_up() {
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
        self.control.say(&ToCoordinator::Heartbeat { ranks });
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
        self.control.close().await;
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
