//! The model cache: one folder per model, landed whole or not at all.
//!
//! `<models>/<key>/` holds the file under its own name and `landed.json`, which remembers its
//! checked hash with size and time; while those stand, the hash is trusted. `<key>` is the
//! SHA-256 where it is known beforehand, else a hash of the source's text. A lock file beside the
//! folder lets one process fetch while others wait.

use super::{Bounds, Progress, Report, SourceError};
use crate::limits;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a waiting process looks again, and how often progress is told.
pub(super) const TICK: Duration = Duration::from_millis(100);

pub(super) struct Cache {
    models: PathBuf,
}

/// One model's place in the cache.
pub(super) struct Entry {
    pub folder: PathBuf,
    lock: PathBuf,
}

/// A model that is in the cache.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    pub path: PathBuf,
    pub sha256: Option<String>,
    pub from: String,
}

/// `landed.json`.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    /// Name of the file, or of the folder, in the entry.
    file: String,
    /// Of a file; folders have none.
    sha256: Option<String>,
    stamp: Stamp,
    from: String,
}

/// What changes when a file is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    /// Of the inode: what a program that sets a file's time back cannot set.
    changed_s: i64,
    changed_ns: i64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            bytes: meta.len(),
            modified_s: meta.mtime(),
            modified_ns: meta.mtime_nsec(),
            changed_s: meta.ctime(),
            changed_ns: meta.ctime_nsec(),
        }
    }
}

impl Cache {
    /// In `folder`, or in the user's cache folder.
    pub(super) fn open(folder: Option<&Path>) -> Result<Self, SourceError> {
        let root = match folder {
            Some(folder) => folder.to_owned(),
            None => dirs::cache_dir()
                .ok_or_else(|| {
                    SourceError::Invalid(
                        "this user has no cache folder (is HOME set?); choose one explicitly"
                            .into(),
                    )
                })?
                .join("trireme"),
        };
        Ok(Self {
            models: root.join("models"),
        })
    }

    pub(super) fn entry(&self, key: &str) -> Entry {
        Entry {
            folder: self.models.join(key),
            lock: self.models.join(format!("{key}.lock")),
        }
    }

    /// The key of a source whose file's hash is not known beforehand.
    pub(super) fn key_of_source(source: &str) -> String {
        let digest = hex::encode(Sha256::digest(source.as_bytes()));
        format!("src-{}", &digest[..32])
    }
}

impl Entry {
    fn record_path(&self) -> PathBuf {
        self.folder.join("landed.json")
    }

    fn record(&self) -> Option<(Record, PathBuf, Metadata)> {
        let text = fs::read(self.record_path()).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let path = self.folder.join(&record.file);
        let meta = fs::metadata(&path).ok()?;
        Some((record, path, meta))
    }

    /// The landed model if it needs no new check. Reads no weights and takes no lock.
    pub(super) fn peek(&self, want: Option<&str>) -> Option<Landed> {
        let (record, path, meta) = self.record()?;
        let unchanged = meta.is_dir() || Stamp::of(&meta) == record.stamp;
        let right = want.is_none_or(|want| record.sha256.as_deref() == Some(want));
        (unchanged && right).then_some(Landed {
            path,
            sha256: record.sha256,
            from: record.from,
        })
    }

    /// [`Self::peek`], or a check of a file that was touched since; `None` where it must be fetched.
    /// Call it with the lock held.
    pub(super) fn check(&self, want: Option<&str>, report: Report) -> Option<Landed> {
        if let Some(landed) = self.peek(want) {
            return Some(landed);
        }
        let (record, path, meta) = self.record()?;
        let known = record.sha256.clone()?;
        if want.is_some_and(|want| want != known) || !meta.is_file() {
            return None;
        }
        if hash_file(&path, report).ok()? != known {
            tracing::warn!(file = %path.display(), "the cached model was changed; fetching it again");
            return None;
        }
        self.land_record(&record.file, record.sha256, record.from)
            .ok()
    }

