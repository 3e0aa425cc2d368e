//! The simulator: whole groups of coordinators in one thread, under virtual time, in every weather.
//!
//!     cargo test --release --test sim
//!     TRIREME_SIM_SEEDS=5000 cargo test --release --test sim -- storm
//!     cargo test --release --test sim -- --ignored nightly
//!
//! A failing seed prints the command that lives through it again, byte for byte; with
//! TRIREME_SIM_TRACE=1 it tells what happens meanwhile.
//!
//! `world` is time and events, `node` and `life` a process and its disk, `network` and `traffic` what
//! is between them, `client`, `calls`, `workload` and `charges` what is asked of them, `storm` what befalls them,
//! `invariants` and `billing` what must be true all the same, `scenario` a seed's life, `bugs` the proof that all
//! this finds what is wrong.
#![allow(clippy::print_stdout)]

mod billing;
mod bugs;
mod call;
mod calls;
mod chance;
mod charges;
mod client;
mod disk;
mod invariants;
mod life;
mod network;
mod node;
mod scenario;
mod storm;
mod traffic;
mod workload;
mod world;

use scenario::{Plan, Report, live};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seeds of a run in CI.
const SEEDS: u64 = 500;
/// Seeds of a nightly run, whose storms also last longer.
const NIGHTLY_SEEDS: u64 = 5_000;
/// Of a run without a wish for particular seeds: the same in CI and at home.
const FIRST_SEED: u64 = 1;
/// Others than CI's.
const NIGHTLY_FIRST_SEED: u64 = 1_000_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// Lives through the seeds on all processors; panics with the failures, a command for each.
/// `test` names the test that replays one.
fn weather(first: u64, seeds: u64, plan: Plan, test: &str) -> Vec<Report> {
    let next = AtomicU64::new(first);
    let (failures, reports) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // A few failures say as much as all.
                    let enough = failures.lock().expect("no panic holds it").len() >= 3;
                    if seed >= first + seeds || enough {
                        return;
                    }
                    match live(seed, plan) {
                        Ok(report) => reports.lock().expect("no panic holds it").push(report),
                        Err(violation) => {
                            let text = format!(
                                "seed {seed}: {}\nreplay: TRIREME_SIM_SEED={seed} cargo test \
                                 --release --test sim -- {test} --nocapture",
                                violation.0
                            );
                            eprintln!("{text}");
                            failures.lock().expect("no panic holds it").push(text);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic holds it");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    reports.into_inner().expect("no panic holds it")
}

fn sum(reports: &[Report], of: impl Fn(&Report) -> u64) -> u64 {
    reports.iter().map(of).sum()
}

fn plan() -> Plan {
    Plan {
        trace: number("TRIREME_SIM_TRACE").is_some(),
        ..Plan::default()
    }
}

#[test]
fn a_group_survives_the_storm() {
    let one = number("TRIREME_SIM_SEED");
    let seeds = number("TRIREME_SIM_SEEDS").unwrap_or(SEEDS);
    let reports = match one {
        Some(seed) => weather(seed, 1, plan(), "storm"),
        None => weather(FIRST_SEED, seeds, plan(), "storm"),
    };
    let total = |of: fn(&Report) -> u64| sum(&reports, of);
    eprintln!(
        "{} seeds, {} s of virtual time: {} events, {} messages, {} entries, {} requests settled, {} commands \
         acknowledged, {} in doubt, {} reads, {} terms of office, {} crashes, {} snapshots \
         written, {} installed, {} joined, {} retired",
        reports.len(),
        reports.iter().map(|r| r.time).sum::<Duration>().as_secs(),
        total(|r| r.counts.events),
        total(|r| r.counts.messages),
        total(|r| r.entries),
        total(|r| r.settled),
        total(|r| r.counts.acknowledged),
        total(|r| r.counts.doubtful),
        total(|r| r.counts.reads),
        total(|r| r.counts.leaders),
        total(|r| r.counts.crashes),
        total(|r| r.counts.snapshots_written),
        total(|r| r.counts.snapshots_installed),
        total(|r| r.counts.joined),
        total(|r| r.counts.retired),
    );
    if one.is_none() && seeds >= SEEDS {
        // A storm that hits nothing proves nothing.
        for (what, count) in [
            ("crashes", total(|r| r.counts.crashes)),
            ("terms of office", total(|r| r.counts.leaders)),
            (
                "installed snapshots",
                total(|r| r.counts.snapshots_installed),
            ),
            ("commands in doubt", total(|r| r.counts.doubtful)),
            ("requests settled", total(|r| r.settled) / 10),
            ("members that joined", total(|r| r.counts.joined)),
            ("members that left", total(|r| r.counts.retired)),
        ] {
            assert!(count >= seeds / 5, "{count} {what} in {seeds} seeds");
        }
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in 1..=8 {
        let plan = plan();
        let first = live(seed, plan);
        // On another thread, which other seeds went through before.
        let again = std::thread::spawn(move || {
            let _ = live(seed + 1, plan);
            live(seed, plan)
        });
        let again = again.join().expect("a seed's panic is caught");
        assert_eq!(first, again, "seed {seed}");
        assert_ne!(first, live(seed + 1, plan), "seeds {seed} and {}", seed + 1);
    }
}

#[test]
#[ignore = "takes long: for the nightly run"]
fn nightly() {
    let plan = Plan {
        storm: Duration::from_secs(20),
        digest_every: 2,
        ..plan()
    };
    let (first, seeds) = match number("TRIREME_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (
            NIGHTLY_FIRST_SEED,
            number("TRIREME_SIM_SEEDS").unwrap_or(NIGHTLY_SEEDS),
        ),
    };
    weather(first, seeds, plan, "--ignored nightly");
}
