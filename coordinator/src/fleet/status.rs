//! What the admin API shows of the fleet.

use super::{Fleet, Line};
use crate::state::WorkerRecord;
use std::collections::BTreeSet;
use std::time::Instant;
use trireme_shared::api::{CoordinatorReport, DeploymentReport, WorkerReport};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::DeploymentId;
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::wire::control::EngineStats;

impl Fleet {
    /// This coordinator.
    pub fn this(&self) -> &CoordinatorReport {
        &self.shared.this
    }

    /// All that have joined, and what this coordinator knows of them.
    pub fn workers(&self) -> Vec<WorkerReport> {
        let of = |w: &WorkerRecord| (w.id, w.inventory.clone());
        let joined: Vec<_> = self.shared.group.read(|s| s.workers().map(of).collect());
        let driven = self.lock();
        let report = |(id, stored)| {
            let known = driven.inventories.get(&id);
            WorkerReport {
                id,
                connected: driven.lines.contains_key(&id),
                address: known.map(|(a, _)| a.clone()).unwrap_or_default(),
                inventory: known.map(|(_, i)| i.clone()).or(stored),
            }
        };
        joined.into_iter().map(report).collect()
    }

    pub fn deployments(&self) -> Vec<DeploymentReport> {
        let ids: Vec<_> = self
            .shared
            .group
            .read(|s| s.deployments().map(|d| d.id).collect());
        let report = |id| self.deployment_report(id);
        ids.into_iter().filter_map(report).collect()
    }

    /// Connected workers that said they trust the authority with that fingerprint (lower-case hex).
    pub fn trusting(&self, fingerprint: &str) -> BTreeSet<NodeId> {
        let driven = self.lock();
        let lines = driven.lines.iter();
        let trusts = |line: &Line| line.trusts.iter().any(|f| hex::encode(f) == fingerprint);
        lines
            .filter(|(_, line)| trusts(line))
            .map(|(id, _)| NodeId::Worker(*id))
            .collect()
    }

    /// The running plans, their nonces zeroed.
    pub fn plans(&self) -> Vec<ReplicaPlan> {
        let ids: Vec<_> = self
            .shared
            .group
            .read(|s| s.deployments().map(|d| d.id).collect());
        let (driven, now) = (self.lock(), Instant::now());
        ids.into_iter()
            .flat_map(|id| driven.core.replicas(id, now))
            .filter_map(|replica| replica.plan)
            .collect()
    }

    /// Counters of each replica's driver, for `/metrics`.
    pub fn engine_stats(&self) -> Vec<(DeploymentId, u16, EngineStats)> {
        let ids: Vec<_> = self
            .shared
            .group
            .read(|s| s.deployments().map(|d| d.id).collect());
        let (driven, now) = (self.lock(), Instant::now());
        let of = |id| {
            let replicas = driven.core.replicas(id, now).into_iter();
            replicas.filter_map(move |r| Some((id, r.replica.0, r.stats?)))
        };
        ids.into_iter().flat_map(of).collect()
    }

    pub(super) fn deployment_report(&self, id: DeploymentId) -> Option<DeploymentReport> {
        let spec = self
            .shared
            .group
            .read(|s| s.deployment(id).map(|d| d.spec.clone()))?;
        let replicas = self.lock().core.replicas(id, Instant::now());
        Some(DeploymentReport { id, spec, replicas })
    }
}
