//! The group of coordinators under real faults, as processes on this machine: killed, stopped, cut off
//! and woken leaders, a full disk, a damaged file, every node rolled. A load of writes and reads goes on
//! meanwhile. What every test holds to account: no acknowledged write is lost, none takes effect twice,
//! reads never go back, and nothing needs a hand but what a damaged disk needs.
#![allow(clippy::print_stdout)]

#[path = "../../harness/mod.rs"]
mod harness;
mod hosts;
mod load;
mod members;

use harness::{DEADLINE, wait_for};
use load::Load;
use members::{Group, Host, segments};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use trireme_coordinator::raft::storage::record;

/// Two cores hold one group at a time comfortably.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Writes must go on: waits until `more` further ones are acknowledged.
fn wait_for_writes(load: &Load, more: usize) {
    let before = load.count();
    wait_for("writes to be acknowledged", DEADLINE, || {
        (load.count() >= before + more).then_some(())
    });
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[test]
fn fifty_killed_leaders_lose_nothing() {
    let kills: usize = std::env::var("TRIREME_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(50);
    let _alone = alone();
    let group = Group::of_three();
    let load = Load::default();
    let mut gaps = load.beside(&group, 4, || {
        let mut gaps = Vec::new();
        for _ in 0..kills {
            let leader = group.wait_for_leader(&[]);
            group.members[leader].kill();
            let began = Instant::now();
            group.wait_for_leader(&[leader]);
            gaps.push(began.elapsed());
            wait_for_writes(&load, 3);
            group.members[leader].start();
            // The next kill must find a majority beside it.
            group.wait_until_level();
        }
        gaps
    });
    group.wait_until_level();
    load.account(&group);
    gaps.sort();
    println!(
        "{kills} killed leaders: a new one after {:?} (median), {:?} (p99), {:?} (longest)",
        percentile(&gaps, 50),
        percentile(&gaps, 99),
        gaps[gaps.len() - 1]
    );
}

#[test]
fn a_stopped_leader_acknowledges_nothing_after_waking_that_the_group_does_not_have() {
    let _alone = alone();
    let group = Group::of_three();
    let load = Load::default();
    load.beside(&group, 4, || {
        for _ in 0..5 {
            let leader = group.wait_for_leader(&[]);
            group.members[leader].signal(libc::SIGSTOP);
            group.wait_for_leader(&[leader]);
            wait_for_writes(&load, 20);
            // It wakes in the belief that it leads, with writes of clients in its hands.
            group.members[leader].signal(libc::SIGCONT);
            wait_for_writes(&load, 20);
            group.wait_until_level();
        }
    });
    group.wait_until_level();
    load.account(&group);
}

#[test]
fn every_node_rolled_under_load_costs_nothing() {
    let _alone = alone();
    let group = Group::of_three();
    let load = Load::default();
    load.beside(&group, 4, || {
        for member in [0, 1, 2] {
            let status = group.members[member].stop();
            assert!(
                status.success(),
                "member {member}: {status}\n{}",
                group.members[member].log()
            );
            wait_for_writes(&load, 3);
            group.members[member].start();
            group.wait_until_level();
        }
    });
    group.wait_until_level();
    load.account(&group);
}

#[test]
fn a_full_disk_stops_its_member_and_no_other() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folders: Vec<_> = (1..=3).map(|n| dir.path().join(format!("c{n}"))).collect();
    // Every member's folder is a small disk, so that whoever leads can be filled.
    let disks: Vec<hosts::SmallDisk> = folders
        .iter()
        .map(|f| hosts::SmallDisk::at(f, "96m"))
        .collect();
    let hosts = [Host::Here, Host::Here, Host::Here];
    let group = Group::in_folders(dir, &hosts, &folders);
    let load = Load::default();
    load.beside(&group, 4, || {
        let leader = group.wait_for_leader(&[]);
        wait_for_writes(&load, 3);
        let filler = disks[leader].fill();
        wait_for("the full member to end", DEADLINE, || {
            (!group.members[leader].is_running()).then_some(())
        });
        let status = group.members[leader].wait();
        assert!(!status.success());
        let log = group.members[leader].log();
        assert!(log.contains("No space left"), "it says why:\n{log}");
        group.wait_for_leader(&[leader]);
        wait_for_writes(&load, 20);
        drop(filler);
        group.members[leader].start();
        group.wait_until_level();
    });
    group.wait_until_level();
    load.account(&group);
    drop(group);
}

#[test]
fn a_damaged_log_is_refused_and_its_member_joins_anew() {
    let _alone = alone();
    let mut group = Group::of_three();
    let load = Load::default();
    load.beside(&group, 4, || wait_for_writes(&load, 200));
    group.wait_until_level();
    let victim = (group.wait_for_leader(&[]) + 1) % 3;
    assert!(group.members[victim].stop().success());
    let segment = segments(&group.members[victim].folder).remove(0);
    let mut bytes = std::fs::read(&segment).expect("a segment");
    // The payload of a record in the middle of what is written: others follow. (The zeros between two
    // records are nothing that could be damaged.)
    let written = bytes
        .iter()
        .rposition(|b| *b != 0)
        .expect("it holds something");
    let record = (0..written / 2)
        .step_by(record::RECORD_ALIGN)
        .rfind(|at| bytes[*at..].starts_with(b"rec1"))
        .expect("a record");
    bytes[record + record::RECORD_HEADER_BYTES] ^= 0x40;
    std::fs::write(&segment, bytes).expect("it can be written");
    group.members[victim].start();
    let status = group.members[victim].wait();
    assert!(!status.success());
    let log = group.members[victim].log();
    let name = segment
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(
        log.contains(&name)
            && log.contains("is damaged at byte")
            && log.contains("empty --data-dir"),
        "it names the file, the place and what to do:\n{log}"
    );
    // What it says to do.
    let id = group.members[victim].id().expect("its number");
    let helper = group.wait_for_leader(&[victim]);
    let path = format!("/admin/v1/members/{id}");
    wait_for("the member to be removed", DEADLINE, || {
        let (status, _) = group.ask(helper, "DELETE", &path, None)?;
        matches!(status, 200 | 404 | 409).then_some(())
    });
    let folder = group.dir.path().join("c4");
    group.members.remove(victim);
    group.add(Host::Here, folder);
    let load_after = Load::default();
    load_after.beside(&group, 2, || wait_for_writes(&load_after, 1));
    group.wait_until_level();
    load.account(&group);
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_returns() {
    let _alone = alone();
    let Some(net) = hosts::Net::new(3) else {
        println!("no network namespaces here (root and iproute2 are needed): not tested");
        return;
    };
    let group = Group::on(&net.hosts());
    let load = Load::default();
    load.beside(&group, 4, || {
        for _ in 0..3 {
            let leader = group.wait_for_leader(&[]);
            wait_for_writes(&load, 3);
            net.cut(leader);
            group.wait_for_leader(&[leader]);
            wait_for_writes(&load, 10);
            net.mend(leader);
            group.wait_until_level();
        }
    });
    group.wait_until_level();
    load.account(&group);
}
