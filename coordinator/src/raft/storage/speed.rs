//! What decided for a log of our own: one batch made durable by a bare write, by this log, by redb.
//! Figures of a machine, so nothing is asserted:
//! `cargo test --release -p trireme-coordinator storage_speed -- --ignored --nocapture`

#![allow(clippy::print_stdout)]

use super::record::{self, Mark, Place};
use super::{Batch, Disk, Folder, LogId, SnapshotWriter, Wal};
use crate::raft::types::{Ballot, EntryKind, LogEntry, SnapshotMeta};
use crate::scratch::Scratch;
use redb::{Database, TableDefinition};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use trireme_shared::limits;

const ROUNDS: usize = 3_000;
/// Bytes of a small command with its proposal's frame.
const ENTRY_BYTES: usize = 150;
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const BALLOT: TableDefinition<u8, &[u8]> = TableDefinition::new("ballot");

fn batch(round: usize, count: usize) -> Batch {
    let first = (round * count) as u64 + 1;
    Batch {
        ballot: Some(Ballot {
            term: 1,
            vote: 1,
            commit: first - 1,
        }),
        entries: (first..first + count as u64)
            .map(|index| LogEntry {
                index,
                term: 1,
                kind: EntryKind::Commands,
                data: vec![index as u8; ENTRY_BYTES],
            })
            .collect(),
    }
}

/// Microseconds at the median and the 99th percentile.
fn percentiles(mut micros: Vec<f64>) -> (f64, f64) {
    micros.sort_by(f64::total_cmp);
    (micros[micros.len() / 2], micros[micros.len() * 99 / 100])
}

/// On the disk that is measured: the system's temporary folder may be memory.
fn folder(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path().join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

type Commit<'a> = Box<dyn FnMut(&Batch, usize) + 'a>;

fn bare(path: &Path) -> Commit<'static> {
    let mut disk = Folder::open(path).unwrap();
    disk.create("bare", 64 << 20).unwrap();
    let place = Place {
        log: LogId([1; 16]),
        segment: 1,
    };
    let mut offset = 0;
    Box::new(move |batch, round| {
        let mark = Mark {
            ballot: batch.ballot,
            ..Mark::default()
        };
        let bytes = record::encode(&place, round as u64, &mark, &batch.entries).unwrap();
        disk.write("bare", offset, &bytes).unwrap();
        disk.sync("bare").unwrap();
        offset += record::align(bytes.len() as u64);
    })
}

fn wal(path: &Path) -> Commit<'static> {
    let folder = Folder::open(path).unwrap();
    let (mut wal, _) = Wal::open(folder, LogId([1; 16])).unwrap();
    Box::new(move |batch, _| wal.append(batch).unwrap())
}

fn redb(path: &Path) -> Commit<'static> {
    let database = Database::create(path.join("log.redb")).unwrap();
    Box::new(move |batch, _| {
        let write = database.begin_write().unwrap();
        {
            let mut log = write.open_table(LOG).unwrap();
            for entry in &batch.entries {
                log.insert(entry.index, entry.data.as_slice()).unwrap();
            }
            let mut ballot = write.open_table(BALLOT).unwrap();
            let bytes = wincode::serialize(&batch.ballot).unwrap();
            ballot.insert(0, bytes.as_slice()).unwrap();
        }
        write.commit().unwrap();
    })
}

#[test]
#[ignore = "measures this machine's disk"]
fn storage_speed() {
    println!("entries      store   p50 us   p99 us  p50/bare  p99/bare");
    for count in [1, 64] {
        let scratch = Scratch::new();
        let mut stores: Vec<(&str, Commit<'_>)> = vec![
            ("bare", bare(&folder(&scratch, "bare"))),
            ("wal", wal(&folder(&scratch, "wal"))),
            ("redb", redb(&folder(&scratch, "redb"))),
        ];
        // Turn by turn, so that a disk's moods meet all three.
        let mut micros = vec![Vec::with_capacity(ROUNDS); stores.len()];
        for round in 0..ROUNDS {
            let batch = batch(round, count);
            for ((_, commit), micros) in stores.iter_mut().zip(&mut micros) {
                let start = Instant::now();
                commit(&batch, round);
                micros.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        let figures: Vec<_> = micros.into_iter().map(percentiles).collect();
        let (bare50, bare99) = figures[0];
        for ((name, _), (p50, p99)) in stores.iter().zip(&figures) {
            println!(
                "{count:>7} {name:>10} {p50:>8.0} {p99:>8.0} {:>9.2} {:>9.2}",
                p50 / bare50,
                p99 / bare99
            );
        }
    }
    beside_a_snapshot();
    restart();
}

/// Commits while another thread writes a large snapshot into the same folder.
fn beside_a_snapshot() {
    let scratch = Scratch::new();
    let folder = Folder::open(&folder(&scratch, "both")).unwrap();
    let (mut wal, _) = Wal::open(folder.clone(), LogId([1; 16])).unwrap();
    let mut commits = |more: &dyn Fn(usize) -> bool, start: usize| {
        let mut micros = Vec::new();
        while more(micros.len()) {
            let batch = batch(start + micros.len(), 16);
            let began = Instant::now();
            wal.append(&batch).unwrap();
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        micros
    };
    let alone = commits(&|done| done < ROUNDS, 0);
    let (alone50, alone99) = percentiles(alone);
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let (beside, seconds) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut writer = SnapshotWriter::create(folder, SnapshotMeta::default()).unwrap();
            let piece = vec![7; limits::SNAPSHOT_CHUNK_BYTES];
            for _ in 0..500 {
                writer.write_all(&piece).unwrap();
            }
            writer.finish().unwrap();
            done.store(true, Ordering::Relaxed);
            began.elapsed().as_secs_f64()
        });
        let beside = commits(&|_| !done.load(Ordering::Relaxed), ROUNDS);
        (beside, writing.join().unwrap())
    });
    let count = beside.len();
    let (beside50, beside99) = percentiles(beside);
    println!("16 entries alone: p50 {alone50:.0} us, p99 {alone99:.0} us");
    println!(
        "16 entries beside a snapshot of 500 MiB ({seconds:.1} s, {count} commits): \
         p50 {beside50:.0} us, p99 {beside99:.0} us"
    );
}

fn restart() {
    let scratch = Scratch::new();
    let path = folder(&scratch, "restart");
    let open = || Wal::open(Folder::open(&path).unwrap(), LogId([1; 16])).unwrap();
    let (mut wal, _) = open();
    for round in 0..100_000 / 64 {
        wal.append(&batch(round, 64)).unwrap();
    }
    drop(wal);
    let began = Instant::now();
    let (_, recovered) = open();
    println!(
        "opening a log of {} entries: {:.0} ms",
        recovered.entries.len(),
        began.elapsed().as_secs_f64() * 1e3
    );
}
