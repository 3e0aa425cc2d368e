//! Reads the `journal.redb` of releases before the coordinator was a group, so that their data
//! folders go on: the newest snapshot, and the log of commands behind it.

use super::apply::apply;
use super::codec::{self, CodecError};
use super::{State, v1};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::path::{Path, PathBuf};

/// Log index (from 1) to an encoded command.
pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// `0` to the newest snapshot: the index of the last command in it (u64, little-endian), the state.
pub(super) const SNAPSHOT: TableDefinition<u8, &[u8]> = TableDefinition::new("snapshot");

#[derive(Debug, thiserror::Error)]
#[error(
    "the command log {path} of an earlier release cannot be read: {reason}. Stop whatever uses it, restore it from a copy, or start with an empty --data-dir"
)]
pub struct ImportError {
    pub path: PathBuf,
    pub reason: String,
}

/// The state that the journal at `path` leads to; `None` where there is no such file, or nothing in
/// it. Leaves the file as it is, but for redb's own repair after a crash.
pub fn journal_v1(path: &Path) -> Result<Option<State>, ImportError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |reason: String| ImportError {
        path: path.to_owned(),
        reason,
    };
    let database = Database::open(path).map_err(|e| failed(e.to_string()))?;
    let replayed = replay(&database).map_err(failed)?;
    Ok((replayed.last > 0).then_some(replayed.state))
}

pub(super) struct Replayed {
    pub state: State,
    /// Index of the last command.
    pub last: u64,
}

/// Both versions of commands, since a journal that was begun by an older release goes on.
pub(super) fn replay(database: &Database) -> Result<Replayed, String> {
    let text = |e: redb::Error| e.to_string();
    let transaction = database.begin_read().map_err(|e| text(e.into()))?;
    let (mut state, snapshot) = match transaction.open_table(SNAPSHOT) {
        Err(TableError::TableDoesNotExist(_)) => (State::default(), 0),
        Err(error) => return Err(text(error.into())),
        Ok(table) => match table.get(0).map_err(|e| text(e.into()))? {
            None => (State::default(), 0),
            Some(bytes) => {
                let bytes = bytes.value();
                let (index, state) = bytes
                    .split_first_chunk::<8>()
                    .ok_or("its snapshot is shorter than its header")?;
                let state = codec::decode_state(state).map_err(|e| format!("its snapshot: {e}"))?;
                (state, u64::from_le_bytes(*index))
            }
        },
    };
    let log = match transaction.open_table(LOG) {
        Err(TableError::TableDoesNotExist(_)) => {
            let last = snapshot;
            return Ok(Replayed { state, last });
        }
        Err(error) => return Err(text(error.into())),
        Ok(table) => table,
    };
    let mut last = snapshot;
    for entry in log.iter().map_err(|e| text(e.into()))? {
        let (index, bytes) = entry.map_err(|e| text(e.into()))?;
        if index.value() != last + 1 {
            return Err(format!("command {} is missing", last + 1));
        }
        last = index.value();
        let replayed = match codec::decode(bytes.value()) {
            Ok(proposal) => {
                apply(&mut state, &proposal);
                Ok(())
            }
            Err(CodecError::Version {
                found: v1::VERSION, ..
            }) => v1::replay(&mut state, last, bytes.value()),
            Err(error) => Err(error),
        };
        replayed.map_err(|e| format!("its command {last}: {e}"))?;
    }
    Ok(Replayed { state, last })
}
