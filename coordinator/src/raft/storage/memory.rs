//! A disk in memory that breaks as real ones do, for tests and the simulator: a crash keeps, loses
//! or tears each write that was not synced; it fills up, fails, lies about syncs, flips bits.
//!
//! All that it does is decided by the caller and the random numbers that the caller gives, so that a
//! seed replays it. Handles are cheap to clone and share the disk, which so outlives its member.

use super::Disk;
use super::record::SECTOR_BYTES;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk; clones are the same one (`copy` is not).
#[derive(Clone, Default)]
pub struct TornDisk(Arc<Mutex<Inner>>);

/// What may be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Read,
    Create,
    Write,
    Sync,
    Rename,
    Remove,
}

/// What was asked of the disk so far, for whoever charges time for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub writes: u64,
    pub bytes: u64,
    /// Syncs, and whatever else is durable on return.
    pub syncs: u64,
}

#[derive(Clone, Default)]
struct Inner {
    files: BTreeMap<String, Content>,
    work: Work,
    capacity: Option<u64>,
    lies: bool,
    /// Calls of the operation that still succeed; after them all fail.
    failing: BTreeMap<Operation, u64>,
    /// Changing calls that still succeed; after them the power is gone.
    power: Option<u64>,
    /// The call during which the power went.
    interrupted: Option<Interrupted>,
}

