//! The write-ahead log: appends batches of entries and ballots, one write and one disk sync each;
//! names the snapshot that stands for what is dropped.
//!
//! What it keeps true: a record is durable before the next is written and before its call returns;
//! after a failed write nothing more is written, for nobody knows what is on disk; older segments go
//! only when none of their entries is needed and a later record says ballot and snapshot. The format is `record`'s, reading back is `recover`'s.

use super::record::{self, Mark, Place, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::recover::{self, Scan, Segment, TornTail};
use super::snapshot::{self, is_temporary_file, snapshot_index};
use super::{Disk, LogId, SnapshotRef, StorageError};
use crate::raft::types::{Ballot, Index, LogEntry};
use std::collections::{BTreeMap, VecDeque};
use trireme_shared::limits;

/// What becomes durable together. Entries are one gap-free run; they replace all entries from the
/// first one's index on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub ballot: Option<Ballot>,
    pub entries: Vec<LogEntry>,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its `commit` is at least the snapshot's index.
    pub ballot: Ballot,
    pub snapshot: Option<SnapshotRef>,
    /// Gap-free; the first one's index is at most the snapshot's + 1, so some may be in the snapshot.
    pub entries: Vec<LogEntry>,
    /// Where a record that a crash tore, and that nobody was told of, was cut off.
    pub cut: Option<TornTail>,
}

pub struct Wal<D> {
    disk: D,
    log: LogId,
    segment_bytes: u64,
    segments: VecDeque<Segment>,
    /// Where the next record goes in the last segment.
    end: u64,
    next_sequence: u64,
    ballot: Ballot,
    snapshot: Option<SnapshotRef>,
    /// Index of the last entry, or of the snapshot.
    last_index: Index,
    bytes_since_checkpoint: u64,
    /// Snapshot files that someone reads, and how often each was held.
    held: BTreeMap<String, usize>,
    failed: bool,
}

impl<D: Disk> Wal<D> {
    /// Reads the log in `disk`, or makes one, with the id `new`, where there is none. Cuts a torn
    /// end; removes what unfinished snapshots left.
    ///
    /// The snapshot's header is checked here, its body when it is read (`read_snapshot`).
    pub fn open(disk: D, new: LogId) -> Result<(Self, Recovered), StorageError> {
        Self::open_with(disk, new, limits::WAL_SEGMENT_BYTES)
    }

    /// `open` with segments of another size (at most `limits::WAL_SEGMENT_BYTES`).
    pub fn open_with(
        mut disk: D,
        new: LogId,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), StorageError> {
        let Some(mut scan) = recover::scan(&disk)? else {
            return Self::create(disk, new, segment_bytes);
        };
        if let Some(snapshot) = &scan.image.snapshot {
            snapshot::check_header(&disk, snapshot)?;
        }
        repair(&mut disk, &scan)?;
        if let Some(cut) = &scan.cut {
            tracing::warn!(
                file = cut.file,
                offset = cut.offset,
                "the log's last record was torn by a crash and is cut off; nobody was told of it"
            );
        }
        let snapshot_index = scan.image.snapshot.as_ref().map_or(0, |s| s.meta.index);
        let recovered = Recovered {
            ballot: scan.image.ballot,
            snapshot: scan.image.snapshot.clone(),
            entries: std::mem::take(&mut scan.image.entries),
            cut: scan.cut,
        };
        let last_index = recovered.entries.last().map_or(snapshot_index, |e| e.index);
        let mut wal = Self {
            disk,
            log: scan.log,
            segment_bytes,
            segments: scan.segments.into(),
            end: scan.end,
            next_sequence: scan.next_sequence,
            ballot: recovered.ballot,
            snapshot: recovered.snapshot.clone(),
            last_index,
            bytes_since_checkpoint: scan.image.bytes_since,
            held: BTreeMap::new(),
            failed: false,
        };
        wal.remove_leftovers()?;
        Ok((wal, recovered))
    }

    fn create(disk: D, log: LogId, segment_bytes: u64) -> Result<(Self, Recovered), StorageError> {
        let mut wal = Self {
            disk,
            log,
            segment_bytes,
            segments: VecDeque::new(),
            end: 0,
            next_sequence: 1,
            ballot: Ballot::default(),
            snapshot: None,
            last_index: 0,
            bytes_since_checkpoint: 0,
            held: BTreeMap::new(),
            failed: false,
        };
        wal.remove_leftovers()?;
        wal.write(Mark::default(), &[])?;
        let recovered = Recovered {
            ballot: Ballot::default(),
            snapshot: None,
            entries: Vec::new(),
            cut: None,
        };
        Ok((wal, recovered))
    }

