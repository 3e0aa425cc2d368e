//! A steady load of writes and reads on a group, and the account of it: what was acknowledged must be
//! there, once.
//!
//! A write makes an API key for a tenant of its own, under an idempotency key of its own, and is asked
//! again, at the next member, until it is acknowledged: so an acknowledged write is one key that every
//! member knows, and one act in the audit log, whatever happened in between.

use crate::members::Group;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub struct Load {
    stop: AtomicBool,
    next: AtomicU64,
    /// Tenant to the key it was given.
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// Tenants whose write was given up without an answer.
    in_doubt: Mutex<Vec<String>>,
    pub asked_again: AtomicU64,
    pub reads: AtomicU64,
    /// The newest entry that a read saw.
    newest_read: AtomicU64,
}

impl Load {
    /// Runs `writers` writers and a reader beside `faults`, then stops them.
    pub fn beside<T>(&self, group: &Group, writers: usize, faults: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            for writer in 0..writers {
                scope.spawn(move || self.write(group, writer));
            }
            scope.spawn(|| self.read(group));
            let _stop = StopOnDrop(&self.stop);
            faults()
        })
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn write(&self, group: &Group, writer: usize) {
        let mut at = writer;
        while !self.stopped() {
            let tenant = format!("tenant-{}", self.next.fetch_add(1, Ordering::Relaxed));
            let mut tries = 0;
            loop {
                let member = at % group.members.len();
                let bearer = format!("Bearer {}", group.admin_key);
                let headers = [
                    ("authorization", bearer.as_str()),
                    ("idempotency-key", &tenant),
                ];
                let wish = json!({"tenant": tenant});
                let answer =
                    group.ask_with(member, "POST", "/admin/v1/keys", Some(&wish), &headers);
                match answer {
                    Some((201, body)) => {
                        let key = body["key"].as_str().expect("a key").to_owned();
                        self.lock().insert(tenant, key);
                        break;
                    }
                    // It took effect, and the key of an earlier try was not kept: acknowledged too.
                    Some((409, _)) => {
                        self.lock().insert(tenant, String::new());
                        break;
                    }
                    Some((503, _)) | None => {}
                    Some((status, body)) => panic!("a write was answered {status}: {body}"),
                }
                self.asked_again.fetch_add(1, Ordering::Relaxed);
                tries += 1;
                at += 1;
                if self.stopped() && tries > 20 {
                    self.in_doubt
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(tenant);
                    return;
                }
            }
        }
    }

    /// Linearizable reads: what was acknowledged before the question is in the answer, whichever member
    /// is asked. The audit log's last act is at least as new as the number of acknowledged writes.
    fn read(&self, group: &Group) {
        let mut at = 0;
        while !self.stopped() {
            at += 1;
            let before = self.count() as u64;
            let Some(status) = group.status(at % group.members.len()) else {
                continue;
            };
            let applied = status["log"]["applied"].as_u64().unwrap_or(0);
            if status["stale"] == true || before == 0 {
                continue;
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            // Entries hold several writes, so the index is compared with itself: it never goes back.
            let newest = self.newest_read.fetch_max(applied, Ordering::SeqCst);
            assert!(
                applied >= newest,
                "a read saw entry {applied} after another had seen {newest}"
            );
        }
    }

    /// Every acknowledged write is on every member, and no write took effect twice. Call it once all
    /// members are level.
    pub fn account(&self, group: &Group) {
        let acknowledged = self.lock().clone();
        assert!(!acknowledged.is_empty(), "nothing was written");
        let mut acts: BTreeMap<String, usize> = BTreeMap::new();
        for line in audit(group) {
            let what = line["what"].as_str().unwrap_or_default();
            let refused = line["outcome"]
                .as_str()
                .is_some_and(|o| o.contains("refused"));
            if let Some(at) = what.find("tenant-").filter(|_| !refused) {
                let name: String = what[at..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect();
                *acts.entry(name).or_default() += 1;
            }
        }
        let lost: Vec<_> = acknowledged
            .keys()
            .filter(|t| !acts.contains_key(*t))
            .collect();
        assert!(
            lost.is_empty(),
            "{} acknowledged writes are lost: {lost:?}",
            lost.len()
        );
        let twice: Vec<_> = acts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "writes took effect twice: {twice:?}");
        // The newest hundred keys, at each member's own copy of the state.
        let mut newest: Vec<_> = acknowledged
            .iter()
            .filter(|(_, key)| !key.is_empty())
            .collect();
        newest.sort_by_key(|(tenant, _)| std::cmp::Reverse(number(tenant)));
        for member in 0..group.members.len() {
            for (tenant, key) in newest.iter().take(100) {
                let bearer = format!("Bearer {key}");
                let answer = group.ask_with(
                    member,
                    "GET",
                    "/v1/models",
                    None,
                    &[("authorization", &bearer)],
                );
                let status = answer.map(|(status, _)| status);
                assert_eq!(
                    status,
                    Some(200),
                    "member {member} does not know {tenant}'s key"
                );
            }
        }
        let in_doubt = self
            .in_doubt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        println!(
            "{} writes acknowledged, {} asked again, {in_doubt} in doubt at the end, {} reads",
            acknowledged.len(),
            self.asked_again.load(Ordering::Relaxed),
            self.reads.load(Ordering::Relaxed),
        );
    }
}

fn number(tenant: &str) -> u64 {
    tenant.trim_start_matches("tenant-").parse().unwrap_or(0)
}

/// The whole audit log, page by page.
pub fn audit(group: &Group) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after = all.last().and_then(|l| l["seq"].as_u64()).unwrap_or(0);
        let path = format!("/admin/v1/audit?after={after}&limit=1000");
        let (status, body) = group.ask(0, "GET", &path, None).expect("an answer");
        assert_eq!(status, 200, "{body}");
        // One line is JSON by itself; several are not.
        let lines: Vec<Value> = match body {
            Value::String(text) => text
                .lines()
                .map(|l| serde_json::from_str(l).expect("JSON"))
                .collect(),
            one => vec![one],
        };
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
