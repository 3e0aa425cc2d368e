//! What a damaged log is called, and that it is never believed.

use super::memory::{Operation, SplitMix};
use super::record::{self, segment_file};
use super::wal_tests::{SEGMENT, batch, open, snapshot};
use super::{Batch, Disk, LogId, Recovered, StorageError, TornDisk, Wal};
use crate::raft::types::Ballot;

fn damage(disk: &TornDisk) -> (String, u64, String) {
    match open(disk) {
        Err(StorageError::Damaged {
            file,
            offset,
            reason,
        }) => (file, offset, reason),
        Err(other) => panic!("{other}"),
        Ok((_, recovered)) => panic!("opened with {recovered:?}"),
    }
}

/// Every byte of a small log, flipped in three ways: named as damage, or the end is cut by one
/// record, or nothing changes (the byte meant nothing). Never other content.
#[test]
fn a_flipped_byte_is_never_believed() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for first in (1..=12).step_by(3) {
        wal.append(&batch(first, 3, 1, 150)).unwrap();
    }
    let named = snapshot(&disk, 8, 1).unwrap();
    wal.checkpoint(named, 1).unwrap();
    wal.append(&batch(13, 2, 1, 100)).unwrap();
    let without_last = open(&disk.copy()).unwrap().1;
    wal.append(&batch(15, 2, 2, 30)).unwrap();
    let whole = open(&disk.copy()).unwrap().1;
    let names = disk.list().unwrap();
    assert_eq!(names.len(), 3, "two segments and a snapshot: {names:?}");

    let (mut damaged, mut cut, mut same) = (0, 0, 0);
    for name in names.iter().filter(|n| n.ends_with(".wal")) {
        for offset in 0..disk.bytes(name).len() {
            for mask in [0x01, 0x80, 0xff] {
                let disk = disk.copy();
                disk.flip(name, offset, mask);
                match open(&disk) {
                    Ok((_, recovered)) if recovered.entries == whole.entries => {
                        assert_eq!(recovered.ballot, whole.ballot);
                        assert_eq!(recovered.snapshot, whole.snapshot);
                        same += 1;
                    }
                    Ok((_, recovered)) => {
                        assert!(recovered.cut.is_some());
                        let cut_one = Recovered {
                            cut: None,
                            ..recovered
                        };
                        assert_eq!(cut_one, without_last, "{name} {offset}");
                        cut += 1;
                    }
                    Err(StorageError::Damaged { file, .. }) => {
                        assert_eq!(&file, name);
                        damaged += 1;
                    }
                    Err(other) => panic!("{name} {offset}: {other}"),
                }
            }
        }
    }
    assert!(
        damaged > 3 * 3_000 && same > 3 * 500,
        "{damaged} {cut} {same}"
    );
    // A flip makes no whole sector of zeros, so even the last record is never taken for a torn one.
    assert_eq!(cut, 0);
}

#[test]
fn damage_names_file_offset_and_what_to_do() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for first in (1..=40).step_by(2) {
        wal.append(&batch(first, 2, 1, 200)).unwrap();
    }
    let file = segment_file(2);

    let flipped = disk.copy();
    flipped.flip(&file, 900, 1);
    let error = open(&flipped).err().expect("damage").to_string();
    for word in [&file, "byte 608", "empty --data-dir", "restore a backup"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(
        flipped.bytes(&file)[900],
        disk.bytes(&file)[900] ^ 1,
        "nothing was changed"
    );

    let missing = disk.copy();
    missing.take(&file);
    assert_eq!(damage(&missing).0, file);

    let beheaded = disk.copy();
    let last = disk.list().unwrap().pop().unwrap();
    beheaded.put(&last, &[&[0; 512], &disk.bytes(&last)[512..]].concat());
    assert_eq!(
        (damage(&beheaded).0, damage(&beheaded).1),
        (last.clone(), 0)
    );

    // The last record of a segment that is not the last is gone.
    let holed = disk.copy();
    let mut bytes = holed.bytes(&file);
    bytes[1024..].fill(0);
    holed.put(&file, &bytes);
    assert_eq!(damage(&holed).0, file);

    // Zeros where a record was, a sound one after it.
    let holed = disk.copy();
    let mut bytes = holed.bytes(&file);
    bytes[512..1024].fill(0);
    holed.put(&file, &bytes);
    assert_eq!(damage(&holed).0, file);

    let other = TornDisk::new();
    let (mut wal, _) = Wal::open_with(other.clone(), LogId([7; 16]), SEGMENT).unwrap();
    for first in (1..=40).step_by(2) {
        wal.append(&batch(first, 2, 1, 200)).unwrap();
    }
    let mixed = disk.copy();
    mixed.put(&file, &other.bytes(&file));
    assert_eq!((damage(&mixed).0, damage(&mixed).1), (file, 32));
}

