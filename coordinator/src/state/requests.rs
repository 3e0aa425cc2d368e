//! Requests: those under way, as gateways last told of them, and the settled ones, one by one.
//!
//! Kept true: what was told is cumulative, and the largest of each number counts, so that it may come
//! late, twice or in any order; one request has one row, as have all attempts under one idempotency key;
//! the index, which is not stored, is that of the rows.

mod index;

use super::codec::{CodecError, Sink, Source, Stored, stored_value};
use super::prices::PriceList;
use super::table::Table;
use crate::planted::{self, Bug};
use index::Index;
use trireme_shared::ids::{
    GatewayLife, KeyId, NanoUsd, PostingId, RequestId, RequestNumber, TenantId, Tokens,
};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Tokens that were delivered, from the request's begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Counts {
    /// Of all its prompts, computed or cached.
    pub prompt: Tokens,
    /// Those of `prompt` that were found in the KV cache.
    pub cached: Tokens,
    /// Generated tokens, of all choices.
    pub completion: Tokens,
}

impl Counts {
    pub fn new(prompt: u64, cached: u64, completion: u64) -> Self {
        Self {
            prompt: Tokens(prompt),
            cached: Tokens(cached),
            completion: Tokens(completion),
        }
    }

    /// What limits on tokens count.
    pub fn tokens(&self) -> Tokens {
        Tokens(self.prompt.0.saturating_add(self.completion.0))
    }

    /// How much more that is than `before`, none of whose numbers is larger.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            prompt: Tokens(self.prompt.0 - before.prompt.0),
            cached: Tokens(self.cached.0 - before.cached.0),
            completion: Tokens(self.completion.0 - before.completion.0),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            prompt: self.prompt.max(other.prompt),
            cached: self.cached.max(other.cached),
            completion: self.completion.max(other.completion),
        }
    }
}

/// What a provider's workers did for a request, from its begin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct Work {
    /// `None` for machines that are nobody else's than the platform's.
    pub provider: Option<String>,
    /// Layers times share of the rank times tokens, in any unit that is the same for one request.
    pub units: u64,
}

/// What a gateway tells of a request under way.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Progress {
    /// Drawn by the gateway for one run of one request. Never the caller's own `x-request-id`: callers
    /// use one twice, and a request settles once.
    pub request: RequestId,
    /// The id that the caller knows it by, where that is another.
    pub caller_id: Option<RequestId>,
    pub tenant: TenantId,
    pub key: KeyId,
    /// The name it was asked for by.
    pub model: String,
    /// Milliseconds since 1970 by the gateway's clock; says which prices hold.
    pub began_at_ms: u64,
    /// SHA-256 of the caller's `Idempotency-Key` and of what was asked under it.
    pub idempotency: Option<[u8; 32]>,
    pub counts: Counts,
    pub work: Vec<Work>,
}

/// The last that a gateway tells of a request.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Final {
    pub progress: Progress,
    pub ended: Ended,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Ended {
    /// As the model or the caller's bounds had it.
    Finished,
    /// What was held for it was used up.
    Exhausted,
    /// The caller left.
    Disconnected,
    /// We failed.
    Failed,
    /// Its gateway died; it is charged for what was last told of it.
    GatewayLost,
}

/// A request under way.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct OpenRequest {
    /// The newest life that told of it.
    pub life: GatewayLife,
    pub progress: Progress,
}

/// A settled request.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct RequestRow {
    pub number: RequestNumber,
    pub request: RequestId,
    pub caller_id: Option<RequestId>,
    pub tenant: TenantId,
    pub key: KeyId,
    pub model: String,
    /// Milliseconds since 1970, by its gateway's clock.
    pub began_at_ms: u64,
    /// Milliseconds since 1970, by the state's clock: when it was last settled.
    pub ended_at_ms: u64,
    pub ended: Ended,
    pub counts: Counts,
    /// By provider, in their order.
    pub work: Vec<Work>,
    /// The list it is priced by.
    pub price: PriceList,
    /// What it costs by that list.
    pub cost: NanoUsd,
    /// What was charged of it: less than its cost where the money had run out.
    pub charged: NanoUsd,
    /// What was given back of that.
    pub refunded: NanoUsd,
    /// Charges and refunds, in their order.
    pub postings: Vec<PostingId>,
    pub idempotency: Option<[u8; 32]>,
    /// Later attempts under its idempotency key, `limits::REQUEST_ATTEMPTS_MAX` of all at most.
    pub attempts: Vec<RequestId>,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Requests {
    open: Table<RequestId, OpenRequest>,
    pub rows: Table<RequestNumber, RequestRow>,
    pub last: RequestNumber,
    /// A row that began then or earlier may be gone.
    pub forgotten_ms: u64,
    index: Index,
}

