//! The real disk: a folder of files that only their user may read, and that only one process uses.
//!
//! What it keeps true: a file's name is durable when the call that made it returns; writes go into
//! blocks that are already there and written to, so that `fdatasync` waits for these blocks and for
//! no metadata. Files stay open while they are used. The zeros of the log's next segment are written
//! ahead, beside its use: their 16 MB take a tenth of a second of a disk that commits wait for.

use super::super::leisure;
use super::{Disk, StorageError};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The folder's own files; never listed.
const LOCK_FILE: &str = "lock";
const SPARE_FILE: &str = "spare";
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
    spare: Mutex<Option<Spare>>,
    _lock: File,
}

/// A file of zeros, made ahead.
struct Spare {
    size: u64,
    given_up: Arc<AtomicBool>,
    /// `None` once it was joined.
    making: Option<JoinHandle<io::Result<File>>>,
}

impl Spare {
    fn make(path: PathBuf, size: u64) -> io::Result<Self> {
        let given_up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&given_up);
        let making = leisure::spawn("spare", move || zeros(&path, size, Pace::Pieces(&seen)))?;
        Ok(Self {
            size,
            given_up,
            making: Some(making),
        })
    }

    fn is_made(&self) -> bool {
        self.making.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The durable file, whose name is not; `None` where it could not be made.
    fn take(mut self) -> Option<File> {
        let made = self.making.take()?.join();
        let made = made.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        // Whoever needs it makes one, and tells of the same trouble.
        made.inspect_err(|error| tracing::debug!(%error, "no file was made ahead"))
            .ok()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        // Nothing may be written into the folder once it is another's.
        drop(self.making.take().map(JoinHandle::join));
    }
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
        remove_if_there(&path.join(SPARE_FILE)).map_err(failed())?;
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            open: Mutex::default(),
            folder,
            spare: Mutex::default(),
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

    /// The file that was made ahead, under its name from here on, if there is one of that size.
    fn take_spare(&self, path: &Path, size: u64) -> Option<File> {
        let mut spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = spare.as_ref().is_some_and(Spare::is_made);
        let spare = spare.take_if(|spare| ready && spare.size == size)?;
        let file = spare.take()?;
        std::fs::rename(self.0.path.join(SPARE_FILE), path).ok()?;
        Some(file)
    }

    /// Until a file that is being made ahead is there.
    #[cfg(test)]
    pub(super) fn wait_for_spare(&self) {
        let spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spare) = &*spare {
            while !spare.is_made() {
                std::thread::yield_now();
            }
        }
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
                && name != SPARE_FILE
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
        let file = match self.take_spare(&path, size) {
            Some(file) => file,
            None => zeros(&path, size, Pace::AtOnce)?,
        };
        self.0.folder.sync_all()?;
        self.keep(name, Arc::new(file));
        Ok(())
    }

    fn prepare(&mut self, size: u64) {
        let mut spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.as_ref().is_some_and(|spare| spare.size == size) {
            return;
        }
        // The old one's thread ends before the new one's begins.
        *spare = None;
        *spare = Spare::make(self.0.path.join(SPARE_FILE), size).ok();
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
        remove_if_there(&self.path(name)?)?;
        self.0.folder.sync_all()
    }

    fn place(&self, name: &str) -> String {
        if name == "." {
            return self.0.path.display().to_string();
        }
        self.0.path.join(name).display().to_string()
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// How zeros are written.
enum Pace<'a> {
    AtOnce,
    /// A piece after the other is brought to the disk, so that who else syncs waits for one at most.
    /// Ends where it was given up.
    Pieces(&'a AtomicBool),
}

/// A new, durable file of zeros that are really written: blocks that are only reserved (`fallocate`) are
/// marked as written at their first `fdatasync`, which then waits for the file system's journal.
fn zeros(path: &Path, size: u64, pace: Pace) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let filled = fill(&file, size, pace).and_then(|()| file.sync_all());
    if let Err(error) = filled {
        // Most likely the disk is full: give the room back.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

fn fill(file: &File, size: u64, pace: Pace) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES.min(usize::try_from(size).unwrap_or(FILL_BYTES))];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(FILL_BYTES as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
        if let Pace::Pieces(given_up) = pace {
            file.sync_data()?;
            if given_up.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    Ok(())
}
