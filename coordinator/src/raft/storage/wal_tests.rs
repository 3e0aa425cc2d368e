//! The log's scenarios: what is acknowledged survives, damage is named.

use super::memory::Operation;
use super::record::{self, segment_file};
use super::{
    Batch, Disk, LogId, Recovered, SnapshotRef, SnapshotWriter, StorageError, TornDisk, Wal,
};
use crate::raft::types::{Ballot, EntryKind, Index, LogEntry, Membership, SnapshotMeta};
use std::io::Write;

pub(super) const SEGMENT: u64 = 2048;
const LOG: LogId = LogId(*b"the log of tests");

pub(super) fn open(disk: &TornDisk) -> Result<(Wal<TornDisk>, Recovered), StorageError> {
    Wal::open_with(disk.clone(), LOG, SEGMENT)
}

pub(super) fn entry(index: Index, term: u64, bytes: usize) -> LogEntry {
    let kind = if index.is_multiple_of(7) {
        EntryKind::Members
    } else {
        EntryKind::Commands
    };
    // Never a whole sector of zeros; different for each entry.
    let data = (0..bytes).map(|i| (index as usize * 31 + term as usize * 7 + i) as u8 | 1);
    LogEntry {
        index,
        term,
        kind,
        data: data.collect(),
    }
}

pub(super) fn batch(first: Index, count: u64, term: u64, bytes: usize) -> Batch {
    Batch {
        ballot: Some(Ballot {
            term,
            vote: 1,
            commit: first - 1,
        }),
        entries: (first..first + count)
            .map(|i| entry(i, term, bytes))
            .collect(),
    }
}

pub(super) fn snapshot(
    disk: &TornDisk,
    index: Index,
    term: u64,
) -> Result<SnapshotRef, StorageError> {
    let meta = SnapshotMeta {
        index,
        term,
        members: Membership {
            voters: vec![1, 2, 3],
            ..Membership::default()
        },
    };
    let mut writer = SnapshotWriter::create(disk.clone(), meta)?;
    let body = format!("the state after {index}");
    writer
        .write_all(body.as_bytes())
        .map_err(|source| StorageError::Io {
            doing: "write",
            file: String::new(),
            source,
        })?;
    writer.finish()
}

fn indexes(recovered: &Recovered) -> (Index, Index) {
    let entries = &recovered.entries;
    (entries[0].index, entries[entries.len() - 1].index)
}

#[test]
fn what_was_appended_is_there_again() {
    let disk = TornDisk::new();
    let (mut wal, empty) = open(&disk).unwrap();
    assert_eq!((empty.ballot, empty.entries.len()), (Ballot::default(), 0));
    let syncs = disk.work().syncs;
    wal.append(&batch(1, 3, 1, 20)).unwrap();
    assert_eq!(disk.work().syncs, syncs + 1, "one sync for a batch");
    let second = Batch {
        ballot: None,
        entries: batch(4, 2, 1, 0).entries,
    };
    wal.append(&second).unwrap();

    let (_, recovered) = open(&disk).unwrap();
    let expected: Vec<LogEntry> = (1..=3)
        .map(|i| entry(i, 1, 20))
        .chain((4..=5).map(|i| entry(i, 1, 0)))
        .collect();
    assert_eq!(recovered.entries, expected);
    let ballot = Ballot {
        term: 1,
        vote: 1,
        commit: 0,
    };
    assert_eq!(recovered.ballot, ballot);
    assert_eq!(recovered.cut, None);
}

#[test]
fn later_entries_replace_what_follows_their_first() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 9, 1, 200)).unwrap();
    wal.append(&batch(4, 2, 2, 200)).unwrap();
    let (mut wal, recovered) = open(&disk).unwrap();
    let terms: Vec<u64> = recovered.entries.iter().map(|e| e.term).collect();
    assert_eq!(terms, [1, 1, 1, 2, 2]);
    let gap = wal.append(&batch(7, 1, 2, 1)).unwrap_err();
    assert!(matches!(gap, StorageError::Refused(_)), "{gap}");
    wal.append(&batch(6, 1, 2, 1)).unwrap();
}

#[test]
fn a_noted_ballot_goes_along_with_the_next_record() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 3, 1, 20)).unwrap();
    let noted = Ballot {
        term: 1,
        vote: 1,
        commit: 2,
    };
    let writes = disk.work();
    wal.note(noted);
    assert_eq!(disk.work(), writes, "a note costs no disk");
    wal.append(&Batch {
        ballot: None,
        entries: vec![entry(4, 1, 1)],
    })
    .unwrap();
    assert_eq!(open(&disk).unwrap().1.ballot, noted);
}

#[test]
fn a_snapshot_lets_older_segments_go_and_ballot_and_snapshot_stay() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for first in (1..=90).step_by(3) {
        wal.append(&batch(first, 3, 5, 100)).unwrap();
    }
    assert!(wal.bytes_since_checkpoint() > 9_000);
    let before = disk.list().unwrap().len();
    let named = snapshot(&disk, 80, 5).unwrap();
    wal.checkpoint(named.clone(), 60).unwrap();
    assert_eq!(wal.bytes_since_checkpoint(), 0);
    assert!(disk.list().unwrap().len() < before - 2);
    assert!(!disk.list().unwrap().contains(&segment_file(1)));

    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.snapshot, Some(named.clone()));
    let (first, last) = indexes(&recovered);
    assert!(first > 40 && first <= 60 && last == 90, "{first}..{last}");
    assert_eq!((recovered.ballot.term, recovered.ballot.commit), (5, 87));
    assert_eq!(wal.bytes_since_checkpoint(), 0);

    // A second one: the first's file goes, unless it is held.
    wal.hold(&named.file);
    let newer = snapshot(&disk, 90, 5).unwrap();
    wal.checkpoint(newer.clone(), 91).unwrap();
    assert!(disk.list().unwrap().contains(&named.file));
    wal.release(&named.file).unwrap();
    assert!(!disk.list().unwrap().contains(&named.file));
    wal.release(&newer.file).unwrap();
    let recovered = open(&disk).unwrap().1;
    assert_eq!(recovered.snapshot, Some(newer));
    assert_eq!((recovered.ballot.term, recovered.ballot.commit), (5, 90));
}

