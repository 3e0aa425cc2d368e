//! `cluster backup`: the cluster's state as a file.
//!
//! What it keeps true: the file has its name only once it is whole, checked and on disk.

use super::ClientArgs;
use crate::failure::Failure;
use crate::{size, term};
use anyhow::Result;
use clap::Args;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use trireme_coordinator::backup::seal::{SealKey, Sealer};
use trireme_coordinator::backup::{self, check};

/// Longer files hold something else.
const KEY_FILE_BYTES_MAX: u64 = 128;
const PIECE_BYTES: usize = 64 << 10;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster backup state.backup\n  cluster backup state.backup --new-key-file backup.key\n  \
                        cluster backup state.backup --key-file backup.key\n\nA backup holds deployments, \
                        tenants, hashes of keys, the ledger and the audit log, and no private key of \
                        the cluster. `cluster restore` makes a new cluster of it."
)]
pub struct BackupArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where to write it; replaced if it is there
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Encrypt with the key in this file: 32 bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    key_file: Option<PathBuf>,
    /// Encrypt with a new key, and write it to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
}

impl BackupArgs {
    pub fn run(self) -> Result<()> {
        let client = self.client.admin()?;
        let key = match (&self.key_file, &self.new_key_file) {
            (Some(path), _) => Some(read_key(path)?),
            (None, Some(path)) => Some(make_key(path)?),
            (None, None) => None,
        };
        let input = client.download("/admin/v1/backup")?;
        let bytes = save(input, key.as_ref(), &self.file)?;
        if self.client.json {
            return term::json(&serde_json::json!({"file": self.file, "bytes": bytes}));
        }
        term::out(format!(
            "{}: {}, {}",
            self.file.display(),
            size::bytes(bytes),
            match key {
                Some(_) => "encrypted",
                None => "not encrypted",
            }
        ));
        Ok(())
    }
}

/// Writes `input`, a backup, checking it as it comes; gives its bytes as they come.
fn save(mut input: impl Read, key: Option<&SealKey>, file: &Path) -> Result<u64> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut work = || -> Result<u64, backup::BackupError> {
        let out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let out = BufWriter::new(out);
        let (out, bytes) = match key {
            None => copy(&mut input, out)?,
            Some(key) => {
                let (sealer, bytes) = copy(&mut input, Sealer::new(out, key)?)?;
                (sealer.finish()?, bytes)
            }
        };
        let out = out.into_inner().map_err(|e| e.into_error())?;
        out.sync_all()?;
        std::fs::rename(&temporary, file)?;
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(bytes)
    };
    work().map_err(|error| {
        // The error is the one to tell; a file left over is only untidy.
        let _ = std::fs::remove_file(&temporary);
        Failure::new(
            format!("the backup {} was not written", file.display()),
            "see that the disk has room and the cluster is well, then try again",
        )
        .because(error)
    })
}

fn copy<W: Write>(input: &mut impl Read, mut out: W) -> Result<(W, u64), backup::BackupError> {
    let mut check = check::Check::default();
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let read = match input.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        check.feed(&piece[..read])?;
        out.write_all(&piece[..read])?;
        bytes += read as u64;
    }
    check.finish()?;
    Ok((out, bytes))
}

/// The key in a key file.
pub fn read_key(path: &Path) -> Result<SealKey> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?
            .take(KEY_FILE_BYTES_MAX)
            .read_to_end(&mut content)?;
        Ok(content)
    };
    let failed = || {
        Failure::new(
            format!("cannot use the key file {}", path.display()),
            "`cluster backup FILE --new-key-file K` makes one",
        )
    };
    let content = read().map_err(|error| failed().because(error))?;
    SealKey::from_file(&content).map_err(|error| failed().because(error))
}

/// A new key in a file of its own, on disk before anything is encrypted with it.
fn make_key(path: &Path) -> Result<SealKey> {
    let make = || -> Result<SealKey, backup::BackupError> {
        let (key, text) = SealKey::random()?;
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        writeln!(out, "{text}")?;
        out.sync_all()?;
        Ok(key)
    };
    make().map_err(|error| {
        Failure::new(
            format!("cannot make the key file {}", path.display()),
            "name a file that is not there yet; an old key is used with --key-file",
        )
        .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_coordinator::raft::types::SnapshotMeta;
    use trireme_coordinator::state::State;

    fn backup() -> Vec<u8> {
        backup::write(&State::default(), &SnapshotMeta::default(), Vec::new()).unwrap()
    }

    #[test]
    fn only_a_whole_backup_gets_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b");
        let whole = backup();
        assert_eq!(save(&whole[..], None, &file).unwrap(), whole.len() as u64);
        assert_eq!(std::fs::read(&file).unwrap(), whole);
        for wrong in [&whole[..whole.len() - 1], &b"<html>"[..], &[]] {
            assert!(save(wrong, None, &file).is_err());
            assert_eq!(std::fs::read(&file).unwrap(), whole, "the old one stays");
        }
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left over");
    }

    #[test]
    fn a_new_key_opens_what_it_sealed_and_replaces_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, key_file) = (dir.path().join("b"), dir.path().join("k"));
        let key = make_key(&key_file).unwrap();
        save(&backup()[..], Some(&key), &file).unwrap();
        let again = read_key(&key_file).unwrap();
        let sealed = std::fs::read(&file).unwrap();
        assert!(backup::read(&sealed[..], Some(&again)).is_ok());
        assert!(backup::read(&sealed[..], None).is_err());
        assert!(make_key(&key_file).is_err());
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&key_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
