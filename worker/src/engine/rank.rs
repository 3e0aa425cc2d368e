//! A rank's own thread, from assignment to end: find the model, load the share, meet the peers, run
//! steps.
//!
//! Kept true: whatever goes wrong, a panic included, ends as `RankState::Failed` with a reason, with
//! abort raised for the rank's other waits and with every client answered.

use super::batcher::Capacity;
use super::driver::{Driver, DriverParts};
use super::mailbox::Mailbox;
use super::plan::StepPlan;
use super::step::{StepError, StepRunner};
use super::{RankSpec, clients};
use crate::model::{ForwardError, LoadError, RankModel, Runtime};
use crate::parallel::mesh::{self, MeshError, MeshOptions, PlanLinks, RankLinks, SampledLinks};
use crate::parallel::{Abort, LinkError, WaitPolicy};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use trireme_shared::model::Manifest;
use trireme_shared::model::manifest::ManifestError;
use trireme_shared::plan::Assignment;
use trireme_shared::source::{self, ResolveOptions, SourceError};
use trireme_shared::wire::control::{EngineStats, RankState};

/// Why a rank ended.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    #[error("the model cannot be fetched")]
    Source(#[from] SourceError),
    #[error("the model cannot be opened")]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the ranks did not find each other")]
    Mesh(#[from] MeshError),
    #[error("a step failed")]
    Step(#[from] StepError),
    #[error("the plan names no rank {0}")]
    NoSuchRank(u16),
    #[error("the rank was stopped")]
    Stopped,
    #[error("the rank's thread panicked; please report this: {0}")]
    Panicked(String),
}

impl RankError {
    /// The rank was told to end; nothing went wrong here.
    fn is_stop(&self) -> bool {
        match self {
            Self::Stopped | Self::Load(LoadError::Aborted) | Self::Mesh(MeshError::Aborted) => true,
            _ => matches!(self.link(), Some(LinkError::Aborted)),
        }
    }

    /// A peer ended first: it was stopped, replaced or killed, and knows better why.
    fn is_peers_end(&self) -> bool {
        matches!(self.link(), Some(LinkError::Closed { .. }))
    }

    fn link(&self) -> Option<&LinkError> {
        match self {
            Self::Step(StepError::Link(link))
            | Self::Step(StepError::Forward(ForwardError::Link(link))) => Some(link),
            _ => None,
        }
    }

    /// The error and everything that led to it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}

impl From<LinkError> for RankError {
    fn from(error: LinkError) -> Self {
        Self::Step(error.into())
    }
}

/// What a rank's thread shares with its handle.
pub struct Shared {
    pub assignment: Assignment,
    pub state: watch::Sender<RankState>,
    pub stats: watch::Sender<EngineStats>,
    pub mailbox: Arc<Mailbox>,
    pub abort: Abort,
    /// Known once the model is loaded.
    pub limits: OnceLock<RequestLimits>,
}

/// What a request to the driver must fit.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    pub vocab: u32,
    pub context: u32,
}

impl Shared {
    pub fn new(assignment: Assignment, abort: Abort) -> Self {
        Self {
            assignment,
            state: watch::Sender::new(RankState::Fetching {
                done_bytes: 0,
                total_bytes: 0,
            }),
            stats: watch::Sender::new(EngineStats::default()),
            mailbox: Arc::default(),
            abort,
            limits: OnceLock::new(),
        }
    }

    /// Tells the rank's thread to end.
    pub fn end(&self) {
        self.abort.raise();
        self.mailbox.close();
    }

    fn check_abort(&self) -> Result<(), RankError> {
        if self.abort.is_raised() {
            return Err(RankError::Stopped);
        }
        Ok(())
    }
}

/// The body of the rank's thread. `prepare` gives the loaded model and its links.
pub fn run(
    shared: &Shared,
    runtime: &tokio::runtime::Handle,
    prepare: impl FnOnce() -> Result<(RankModel, RankLinks), RankError>,
) {
    let body = || prepare().and_then(|(model, links)| serve(shared, runtime, model, links));
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => error,
        Err(panic) => RankError::Panicked(panic_text(&*panic)),
    };
    shared.abort.raise();
    shared.mailbox.close();
    let reason = error.chain();
    for submission in shared.mailbox.take().submissions {
        clients::fail(&submission.events, &reason);
    }
    if error.is_stop() {
        tracing::info!(rank = shared.assignment.index, "rank stopped");
    } else if error.is_peers_end() {
        tracing::warn!(
            rank = shared.assignment.index,
            reason,
            "rank ended with a peer"
        );
    } else {
        tracing::error!(rank = shared.assignment.index, reason, "rank failed");
    }
    shared.state.send_replace(RankState::Failed { reason });
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}

/// Resolves, loads and connects. Peers are looked for while the model loads, because one worker may
/// have it cached and another must fetch it first.
pub fn prepare(shared: &Shared, spec: RankSpec) -> Result<(RankModel, RankLinks), RankError> {
    let index = spec.assignment.index;
    let placement = spec.assignment.plan.ranks.get(usize::from(index));
    let share = &placement.ok_or(RankError::NoSuchRank(index))?.share;
    let options = MeshOptions {
        wait: WaitPolicy::for_assignment(&spec.assignment, spec.threads, spec.host_threads),
        ..MeshOptions::default()
    };
    let assignment = spec.assignment.clone();
    let (endpoint, incoming) = (spec.endpoint.clone(), spec.incoming.clone());
    let abort = shared.abort.clone();
    let connecting = spec.runtime.spawn(async move {
        let links = mesh::connect(&assignment, &endpoint, &incoming, &options, &abort).await;
        if links.is_err() {
            // Loading goes on for nothing.
            abort.raise();
        }
        links
    });
    let loaded = load(shared, &spec, share);
    if loaded.is_err() {
        shared.abort.raise();
    }
    if loaded.is_ok() {
        shared.state.send_replace(RankState::Connecting);
    }
    let links = spec
        .runtime
        .block_on(connecting)
        .map_err(|e| RankError::Panicked(e.to_string()))?;
    match (loaded, links) {
        (Ok(model), Ok(links)) => Ok((model, links)),
        // Aborted loading is the consequence where connecting failed.
        (Err(error), Err(mesh)) if error.is_stop() => Err(mesh.into()),
        (Err(error), _) => Err(error),
        (_, Err(mesh)) => Err(mesh.into()),
    }
}

fn load(
    shared: &Shared,
    spec: &RankSpec,
    share: &trireme_shared::model::RankShare,
) -> Result<RankModel, RankError> {
    let plan = &spec.assignment.plan;
    let options = ResolveOptions {
        cache_dir: spec.cache_dir.clone(),
        sha256: plan.model.sha256.clone(),
        ..ResolveOptions::default()
    };
    let fetching = Throttle::default();
    let resolved = source::resolve(&plan.model.source, &options, &|progress| {
        if shared.abort.is_raised() {
            options.cancel.cancel();
        }
        fetching.report(progress.done_bytes, progress.total_bytes, || {
            shared.state.send_replace(RankState::Fetching {
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
            });
        });
    });
    shared.check_abort()?;
    let resolved = resolved?;
    let manifest = Manifest::open(&resolved.path)?.quantised(plan.precision.quantize);
    let runtime = Runtime {
        threads: spec.threads,
        isa: spec.isa,
        kv_pages: plan.kv_pages as usize,
        activations: plan.precision.activations,
        kv: plan.precision.kv,
    };
    let loading = Throttle::default();
    let progress = |done_bytes, total_bytes| {
        loading.report(done_bytes, total_bytes, || {
            shared.state.send_replace(RankState::Loading {
                done_bytes,
                total_bytes,
            });
        });
    };
    progress(0, manifest.share_bytes(share));
    let model = RankModel::load(&manifest, share, &runtime, &progress, &shared.abort)?;
    shared.check_abort()?;
    Ok(model)
}

/// Lets through every whole per cent (or, without a total, 16 MiB): each state change is a heartbeat
/// to the coordinator.
struct Throttle(AtomicU64);

impl Default for Throttle {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Throttle {
    fn report(&self, done: u64, total: u64, tell: impl FnOnce()) {
        let mark = done
            .saturating_mul(100)
            .checked_div(total)
            .unwrap_or(done >> 24);
        if self.0.swap(mark, Ordering::Relaxed) != mark {
            tell();
        }
    }
}

/// Runs steps until the end of the epoch.
fn serve(
    shared: &Shared,
    runtime: &tokio::runtime::Handle,
    model: RankModel,
    links: RankLinks,
) -> Result<std::convert::Infallible, RankError> {
    let plan = &shared.assignment.plan;
    let mut runner = StepRunner::new(
        plan,
        model,
        links.collective,
        links.from_previous,
        links.to_next,
    );
    let limits = RequestLimits {
        vocab: runner.vocab(),
        context: plan.context.min(runner.model_context()),
    };
    let _ = shared.limits.set(limits);
    shared.check_abort()?;
    shared.state.send_replace(RankState::Ready);
    match (links.plans, links.sampled) {
        (PlanLinks::Driver(plans), sampled) => {
            let capacity = Capacity {
                kv_pages: plan.kv_pages,
                context: limits.context,
                vocab: limits.vocab,
                steps_in_flight: usize::from(plan.pipeline_parallel),
            };
            let sampled = match sampled {
                SampledLinks::Receiver(receiver) => Some(receiver),
                SampledLinks::Sender(_) | SampledLinks::None => None,
            };
            let parts = DriverParts {
                mailbox: shared.mailbox.clone(),
                stats: shared.stats.clone(),
                abort: shared.abort.clone(),
                runtime: runtime.clone(),
            };
            Err(Driver::new(capacity, runner, plans, sampled, parts).run())
        }
        (PlanLinks::Follower(mut plans), mut sampled) => loop {
            let plan = plans.recv()?;
            let plan = StepPlan::decode(&plan).map_err(StepError::from)?;
            if let Some(results) = runner.run(&plan)?
                && let SampledLinks::Sender(sender) = &mut sampled
            {
                let bytes = results.encode().map_err(StepError::from)?;
                sender.send(&bytes)?;
            }
        },
    }
}
