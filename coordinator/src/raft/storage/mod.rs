//! What a Raft member keeps on disk: a write-ahead log (`wal`) of entries, ballots and the names of
//! snapshots, and the snapshot files (`snapshot`).
//!
//! What it keeps true: what a call acknowledged is there after any crash, and nothing is there that
//! was never given; a torn end of the log is cut, any other damage is refused and named. All goes
//! through `Disk`: `Folder` is the real one, `TornDisk` the one that tests and simulator break.
//! Neighbours: `raft::member` is the only user; `raft::peers` and backups move snapshot files.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
pub mod disk;
mod error;
pub mod folder;
#[cfg(test)]
mod folder_tests;
#[cfg(any(test, feature = "planted-bugs"))]
pub mod memory;
pub mod record;
mod recover;
pub mod snapshot;
pub mod snapshot_format;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod speed;
pub mod wal;
#[cfg(test)]
mod wal_tests;

pub use disk::Disk;
pub use error::StorageError;
pub use folder::Folder;
#[cfg(any(test, feature = "planted-bugs"))]
pub use memory::TornDisk;
pub use record::LogId;
pub use recover::TornTail;
pub use snapshot::{SnapshotReceiver, SnapshotSource, SnapshotWriter, read_snapshot};
pub use wal::{Batch, Recovered, Wal};

use super::types::SnapshotMeta;
use wincode::{SchemaRead, SchemaWrite};

/// A whole snapshot file in the folder.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SnapshotRef {
    pub meta: SnapshotMeta,
    pub file: String,
}