/// What a process sees, what the platters hold, and the writes between them.
#[derive(Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum Interrupted {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl TornDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// Another disk with the same content, pending writes and faults.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.inner().clone())))
    }

    /// The machine loses power and comes back: of each write since the last sync, all, nothing, a
    /// prefix or any of its sectors is there. Faults but the capacity are over.
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) {
        let inner = &mut *self.inner();
        match inner.interrupted.take() {
            Some(Interrupted::Create(name, size)) => {
                let size =
                    [None, Some(random() as usize % (size + 1)), Some(size)][pick(random, 3)];
                if let Some(size) = size {
                    inner.files.insert(name, Content::zeros(size));
                }
            }
            Some(Interrupted::Rename(from, to)) if pick(random, 2) == 0 => {
                if let Some(content) = inner.files.remove(&from) {
                    inner.files.insert(to, content);
                }
            }
            Some(Interrupted::Remove(name)) if pick(random, 2) == 0 => {
                inner.files.remove(&name);
            }
            _ => {}
        }
        for content in inner.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut content.pending) {
                content.tear(offset, &bytes, random);
            }
            content.seen = content.durable.clone();
        }
        inner.heal();
    }

    /// All faults but the capacity are over, without a crash.
    pub fn heal(&self) {
        self.inner().heal();
    }

    /// Files take at most so many bytes together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.inner().capacity = bytes;
    }

    /// Syncs succeed and do nothing, as on disks that lie.
    pub fn set_lying(&self, lies: bool) {
        self.inner().lies = lies;
    }

    /// After `successes` more, `operation` fails until `heal` or `crash`. A failing write may have
    /// written its first sectors; what a failing sync was to make durable will not be.
    pub fn fail(&self, operation: Operation, successes: u64) {
        self.inner().failing.insert(operation, successes);
    }

    /// After `successes` more changing calls the power is gone in the middle of one: that one and all
    /// later ones fail, until `crash`.
    pub fn cut_power(&self, successes: u64) {
        self.inner().power = Some(successes);
    }

    /// What was asked of the disk so far.
    pub fn work(&self) -> Work {
        self.inner().work
    }

    /// Xors one byte, durably; nothing where the file has none.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        if let Some(content) = self.inner().files.get_mut(name) {
            for bytes in [&mut content.seen, &mut content.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= mask;
                }
            }
        }
    }

    /// A file's bytes as a process sees them; empty if there is no such file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.inner();
        inner
            .files
            .get(name)
            .map_or_else(Vec::new, |content| content.seen.clone())
    }

    /// Puts a whole file there, durably, past all faults.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let content = Content {
            seen: bytes.to_vec(),
            durable: bytes.to_vec(),
            pending: Vec::new(),
        };
        self.inner().files.insert(name.to_owned(), content);
    }

    /// Takes a file away, durably, past all faults.
    pub fn take(&self, name: &str) {
        self.inner().files.remove(name);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn heal(&mut self) {
        self.failing.clear();
        self.power = None;
        self.interrupted = None;
        self.lies = false;
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Content> {
        self.files
            .get_mut(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }

    /// Whether this call is to succeed.
    fn admit(&mut self, operation: Operation) -> Result<(), Refused> {
        if operation != Operation::Read
            && let Some(left) = &mut self.power
        {
            match *left {
                0 => {
                    *left = u64::MAX;
                    return Err(Refused::NoPower { just_now: true });
                }
                u64::MAX => return Err(Refused::NoPower { just_now: false }),
                _ => *left -= 1,
            }
        }
        match self.failing.get_mut(&operation) {
            Some(0) => Err(Refused::Fault),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether `more` bytes still fit.
    fn room(&self, more: usize) -> bool {
        let used: usize = self.files.values().map(|content| content.seen.len()).sum();
        self.capacity
            .is_none_or(|capacity| (used + more) as u64 <= capacity)
    }
}

enum Refused {
    Fault,
    NoPower { just_now: bool },
}

impl Refused {
    fn error(&self) -> io::Error {
        io::Error::other(match self {
            Self::Fault => "a fault of the disk",
            Self::NoPower { .. } => "the power is gone",
        })
    }

    fn interrupts(&self) -> bool {
        matches!(self, Self::NoPower { just_now: true })
    }
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Disk for TornDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        inner.admit(Operation::Read).map_err(|r| r.error())?;
        Ok(inner.files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        let mut inner = self.inner();
        inner.admit(Operation::Read).map_err(|r| r.error())?;
        Ok(inner.file(name)?.seen.len() as u64)
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.inner();
        inner.admit(Operation::Read).map_err(|r| r.error())?;
        let content = inner.file(name)?;
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.seen.get(offset..))
            .unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<()> {
        let inner = &mut *self.inner();
        let size = usize::try_from(size).map_err(io::Error::other)?;
        if let Err(refused) = inner.admit(Operation::Create) {
            if refused.interrupts() {
                inner.interrupted = Some(Interrupted::Create(name.to_owned(), size));
            }
            return Err(refused.error());
        }
        inner.files.remove(name);
        if !inner.room(size) {
            return Err(full());
        }
        inner.work.syncs += 1;
        inner.work.bytes += size as u64;
        inner.files.insert(name.to_owned(), Content::zeros(size));
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inner = &mut *self.inner();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let admitted = inner.admit(Operation::Write);
        let seen = inner.file(name)?.seen.len();
        let grows = (offset + bytes.len()).saturating_sub(seen);
        let fits = inner.room(grows);
        let written = match &admitted {
            // The process sees no more of it, but it may be under way to the disk.
            Err(refused) if refused.interrupts() => bytes,
            Err(Refused::NoPower { .. }) => &[],
            // Half of it, at a sector's end.
            Err(Refused::Fault) => {
                let end = (offset + bytes.len() / 2) / SECTOR_BYTES * SECTOR_BYTES;
                &bytes[..end.saturating_sub(offset)]
            }
            Ok(()) if fits => bytes,
            Ok(()) => &bytes[..bytes.len() - grows.min(bytes.len())],
        };
        inner.work.writes += 1;
        inner.work.bytes += written.len() as u64;
        inner.file(name)?.write(offset, written);
        admitted.map_err(|r| r.error())?;
        if fits { Ok(()) } else { Err(full()) }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let inner = &mut *self.inner();
        let admitted = inner.admit(Operation::Sync);
        let lies = inner.lies;
        inner.work.syncs += 1;
        let content = inner.file(name)?;
        match admitted {
            Ok(()) if lies => Ok(()),
            Ok(()) => {
                content.sync();
                Ok(())
            }
            Err(refused) => {
                if matches!(refused, Refused::Fault) {
                    // The kernel says so once and then takes the pages for clean.
                    content.pending.clear();
                }
                Err(refused.error())
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inner = &mut *self.inner();
        if let Err(refused) = inner.admit(Operation::Rename) {
            if refused.interrupts() {
                inner.interrupted = Some(Interrupted::Rename(from.to_owned(), to.to_owned()));
            }
            return Err(refused.error());
        }
        inner.file(from)?;
        inner.work.syncs += 1;
        if let Some(content) = inner.files.remove(from) {
            inner.files.insert(to.to_owned(), content);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let inner = &mut *self.inner();
        if let Err(refused) = inner.admit(Operation::Remove) {
            if refused.interrupts() {
                inner.interrupted = Some(Interrupted::Remove(name.to_owned()));
            }
            return Err(refused.error());
        }
        inner.work.syncs += 1;
        inner.files.remove(name);
        Ok(())
    }
}

impl Content {
    fn zeros(size: usize) -> Self {
        Self {
            seen: vec![0; size],
            durable: vec![0; size],
            pending: Vec::new(),
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        put(&mut self.seen, offset, bytes);
        self.pending.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            put(&mut self.durable, offset, &bytes);
        }
    }

    /// Some of a write's sectors become durable.
    fn tear(&mut self, offset: usize, bytes: &[u8], random: &mut dyn FnMut() -> u64) {
        let first = SECTOR_BYTES - offset % SECTOR_BYTES;
        let sectors = 1 + bytes.len().saturating_sub(first).div_ceil(SECTOR_BYTES);
        let fate = pick(random, 4);
        let prefix = pick(random, sectors as u64 + 1);
        for sector in 0..sectors {
            let kept = match fate {
                0 => true,
                1 => false,
                2 => sector < prefix,
                _ => pick(random, 2) == 0,
            };
            if kept {
                let from = if sector == 0 {
                    0
                } else {
                    first + (sector - 1) * SECTOR_BYTES
                };
                let to = (first + sector * SECTOR_BYTES).min(bytes.len());
                put(&mut self.durable, offset + from, &bytes[from..to]);
            }
        }
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

/// A number below `below`.
fn pick(random: &mut dyn FnMut() -> u64, below: u64) -> usize {
    // The high bits are the better ones of a simple generator.
    ((random() >> 32) % below) as usize
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): the
/// numbers of a seed.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `below`, which is not 0.
    pub fn below(&mut self, below: u64) -> u64 {
        (self.draw() >> 16) % below
    }
}
