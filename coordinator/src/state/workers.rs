//! Workers that have joined, connected or not, and what they offer. Kept true: a number is given
//! once.

use super::codec::stored;
use super::members::Certificate;
use super::table::Table;
use super::tokens::TokenRecord;
use super::{Outcome, Refusal};
use trireme_shared::ids::{TokenRecordId, WorkerId};
use trireme_shared::wire::control::Inventory;
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct WorkerRecord {
    pub id: WorkerId,
    /// `w<id>` until someone names it.
    pub name: String,
    /// Seconds since 1970.
    pub joined_at: u64,
    /// The token it joined with.
    pub token: TokenRecordId,
    /// Whose machine it is, as its token said.
    pub provider: Option<String>,
    /// `None` until one was signed.
    pub certificate: Option<Certificate>,
    /// As it last said hello; `None` until it did.
    pub inventory: Option<Inventory>,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Workers {
    pub rows: Table<WorkerId, WorkerRecord>,
    pub last: u32,
}

stored!(Workers { rows, last });

impl Workers {
    pub fn join(&mut self, token: &TokenRecord, now: u64) -> WorkerId {
        let id = WorkerId(super::next(&mut self.last));
        let record = WorkerRecord {
            id,
            name: id.to_string(),
            joined_at: now,
            token: token.id,
            provider: token.provider.clone(),
            certificate: None,
            inventory: None,
        };
        self.rows.insert(id, record);
        id
    }

    /// The record to be changed.
    pub fn member(&mut self, id: WorkerId) -> Result<&mut WorkerRecord, Refusal> {
        self.rows.get_mut(&id).ok_or(Refusal::UnknownWorker(id))
    }

    pub fn put_inventory(
        &mut self,
        id: WorkerId,
        inventory: &Inventory,
    ) -> Result<Outcome, Refusal> {
        self.member(id)?.inventory = Some(inventory.clone());
        Ok(Outcome::Done)
    }

    pub fn check(&self) -> Result<(), String> {
        match self.rows.last() {
            Some((id, _)) if id.0 > self.last => Err(format!("{id} was never given its number")),
            _ => Ok(()),
        }
    }
}