    /// Waits for the right to change this entry.
    pub(super) fn lock(&self, bounds: &Bounds, report: Report) -> Result<File, SourceError> {
        fs::create_dir_all(&self.folder).map_err(|e| SourceError::io("create", &self.folder, e))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.lock)
            .map_err(|e| SourceError::io("open", &self.lock, e))?;
        let (start, wait) = (Instant::now(), bounds.lock);
        loop {
            bounds.cancel.check()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(SourceError::io("lock", &self.lock, e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if start.elapsed() >= wait {
                return Err(SourceError::Busy(format!(
                    "another process has been fetching this model for {} s (it holds {}); wait for \
                     it or end it, then try again",
                    wait.as_secs(),
                    self.lock.display()
                )));
            }
            report(Progress {
                stage: "waiting",
                done_bytes: bytes_under(&self.folder),
                total_bytes: 0,
            });
            std::thread::sleep(TICK.min(wait));
        }
    }

    /// A scratch folder, emptied: whatever an interrupted process left there is gone. Call it with
    /// the lock held.
    pub(super) fn scratch(&self) -> Result<Scratch, SourceError> {
        let path = self.folder.join("scratch");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(|e| SourceError::io("create", &path, e))?;
        Ok(Scratch(path))
    }

    /// Makes a whole, checked file (on the same disk) the entry's model.
    pub(super) fn land(
        &self,
        part: &Path,
        name: &str,
        sha256: &str,
        from: &str,
    ) -> Result<Landed, SourceError> {
        let target = self.folder.join(name);
        let file = File::open(part).map_err(|e| SourceError::io("open", part, e))?;
        file.sync_all()
            .map_err(|e| SourceError::io("write", part, e))?;
        fs::rename(part, &target).map_err(|e| SourceError::io("rename", part, e))?;
        self.land_record(name, Some(sha256.to_owned()), from.to_owned())
    }

    /// Remembers that `name` (a file or folder already in place) is whole.
    pub(super) fn land_record(
        &self,
        name: &str,
        sha256: Option<String>,
        from: String,
    ) -> Result<Landed, SourceError> {
        let path = self.folder.join(name);
        let meta = fs::metadata(&path).map_err(|e| SourceError::io("read", &path, e))?;
        let record = Record {
            file: name.to_owned(),
            sha256: sha256.clone(),
            stamp: Stamp::of(&meta),
            from: from.clone(),
        };
        let target = self.record_path();
        let part = target.with_extension("json.part");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            file.sync_all()?;
            fs::rename(&part, &target)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|e| SourceError::io("write", &target, e))?;
        Ok(Landed { path, sha256, from })
    }

    /// The hash of a file outside the cache, remembered here while the file stays as it is.
    pub(super) fn hash_of(&self, path: &Path, report: Report) -> Result<String, SourceError> {
        let meta = fs::metadata(path).map_err(|e| SourceError::io("read", path, e))?;
        let stamp = Stamp::of(&meta);
        let known = fs::read(self.record_path())
            .ok()
            .and_then(|text| serde_json::from_slice::<Record>(&text).ok())
            .filter(|record| record.stamp == stamp)
            .and_then(|record| record.sha256);
        if let Some(sha256) = known {
            return Ok(sha256);
        }
        let sha256 = hash_file(path, report)?;
        let record = Record {
            file: String::new(),
            sha256: Some(sha256.clone()),
            stamp,
            from: path.display().to_string(),
        };
        // Only a convenience: without it the next start hashes again.
        let remember = || -> std::io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            let part = self
                .folder
                .join(format!("landed.json.{}", std::process::id()));
            fs::write(&part, serde_json::to_vec(&record)?)?;
            fs::rename(&part, self.record_path())
        };
        if let Err(e) = remember() {
            tracing::debug!(error = %e, "a model's hash could not be remembered");
        }
        Ok(sha256)
    }
}

/// A folder that is removed when its owner is done, however that ends.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SHA-256 of a file, in lower-case hex.
pub(super) fn hash_file(path: &Path, report: Report) -> Result<String, SourceError> {
    let mut hasher = Sha256::new();
    hash_into(&mut hasher, path, report)?;
    Ok(hex::encode(hasher.finalize()))
}

/// Feeds a file into `hasher`; returns its bytes.
pub(super) fn hash_into(
    hasher: &mut Sha256,
    path: &Path,
    report: Report,
) -> Result<u64, SourceError> {
    let failed = |e| SourceError::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let total_bytes = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; limits::FETCH_BUFFER_BYTES];
    let mut done_bytes = 0;
    let mut told = Instant::now();
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(done_bytes);
        }
        hasher.update(&buffer[..count]);
        done_bytes += count as u64;
        if told.elapsed() >= TICK {
            told = Instant::now();
            report(Progress {
                stage: "checking",
                done_bytes,
                total_bytes,
            });
        }
    }
}

/// Bytes of the files in a folder and in the folders below it.
pub(super) fn bytes_under(folder: &Path) -> u64 {
    let Ok(items) = fs::read_dir(folder) else {
        return 0;
    };
    let size = |item: fs::DirEntry| match item.metadata() {
        Ok(meta) if meta.is_dir() => bytes_under(&item.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    items.flatten().map(size).sum()
}

/// Refuses a download that the disk cannot hold.
pub(super) fn check_room(folder: &Path, need: u64) -> Result<(), SourceError> {
    let Ok(stat) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < need.saturating_add(limits::DISK_RESERVE_BYTES) {
        return Err(SourceError::DiskFull {
            folder: folder.display().to_string(),
            need,
            free,
        });
    }
    Ok(())
}
