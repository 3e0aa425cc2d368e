//! Exporters that fail, die and race, against a log that grows; what they wrote is read back.

mod bucket;
mod faulty;
mod formats;

use super::chain::{Exporter, Fault, Step, file_name, parse_name};
use super::place::Place;
use super::{Format, columns};
use anyhow::Result;
use bytes::Bytes;
use faulty::{Faulty, Plan};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use trireme_shared::api::{RequestStatus, SettlementReport, SettlementsPage};
use trireme_shared::ids::{KeyId, NanoUsd, RequestId, SettlementSeq, TenantId};

const CLUSTER: &str = "0707";

/// A cluster's log, by its ends.
struct Log {
    oldest: Cell<u64>,
    newest: Cell<u64>,
    cluster: &'static str,
}

impl Log {
    fn to(newest: u64) -> Self {
        Self {
            oldest: Cell::new(1),
            newest: Cell::new(newest),
            cluster: CLUSTER,
        }
    }

    fn ask(&self) -> impl FnMut(Option<SettlementSeq>, u64) -> Result<SettlementsPage> + '_ {
        |after, limit| {
            let from = after.map_or(self.oldest.get(), |after| after.0 + 1);
            anyhow::ensure!(from >= self.oldest.get(), "settlements_lost");
            let rows = (from..=self.newest.get()).take(limit as usize).map(row);
            Ok(SettlementsPage {
                cluster: self.cluster.into(),
                oldest: SettlementSeq(self.oldest.get()),
                newest: SettlementSeq(self.newest.get()),
                settlements: rows.collect(),
            })
        }
    }
}

fn row(sequence: u64) -> SettlementReport {
    let known = !sequence.is_multiple_of(5);
    SettlementReport {
        sequence: SettlementSeq(sequence),
        settled_at_ms: 1_780_000_000_123 + sequence,
        tenant: Some(TenantId(2)),
        tenant_name: Some("größe & co".into()),
        key: KeyId(3),
        model: known.then(|| "tiny".into()),
        request: known.then(|| RequestId::parse(&format!("req_{sequence}")).unwrap()),
        caller_id: None,
        status: RequestStatus::Disconnected,
        prompt_tokens: 10 + sequence,
        cached_tokens: 10,
        completion_tokens: sequence,
        charged_nano_usd: NanoUsd(sequence as i64 * 1_000),
    }
}

fn place(store: &Arc<InMemory>) -> Place {
    Place::new(store.clone(), Path::default(), "memory").unwrap()
}

fn files(store: &dyn ObjectStore) -> BTreeMap<String, Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let all: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut files = BTreeMap::new();
        for one in all {
            let bytes = store.get(&one.location).await.unwrap().bytes().await;
            files.insert(one.location.to_string(), bytes.unwrap());
        }
        files
    })
}

/// Numbers in all files, in the order of names; a file's name must be its first.
fn sequences(files: &BTreeMap<String, Bytes>) -> Vec<u64> {
    let mut all = Vec::new();
    for (name, bytes) in files {
        let (first, extension) = parse_name(name.rsplit('/').next().unwrap()).expect(name);
        let held: Vec<u64> = match extension {
            "jsonl" => {
                let lines = std::str::from_utf8(bytes).unwrap().lines();
                let number = |line| {
                    let event: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(event["type"], "trireme.usage.v1");
                    event["data"]["sequence"].as_u64().unwrap()
                };
                lines.map(number).collect()
            }
            _ => {
                let reader = SerializedFileReader::new(bytes.clone()).unwrap();
                let rows = reader.get_row_iter(None).unwrap();
                rows.map(|row| row.unwrap().get_long(1).unwrap() as u64)
                    .collect()
            }
        };
        assert_eq!(held[0], first.0, "{name}");
        all.extend(held);
    }
    all
}

fn once_each(newest: u64) -> Vec<u64> {
    (1..=newest).collect()
}

