//! Who comes in: the next waiting sequence, into room that there is or that a tenant with more than its
//! share has to make.
//!
//! A tenant's share of the pages, and of the sequences that may run at once, is by its weight among all
//! that have something running or waiting. Room is made for one of a tenant that stays within its share
//! with it, by preempting the newest of tenants that keep theirs without it: so the two never take from
//! each other in turns. Only as many are preempted as it takes, and none where that would not do.

use super::Batcher;
use super::turns::Turns;
use crate::engine::plan::SequenceKey;
use crate::engine::sequence::SequenceId;
use std::collections::BTreeMap;
use trireme_shared::ids::TenantId;
use trireme_shared::limits;
use trireme_shared::wire::generate::FinishReason;

/// What a tenant's running sequences hold.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    pages: usize,
    sequences: usize,
}

impl Batcher {
    /// Moves the next waiting sequence into the running batch, if it fits.
    pub(super) fn admit(&mut self, turns: &Turns) -> Option<SequenceId> {
        loop {
            let id = self.waiting.next(|id| self.may_begin(id, turns))?;
            if self.sequences.get(&id)?.pages_wanted() > self.pool.total() {
                self.start(id, 0);
                self.finish(id, FinishReason::Length);
            } else if self.pages_missing(id) == Some(0) {
                return self.enter(id).then_some(id);
            } else {
                return None;
            }
        }
    }

    /// Moves a waiting sequence into the running batch that others have to make room for, or that would
    /// have to wait for one that was preempted: one in a step. Before anything of the step is planned, so
    /// that no page is given on that a sequence of the same step writes to.
    pub(super) fn admit_due(&mut self, turns: &Turns) {
        let next = self.waiting.next(|id| self.may_begin(id, turns));
        let fresh = self.waiting.next_fresh(|id| self.may_begin(id, turns));
        if let Some(id) = fresh
            && (fresh != next || self.pages_missing(id) != Some(0))
            && self.make_room(id)
        {
            self.enter(id);
        }
    }

    /// The next waiting sequence, if it needs no more room than there is.
    pub(super) fn next_that_fits(&mut self, turns: &Turns) -> Option<SequenceId> {
        let next = self.waiting.next(|id| self.may_begin(id, turns))?;
        (self.pages_missing(next) == Some(0)).then_some(next)
    }

    fn may_begin(&self, id: SequenceId, turns: &Turns) -> bool {
        let sequence = &self.sequences[&id];
        let turn = turns.get(&sequence.tenant());
        !sequence.paused && turn.is_some_and(|turn| turn.left > 0)
    }

    /// Sequences that may run at once.
    fn running_max(&self) -> usize {
        limits::STEP_SEQUENCES_MAX.min(self.rows_max)
    }

    /// How many more pages would have to be free for a sequence to run; `None` where as many run as may.
    fn pages_missing(&mut self, id: SequenceId) -> Option<usize> {
        if self.running.len() >= self.running_max() {
            return None;
        }
        let sequence = self.sequences.get_mut(&id)?;
        let found = self.pool.find(sequence.wanted_names());
        let needed = sequence.pages_wanted() - found.pages;
        // Each of those that run keeps a page to grow into.
        let room = self.pool.available() - found.kept;
        Some((needed + self.running.len()).saturating_sub(room))
    }

    /// Whether a sequence is due room and has it, after preempting others if it takes that and is enough.
    fn make_room(&mut self, id: SequenceId) -> bool {
        let missing = self.pages_missing(id);
        let Some(sequence) = self.sequences.get(&id) else {
            return false;
        };
        let (tenant, wanted) = (sequence.tenant(), sequence.pages_wanted());
        let mut held: BTreeMap<TenantId, Held> = BTreeMap::new();
        for (here, pages) in self.here() {
            let theirs = held.entry(here).or_default();
            theirs.pages += pages.unwrap_or_default();
            theirs.sequences += usize::from(pages.is_some());
        }
        let weights = held.keys().map(|of| u64::from(self.waiting.weight(*of)));
        let weights: u64 = weights.sum();
        let share = |of: TenantId, all: usize| {
            (all as u64 * u64::from(self.waiting.weight(of)) / weights.max(1)) as usize
        };
        let (pages, sequences) = (self.pool.total(), self.running_max());
        let theirs = held.get(&tenant).copied().unwrap_or_default();
        let due = match missing {
            Some(_) => theirs.pages + wanted <= share(tenant, pages),
            None => theirs.sequences < share(tenant, sequences),
        };
        if !due || missing == Some(0) {
            return due;
        }
        let mut running: Vec<_> = self.running.iter().copied().skip(1).collect();
        running.sort_by_cached_key(|id| std::cmp::Reverse(self.precedence(*id)));
        let mut still_missing = missing.unwrap_or(0);
        let mut go = Vec::new();
        for id in running {
            let sequence = &self.sequences[&id];
            let of = sequence.tenant();
            let Some(theirs) = held.get_mut(&of) else {
                continue;
            };
            let keeps = match missing {
                Some(_) => theirs.pages >= share(of, pages) + sequence.pages().len(),
                None => theirs.sequences > share(of, sequences),
            };
            if of == tenant || !keeps {
                continue;
            }
            theirs.pages -= sequence.pages().len();
            theirs.sequences -= 1;
            // Its own, and the one that was kept for it to grow into.
            let freed = self.pool.sole(sequence.pages()) + 1;
            still_missing = still_missing.saturating_sub(freed);
            go.push(id);
            if still_missing == 0 {
                break;
            }
        }
        if go.is_empty() || still_missing > 0 {
            return false;
        }
        for id in go {
            self.preempt(id);
        }
        self.pages_missing(id) == Some(0)
    }

    /// All sequences' tenants, with the pages that they hold if they run.
    fn here(&self) -> impl Iterator<Item = (TenantId, Option<usize>)> + '_ {
        let running = self.running.iter().map(|id| {
            let sequence = &self.sequences[id];
            (sequence.tenant(), Some(sequence.pages().len()))
        });
        let waiting = self.waiting.iter();
        running.chain(waiting.map(|id| (self.sequences[&id].tenant(), None)))
    }

    /// Into the running batch, where there is room for it; not if the next plan has enough to tell already.
    fn enter(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return false;
        };
        let bytes = self.added_bytes + sequence.added_bytes();
        if bytes > limits::STEP_ADDED_BYTES_MAX && !self.added.is_empty() {
            return false;
        }
        let held = self.pool.share(sequence.wanted_names());
        let needed = sequence.pages_wanted() - held.len();
        let Some(pages) = self.pool.allocate(needed) else {
            self.pool.release(&held);
            return false;
        };
        let key = SequenceKey(self.next_key);
        self.next_key += 1;
        self.added.push(sequence.admit(key, held));
        self.added_bytes = bytes;
        sequence.take_pages(&pages);
        self.by_key.insert(key, id);
        self.waiting.begin(id, sequence.tenant());
        self.running.insert(id);
        true
    }
}
