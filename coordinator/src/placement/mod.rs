//! The planner: model + spec + connected workers -> plan. Pure: equal inputs give equal plans, and
//! the order in which workers are given does not matter.
//!
//! What it keeps true: a worker runs one rank; a rank's weights, KV pages and working buffers fit
//! what its worker offers; refusals say in words what is missing. Neighbours: `fleet::reconcile`
//! asks for plans, `shared::model::partition` does the arithmetic of shares.

mod choose;
mod memory;

use choose::Seat;
use std::borrow::Cow;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, WorkerId};
use trireme_shared::limits;
use trireme_shared::model::{Manifest, RankShare};
use trireme_shared::plan::{DeploymentSpec, RankPlacement, ReplicaPlan};

/// A connected worker as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub worker: WorkerId,
    /// `ip:port` of its QUIC endpoint, as peers reach it.
    pub address: String,
    /// Equal for workers that can share memory.
    pub host: String,
    pub threads: u32,
    /// Relative speed of one thread; 1 or more.
    pub thread_speed: u32,
    pub memory_bytes: u64,
}

impl Candidate {
    /// Relative speed of the whole worker: what uneven shares follow.
    fn weight(&self) -> u64 {
        u64::from(self.threads.max(1)) * u64::from(self.thread_speed.max(1))
    }
}

/// How fast one thread of an instruction set is beside the portable one, for shares only. Batch-1
/// decode is bound by memory, so the ratios are far smaller than those of arithmetic alone.
pub fn thread_speed(isa: &str) -> u32 {
    match isa {
        "amx" | "avx512-vnni" => 4,
        "avx2" => 3,
        _ => 1,
    }
}

/// Why there is no plan; the text says what would help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{0}")]
    Split(String),
    #[error("needs {} more worker(s): {needed} in all, {connected} free", needed - connected)]
    Workers { needed: usize, connected: usize },
    #[error(
        "needs {} on {worker}, which offers {}: join with more --memory, or split over more workers",
        memory::words(*.needed_bytes), memory::words(*.offered_bytes)
    )]
    Memory {
        worker: WorkerId,
        needed_bytes: u64,
        offered_bytes: u64,
    },
}

/// The model as the deployment's ranks hold it: what is split, balanced and counted.
fn as_held<'a>(manifest: &'a Manifest, spec: &DeploymentSpec) -> Cow<'a, Manifest> {
    match spec.precision.quantize {
        None => Cow::Borrowed(manifest),
        quantize => Cow::Owned(manifest.clone().quantised(quantize)),
    }
}

/// Checks that the model can be split as the spec asks, whoever runs it.
pub fn check_split(manifest: &Manifest, spec: &DeploymentSpec) -> Result<(), PlanError> {
    can_split(&as_held(manifest, spec), spec)
}

fn can_split(manifest: &Manifest, spec: &DeploymentSpec) -> Result<(), PlanError> {
    let (tp, pp) = (spec.tensor_parallel, spec.pipeline_parallel);
    if tp == 0 || pp == 0 || spec.replicas == 0 {
        let text = "tp, pp and replicas are at least 1".to_owned();
        return Err(PlanError::Split(text));
    }
    if spec.replicas > limits::REPLICAS_MAX {
        let text = format!(
            "{} replicas are more than the {} that one deployment may have",
            spec.replicas,
            limits::REPLICAS_MAX
        );
        return Err(PlanError::Split(text));
    }
    let even = vec![vec![1u64; usize::from(tp)]; usize::from(pp)];
    let too_large = usize::from(tp) > limits::TENSOR_PARALLEL_MAX
        || usize::from(pp) > limits::PIPELINE_PARALLEL_MAX;
    let refused = if too_large {
        Some("the split is larger than any replica may be".to_owned())
    } else {
        manifest.shares(&even).err().map(|e| e.to_string())
    };
    let Some(why) = refused else { return Ok(()) };
    let others: Vec<String> = possible_splits(manifest, u32::from(tp) * u32::from(pp))
        .into_iter()
        .map(|(tp, pp)| format!("--tp {tp} --pp {pp}"))
        .collect();
    let hint = if others.is_empty() {
        format!(
            "no split fits {} workers: use fewer",
            u32::from(tp) * u32::from(pp)
        )
    } else {
        format!("possible here: {}", others.join(", "))
    };
    Err(PlanError::Split(format!("{why}; {hint}")))
}

