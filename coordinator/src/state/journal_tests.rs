//! The journal on a real disk: what was answered survives a restart, damage is refused in words, and
//! a second process is kept out.

use super::*;
use crate::billing::DEFAULT_PRICES;
use crate::scratch::Scratch;
use trireme_shared::ids::{DeploymentId, KeyId, NanoUsd, RequestId, TenantId, Tokens};

fn key(n: u8) -> Command {
    Command::CreateKey {
        tenant: "acme".into(),
        key_hash: [n; 32],
        now: n.into(),
    }
}

fn usage() -> UsageRecord {
    UsageRecord {
        request: RequestId::random(),
        tenant: TenantId(1),
        key: KeyId(1),
        deployment: DeploymentId(1),
        prompt: Tokens(1),
        cached: Tokens(0),
        completion: Tokens(2),
        cost: NanoUsd(3),
    }
}

fn digest(journal: &Journal) -> [u8; 32] {
    journal.read(|s| s.digest().unwrap())
}

#[tokio::test]
async fn a_restart_replays_to_the_same_state() {
    let dir = Scratch::new();
    let path = dir.path().join("journal.redb");
    // A snapshot each 7 commands, so that replay starts from one and goes on with log entries.
    let journal = Journal::open_with(&path, 7).unwrap();
    for n in 0..25 {
        journal.propose(key(n)).await.unwrap();
    }
    let before = digest(&journal);
    journal.close().await;
    assert!(matches!(
        journal.propose(key(99)).await,
        Err(JournalError::Stopped)
    ));
    let journal = Journal::open_with(&path, 7).unwrap();
    assert_eq!(digest(&journal), before);
    // The refusal proves that the old keys are there; the new id that counters were kept.
    let Outcome::Refused(_) = journal.propose(key(3)).await.unwrap() else {
        panic!("a key was made twice");
    };
    let made = journal.propose(key(200)).await.unwrap();
    let (tenant, key) = (TenantId(1), KeyId(26));
    assert_eq!(made, Outcome::Key { tenant, key });
    journal.close().await;
}

/// What a power cut leaves: the file as it is on disk at some moment, without a clean close.
#[tokio::test]
async fn a_crash_at_any_commit_loses_nothing_that_was_answered() {
    let dir = Scratch::new();
    let path = dir.path().join("journal.redb");
    let journal = Journal::open_with(&path, 5).unwrap();
    let mut cuts = Vec::new();
    for n in 0..17 {
        journal.propose(key(n)).await.unwrap();
        let copy = dir.path().join(format!("cut-{n}.redb"));
        std::fs::copy(&path, &copy).unwrap();
        cuts.push((copy, digest(&journal)));
    }
    journal.close().await;
    for (copy, expected) in cuts {
        let survivor = Journal::open_with(&copy, 5).unwrap();
        assert_eq!(digest(&survivor), expected, "{}", copy.display());
        survivor.close().await;
    }
}

#[tokio::test]
async fn concurrent_proposals_are_all_applied_once() {
    let dir = Scratch::new();
    let path = dir.path().join("journal.redb");
    let journal = Journal::open(&path).unwrap();
    journal.propose(key(1)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let journal = journal.clone();
        tasks.spawn(async move { journal.record_usage(usage()).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let total = journal.read(|s| *s.usage().next().unwrap().1);
    assert_eq!((total.requests, total.completion), (500, Tokens(1_000)));
    let before = digest(&journal);
    journal.close().await;
    let journal = Journal::open(&path).unwrap();
    assert_eq!(digest(&journal), before);
    journal.close().await;
}

#[tokio::test]
async fn a_second_opener_is_told_what_to_do() {
    let dir = Scratch::new();
    let path = dir.path().join("journal.redb");
    let journal = Journal::open(&path).unwrap();
    let put = Command::PutDeployment {
        spec: crate::state::apply::tests::spec("a", 1, 1, 1),
        price: DEFAULT_PRICES,
        now: 1,
    };
    journal.propose(put).await.unwrap();
    let error = Journal::open(&path).err().unwrap();
    assert!(matches!(error, JournalError::InUse { .. }), "{error}");
    journal.close().await;
    Journal::open(&path).unwrap().close().await;
}

#[test]
fn a_file_that_is_no_log_is_refused() {
    let dir = Scratch::new();
    let path = dir.path().join("journal.redb");
    std::fs::write(&path, vec![7u8; 5_000]).unwrap();
    let error = Journal::open(&path).err().unwrap();
    assert!(matches!(error, JournalError::Unreadable { .. }), "{error}");
}
