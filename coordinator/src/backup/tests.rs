//! A backup, and back.

use super::*;
use crate::raft::snapshots;
use crate::raft::storage::{Folder, LogId, Wal};
use crate::scratch::Scratch;
use crate::state::apply::tests::filled;
use crate::state::{Command, audit};
use sha2::{Digest, Sha256};
use std::path::Path;
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::WorkerId;

fn plain(state: &State) -> Vec<u8> {
    write(state, &SnapshotMeta::default(), Vec::new()).unwrap()
}

fn restored_state(data_dir: &Path) -> State {
    let folder = Folder::open(&data_dir.join("log")).unwrap();
    let (wal, recovered) = Wal::open(folder, LogId([0; 16])).unwrap();
    snapshots::read(wal.disk(), &recovered.snapshot.unwrap()).unwrap()
}

#[test]
fn a_backup_holds_the_whole_state_but_no_private_key() {
    let mut member = filled();
    // One with a key, in the place of the one that comes.
    let real = ClusterAuthority::new("c").unwrap();
    let mut others = member.state.trusted_authorities();
    let signing = &member.state.signing_authority().unwrap().fingerprint;
    let other = others.find(|a| a.fingerprint != *signing).unwrap();
    let fingerprint = other.fingerprint.clone();
    drop(others);
    member.apply(Command::RetireAuthority { fingerprint });
    member.apply(Command::AddAuthority { pem: real.to_pem() });
    let state = member.state;
    let text = |state: &State| {
        let mut bytes = Vec::new();
        write_state(state, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(text(&state).contains("PRIVATE KEY"));
    let bytes = plain(&state);
    let back = read(&bytes[..], None).unwrap();
    assert!(back == state.without_authority_keys());
    assert_eq!(
        back.balances().collect::<Vec<_>>(),
        state.balances().collect::<Vec<_>>()
    );
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("PRIVATE KEY"));
    assert!(text.contains("BEGIN CERTIFICATE"));
}

#[test]
fn a_restored_group_keeps_what_was_earned_and_forgets_who_was_there() {
    let before = filled().state;
    let dir = Scratch::new();
    let data_dir = dir.path().join("new");
    let restored = restore(&plain(&before)[..], None, &data_dir, 99_000).unwrap();
    let after = restored_state(&data_dir);
    after.check().unwrap();

    assert_ne!(after.cluster().unwrap().id, before.cluster().unwrap().id);
    let mut coordinators = after.coordinators().map(|c| c.id);
    assert_eq!(coordinators.next(), Some(restored.coordinator));
    assert_eq!(coordinators.next(), None);
    assert_eq!(after.workers().count(), 0);
    assert_eq!(after.tokens().count(), 0);
    for old in before.coordinators() {
        assert!(after.is_removed(NodeId::Coordinator(old.id)));
    }
    assert!(after.is_removed(NodeId::Worker(WorkerId(1))));
    let signing = &after.signing_authority().unwrap().fingerprint;
    assert_ne!(*signing, before.signing_authority().unwrap().fingerprint);

    let tenants: Vec<_> = before.tenants().cloned().collect();
    assert_eq!(after.tenants().cloned().collect::<Vec<_>>(), tenants);
    let balances: Vec<_> = before.balances().collect();
    assert_eq!(after.balances().collect::<Vec<_>>(), balances);
    assert_eq!(after.deployments().count(), before.deployments().count());
    let lines: Vec<String> = after.audit_records().map(audit::to_json_line).collect();
    let verified = audit::verify(lines.iter().map(String::as_str), Some(after.audit_head()));
    assert_eq!(verified.unwrap().last, before.audit_head().seq + 1);

    let key = std::fs::read_to_string(data_dir.join("admin.key")).unwrap();
    assert_eq!(key, restored.admin_key);
    let hash: [u8; 32] = Sha256::digest(&key).into();
    assert_eq!(after.cluster().unwrap().admin_key_hash, hash);
    let identity = NodeIdentity::load(&data_dir).unwrap().unwrap();
    assert_eq!(identity.node(), NodeId::Coordinator(restored.coordinator));
}

#[test]
fn nothing_is_overwritten_and_a_bad_backup_leaves_nothing() {
    let bytes = plain(&filled().state);
    let dir = Scratch::new();
    let used = dir.path().join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("precious"), "x").unwrap();
    let error = restore(&bytes[..], None, &used, 1).unwrap_err().to_string();
    assert!(error.contains("precious"), "{error}");
    assert_eq!(std::fs::read_dir(&used).unwrap().count(), 1);

    let fresh = dir.path().join("fresh");
    let mut changed = bytes.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for bad in [&bytes[..bytes.len() - 1], &changed, b"", b"something else"] {
        assert!(restore(bad, None, &fresh, 1).is_err());
        assert!(!fresh.exists());
    }
}

#[test]
fn the_key_must_be_there_exactly_where_the_backup_is_sealed() {
    let (key, _) = SealKey::random().unwrap();
    let bytes = plain(&filled().state);
    let mut sealer = seal::Sealer::new(Vec::new(), &key).unwrap();
    sealer.write_all(&bytes).unwrap();
    let sealed = sealer.finish().unwrap();
    assert!(read(&sealed[..], Some(&key)).is_ok());
    let read = |bytes: &[u8], key| read(bytes, key).map(|_| ());
    assert!(matches!(read(&sealed, None), Err(BackupError::KeyMissing)));
    assert!(matches!(
        read(&bytes, Some(&key)),
        Err(BackupError::KeyUseless)
    ));
    let (other, _) = SealKey::random().unwrap();
    assert!(read(&sealed, Some(&other)).is_err());
    assert!(read(&sealed[..sealed.len() - 1], Some(&key)).is_err());
}
