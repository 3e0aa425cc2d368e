//! What the admin API shows of the fleet.

use super::Fleet;
use std::time::Instant;
use trireme_shared::api::{DeploymentReport, StatusReport, WorkerReport};
use trireme_shared::ids::DeploymentId;
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::wire::control::EngineStats;

impl Fleet {
    pub fn status(&self) -> StatusReport {
        let (cluster, joined, deployments) = self.shared.journal.read(|s| {
            let cluster = s.cluster().map(|c| c.name.clone()).unwrap_or_default();
            let joined: Vec<_> = s.workers().map(|w| w.id).collect();
            let deployments: Vec<_> = s.deployments().map(|d| d.id).collect();
            (cluster, joined, deployments)
        });
        let driven = self.lock();
        let workers = joined
            .into_iter()
            .map(|id| {
                let known = driven.inventories.get(&id);
                WorkerReport {
                    id,
                    connected: driven.lines.contains_key(&id),
                    address: known.map(|(a, _)| a.clone()).unwrap_or_default(),
                    inventory: known.map(|(_, i)| i.clone()),
                }
            })
            .collect();
        drop(driven);
        StatusReport {
            cluster,
            version: env!("CARGO_PKG_VERSION").into(),
            coordinators: vec![self.shared.this.clone()],
            workers,
            deployments: deployments
                .into_iter()
                .filter_map(|id| self.deployment_report(id))
                .collect(),
        }
    }

    /// The running plans, their nonces zeroed.
    pub fn plans(&self) -> Vec<ReplicaPlan> {
        let ids: Vec<_> = self
            .shared
            .journal
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
            .journal
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
            .journal
            .read(|s| s.deployment(id).map(|d| d.spec.clone()))?;
        let replicas = self.lock().core.replicas(id, Instant::now());
        Some(DeploymentReport { id, spec, replicas })
    }
}
