//! One process per data folder. The kernel drops the lock however its holder ends.

use crate::failure::Failure;
use anyhow::Result;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use trireme_shared::limits;

/// Held for as long as the value lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Makes `dir` (mode 0700) and its parents where missing.
pub fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| {
            Failure::new(
                format!("cannot make the folder {}", dir.display()),
                "choose another with --data-dir",
            )
            .because(error)
        })
}

impl DirLock {
    /// Locks `dir/name`, waiting at most `wait` for another holder to end. `who` is what the
    /// holder is, for the message.
    pub fn acquire(dir: &Path, name: &str, who: &str, wait: Duration) -> Result<Self> {
        make_dir(dir)?;
        let path = dir.join(name);
        let problem = |error: std::io::Error| {
            Failure::new(
                format!("cannot lock {}", path.display()),
                "choose a folder on a local disk with --data-dir",
            )
            .because(error)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(problem)?;
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(problem(error)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(limits::CLIENT_POLL_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    // Who holds it is only for the message.
                    let _ = file.read_to_string(&mut pid);
                    let pid = match pid.trim() {
                        "" => "unknown pid".to_owned(),
                        pid => format!("pid {pid}"),
                    };
                    return Err(Failure::new(
                        format!(
                            "another {who} ({pid}) uses the data folder {}",
                            dir.display()
                        ),
                        "stop it, or choose another folder with --data-dir",
                    )
                    .into());
                }
            }
        }
        let note = || -> std::io::Result<()> {
            file.rewind()?;
            file.set_len(0)?;
            write!(file, "{}", std::process::id())
        };
        let mut note = note;
        note().map_err(problem)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_by_pid_and_let_in_after_the_first() {
        let dir = std::env::temp_dir().join(format!("trireme-lock-{}", std::process::id()));
        let first = DirLock::acquire(&dir, "up.lock", "`cluster up`", Duration::ZERO).unwrap();
        let error = DirLock::acquire(&dir, "up.lock", "`cluster up`", Duration::ZERO).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("pid {}", std::process::id())),
            "{text}"
        );
        drop(first);
        DirLock::acquire(&dir, "up.lock", "`cluster up`", Duration::ZERO).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
