//! Waits for the deployment to serve, showing each worker's bytes on the way.

use super::Running;
use super::children::Children;
use super::steps::{Steps, WorkerBars};
use crate::client::Client;
use crate::cmd::status::state_of;
use crate::failure::Failure;
use crate::size;
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::Instant;
use trireme_shared::api::{DeploymentReport, ReplicaReport, StatusReport};
use trireme_shared::ids::{DeploymentId, Epoch, Replica, WorkerId};
use trireme_shared::limits;
use trireme_shared::wire::control::RankState;

/// A rank that fails in this many plans will fail in the next as well.
const FAILED_EPOCHS_MAX: usize = 3;

/// What is waited for.
pub struct Waiting<'a> {
    pub client: &'a Client,
    /// Addresses of all coordinators, each of which must serve.
    pub gateways: &'a [String],
    pub children: &'a Children,
    pub deployment: DeploymentId,
    pub deadline: Instant,
}

impl Waiting<'_> {
    /// Waits until every replica is ready, on processes that run now, and `/ready` answers 200.
    pub fn until_ready(
        &self,
        title: &'static str,
        steps: &Steps,
        running: &Running<'_>,
    ) -> Result<(StatusReport, DeploymentReport)> {
        let step = steps.begin(title, "waiting for the workers");
        let mut bars = steps.worker_bars();
        let mut failures = Failures::default();
        loop {
            running.check()?;
            // A coordinator that is being restarted does not answer; that is not the end.
            let report: Option<StatusReport> = self.client.get("/admin/v1/status").ok();
            let mine = report.as_ref().and_then(|report| {
                report
                    .deployments
                    .iter()
                    .find(|d| d.id == self.deployment)
                    .cloned()
            });
            if let (Some(report), Some(mine)) = (report, mine) {
                show(&mine, &step, &mut bars);
                failures.look(&mine)?;
                if self.is_ready(&report, &mine) {
                    drop(bars);
                    step.done(&summary(&mine));
                    return Ok((report, mine));
                }
            }
            if Instant::now() >= self.deadline {
                let why = failures
                    .last
                    .unwrap_or_else(|| "it is still loading".into());
                return Err(Failure::new(
                    "the model did not become ready in time",
                    "give it longer with --timeout, or look at the workers' logs",
                )
                .because(why));
            }
            std::thread::sleep(limits::CLIENT_POLL_INTERVAL);
        }
    }

    fn is_ready(&self, report: &StatusReport, mine: &DeploymentReport) -> bool {
        let pids = self.children.view().pids;
        let runs = |worker: WorkerId| {
            let worker = report.workers.iter().find(|w| w.id == worker);
            let pid = worker.and_then(|w| w.inventory.as_ref()).map(|i| i.pid);
            pid.is_some() && pids.contains(&pid)
        };
        // A process that died a moment ago may still be counted on: only running ones count here.
        let placed = |replica: &ReplicaReport| {
            let plan = replica.plan.as_ref();
            replica.ready && plan.is_some_and(|p| p.ranks.iter().all(|r| runs(r.worker)))
        };
        !mine.replicas.is_empty()
            && mine.replicas.iter().all(placed)
            && self.gateways.iter().all(|gateway| {
                let one = Client::new(std::slice::from_ref(gateway), None);
                one.status_of("/ready").is_ok_and(|status| status == 200)
            })
    }
}

/// Failed ranks seen so far, by plan.
#[derive(Default)]
struct Failures {
    seen: BTreeSet<(Replica, Option<Epoch>)>,
    last: Option<String>,
}

impl Failures {
    /// Remembers new failures; an error once trying again is hopeless.
    fn look(&mut self, deployment: &DeploymentReport) -> Result<()> {
        for replica in &deployment.replicas {
            if !replica.ready {
                self.last = Some(state_of(replica));
            }
            if let Some(reason) = failed(replica) {
                self.seen.insert((replica.replica, replica.epoch));
                if self.seen.len() >= FAILED_EPOCHS_MAX {
                    return Err(Failure::new(
                        "the model cannot be loaded",
                        "the workers' logs say more; `cluster model inspect` looks at the file",
                    )
                    .because(reason));
                }
            }
        }
        Ok(())
    }
}

fn failed(replica: &ReplicaReport) -> Option<String> {
    replica.ranks.iter().find_map(|rank| match rank {
        RankState::Failed { reason } => Some(reason.clone()),
        _ => None,
    })
}

fn show(deployment: &DeploymentReport, step: &super::steps::Step, bars: &mut WorkerBars) {
    for replica in &deployment.replicas {
        if !replica.ready {
            step.doing(&state_of(replica));
        }
        let Some(plan) = &replica.plan else { continue };
        for (placement, state) in plan.ranks.iter().zip(&replica.ranks) {
            let (doing, done, total) = match state {
                RankState::Fetching {
                    done_bytes,
                    total_bytes,
                } => ("fetching", *done_bytes, *total_bytes),
                RankState::Loading {
                    done_bytes,
                    total_bytes,
                } => ("loading", *done_bytes, *total_bytes),
                RankState::Connecting => ("connecting", 1, 1),
                RankState::Ready => ("ready", placement.weight_bytes, placement.weight_bytes),
                RankState::Failed { .. } => ("failed", 0, 0),
            };
            bars.set(placement.worker, doing, done, total);
        }
    }
}

fn summary(deployment: &DeploymentReport) -> String {
    let plans = deployment.replicas.iter().filter_map(|r| r.plan.as_ref());
    let ranks: Vec<u64> = plans
        .flat_map(|p| p.ranks.iter().map(|r| r.weight_bytes))
        .collect();
    let spec = &deployment.spec;
    format!(
        "{} on {} worker{}: tp {} x pp {} x replicas {}",
        size::bytes(ranks.iter().sum()),
        ranks.len(),
        if ranks.len() == 1 { "" } else { "s" },
        spec.tensor_parallel,
        spec.pipeline_parallel,
        spec.replicas
    )
}
