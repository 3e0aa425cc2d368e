//! Why a model could not be had. Every text ends in what to do next.

use std::io;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{0}")]
    NotFound(String),
    /// The source's text, or a setting, makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The other side did not answer, broke off or refused.
    #[error("{0}")]
    Network(String),
    #[error(
        "{what} has the SHA-256 {got}, not {want}: it was changed or damaged. Nothing was kept; \
         check the source and try again"
    )]
    WrongHash {
        what: String,
        want: String,
        got: String,
    },
    #[error(
        "the disk of {folder} is full: {need} more bytes are needed, {free} are free. Make room, or \
         choose another cache folder"
    )]
    DiskFull {
        folder: String,
        need: u64,
        free: u64,
    },
    #[error("cannot {doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: String,
        source: io::Error,
    },
    /// Another process held the download for longer than we wait.
    #[error("{0}")]
    Busy(String),
    /// A Python wheel could not be fetched or has not what was asked for.
    #[error("{0}")]
    Wheel(String),
    #[error("the fetch was given up; what has arrived of it is used next time where that can be")]
    Cancelled,
    /// Every source of a catalogue model failed.
    #[error(
        "the model `{name}` could not be fetched:\n{attempts}\nFetch it by other means and pass its path"
    )]
    AllFailed { name: String, attempts: String },
}

impl SourceError {
    /// An I/O error in words; a full disk becomes `DiskFull`.
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::DiskFull {
                folder: path.parent().unwrap_or(path).display().to_string(),
                need: 1,
                free: 0,
            };
        }
        Self::Io {
            doing,
            path: path.display().to_string(),
            source,
        }
    }

    /// Whether another source may still do: not for a full disk, say.
    pub(super) fn is_of_this_source(&self) -> bool {
        matches!(
            self,
            Self::Network(_) | Self::Wheel(_) | Self::NotFound(_) | Self::WrongHash { .. }
        )
    }
}