#[test]
fn a_received_snapshot_replaces_the_log() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for first in (1..=30).step_by(3) {
        wal.append(&batch(first, 3, 1, 100)).unwrap();
    }
    let received = snapshot(&disk, 20, 4).unwrap();
    let ballot = Ballot {
        term: 6,
        vote: 2,
        commit: 0,
    };
    wal.install(received.clone(), ballot).unwrap();
    let segments = disk.list().unwrap();
    let segments = segments.iter().filter(|n| n.ends_with(".wal")).count();
    assert_eq!(segments, 1, "all before it are gone");
    let recovered = open(&disk).unwrap().1;
    assert_eq!(recovered.entries, []);
    assert_eq!(recovered.snapshot, Some(received));
    let ballot = Ballot {
        commit: 20,
        ..ballot
    };
    assert_eq!(recovered.ballot, ballot);

    let (mut wal, _) = open(&disk).unwrap();
    assert!(wal.append(&batch(20, 1, 6, 1)).is_err());
    wal.append(&batch(21, 5, 6, 1)).unwrap();
    let recovered = open(&disk).unwrap().1;
    assert_eq!(indexes(&recovered), (21, 25));
}

#[test]
fn a_record_larger_than_a_segment_has_its_own() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 2, 1, 10)).unwrap();
    wal.append(&batch(3, 2, 1, 5_000)).unwrap();
    wal.append(&batch(5, 2, 1, 10)).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(indexes(&recovered), (1, 6));
    assert_eq!(recovered.entries[3], entry(4, 1, 5_000));
    assert_eq!(disk.bytes(&segment_file(3)).len(), SEGMENT as usize);
}

/// A record over six sectors, of which a crash leaves any part.
#[test]
fn a_torn_record_at_the_end_is_cut() {
    let whole = TornDisk::new();
    let (mut wal, _) = open(&whole).unwrap();
    wal.append(&batch(1, 2, 1, 100)).unwrap();
    let end = record::align(64 + 24 + 512);
    let without = whole.copy();
    wal.append(&batch(3, 1, 1, 1_300)).unwrap();
    let file = segment_file(1);
    let (with, without) = (whole.bytes(&file), without.bytes(&file));
    let sectors = SEGMENT as usize / 512;
    let mut cuts = 0;
    for kept in 0..1 << sectors {
        let mut bytes = without.clone();
        for sector in (0..sectors).filter(|s| kept & (1 << s) != 0) {
            let range = sector * 512..(sector + 1) * 512;
            bytes[range.clone()].copy_from_slice(&with[range]);
        }
        let disk = TornDisk::new();
        disk.put(&file, &bytes);
        let (mut wal, recovered) = open(&disk).unwrap();
        if bytes == with {
            assert_eq!(indexes(&recovered), (1, 3));
            continue;
        }
        assert_eq!(indexes(&recovered), (1, 2));
        if bytes != without {
            let cut = recovered.cut.expect("a cut");
            assert!(cut.offset > 64 && cut.offset < end, "{cut:?}");
            cuts += 1;
        }
        // What was cut never comes back.
        wal.append(&batch(3, 1, 2, 40)).unwrap();
        let (_, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.entries[2], entry(3, 2, 40));
        assert_eq!(recovered.cut, None);
    }
    assert!(cuts > 4, "{cuts}");
}

#[test]
fn leftovers_of_snapshots_go_at_the_next_start() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 9, 1, 10)).unwrap();
    let named = snapshot(&disk, 5, 1).unwrap();
    let nameless = snapshot(&disk, 7, 1).unwrap();
    disk.put("snapshot-0000000000000009-1.snap.made.tmp", b"half");
    wal.checkpoint(named.clone(), 1).unwrap();
    // Not yet: it may be under way.
    assert!(disk.list().unwrap().contains(&nameless.file));
    open(&disk).unwrap();
    assert_eq!(disk.list().unwrap(), [segment_file(1), named.file]);
}

#[test]
fn a_full_disk_leaves_a_log_that_opens_and_goes_on() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(SEGMENT * 2 + 100));
    let mut next = 1;
    let error = loop {
        match wal.append(&batch(next, 1, 1, 300)) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
    assert!(next > 8 && !wal.failed());
    assert!(
        snapshot(&disk, next - 1, 1).is_err(),
        "no room for it either"
    );
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(indexes(&recovered), (1, next - 1));

    disk.set_capacity(None);
    wal.append(&batch(next, 1, 1, 300)).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(indexes(&recovered), (1, next));
}

#[test]
fn after_a_failed_write_or_sync_nothing_more_is_written() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = TornDisk::new();
        let (mut wal, _) = open(&disk).unwrap();
        wal.append(&batch(1, 1, 1, 10)).unwrap();
        disk.fail(operation, 0);
        assert!(wal.append(&batch(2, 1, 1, 10)).is_err());
        disk.heal();
        let again = wal.append(&batch(2, 1, 1, 10)).unwrap_err();
        assert!(matches!(again, StorageError::Failed) && wal.failed());

        // A record whose sync failed reads well; once it was read, it must stay.
        let (_, recovered) = open(&disk).unwrap();
        disk.crash(&mut || 1 << 32);
        assert_eq!(open(&disk).unwrap().1.entries, recovered.entries);
    }
}
