//! Thousands of seeded lives of a log on a disk that tears: whatever was acknowledged is there after
//! every crash, and nothing that was never given.

use super::memory::{Operation, SplitMix};
use super::wal_tests::{SEGMENT, entry, open, snapshot};
use super::{Batch, Recovered, SnapshotRef, TornDisk, Wal, read_snapshot};
use crate::raft::types::{Ballot, Index, LogEntry};
use std::io::Read;

/// What must be on the disk.
#[derive(Clone, Default)]
struct Model {
    ballot: Ballot,
    noted: Option<Ballot>,
    snapshot: Option<SnapshotRef>,
    /// All since the last installed snapshot, dropped ones included.
    entries: Vec<LogEntry>,
    keep_from: Index,
}

#[derive(Clone)]
enum Step {
    Append(Batch),
    Checkpoint(SnapshotRef, Index),
    Install(SnapshotRef, Ballot),
}

impl Model {
    fn snapshot_index(&self) -> Index {
        self.snapshot.as_ref().map_or(0, |s| s.meta.index)
    }

    fn last(&self) -> Index {
        let entries = self.entries.last().map_or(0, |e| e.index);
        entries.max(self.snapshot_index())
    }

    fn take(&mut self, step: Step) {
        let noted = self.noted.take();
        match step {
            Step::Append(batch) => {
                self.ballot = batch.ballot.or(noted).unwrap_or(self.ballot);
                if let Some(first) = batch.entries.first() {
                    self.entries.retain(|e| e.index < first.index);
                }
                self.entries.extend(batch.entries);
            }
            Step::Checkpoint(snapshot, keep_from) => {
                self.ballot = noted.unwrap_or(self.ballot);
                self.ballot.commit = self.ballot.commit.max(snapshot.meta.index);
                self.keep_from = self.keep_from.max(keep_from);
                self.snapshot = Some(snapshot);
            }
            Step::Install(snapshot, ballot) => {
                let commit = snapshot.meta.index;
                self.ballot = Ballot { commit, ..ballot };
                self.entries.clear();
                self.keep_from = commit + 1;
                self.snapshot = Some(snapshot);
            }
        }
    }

    /// Whether `recovered` is this, down to what a checkpoint let go.
    fn is(&self, recovered: &Recovered) -> bool {
        let first = recovered.entries.first().map_or(Index::MAX, |e| e.index);
        let needed = |e: &&LogEntry| e.index >= first || e.index >= self.keep_from;
        let entries: Vec<&LogEntry> = self.entries.iter().filter(needed).collect();
        self.ballot == recovered.ballot
            && self.snapshot == recovered.snapshot
            && entries == recovered.entries.iter().collect::<Vec<_>>()
    }
}

/// One life of a log, through several crashes. Gives what happened, so that a test can see that
/// enough did.
struct Life {
    random: SplitMix,
    disk: TornDisk,
    model: Model,
    crashes: u32,
    cuts: u32,
    in_doubt: u32,
}

impl Life {
    fn new(seed: u64) -> Self {
        Self {
            random: SplitMix(seed),
            disk: TornDisk::new(),
            model: Model::default(),
            crashes: 0,
            cuts: 0,
            in_doubt: 0,
        }
    }

