//! The coordinators of the group, and every node that was removed.
//!
//! Kept true: a number is given once; a removed node is no member; somebody always votes. Who votes
//! in Raft's own configuration follows `wants_vote`; the leader's driver moves it there.

use super::codec::stored;
use super::table::Table;
use super::{Outcome, Refusal};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, TokenRecordId};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// A node's newest certificate.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Certificate {
    /// Lower-case hex SHA-256 of the certificate (DER).
    pub fingerprint: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

/// A member of the group, running or not.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct CoordinatorRecord {
    pub id: CoordinatorId,
    /// `http://ip:port`; empty until it said so.
    pub http: String,
    /// `ip:port`; empty until it said so.
    pub control: String,
    /// Of its program; empty until it said so.
    pub version: String,
    /// Whether it should vote; a learner only listens.
    pub wants_vote: bool,
    /// Seconds since 1970.
    pub joined_at: u64,
    /// The token it joined with; `None` for a founder.
    pub token: Option<TokenRecordId>,
    /// `None` until one was signed.
    pub certificate: Option<Certificate>,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Members {
    pub coordinators: Table<CoordinatorId, CoordinatorRecord>,
    /// Coordinators and workers that are members no more.
    pub removed: Table<NodeId, ()>,
    pub last: u32,
}

stored!(Members {
    coordinators,
    removed,
    last
});

impl Members {
    /// A member with a new number. `now`: seconds since 1970.
    pub fn seat(&mut self, token: Option<TokenRecordId>, votes: bool, now: u64) -> CoordinatorId {
        let id = CoordinatorId(super::next(&mut self.last));
        let record = CoordinatorRecord {
            id,
            http: String::new(),
            control: String::new(),
            version: String::new(),
            wants_vote: votes,
            joined_at: now,
            token,
            certificate: None,
        };
        self.coordinators.insert(id, record);
        id
    }

    pub fn has_room(&self) -> Result<(), Refusal> {
        if self.coordinators.len() < limits::COORDINATORS_MAX {
            Ok(())
        } else {
            Err(Refusal::GroupFull)
        }
    }

    /// The record to be changed.
    pub fn member(&mut self, id: CoordinatorId) -> Result<&mut CoordinatorRecord, Refusal> {
        let node = NodeId::Coordinator(id);
        if self.removed.contains_key(&node) {
            return Err(Refusal::Removed(node));
        }
        self.coordinators
            .get_mut(&id)
            .ok_or(Refusal::UnknownCoordinator(id))
    }

    pub fn put(
        &mut self,
        id: CoordinatorId,
        http: &str,
        control: &str,
        version: &str,
    ) -> Result<Outcome, Refusal> {
        let record = self.member(id)?;
        record.http = http.to_owned();
        record.control = control.to_owned();
        record.version = version.to_owned();
        Ok(Outcome::Done)
    }

    pub fn promote(&mut self, id: CoordinatorId) -> Result<Outcome, Refusal> {
        self.member(id)?.wants_vote = true;
        Ok(Outcome::Done)
    }

    pub fn remove(&mut self, id: CoordinatorId) -> Result<Outcome, Refusal> {
        self.member(id)?;
        let other_voter = |c: &CoordinatorRecord| c.id != id && c.wants_vote;
        if !self.coordinators.values().any(other_voter) {
            return Err(Refusal::LastVoter(id));
        }
        self.coordinators.remove(&id);
        self.removed.insert(NodeId::Coordinator(id), ());
        Ok(Outcome::Done)
    }

    pub fn check(&self) -> Result<(), String> {
        for id in self.coordinators.keys() {
            if id.0 > self.last {
                return Err(format!("coordinator {id} was never given its number"));
            }
            if self.removed.contains_key(&NodeId::Coordinator(*id)) {
                return Err(format!("coordinator {id} is removed and a member"));
            }
        }
        let votes = self.coordinators.values().any(|c| c.wants_vote);
        if !votes && !self.coordinators.is_empty() {
            return Err("no coordinator votes".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
