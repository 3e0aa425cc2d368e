//! A whole rotation of the cluster's CA, which takes half a day at least: with real nodes, whose clock on
//! the wall is set forward by the test (by libfaketime; their timers run as ever).
#![allow(clippy::print_stdout)]

use crate::harness::{Cluster, DEADLINE, processes, run, wait_for};
use crate::{alone, chat};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const HOURS_TO_TRUST: u32 = 1;
/// Half of a certificate's life, and some more.
const HOURS_TO_RENEW: u32 = 14;

/// libfaketime, where it is installed.
fn library() -> Option<PathBuf> {
    let roots = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Path::new);
    let mut folders: Vec<PathBuf> = roots.map(Path::to_owned).into();
    for root in roots {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        folders.extend(entries.map(|e| e.path()).filter(|p| p.is_dir()));
    }
    let files = folders
        .iter()
        .map(|f| f.join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.exists())
}

/// Fingerprints of the authorities, the signing one first, and what a rotation is at.
fn authorities(cluster: &Cluster) -> Option<(Vec<String>, Value)> {
    let answer = cluster.get_as("/admin/v1/ca", cluster.admin_key());
    if answer.status != 200 {
        return None;
    }
    let mut report = answer.json();
    let mut all = report["authorities"].as_array()?.clone();
    all.sort_by_key(|one| one["signs"] != true);
    let names = all.iter().filter_map(|one| one["fingerprint"].as_str());
    Some((
        names.map(str::to_owned).collect(),
        report["rotation"].take(),
    ))
}

#[test]
fn the_ca_is_replaced_while_everything_goes_on() {
    let _alone = alone();
    let Some(library) = library() else {
        println!("no libfaketime here (Debian has it as `faketime`): not tested");
        return;
    };
    let clock = tempfile::NamedTempFile::new().expect("a file");
    let set_forward = |hours: u32| std::fs::write(&clock, format!("+{hours}h\n")).expect("a file");
    set_forward(0);
    let environment = [
        ("LD_PRELOAD", library.to_str().expect("a path")),
        (
            "FAKETIME_TIMESTAMP_FILE",
            clock.path().to_str().expect("a path"),
        ),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    let mut cluster = Cluster::up_in(
        &environment,
        &["--coordinators", "3", "--workers", "2", "--tp", "2"],
    );
    let (before, rotation) = authorities(&cluster).expect("the CA");
    assert_eq!((before.len(), &rotation), (1, &Value::Null));
    let old = &before[0];

    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let new = std::thread::scope(|scope| {
        // Somebody is always talking; `chat` wants a whole answer each time.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                chat(&cluster, "Count to five.", 8);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _ends = Ends(&over);
        let (status, out, err) = run(&[
            "ca",
            "rotate",
            "--coordinator",
            &cluster.base(),
            "--api-key",
            cluster.admin_key(),
        ]);
        assert!(status.success(), "{out}{err}");
        let (both, rotation) = authorities(&cluster).expect("the CA");
        assert_eq!((both.len(), &both[0]), (2, old), "the old one still signs");
        assert!(
            rotation.as_str().expect("words").contains("learn to trust"),
            "{rotation}"
        );
        let new = both[1].clone();

        set_forward(HOURS_TO_TRUST);
        wait_for("the new one to sign", DEADLINE, || {
            let (now, rotation) = authorities(&cluster)?;
            let waits = rotation
                .as_str()
                .is_some_and(|r| r.contains("get certificates"));
            (now == [new.clone(), old.clone()] && waits).then_some(())
        });
        set_forward(HOURS_TO_RENEW);
        wait_for("the old one to be gone", DEADLINE, || {
            let (now, rotation) = authorities(&cluster)?;
            (now == [new.clone()] && rotation.is_null()).then_some(())
        });
        let answered_then = answered.load(Ordering::Relaxed);
        wait_for("answers after that", DEADLINE, || {
            (answered.load(Ordering::Relaxed) > answered_then + 2).then_some(())
        });
        new
    });

    // Every process comes back with what it saved, under the new authority alone.
    for pid in [cluster.worker_pids(), cluster.coordinator_pids()].concat() {
        processes::signal(pid, libc::SIGKILL);
        wait_for("all to be well again", DEADLINE, || {
            let status = cluster.try_get_as("/admin/v1/status", cluster.admin_key());
            let status = status.ok().filter(|s| s.status == 200)?.json();
            let all = |list: &str, good: &dyn Fn(&Value) -> bool| {
                status[list]
                    .as_array()
                    .is_some_and(|list| list.iter().all(good))
            };
            let well = all("coordinators", &|c| c["lag"].as_u64() == Some(0))
                && all("workers", &|w| w["connected"] == true && w["pid"] != pid);
            (well && !processes::is_alive(pid)).then_some(())
        });
    }
    assert_eq!(authorities(&cluster).expect("the CA").0, [new]);
    chat(&cluster, "Count to five.", 8);
    let ended = cluster.interrupt();
    assert!(ended.success(), "{ended}:\n{}", cluster.logs());
}

/// Ends the talk, also where an assertion failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
