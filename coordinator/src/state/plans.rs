//! The newest plan of each replica. Kept true, in release builds too: an epoch only grows, whatever
//! becomes of its replica or its deployment, and has at most one plan.

use super::codec::{stored, stored_value};
use super::deployments::Deployment;
use super::table::Table;
use super::v4::PlanV4;
use super::{Outcome, Refusal};
use crate::planted::{self, Bug};
use trireme_shared::ids::{DeploymentId, Epoch, Replica};
use trireme_shared::plan::ReplicaPlan;

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Plans {
    pub rows: Table<(DeploymentId, Replica), ReplicaPlan>,
    /// Counts over the whole cluster.
    pub last_epoch: Epoch,
}

stored_value!(Epoch);
stored!(Plans { rows was PlanV4 before 5, last_epoch });

impl Plans {
    pub fn commit(
        &mut self,
        deployment: &Deployment,
        plan: &ReplicaPlan,
        previous: Option<Epoch>,
    ) -> Result<Outcome, Refusal> {
        let spec = &deployment.spec;
        let ranks = usize::from(spec.tensor_parallel) * usize::from(spec.pipeline_parallel);
        if plan.replica.0 >= spec.replicas {
            let text = format!("replica {} of {}", plan.replica, spec.replicas);
            return Err(Refusal::PlanMismatch(text));
        }
        if plan.model != spec.model
            || plan.tensor_parallel != spec.tensor_parallel
            || plan.pipeline_parallel != spec.pipeline_parallel
            || plan.precision != spec.precision
            || plan.ranks.len() != ranks
        {
            return Err(Refusal::PlanMismatch(
                "model, split or precision changed".into(),
            ));
        }
        let key = (plan.deployment, plan.replica);
        let current = self.rows.get(&key).map(|p| p.epoch);
        if current != previous {
            return Err(Refusal::StalePlan { current });
        }
        let last = self.last_epoch.0;
        let epoch = Epoch(last.checked_add(1).expect("2^64 plans are never made"));
        let mut plan = plan.clone();
        plan.epoch = epoch;
        self.last_epoch = epoch;
        let old = self.rows.insert(key, plan);
        assert!(
            old.is_none_or(|p| p.epoch < epoch),
            "an epoch only grows: {epoch} came after a newer one"
        );
        let same = self.rows.values().filter(|p| p.epoch == epoch).count();
        assert_eq!(same, 1, "at most one plan per epoch: {epoch} has {same}");
        Ok(Outcome::Planned(epoch))
    }

    /// Drops a deployment's plans; their epochs stay used.
    pub fn drop_of(&mut self, deployment: DeploymentId) {
        let all = (deployment, Replica(0))..=(deployment, Replica(u16::MAX));
        let gone: Vec<_> = self.rows.range(all).map(|(key, _)| *key).collect();
        for key in gone {
            self.rows.remove(&key);
        }
        if planted::is(Bug::EpochReused) {
            let newest = self.rows.values().map(|p| p.epoch).max();
            self.last_epoch = newest.unwrap_or_default();
        }
    }

    pub fn check(&self) -> Result<(), String> {
        let mut epochs: Vec<_> = self.rows.values().map(|p| p.epoch).collect();
        epochs.sort_unstable();
        if epochs.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two plans have one epoch".into());
        }
        if epochs
            .last()
            .is_some_and(|newest| *newest > self.last_epoch)
        {
            return Err("a plan's epoch was never given".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plans_tests.rs"]
mod tests;