/// Exports to the end, and tells the files written.
fn finish(log: &Log, place: &Place, format: Format, rows: u64) -> Vec<String> {
    let mut exporter = Exporter::new(log.ask(), place, format, rows, false);
    let mut names = Vec::new();
    loop {
        match exporter.step().unwrap() {
            Step::Wrote { name, .. } => names.push(name),
            Step::Done => return names,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn names_sort_as_numbers_do_and_only_ours_are_read() {
    assert_eq!(
        file_name(SettlementSeq(7), "jsonl"),
        "usage-00000000000000000007.jsonl"
    );
    let largest = file_name(SettlementSeq(u64::MAX), "parquet");
    assert_eq!(
        parse_name(&largest),
        Some((SettlementSeq(u64::MAX), "parquet"))
    );
    assert!(largest > file_name(SettlementSeq(999), "parquet"));
    for other in [
        "usage-7.jsonl",
        "usage-00000000000000000007",
        "usage-+0000000000000000007.jsonl",
        "usage-99999999999999999999.jsonl",
        "other.jsonl",
    ] {
        assert_eq!(parse_name(other), None, "{other}");
    }
}

#[test]
fn files_hold_so_many_rows_and_the_next_run_goes_on() {
    for format in [Format::Cloudevents, Format::Parquet] {
        let (log, store) = (Log::to(2_500), Arc::new(InMemory::new()));
        let place = place(&store);
        assert_eq!(finish(&log, &place, format, 1_200).len(), 3);
        assert_eq!(finish(&log, &place, format, 1_200).len(), 0);
        log.newest.set(2_510);
        let names = finish(&log, &place, format, 1_200);
        assert_eq!(names, [file_name(SettlementSeq(2_501), format.extension())]);
        assert_eq!(sequences(&files(&*store)), once_each(2_510));
    }
}

#[test]
fn in_a_folder_too_and_nothing_else_lies_there() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("new/usage");
    let (log, to) = (Log::to(50), to.to_str().unwrap());
    // What a killed one leaves of a file that had no name yet, and a user's own.
    std::fs::create_dir_all(to).unwrap();
    let torn = format!("{to}/{}#1", file_name(SettlementSeq(1), "jsonl"));
    std::fs::write(torn, "{\"spec").unwrap();
    std::fs::write(format!("{to}/notes.txt"), "mine").unwrap();
    assert_eq!(
        finish(&log, &Place::open(to).unwrap(), Format::Cloudevents, 20).len(),
        3
    );
    log.newest.set(55);
    assert_eq!(
        finish(&log, &Place::open(to).unwrap(), Format::Cloudevents, 20).len(),
        1
    );
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(to).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if parse_name(&name).is_some_and(|(_, ends)| ends == "jsonl") {
            found.insert(name, std::fs::read(entry.path()).unwrap().into());
        }
    }
    assert_eq!(sequences(&found), once_each(55));
}

/// Every call to the store may fail, before or after it took effect; then the exporter goes on, or is dead
/// and another begins, with another size of files.
#[test]
fn whenever_it_fails_or_dies_each_is_there_once() {
    let (mut died, mut doubted) = (0, 0);
    for seed in 1..=60 {
        for format in [Format::Cloudevents, Format::Parquet] {
            let (log, store) = (Log::to(5), Arc::new(InMemory::new()));
            let plan = Arc::new(Plan::new(seed));
            let faulty = Faulty::new(store.clone(), plan.clone());
            let place = Place::new(Arc::new(faulty), Path::default(), "faulty").unwrap();
            for _ in 0..12 {
                let rows = 1 + plan.draw(9);
                let mut exporter = Exporter::new(log.ask(), &place, format, rows, false);
                for _ in 0..6 {
                    log.newest.set(log.newest.get() + plan.draw(8));
                    match exporter.step() {
                        Ok(Step::Theirs) => doubted += 1,
                        Ok(_) => {}
                        Err(Fault::Passing(_)) if plan.draw(2) == 0 => {}
                        Err(Fault::Passing(_)) => {
                            died += 1;
                            break;
                        }
                        Err(Fault::Lasting(error)) => panic!("seed {seed}: {error:#}"),
                    }
                }
            }
            plan.heal();
            finish(&log, &place, format, 4);
            assert_eq!(
                sequences(&files(&*store)),
                once_each(log.newest.get()),
                "seed {seed}"
            );
        }
    }
    assert!(died > 100, "{died}");
    assert!(doubted > 20, "{doubted}");
}

#[test]
fn two_at_once_write_no_range_twice() {
    let mut met = 0;
    for seed in 1..=40 {
        let (log, store) = (Log::to(3), Arc::new(InMemory::new()));
        let (a, b) = (place(&store), place(&store));
        let plan = Plan::new(seed);
        let mut both = [
            Exporter::new(log.ask(), &a, Format::Cloudevents, 3, false),
            Exporter::new(log.ask(), &b, Format::Cloudevents, 5, false),
        ];
        for _ in 0..80 {
            log.newest.set(log.newest.get() + plan.draw(4));
            let step = both[plan.draw(2) as usize].step().unwrap();
            met += u32::from(step == Step::Theirs);
        }
        finish(&log, &a, Format::Cloudevents, 4);
        let all = sequences(&files(&*store));
        assert_eq!(all, once_each(log.newest.get()), "seed {seed}");
    }
    assert!(met > 40, "they met {met} times");
}

#[test]
fn what_is_lost_is_said_and_skipped_only_when_told_to() {
    for format in [Format::Cloudevents, Format::Parquet] {
        let (log, store) = (Log::to(10), Arc::new(InMemory::new()));
        let place = place(&store);
        finish(&log, &place, format, 100);
        log.newest.set(60);
        log.oldest.set(31);
        let mut strict = Exporter::new(log.ask(), &place, format, 100, false);
        let Err(Fault::Lasting(error)) = strict.step() else {
            panic!("11 to 30 are lost");
        };
        assert!(error.to_string().contains("11 to 30"), "{error}");
        assert_eq!(files(&*store).len(), 1);
        // Two skip at once, the second when more is gone: the ranges do not overlap.
        let mut first = Exporter::new(log.ask(), &place, format, 100, true);
        let mut second = Exporter::new(log.ask(), &place, format, 100, true);
        assert!(matches!(first.step(), Ok(Step::Skipped { last, .. }) if last.0 == 30));
        log.oldest.set(41);
        assert_eq!(second.step().unwrap(), step_skipped(31, 40, format));
        assert!(matches!(first.step(), Ok(Step::Theirs)));
        let Ok(Step::Wrote {
            first: from, last, ..
        }) = first.step()
        else {
            panic!("there is more");
        };
        assert_eq!((from.0, last.0), (41, 60));
        let kept = files(&*store);
        assert_eq!(kept.len(), 4);
        if format == Format::Cloudevents {
            let name = file_name(SettlementSeq(11), "jsonl");
            let event: serde_json::Value = serde_json::from_slice(&kept[&name]).unwrap();
            assert_eq!(event["type"], "trireme.usage.lost.v1");
            assert_eq!(event["id"], "0707-11");
            assert_eq!(event["data"]["last_sequence"], 30);
        }
    }
}

fn step_skipped(first: u64, last: u64, format: Format) -> Step {
    let (first, last) = (SettlementSeq(first), SettlementSeq(last));
    let name = file_name(first, format.extension());
    Step::Skipped { name, first, last }
}

#[test]
fn files_of_others_are_left_alone() {
    let (log, store) = (Log::to(10), Arc::new(InMemory::new()));
    let place = place(&store);
    finish(&log, &place, Format::Cloudevents, 100);
    // Another format.
    let mut other = Exporter::new(log.ask(), &place, Format::Parquet, 100, false);
    assert!(matches!(other.step(), Err(Fault::Lasting(_))));
    // Another cluster.
    let elsewhere = Log {
        cluster: "0808",
        ..Log::to(90)
    };
    let mut other = Exporter::new(elsewhere.ask(), &place, Format::Cloudevents, 100, false);
    let Err(Fault::Lasting(error)) = other.step() else {
        panic!("it is of another cluster");
    };
    assert!(error.to_string().contains("0808"), "{error}");
    // A coordinator that is behind.
    let behind = Log::to(9);
    let mut early = Exporter::new(behind.ask(), &place, Format::Cloudevents, 100, false);
    assert!(matches!(early.step(), Err(Fault::Passing(_))));
    assert_eq!(files(&*store).len(), 1);
    // A file that nobody of ours wrote.
    let name = file_name(SettlementSeq(11), "jsonl");
    assert!(place.create(&name, b"{}\n".to_vec()).unwrap());
    let mut on = Exporter::new(log.ask(), &place, Format::Cloudevents, 100, false);
    let Err(Fault::Lasting(error)) = on.step() else {
        panic!("it is damaged");
    };
    assert!(error.to_string().contains(&name), "{error}");
}