stored_value!(RequestNumber);

impl Requests {
    /// Takes in what a life told of a request under way.
    pub fn note(&mut self, life: GatewayLife, told: &Progress) {
        if self.adds_nothing(told) {
            return;
        }
        let merged = self.merged(told);
        let known = self.open.get(&told.request).map(|open| open.life);
        let open = OpenRequest {
            life: known.map_or(life, |known| known.max(life)),
            progress: merged,
        };
        self.close(&told.request);
        self.index.open(&open);
        self.open.insert(told.request.clone(), open);
    }

    /// Requests under way.
    pub fn open(&self) -> &Table<RequestId, OpenRequest> {
        &self.open
    }

    /// It is under way no more.
    pub fn close(&mut self, request: &RequestId) {
        if let Some(open) = self.open.remove(request) {
            self.index.close(&open);
        }
    }

    /// Whether it is neither under way nor settled, and so old that it may have been settled and
    /// forgotten.
    pub fn is_forgotten(&self, told: &Progress) -> bool {
        told.began_at_ms <= self.forgotten_ms
            && self.index.by_id(&told.request).is_none()
            && !self.open.contains_key(&told.request)
    }

    /// Whether the request is settled with all that: an older report that came late.
    fn adds_nothing(&self, told: &Progress) -> bool {
        let row = self.by_id(&told.request);
        row.is_some_and(|row| {
            row.counts.max(told.counts) == row.counts
                && merge_work(&row.work, &told.work) == row.work
        })
    }

    /// Whether another tenant's request has that id: then it is none of this one's.
    pub fn is_of_another(&self, told: &Progress) -> bool {
        let open = self.open.get(&told.request);
        let open = open.map(|open| open.progress.tenant);
        let row = self.by_id(&told.request).map(|row| row.tenant);
        open.or(row).is_some_and(|tenant| tenant != told.tenant)
    }

    /// With what was told before of the same request, if it is under way.
    pub fn merged(&self, told: &Progress) -> Progress {
        let mut merged = told.clone();
        let before = self.open.get(&told.request).map(|open| &open.progress);
        let work = before.map_or(&[][..], |before| &before.work);
        merged.work = merge_work(work, &told.work);
        if let Some(before) = before {
            merged.counts = before.counts.max(told.counts);
            merged.began_at_ms = before.began_at_ms.min(told.began_at_ms);
        }
        merged
    }

    /// Requests under way that a life was the last to tell of.
    pub fn open_of(&self, life: GatewayLife) -> Vec<Progress> {
        let open = self.index.open_of(life);
        let open = open.filter_map(|request| self.open.get(request));
        open.map(|open| open.progress.clone()).collect()
    }

    /// A tenant's requests under way, in the order of their ids.
    pub fn open_of_tenant(&self, tenant: TenantId) -> impl Iterator<Item = &OpenRequest> {
        let open = self.index.open_of_tenant(tenant);
        open.filter_map(|request| self.open.get(request))
    }

    /// The newest row of a tenant that its caller knows by that id.
    pub fn by_caller(&self, tenant: TenantId, id: &RequestId) -> Option<&RequestRow> {
        self.rows.get(&self.index.by_caller(tenant, id)?)
    }

