//! The real disk: a folder of files that only their user may read, and that only one process uses.
//!
//! What it keeps true: a file's name is durable when the call that made it returns; writes go into
//! blocks that are already there and written to, so that `fdatasync` waits for these blocks and for
//! no metadata. Files stay open while they are used.

use super::{Disk, StorageError};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The folder's own file; never listed.
const LOCK_FILE: &str = "lock";
/// Zeros written at once.
const FILL_BYTES: usize = 1 << 20;

/// A locked folder. Clones share it; the lock goes with the last one, or with the process.
#[derive(Clone)]
pub struct Folder(Arc<Inner>);

struct Inner {
    path: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
    /// Of the folder itself, to make names durable.
    folder: File,
    _lock: File,
}

impl Folder {
    /// Locks a folder that exists.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = || StorageError::io("use", path.display().to_string());
        let folder = File::open(path).map_err(failed())?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::InUse {
                    folder: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed()(error)),
        }
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            open: Mutex::default(),
            folder,
            _lock: lock,
        })))
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
        if plain {
            return Ok(self.0.path.join(name));
        }
        let text = format!("{name:?} is no plain file name");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name)?)?;
        let file = Arc::new(file);
        open.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn forget(&self, name: &str) -> Option<Arc<File>> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(name)
    }

    fn keep(&self, name: &str, file: Arc<File>) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(name.to_owned(), file);
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0.path)? {
            let entry = entry?;
            // A name that is no text is none of ours.
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_file()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(name)?;
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<()> {
        let path = self.path(name)?;
        self.forget(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        let filled = fill(&file, size).and_then(|()| file.sync_all());
        if let Err(error) = filled {
            // Most likely the disk is full: give the room back.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.0.folder.sync_all()?;
        self.keep(name, Arc::new(file));
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from)?, self.path(to)?)?;
        self.forget(to);
        if let Some(file) = self.forget(from) {
            self.keep(to, file);
        }
        self.0.folder.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        match std::fs::remove_file(self.path(name)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.0.folder.sync_all()
    }

    fn place(&self, name: &str) -> String {
        if name == "." {
            return self.0.path.display().to_string();
        }
        self.0.path.join(name).display().to_string()
    }
}

/// Zeros that are really written: blocks that are only reserved (`fallocate`) are marked as written
/// at their first `fdatasync`, which then waits for the file system's journal.
fn fill(file: &File, size: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES.min(usize::try_from(size).unwrap_or(FILL_BYTES))];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(FILL_BYTES as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}