/// Every tp x pp that uses exactly so many ranks and that the model allows, widest tp first.
pub fn possible_splits(manifest: &Manifest, ranks: u32) -> Vec<(u16, u16)> {
    let fits = |tp: u16, pp: u16| {
        let even = vec![vec![1u64; usize::from(tp)]; usize::from(pp)];
        manifest.shares(&even).is_ok()
    };
    (1..=ranks.min(limits::TENSOR_PARALLEL_MAX as u32))
        .rev()
        .filter(|tp| ranks.is_multiple_of(*tp))
        .map(|tp| (tp as u16, ranks / tp))
        .filter(|(_, pp)| *pp as usize <= limits::PIPELINE_PARALLEL_MAX)
        .map(|(tp, pp)| (tp, pp as u16))
        .filter(|(tp, pp)| fits(*tp, *pp))
        .collect()
}

/// Plans one replica on some of `free`. The plan's epoch and nonce are zero: the journal gives the
/// one, the driver draws the other.
pub fn plan_replica(
    manifest: &Manifest,
    spec: &DeploymentSpec,
    deployment: DeploymentId,
    replica: Replica,
    free: &[Candidate],
) -> Result<ReplicaPlan, PlanError> {
    let manifest = &as_held(manifest, spec);
    can_split(manifest, spec)?;
    let (tp, pp) = (
        usize::from(spec.tensor_parallel),
        usize::from(spec.pipeline_parallel),
    );
    let stages = choose::seats(free, tp, pp).ok_or(PlanError::Workers {
        needed: tp * pp,
        connected: free.len(),
    })?;
    let weights: Vec<Vec<u64>> = stages
        .iter()
        .map(|stage| stage.iter().map(|seat| seat.weight()).collect())
        .collect();
    let shares = manifest
        .shares(&weights)
        .map_err(|e| PlanError::Split(e.to_string()))?;
    let seats: Vec<Seat<'_>> = stages.into_iter().flatten().collect();
    let ranks = place(manifest, &shares, &seats);
    let pages = memory::kv_pages(manifest, spec.precision.kv, &ranks, &seats)?;
    Ok(ReplicaPlan {
        deployment,
        replica,
        epoch: Epoch(0),
        model: spec.model.clone(),
        tensor_parallel: spec.tensor_parallel,
        pipeline_parallel: spec.pipeline_parallel,
        link: spec.link,
        precision: spec.precision,
        ranks,
        kv_pages: pages.pages,
        context: pages.context,
        nonce: [0; 16],
    })
}

/// Plans every replica of `spec`, in order, no worker twice: what a dry run shows.
pub fn plan(
    manifest: &Manifest,
    spec: &DeploymentSpec,
    deployment: DeploymentId,
    workers: &[Candidate],
) -> Result<Vec<ReplicaPlan>, PlanError> {
    check_split(manifest, spec)?;
    let needed = usize::from(spec.tensor_parallel)
        * usize::from(spec.pipeline_parallel)
        * usize::from(spec.replicas);
    if workers.len() < needed {
        let connected = workers.len();
        return Err(PlanError::Workers { needed, connected });
    }
    let mut free = workers.to_vec();
    let mut plans = Vec::new();
    for replica in 0..spec.replicas {
        let plan = plan_replica(manifest, spec, deployment, Replica(replica), &free)?;
        free.retain(|c| plan.ranks.iter().all(|r| r.worker != c.worker));
        plans.push(plan);
    }
    Ok(plans)
}

fn place(manifest: &Manifest, shares: &[RankShare], seats: &[Seat<'_>]) -> Vec<RankPlacement> {
    shares
        .iter()
        .zip(seats)
        .map(|(share, seat)| RankPlacement {
            share: share.clone(),
            worker: seat.worker,
            address: seat.address.clone(),
            host: seat.host.clone(),
            weight_bytes: manifest.share_bytes(share),
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
