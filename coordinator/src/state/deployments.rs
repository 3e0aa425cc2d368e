//! Models served under a name. Kept true: one deployment a name.

use super::codec::stored;
use super::table::Table;
use super::v4::DeploymentV4;
use super::{Outcome, Refusal};
use trireme_shared::ids::DeploymentId;
use trireme_shared::plan::DeploymentSpec;
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Deployment {
    pub id: DeploymentId,
    pub spec: DeploymentSpec,
    /// Seconds since 1970, for `/v1/models`.
    pub created_at: u64,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Deployments {
    pub rows: Table<DeploymentId, Deployment>,
    pub names: Table<String, DeploymentId>,
    pub last: u32,
}

stored!(Deployments { rows was DeploymentV4 before 5, names, last });

impl Deployments {
    pub fn named(&self, name: &str) -> Option<&Deployment> {
        self.rows.get(self.names.get(name)?)
    }

    /// Creates or replaces; tells the number and whether plans of the old spec are none of the new.
    pub fn put(&mut self, spec: &DeploymentSpec, now: u64) -> (DeploymentId, bool) {
        let name = &spec.model.name;
        let (id, created_at) = match self.named(name) {
            Some(existing) => (existing.id, existing.created_at),
            None => (DeploymentId(super::next(&mut self.last)), now),
        };
        self.names.insert(name.clone(), id);
        let deployment = Deployment {
            id,
            spec: spec.clone(),
            created_at,
        };
        let replaced = self.rows.insert(id, deployment);
        (id, replaced.is_some_and(|old| old.spec != *spec))
    }

    pub fn remove(&mut self, id: DeploymentId) -> Result<Outcome, Refusal> {
        let gone = self
            .rows
            .remove(&id)
            .ok_or(Refusal::UnknownDeployment(id))?;
        self.names.remove(&gone.spec.model.name);
        Ok(Outcome::Done)
    }

    pub fn check(&self) -> Result<(), String> {
        let matched = self
            .rows
            .values()
            .all(|d| d.id.0 <= self.last && self.names.get(&d.spec.model.name) == Some(&d.id));
        if matched && self.rows.len() == self.names.len() {
            Ok(())
        } else {
            Err("deployments and their names differ".into())
        }
    }
}
