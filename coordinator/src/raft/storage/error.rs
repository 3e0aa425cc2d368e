//! Why the storage of a Raft member cannot be used. Each text says what to do.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(
        "{} is in use by another coordinator: stop that one, or choose another --data-dir",
        folder.display()
    )]
    InUse { folder: PathBuf },
    #[error(
        "{file} is damaged at byte {offset}: {reason}. Nothing was changed. Remove this member from \
         its group and join it again with an empty --data-dir; if it is the only member, restore a \
         backup into an empty --data-dir"
    )]
    Damaged {
        file: String,
        offset: u64,
        reason: String,
    },
    #[error(
        "{file} was written by another version of Trireme (format {found}, this one reads {known}): \
         start the version that wrote it"
    )]
    Version {
        file: String,
        found: u32,
        known: u32,
    },
    #[error(
        "cannot {doing} {file}: {source}. See that the disk works and has room, then start again"
    )]
    Io {
        doing: &'static str,
        file: String,
        source: io::Error,
    },
    #[error("an earlier write to the log failed, so what is on disk is in doubt: start again")]
    Failed,
    #[error("the log cannot take this: {0}")]
    Refused(String),
}

impl StorageError {
    pub(super) fn io(doing: &'static str, file: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            file,
            source,
        }
    }

    pub(super) fn damaged(file: String, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged {
            file,
            offset,
            reason: reason.into(),
        }
    }
}
