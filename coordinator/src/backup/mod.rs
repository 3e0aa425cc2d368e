//! A backup: the state in the format of a snapshot file, perhaps sealed; and back into a data folder.
//!
//! What it keeps true: a backup holds no private key of a CA; what is restored has every byte and every
//! invariant checked; a restored group has a new identity, a new CA and a new admin key, so that the
//! old one's nodes, tokens and admin are strangers to it.
//!
//! Neighbours: `gateway::admin` streams `write`'s bytes, `cluster backup` seals them, `cluster restore`
//! calls `restore`.

pub mod check;
mod restore;
pub mod seal;

pub use restore::{Restored, restore};

use crate::raft::storage::snapshot_format::{Encoder, FormatError, Reader};
use crate::raft::types::SnapshotMeta;
use crate::state::State;
use crate::state::codec::{CodecError, read_state, write_state};
use seal::{Opener, SealKey};
use std::io::{self, Read, Write};

/// Why bytes are no backup, or are not restored; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the backup is encrypted: name its key with --key-file")]
    KeyMissing,
    #[error("the backup is not encrypted: leave --key-file out, if this is really the file")]
    KeyUseless,
    #[error("this is not a backup that can be used: {0}")]
    Format(#[from] FormatError),
    #[error("the state in the backup cannot be used: {0}")]
    State(#[from] CodecError),
    #[error("the backup cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("the state in the backup contradicts itself ({0}): use another backup")]
    Invariant(String),
    #[error("{0}")]
    Restore(String),
}

/// Writes the backup of `state`, the one after the entry at `meta.index`.
pub fn write<W: Write>(state: &State, meta: &SnapshotMeta, out: W) -> Result<W, BackupError> {
    let mut encoder = Encoder::new(out, meta)?;
    // A restored group never signs with these, and a file lies about more easily than a data folder.
    write_state(&state.without_authority_keys(), &mut encoder)?;
    Ok(encoder.finish()?)
}

/// Reads a backup to its end and checks all of it.
pub fn read(mut input: impl Read, key: Option<&SealKey>) -> Result<State, BackupError> {
    let mut begin = [0; 8];
    input.read_exact(&mut begin)?;
    let sealed = &begin == seal::MAGIC;
    let input = begin.chain(input);
    let state = match (sealed, key) {
        (true, None) => return Err(BackupError::KeyMissing),
        (false, Some(_)) => return Err(BackupError::KeyUseless),
        (true, Some(key)) => read_plain(Opener::new(input, key)?)?,
        (false, None) => read_plain(input)?,
    };
    state.check().map_err(BackupError::Invariant)?;
    Ok(state)
}

fn read_plain(input: impl Read) -> Result<State, BackupError> {
    let mut reader = Reader::new(input)?;
    let state = read_state(&mut reader)?;
    // The end holds the checksum of the whole.
    io::copy(&mut reader, &mut io::sink())?;
    Ok(state)
}

#[cfg(test)]
mod tests;