    /// Makes `batch` durable: one write, one sync (a few more when a new segment is due). After
    /// `Io` the log may take more only if `failed` says no.
    pub fn append(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let ballot = batch.ballot.unwrap_or(self.ballot);
        let last = self.check_entries(&batch.entries)?;
        if ballot.commit > last {
            return Err(StorageError::Refused(format!(
                "entry {} cannot be committed, the log ends at {last}",
                ballot.commit
            )));
        }
        let mark = Mark {
            // A `note` of before goes along.
            ballot: Some(ballot),
            ..Mark::default()
        };
        self.write(mark, &batch.entries)?;
        self.last_index = last;
        Ok(())
    }

    /// Remembers a ballot that Raft does not need on disk (only `commit` moved): it is written with
    /// the next record, without a write of its own. A crash may lose it. A `commit` beyond the log's
    /// end counts as its end.
    pub fn note(&mut self, ballot: Ballot) {
        let commit = ballot.commit.min(self.last_index);
        self.ballot = Ballot { commit, ..ballot };
    }

    /// Names a snapshot made here, of the state after its entry, then removes what it stands for:
    /// segments all of whose entries are before `keep_from`, and older snapshots that nobody holds.
    /// An error in removing leaves the log in order; the next call tries again.
    pub fn checkpoint(
        &mut self,
        snapshot: SnapshotRef,
        keep_from: Index,
    ) -> Result<(), StorageError> {
        let index = snapshot.meta.index;
        let named = self.snapshot.as_ref().map_or(0, |s| s.meta.index);
        if index < named || index > self.last_index || keep_from > index.saturating_add(1) {
            return Err(StorageError::Refused(format!(
                "a snapshot at {index}, keeping from {keep_from}, while the last one is at {named} \
                 and the log ends at {}",
                self.last_index
            )));
        }
        snapshot::check_header(&self.disk, &snapshot)?;
        // All that the segments said which may now go.
        let mark = Mark {
            ballot: Some(self.ballot),
            resets: false,
            snapshot: Some(snapshot),
        };
        self.write(mark, &[])?;
        self.bytes_since_checkpoint = 0;
        self.remove_segments(keep_from)?;
        self.remove_older_snapshots()
    }

    /// A snapshot from a peer replaces the whole log: the next entry is the one after it. `ballot`
    /// becomes durable with it.
    pub fn install(&mut self, snapshot: SnapshotRef, ballot: Ballot) -> Result<(), StorageError> {
        let index = snapshot.meta.index;
        snapshot::check_header(&self.disk, &snapshot)?;
        let mark = Mark {
            ballot: Some(Ballot {
                commit: index,
                ..ballot
            }),
            resets: true,
            snapshot: Some(snapshot),
        };
        self.write(mark, &[])?;
        self.last_index = index;
        self.bytes_since_checkpoint = 0;
        self.remove_segments(index.saturating_add(1))?;
        self.remove_older_snapshots()
    }

