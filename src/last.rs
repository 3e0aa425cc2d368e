//! What this user's last `cluster up` wrote down, so that the other commands find it.

use crate::failure::Failure;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `last.json`. Holds keys: mode 0600.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// HTTP addresses, e.g. `http://127.0.0.1:8080`.
    pub coordinators: Vec<String>,
    pub api_key: String,
    pub admin_key: String,
    pub model: String,
}

/// The folder for what a user's programs remember between runs.
pub fn state_dir() -> Result<PathBuf> {
    dirs::state_dir()
        .or_else(dirs::data_local_dir)
        .map(|dir| dir.join("trireme"))
        .ok_or_else(|| {
            Failure::new(
                "this user has no home folder to remember things in",
                "name a folder with --data-dir, or set HOME",
            )
            .into()
        })
}

impl Last {
    /// `None` where no `up` has run yet or the file is not readable as such.
    pub fn load() -> Option<Self> {
        let text = fs::read(state_dir().ok()?.join("last.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub fn save(&self) -> Result<()> {
        let dir = state_dir()?;
        fs::create_dir_all(&dir).map_err(|error| {
            Failure::new(
                format!("cannot make the folder {}", dir.display()),
                "check its permissions",
            )
            .because(error)
        })?;
        write_private(&dir.join("last.json"), &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes `bytes` to `path`, readable by this user only; a reader sees the old or the new whole.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // The error of the write is the one to tell; a file left over is only untidy.
        let _ = fs::remove_file(&temporary);
        Failure::new(
            format!("cannot write {}", path.display()),
            "check the folder's permissions and the space on its disk",
        )
        .because(error)
    })
}