    /// The row that a request, or an attempt at one, belongs to.
    pub fn row_of(&self, told: &Progress) -> Option<&RequestRow> {
        if let Some(number) = self.index.by_id(&told.request) {
            return self.rows.get(&number);
        }
        let hash = told.idempotency?;
        let row = self.by_idempotency(told.tenant, &hash)?;
        // Beyond that it is a request of its own.
        (row.attempts.len() + 1 < limits::REQUEST_ATTEMPTS_MAX).then_some(row)
    }

    pub fn by_id(&self, id: &RequestId) -> Option<&RequestRow> {
        self.rows.get(&self.index.by_id(id)?)
    }

    pub fn by_idempotency(&self, tenant: TenantId, hash: &[u8; 32]) -> Option<&RequestRow> {
        self.rows.get(&self.index.by_idempotency(tenant, hash)?)
    }

    /// A tenant's rows below a number, newest first.
    pub fn of_tenant(
        &self,
        tenant: TenantId,
        below: RequestNumber,
    ) -> impl Iterator<Item = &RequestRow> {
        let numbers = self.index.of_tenant(tenant, below);
        numbers.filter_map(|number| self.rows.get(&number))
    }

    /// Writes a row down, new or changed.
    pub fn put(&mut self, row: RequestRow) {
        self.last = self.last.max(row.number);
        self.index.add(&row);
        self.rows.insert(row.number, row);
    }

    /// Forgets the oldest rows beyond `most`, so many at once.
    pub fn trim(&mut self, most: usize, at_once: usize) {
        let surplus = self.rows.len().saturating_sub(most);
        for _ in 0..surplus.min(at_once) {
            let Some((number, row)) = self.rows.first().cloned() else {
                return;
            };
            self.rows.remove(&number);
            self.index.remove(&row);
            self.forgotten_ms = self.forgotten_ms.max(row.began_at_ms);
        }
    }

    pub fn check(&self) -> Result<(), String> {
        if Index::of(&self.rows, &self.open) != self.index {
            return Err("the index of requests is not that of their rows".into());
        }
        for (number, row) in self.rows.iter() {
            if row.number != *number || *number > self.last {
                return Err(format!("request {number} has another number"));
            }
            let charges = [row.refunded, row.charged, row.cost];
            if row.refunded.0 < 0 || !charges.is_sorted() {
                return Err(format!("request {number} was charged {charges:?}"));
            }
            if row.cost < row.price.cost(&row.counts) {
                return Err(format!("request {number} costs less than its price"));
            }
            if row.attempts.len() >= limits::REQUEST_ATTEMPTS_MAX {
                return Err(format!("request {number} has too many attempts"));
            }
        }
        Ok(())
    }
}

impl Stored for Requests {
    fn store(&self, out: &mut Sink<'_>) -> Result<(), CodecError> {
        self.open.store(out)?;
        self.rows.store(out)?;
        self.last.store(out)?;
        self.forgotten_ms.store(out)
    }

    fn load(input: &mut Source<'_>) -> Result<Self, CodecError> {
        let open = Stored::load(input)?;
        let rows = Stored::load(input)?;
        Ok(Self {
            index: Index::of(&rows, &open),
            open,
            rows,
            last: Stored::load(input)?,
            forgotten_ms: Stored::load(input)?,
        })
    }
}

/// The counts of a request, settled at some, of which others were told.
pub(super) fn merge_counts(settled: Counts, told: Counts) -> Counts {
    if planted::is(Bug::CountTwiceOnRetry) {
        return Counts {
            completion: Tokens(settled.completion.0 + told.completion.0),
            ..settled.max(told)
        };
    }
    settled.max(told)
}

/// The most units of each provider, in the order of their names; of the first
/// `limits::REQUEST_PROVIDERS_MAX`, so that the order of merging does not matter.
pub(super) fn merge_work(a: &[Work], b: &[Work]) -> Vec<Work> {
    let mut all: Vec<Work> = a.iter().chain(b).cloned().collect();
    // The largest of a provider's first, so that it is the one kept.
    all.sort_unstable_by(|x, y| (&x.provider, y.units).cmp(&(&y.provider, x.units)));
    all.dedup_by(|later, first| later.provider == first.provider);
    all.truncate(limits::REQUEST_PROVIDERS_MAX);
    all
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