    /// Bytes of records written since the last snapshot was named: when to make another.
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.bytes_since_checkpoint
    }

    /// The snapshot that the log begins with.
    pub fn snapshot(&self) -> Option<&SnapshotRef> {
        self.snapshot.as_ref()
    }

    /// Keeps a snapshot's file, even when a newer one is named, until `release`: it is being sent.
    pub fn hold(&mut self, file: &str) {
        *self.held.entry(file.to_owned()).or_default() += 1;
    }

    /// Ends one `hold`; the file goes if nobody needs it.
    pub fn release(&mut self, file: &str) -> Result<(), StorageError> {
        if let Some(count) = self.held.get_mut(file) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(file);
            }
        }
        let named = self.snapshot.as_ref().is_some_and(|s| s.file == file);
        if named || self.held.contains_key(file) || snapshot_index(file).is_none() {
            return Ok(());
        }
        self.remove(file)
    }

    /// Whether a write failed, so that the log takes nothing more before it is opened again.
    pub fn failed(&self) -> bool {
        self.failed
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// The last index after `entries`.
    fn check_entries(&self, entries: &[LogEntry]) -> Result<Index, StorageError> {
        let Some((first, last)) = entries.first().zip(entries.last()) else {
            return Ok(self.last_index);
        };
        let snapshot = self.snapshot.as_ref().map_or(0, |s| s.meta.index);
        let follows = first.index > snapshot && first.index <= self.last_index.saturating_add(1);
        let gap_free = entries
            .windows(2)
            .all(|two| two[0].index.checked_add(1) == Some(two[1].index));
        if follows && gap_free {
            return Ok(last.index);
        }
        Err(StorageError::Refused(format!(
            "{} entries from {} on, while the snapshot ends at {snapshot} and the log at {}",
            entries.len(),
            first.index,
            self.last_index
        )))
    }

    /// Writes one record and syncs it, in a new segment if it does not fit into this one.
    fn write(&mut self, mark: Mark, entries: &[LogEntry]) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Failed);
        }
        let mut bytes = self.encode(self.last_segment(), &mark, entries)?;
        let fits = self
            .segments
            .back()
            .is_some_and(|segment| self.end + bytes.len() as u64 <= segment.size);
        let mut at = self.end;
        if !fits {
            let number = self.last_segment() + 1;
            bytes = self.encode(number, &mark, entries)?;
            let least = record::align((SEGMENT_HEADER_BYTES + bytes.len()) as u64);
            let segment = Segment {
                number,
                size: self.segment_bytes.max(least),
                last_index: 0,
            };
            let file = segment.file();
            // Nothing of the log is touched yet: if there is no room, this may be tried again.
            self.disk
                .create(&file, segment.size)
                .map_err(StorageError::io("make", self.disk.place(&file)))?;
            let header = SegmentHeader {
                place: self.place(number),
                first_sequence: self.next_sequence,
            };
            bytes.splice(0..0, record::encode_segment_header(&header));
            self.segments.push_back(segment);
            at = 0;
        }
        let file = record::segment_file(self.last_segment());
        let written = self
            .disk
            .write(&file, at, &bytes)
            .and_then(|()| self.disk.sync(&file));
        if let Err(source) = written {
            self.failed = true;
            let file = self.disk.place(&file);
            return Err(StorageError::io("write", file)(source));
        }
        self.end = record::align(at + bytes.len() as u64);
        self.next_sequence += 1;
        self.bytes_since_checkpoint += bytes.len() as u64;
        if self.end > self.segment_bytes / 2 {
            self.disk.prepare(self.segment_bytes);
        }
        recover::mark_segments(self.segments.make_contiguous(), mark.resets, entries);
        self.ballot = mark.ballot.unwrap_or(self.ballot);
        if mark.snapshot.is_some() {
            self.snapshot = mark.snapshot;
        }
        Ok(())
    }

    fn encode(
        &self,
        segment: u64,
        mark: &Mark,
        entries: &[LogEntry],
    ) -> Result<Vec<u8>, StorageError> {
        record::encode(&self.place(segment), self.next_sequence, mark, entries)
            .map_err(|e| StorageError::Refused(e.to_string()))
    }

    fn place(&self, segment: u64) -> Place {
        Place {
            log: self.log,
            segment,
        }
    }

    /// Number of the segment that is written to; 0 before the first.
    fn last_segment(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.number)
    }

    fn remove_segments(&mut self, keep_from: Index) -> Result<(), StorageError> {
        while self.segments.len() > 1
            && let Some(segment) = self.segments.front()
            && segment.last_index < keep_from
        {
            self.remove(&segment.file())?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// At the start: unfinished snapshots, and finished ones that are not this log's.
    fn remove_leftovers(&mut self) -> Result<(), StorageError> {
        let named = self.snapshot.clone();
        let leftover = |name: &str| {
            let named = named.as_ref().is_some_and(|s| s.file == name);
            is_temporary_file(name) || (snapshot_index(name).is_some() && !named)
        };
        self.remove_those(leftover)
    }

    /// Later: only what is older than the named one. A newer one was perhaps just received.
    fn remove_older_snapshots(&mut self) -> Result<(), StorageError> {
        let newest = self.snapshot.as_ref().map_or(0, |s| s.meta.index);
        let held = self.held.clone();
        let older = |name: &str| {
            snapshot_index(name).is_some_and(|index| index < newest) && !held.contains_key(name)
        };
        self.remove_those(older)
    }

    fn remove_those(&mut self, is_one: impl Fn(&str) -> bool) -> Result<(), StorageError> {
        let names = self
            .disk
            .list()
            .map_err(StorageError::io("list", self.disk.place(".")))?;
        for name in names.iter().filter(|name| is_one(name)) {
            self.remove(name)?;
        }
        Ok(())
    }

    fn remove(&mut self, file: &str) -> Result<(), StorageError> {
        let failed = StorageError::io("remove", self.disk.place(file));
        self.disk.remove(file).map_err(failed)
    }
}

/// Brings the disk to what was read, durably: no bytes after the end, nothing half made, and the
/// last record written once more. A process that was killed before its sync, or whose sync failed,
/// leaves a record that reads well and is on no disk; others will be told of it from here on.
fn repair<D: Disk>(disk: &mut D, scan: &Scan) -> Result<(), StorageError> {
    if let Some(file) = &scan.unused {
        let failed = StorageError::io("remove", disk.place(file));
        disk.remove(file).map_err(failed)?;
    }
    let Some(segment) = scan.segments.last() else {
        return Ok(());
    };
    let file = segment.file();
    let failed = || StorageError::io("write", disk.place(&file));
    let (cut_failed, last_failed) = (failed(), failed());
    if let Some(stale) = &scan.stale {
        let zeros = vec![0; usize::try_from(stale.end - stale.start).unwrap_or_default()];
        disk.write(&file, stale.start, &zeros)
            .and_then(|()| disk.sync(&file))
            .map_err(cut_failed)?;
    }
    disk.write(&file, scan.last_write_at, &scan.last_write)
        .and_then(|()| disk.sync(&file))
        .map_err(last_failed)
}