    fn run(&mut self, seed: u64) {
        for _ in 0..8 {
            // `None`: the power goes during `open`.
            self.disk.cut_power(self.random.below(40));
            let opened = open(&self.disk);
            let wal = match opened {
                Ok((wal, recovered)) => {
                    self.check(&recovered, None, seed);
                    wal
                }
                Err(_) => {
                    self.crash();
                    self.reopen(None, seed);
                    continue;
                }
            };
            let doubt = self.use_until_it_fails(wal);
            self.in_doubt += u32::from(doubt.is_some());
            if self.random.below(4) > 0 {
                self.crash();
            } else {
                // Only the process dies; what it wrote may be on no disk yet.
                self.disk.heal();
            }
            self.reopen(doubt, seed);
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        let mut random = SplitMix(self.random.draw());
        self.disk.crash(&mut || random.draw());
    }

    /// Opens what a crash left; what is read must survive another crash right after.
    fn reopen(&mut self, doubt: Option<Step>, seed: u64) {
        let (_, recovered) = open(&self.disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        self.cuts += u32::from(recovered.cut.is_some());
        self.check(&recovered, doubt, seed);
        self.crash();
        let (_, again) = open(&self.disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(again.entries, recovered.entries, "seed {seed}");
        assert_eq!(again.ballot, recovered.ballot, "seed {seed}");
        assert_eq!(again.snapshot, recovered.snapshot, "seed {seed}");
        assert_eq!(again.cut, None, "seed {seed}");
    }

    /// What was recovered is what was acknowledged, with or without the step in doubt.
    fn check(&mut self, recovered: &Recovered, doubt: Option<Step>, seed: u64) {
        let without = Model {
            noted: None,
            ..self.model.clone()
        };
        let with = doubt.map(|step| {
            let mut model = self.model.clone();
            model.take(step);
            model
        });
        self.model = match with {
            Some(with) if with.is(recovered) => with,
            _ if without.is(recovered) => without,
            _ => panic!(
                "seed {seed}: found {recovered:?}, expected {:?} {:?} {:?} from {}",
                without.ballot, without.snapshot, without.entries, without.keep_from
            ),
        };
        if let Some(snapshot) = &recovered.snapshot {
            let mut body = String::new();
            let (_, mut reader) = read_snapshot(self.disk.clone(), &snapshot.file).unwrap();
            reader.read_to_string(&mut body).unwrap();
            assert_eq!(body, format!("the state after {}", snapshot.meta.index));
        }
    }

    /// Gives the step that failed, if any did.
    fn use_until_it_fails(&mut self, mut wal: Wal<TornDisk>) -> Option<Step> {
        if self.random.below(4) == 0 {
            self.disk.heal();
            let operation = [Operation::Write, Operation::Sync, Operation::Create]
                [self.random.below(3) as usize];
            self.disk.fail(operation, self.random.below(30));
        }
        for _ in 0..self.random.below(60) {
            let step = self.step(&mut wal)?;
            let done = match &step {
                Step::Append(batch) => wal.append(batch),
                Step::Checkpoint(snapshot, keep_from) => {
                    wal.checkpoint(snapshot.clone(), *keep_from)
                }
                Step::Install(snapshot, ballot) => wal.install(snapshot.clone(), *ballot),
            };
            if done.is_err() {
                return Some(step);
            }
            self.model.take(step);
        }
        None
    }

    /// What to do next. `None`: the disk does not even take a snapshot.
    fn step(&mut self, wal: &mut Wal<TornDisk>) -> Option<Step> {
        let (last, snapshot_index) = (self.model.last(), self.model.snapshot_index());
        let ballot = Ballot {
            term: self.model.ballot.term + self.random.below(2),
            vote: self.random.below(4),
            commit: self.model.ballot.commit,
        };
        match self.random.below(20) {
            0 if last > snapshot_index => {
                let index = snapshot_index + 1 + self.random.below(last - snapshot_index);
                let term = self.model.entries.iter().find(|e| e.index == index)?.term;
                let made = snapshot(&self.disk, index, term).ok()?;
                let keep = index + 1 - self.random.below(index.min(20) + 1);
                Some(Step::Checkpoint(made, keep))
            }
            1 => {
                let index = last + 1 + self.random.below(30);
                let received = snapshot(&self.disk, index, ballot.term).ok()?;
                Some(Step::Install(received, ballot))
            }
            2 | 3 => {
                let commit = ballot.commit + self.random.below(last + 1 - ballot.commit);
                let noted = Ballot { commit, ..ballot };
                wal.note(noted);
                self.model.noted = Some(noted);
                self.step(wal)
            }
            4 => Some(Step::Append(Batch {
                ballot: Some(ballot),
                entries: Vec::new(),
            })),
            _ => {
                // Committed entries are never replaced, nor are those that a snapshot stands for.
                let noted = self.model.noted.map_or(0, |b| b.commit);
                let fixed = ballot.commit.max(snapshot_index).max(noted);
                let back = match self.random.below(6) {
                    0 => self.random.below(last - fixed + 1),
                    _ => 0,
                };
                let bytes = match self.random.below(12) {
                    0 => SEGMENT,
                    1..4 => 600,
                    _ => 60,
                };
                let first = last + 1 - back;
                let count = 1 + self.random.below(4);
                let term = ballot.term;
                let entries = (first..first + count)
                    .map(|i| entry(i, term, self.random.below(bytes) as usize))
                    .collect();
                let said = self.random.below(2) == 0;
                Some(Step::Append(Batch {
                    ballot: said.then_some(Ballot {
                        commit: fixed + self.random.below(first + count - fixed),
                        ..ballot
                    }),
                    entries,
                }))
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_every_crash() {
    let (mut crashes, mut cuts, mut in_doubt) = (0, 0, 0);
    for seed in 0..4_000 {
        let mut life = Life::new(seed);
        life.run(seed);
        crashes += life.crashes;
        cuts += life.cuts;
        in_doubt += life.in_doubt;
    }
    assert!(
        crashes > 50_000 && cuts > 1_000 && in_doubt > 10_000,
        "{crashes} {cuts} {in_doubt}"
    );
}

/// The disk that lies is what the checks above are for: they must see it.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let lost = (0..50).any(|seed| {
        let disk = TornDisk::new();
        let (mut wal, _) = open(&disk).unwrap();
        disk.set_lying(true);
        let batch = super::wal_tests::batch(1, 1, 1, 600);
        wal.append(&batch).unwrap();
        let mut random = SplitMix(seed);
        disk.crash(&mut || random.draw());
        open(&disk).unwrap().1.entries.is_empty()
    });
    assert!(lost);
}