/// Ballots alone: no gap between entries would tell.
#[test]
fn a_record_that_is_missing_or_in_another_place_is_damage() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for term in 1..=50 {
        let ballot = Ballot {
            term,
            vote: 1,
            commit: 0,
        };
        let batch = Batch {
            ballot: Some(ballot),
            entries: Vec::new(),
        };
        wal.append(&batch).unwrap();
    }
    let records = |file: &str| -> Vec<usize> {
        let bytes = disk.bytes(file);
        let starts = (64..bytes.len()).step_by(32);
        starts
            .filter(|&at| bytes[at..].starts_with(b"rec1"))
            .collect()
    };
    let (first, last) = (segment_file(1), segment_file(2));
    assert_eq!(disk.list().unwrap(), [first.clone(), last.clone()]);

    // The last one of a segment that another follows.
    let holed = disk.copy();
    let at = records(&first).pop().unwrap();
    let mut bytes = holed.bytes(&first);
    bytes[at..].fill(0);
    holed.put(&first, &bytes);
    let (file, offset, _) = damage(&holed);
    assert_eq!((file, offset), (first.clone(), at as u64));

    // An old one again, where the next must be.
    let again = disk.copy();
    let records = records(&last);
    let (old, at) = (records[1], records[records.len() - 1]);
    let mut bytes = again.bytes(&last);
    bytes.copy_within(old..old + 96, at);
    again.put(&last, &bytes);
    let (file, offset, _) = damage(&again);
    assert_eq!((file, offset), (last.clone(), at as u64));

    let beginless = disk.copy();
    beginless.take(&first);
    assert_eq!(damage(&beginless).0, first);
}

#[test]
fn a_snapshot_that_is_missing_or_another_is_damage() {
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 9, 1, 10)).unwrap();
    let named = snapshot(&disk, 8, 1).unwrap();
    wal.checkpoint(named.clone(), 9).unwrap();

    let missing = disk.copy();
    missing.take(&named.file);
    assert_eq!(damage(&missing).0, named.file);

    let other = disk.copy();
    let stranger = snapshot(&TornDisk::new(), 7, 1).unwrap();
    let scratch = TornDisk::new();
    snapshot(&scratch, 7, 1).unwrap();
    other.put(&named.file, &scratch.bytes(&stranger.file));
    assert_eq!(damage(&other).0, named.file);

    // Snapshots without their log: someone removed it.
    let logless = disk.copy();
    for name in disk.list().unwrap().iter().filter(|n| n.ends_with(".wal")) {
        logless.take(name);
    }
    assert_eq!(damage(&logless).0, segment_file(1));
    let wiped = disk.copy();
    wiped.put(&segment_file(1), &[0; 2048]);
    assert_eq!(damage(&wiped).0, segment_file(1));
}

#[test]
fn an_error_of_reading_is_no_damage() {
    let disk = TornDisk::new();
    open(&disk).unwrap();
    for successes in 0..3 {
        disk.fail(Operation::Read, successes);
        let error = open(&disk).err().expect("an error");
        assert!(matches!(error, StorageError::Io { .. }), "{error}");
        disk.heal();
    }
    open(&disk).unwrap();
}

#[test]
fn garbage_is_refused_without_a_panic() {
    let mut random = SplitMix(3);
    let disk = TornDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&batch(1, 4, 1, 100)).unwrap();
    let file = segment_file(1);
    let sound = disk.bytes(&file);
    let payload = sound[64 + 24..].to_vec();
    for _ in 0..20_000 {
        let mut bytes = payload[..random.below(400) as usize].to_vec();
        for _ in 0..random.below(6) {
            let at = random.below(bytes.len().max(1) as u64) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.draw() as u8;
            }
        }
        // Claimed lengths of petabytes are among them.
        let _ = record::decode(&bytes);
    }
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = sound.clone();
        let from = random.below(bytes.len() as u64) as usize;
        bytes[from..].fill_with(|| random.draw() as u8);
        bytes.truncate(bytes.len() - random.below(100) as usize);
        disk.put(&file, &bytes);
        match open(&disk) {
            // The garbage began where nothing was.
            Ok((_, recovered)) => assert_eq!(recovered.entries, batch(1, 4, 1, 100).entries),
            Err(StorageError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 100, "{refused}");
}
