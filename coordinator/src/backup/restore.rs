//! A new data folder, and with it a new group of one, from the state of a backup.
//!
//! What it keeps true: nothing that is there is overwritten; the log, without which a coordinator does
//! not start as this one, is written last, so that a restore that was cut short is none.

use super::BackupError;
use super::seal::SealKey;
use crate::bootstrap;
use crate::raft::storage::{Folder, LogId, Wal};
use crate::raft::{member::Member, types::MemberId};
use crate::state::{ClusterId, Command, Origin, Outcome, Proposal, ProposalId, State, apply};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::CoordinatorId;

/// What a restore made.
#[derive(Debug)]
pub struct Restored {
    pub cluster: String,
    pub coordinator: CoordinatorId,
    /// Also in the data folder.
    pub admin_key: String,
    pub deployments: usize,
    pub tenants: usize,
}

/// Reads the backup and writes `data_dir`, which must be empty or missing; `cluster coordinator` then
/// starts it. Deployments, tenants, keys, ledger and audit log stay; members, workers and join tokens
/// go. `at_ms`: milliseconds since 1970.
pub fn restore(
    input: impl Read,
    key: Option<&SealKey>,
    data_dir: &Path,
    at_ms: u64,
) -> Result<Restored, BackupError> {
    refuse_used(data_dir)?;
    let mut state = super::read(input, key)?;
    let made = refound(&mut state, at_ms)?;
    state.check().map_err(BackupError::Invariant)?;
    let existed = data_dir.exists();
    let written = write_folder(data_dir, &state, &made);
    if let Err(error) = written {
        // Whatever stays makes the next restore say that the folder is in use.
        let _ = match existed {
            true => empty(data_dir),
            false => std::fs::remove_dir_all(data_dir),
        };
        return Err(error);
    }
    Ok(Restored {
        cluster: made.cluster,
        coordinator: made.own,
        admin_key: made.admin_key,
        deployments: state.deployments().count(),
        tenants: state.tenants().count(),
    })
}

/// The new identity.
struct Made {
    cluster: String,
    own: CoordinatorId,
    authority: ClusterAuthority,
    admin_key: String,
}

fn refound(state: &mut State, at_ms: u64) -> Result<Made, BackupError> {
    let admin_key = bootstrap::new_admin_key().map_err(failed)?;
    let cluster = bootstrap::new_cluster_name().map_err(failed)?;
    let authority = ClusterAuthority::new(&cluster).map_err(failed)?;
    let proposal = Proposal {
        id: ProposalId(bootstrap::random().map_err(failed)?),
        base: state.commands(),
        at_ms,
        origin: Some(Origin {
            who: "restore".into(),
            from: "this machine".into(),
        }),
        command: Command::Refound {
            cluster: ClusterId(bootstrap::random().map_err(failed)?),
            name: cluster.clone(),
            authority_pem: authority.to_pem(),
            admin_key_hash: Some(Sha256::digest(admin_key.as_bytes()).into()),
        },
    };
    match apply(state, &proposal).outcome {
        Outcome::Coordinator(own) => Ok(Made {
            cluster,
            own,
            authority,
            admin_key,
        }),
        Outcome::Refused(why) => Err(BackupError::Restore(why.to_string())),
        other => Err(BackupError::Restore(format!(
            "the state answered {other:?}, which does not fit"
        ))),
    }
}

fn write_folder(data_dir: &Path, state: &State, made: &Made) -> Result<(), BackupError> {
    bootstrap::private_folder(data_dir).map_err(failed)?;
    let key = data_dir.join(bootstrap::ADMIN_KEY_FILE);
    bootstrap::write_private(&key, made.admin_key.as_bytes()).map_err(failed)?;
    let node = NodeId::Coordinator(made.own);
    let identity = NodeIdentity::issue(&made.authority, node).map_err(failed)?;
    identity.save(data_dir).map_err(failed)?;

    let log = data_dir.join(bootstrap::LOG_FOLDER);
    bootstrap::private_folder(&log).map_err(failed)?;
    let id = LogId(bootstrap::random().map_err(failed)?);
    let folder = Folder::open(&log).map_err(failed)?;
    let (mut wal, _) = Wal::open(folder, id).map_err(failed)?;
    Member::found(&mut wal, &[MemberId::from(made.own.0)], state).map_err(failed)
}

fn refuse_used(data_dir: &Path) -> Result<(), BackupError> {
    let entries: Vec<PathBuf> = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            return Err(failed(format!(
                "{} cannot be used: {e}",
                data_dir.display()
            )));
        }
    };
    match entries.first() {
        None => Ok(()),
        Some(there) => Err(failed(format!(
            "{} is not empty ({} is there), and a restore overwrites nothing: choose another \
             --data-dir",
            data_dir.display(),
            there.file_name().unwrap_or_default().display(),
        ))),
    }
}

fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> BackupError {
    BackupError::Restore(error.to_string())
}
