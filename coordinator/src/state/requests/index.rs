//! By what requests are found besides their ids and numbers. Not stored: made of the rows as they are read.
//!
//! Kept true: it is that of the rows (`Requests::check`).

use super::{OpenRequest, RequestRow};
use crate::state::table::Table;
use trireme_shared::ids::{GatewayLife, RequestId, RequestNumber, TenantId};

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Of settled requests and attempts.
    by_id: Table<RequestId, RequestNumber>,
    /// The newest: after too many attempts another row goes on.
    by_idempotency: Table<(TenantId, [u8; 32]), RequestNumber>,
    by_tenant: Table<(TenantId, RequestNumber), ()>,
    /// The newest of a tenant's that its caller knows by that id.
    by_caller: Table<(TenantId, RequestId), RequestNumber>,
    /// Of those under way.
    open_by_life: Table<(GatewayLife, RequestId), ()>,
    open_by_tenant: Table<(TenantId, RequestId), ()>,
}

impl Index {
    /// Of those rows.
    pub fn of(
        rows: &Table<RequestNumber, RequestRow>,
        open: &Table<RequestId, OpenRequest>,
    ) -> Self {
        let mut index = Self::default();
        rows.values().for_each(|row| index.add(row));
        open.values().for_each(|open| index.open(open));
        index
    }

    pub fn add(&mut self, row: &RequestRow) {
        for id in std::iter::once(&row.request).chain(&row.attempts) {
            self.by_id.insert(id.clone(), row.number);
        }
        if let Some(hash) = row.idempotency {
            let newest = self.by_idempotency.or_default((row.tenant, hash));
            *newest = row.number.max(*newest);
        }
        if let Some(id) = &row.caller_id {
            let newest = self.by_caller.or_default((row.tenant, id.clone()));
            *newest = row.number.max(*newest);
        }
        self.by_tenant.insert((row.tenant, row.number), ());
    }

    pub fn remove(&mut self, row: &RequestRow) {
        for id in std::iter::once(&row.request).chain(&row.attempts) {
            self.by_id.remove(id);
        }
        let hash = row.idempotency.map(|hash| (row.tenant, hash));
        if let Some(key) = hash
            && self.by_idempotency.get(&key) == Some(&row.number)
        {
            self.by_idempotency.remove(&key);
        }
        let caller = row.caller_id.as_ref().map(|id| (row.tenant, id.clone()));
        if let Some(key) = caller
            && self.by_caller.get(&key) == Some(&row.number)
        {
            self.by_caller.remove(&key);
        }
        self.by_tenant.remove(&(row.tenant, row.number));
    }

    /// A request is under way.
    pub fn open(&mut self, open: &OpenRequest) {
        let request = || open.progress.request.clone();
        self.open_by_life.insert((open.life, request()), ());
        let of = (open.progress.tenant, request());
        self.open_by_tenant.insert(of, ());
    }

    /// It is under way no more.
    pub fn close(&mut self, open: &OpenRequest) {
        let request = || open.progress.request.clone();
        self.open_by_life.remove(&(open.life, request()));
        self.open_by_tenant
            .remove(&(open.progress.tenant, request()));
    }

    pub fn by_id(&self, id: &RequestId) -> Option<RequestNumber> {
        self.by_id.get(id).copied()
    }

    pub fn by_idempotency(&self, tenant: TenantId, hash: &[u8; 32]) -> Option<RequestNumber> {
        self.by_idempotency.get(&(tenant, *hash)).copied()
    }

    pub fn by_caller(&self, tenant: TenantId, id: &RequestId) -> Option<RequestNumber> {
        self.by_caller.get(&(tenant, id.clone())).copied()
    }

    /// A tenant's numbers below one, newest first.
    pub fn of_tenant(
        &self,
        tenant: TenantId,
        below: RequestNumber,
    ) -> impl Iterator<Item = RequestNumber> {
        let numbers = (tenant, RequestNumber(0))..(tenant, below);
        let numbers = self.by_tenant.range(numbers).rev();
        numbers.map(|((_, number), ())| *number)
    }

    /// Those under way that a life was the last to tell of, in their order.
    pub fn open_of(&self, life: GatewayLife) -> impl Iterator<Item = &RequestId> {
        let all = self.open_by_life.range((life, first_id())..);
        let own = all.take_while(move |((of, _), ())| *of == life);
        own.map(|((_, request), ())| request)
    }

    /// A tenant's under way, in their order.
    pub fn open_of_tenant(&self, tenant: TenantId) -> impl Iterator<Item = &RequestId> {
        let all = self.open_by_tenant.range((tenant, first_id())..);
        let own = all.take_while(move |((of, _), ())| *of == tenant);
        own.map(|((_, request), ())| request)
    }
}

/// Before all others: an id has at least one character, and none is below this one.
fn first_id() -> RequestId {
    RequestId::parse("!").unwrap_or_else(|| unreachable!("it is printable"))
}
