//! The log as raft-rs sees it: in memory, from the newest snapshot (and some entries before it, for
//! followers that are a little behind) to the end. `member` keeps it equal to what is on disk.

use super::codec::{conf_state, raft_snapshot};
use super::types::{Ballot, Index, MemberId, SnapshotMeta, Term};
use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError, util};
use std::cell::Cell;
use std::collections::VecDeque;

/// raft-rs's `Storage`.
pub(super) struct LogView {
    pub(super) ballot: Ballot,
    /// The newest snapshot; index 0 on a member that has nothing yet.
    snapshot: SnapshotMeta,
    /// Position and term of the entry before `entries`.
    before: (Index, Term),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// A peer needs a snapshot that is newer than `snapshot` (or has it among its members).
    wanted: Cell<bool>,
}

impl LogView {
    /// `entries` follow `before` without a gap.
    pub(super) fn new(
        ballot: Ballot,
        snapshot: SnapshotMeta,
        before: (Index, Term),
        entries: Vec<Entry>,
    ) -> Self {
        let bytes = entries.iter().map(size).sum();
        Self {
            ballot,
            snapshot,
            before,
            entries: entries.into(),
            bytes,
            wanted: Cell::new(false),
        }
    }

    pub(super) fn snapshot_meta(&self) -> &SnapshotMeta {
        &self.snapshot
    }

    /// Whether a peer waits for a new snapshot; asking forgets it.
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    pub(super) fn first(&self) -> Index {
        self.before.0 + 1
    }

    pub(super) fn last(&self) -> Index {
        self.before.0 + self.entries.len() as Index
    }

    fn position(&self, index: Index) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first())?).ok()
    }

    pub(super) fn term_of(&self, index: Index) -> Option<Term> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        Some(self.entries.get(self.position(index)?)?.term)
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn entry(&self, index: Index) -> Option<&Entry> {
        self.entries.get(self.position(index)?)
    }

    /// Entries replace what is there from their first index on.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|e| e.index) else {
            return;
        };
        assert!(
            (self.first()..=self.last() + 1).contains(&first),
            "entries from {first} follow a log of {}..={}",
            self.first(),
            self.last()
        );
        while self.last() >= first {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        for entry in entries {
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    /// A snapshot was made of what is here: entries before it may go, but for the newest
    /// `keep_bytes` of them, and none from `keep_from` on.
    pub(super) fn compact(&mut self, snapshot: SnapshotMeta, keep_bytes: usize, keep_from: Index) {
        let end = snapshot.index.min(keep_from.saturating_sub(1));
        self.snapshot = snapshot;
        while self.first() <= end && self.bytes > keep_bytes {
            let Some(gone) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= size(&gone);
            self.before = (gone.index, gone.term);
        }
    }

    /// A received snapshot replaces the log.
    pub(super) fn install(&mut self, snapshot: SnapshotMeta) {
        self.before = (snapshot.index, snapshot.term);
        self.ballot.commit = self.ballot.commit.max(snapshot.index);
        self.ballot.term = self.ballot.term.max(snapshot.term);
        self.snapshot = snapshot;
        self.entries.clear();
        self.bytes = 0;
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + std::mem::size_of::<Entry>()
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard = HardState {
            term: self.ballot.term,
            vote: self.ballot.vote,
            commit: self.ballot.commit,
            ..HardState::default()
        };
        Ok(RaftState::new(hard, conf_state(&self.snapshot.members)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let (Some(from), Some(to)) = (self.position(low), self.position(high)) else {
            return Err(Error::Store(StorageError::Unavailable));
        };
        assert!(
            to <= self.entries.len(),
            "entries up to {high} were asked of a log that ends at {}",
            self.last()
        );
        let mut entries: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.first() => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// The newest snapshot, if it is good for that peer: raft-rs has a follower ignore a snapshot that
    /// does not count it among the members.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let members = &self.snapshot.members;
        let counts = [&members.voters, &members.learners, &members.voters_outgoing]
            .iter()
            .any(|list: &&Vec<MemberId>| list.contains(&to));
        if self.snapshot.index == 0 || self.snapshot.index < request_index || !counts {
            self.wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(raft_snapshot(&self.snapshot))
    }
}
