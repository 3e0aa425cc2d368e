//! The state as a snapshot file, and back.

use super::storage::{Disk, SnapshotRef, SnapshotWriter, StorageError, read_snapshot};
use super::types::SnapshotMeta;
use crate::state::State;
use crate::state::codec::{read_state, write_state};

/// Writes `state`, the one after the entry at `meta.index`. Durable on return.
pub fn write<D: Disk>(
    disk: D,
    meta: &SnapshotMeta,
    state: &State,
) -> Result<SnapshotRef, StorageError> {
    let mut writer = SnapshotWriter::create(disk, meta.clone())?;
    write_state(state, &mut writer).map_err(|e| StorageError::Refused(e.to_string()))?;
    writer.finish()
}

/// The state in a snapshot file. Every byte of it is checked.
pub fn read<D: Disk + Clone>(disk: &D, file: &SnapshotRef) -> Result<State, StorageError> {
    let (_, mut reader) = read_snapshot(disk.clone(), &file.file)?;
    read_state(&mut reader).map_err(|e| StorageError::Damaged {
        file: file.file.clone(),
        offset: 0,
        reason: e.to_string(),
    })
}
