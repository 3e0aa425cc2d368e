//! A node's disk: a `TornDisk` whose every change goes into the world's fingerprint, and which says
//! how long the work took in virtual time.

use crate::chance::{Chance, Fingerprint, hash_of};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use trireme_coordinator::raft::storage::Disk;
use trireme_coordinator::raft::storage::memory::{TornDisk, Work};

/// Cheap to clone; all clones are one disk, which outlives its node's processes.
#[derive(Clone)]
pub struct SimDisk {
    pub torn: TornDisk,
    /// Of all changes to all disks of the world.
    fingerprint: Rc<Cell<Fingerprint>>,
    /// What one sync takes at the moment.
    sync: Rc<Cell<Duration>>,
    /// The work when the clock was last looked at.
    looked: Rc<Cell<Work>>,
    /// It may give errors: whoever fails because of it is excused.
    pub faulty: Rc<Cell<bool>>,
    /// It takes hardly more than is on it.
    pub full: Rc<Cell<bool>>,
}

impl SimDisk {
    pub fn new(fingerprint: &Rc<Cell<Fingerprint>>) -> Self {
        Self {
            torn: TornDisk::new(),
            fingerprint: Rc::clone(fingerprint),
            sync: Rc::new(Cell::new(Duration::from_micros(300))),
            looked: Rc::default(),
            faulty: Rc::default(),
            full: Rc::default(),
        }
    }

    pub fn set_sync(&self, takes: Duration) {
        self.sync.set(takes);
    }

    /// From now on `spent` counts.
    pub fn start(&self) {
        self.looked.set(self.torn.work());
    }

    /// Virtual time that the work since `start` takes.
    pub fn spent(&self) -> Duration {
        let (then, now) = (self.looked.get(), self.torn.work());
        let syncs = u32::try_from(now.syncs - then.syncs).unwrap_or(u32::MAX);
        // 500 MB/s.
        self.sync.get() * syncs + Duration::from_nanos(2 * (now.bytes - then.bytes))
    }

    /// The machine loses power and comes back.
    pub fn crash(&self, chance: &mut Chance) {
        self.torn.crash(&mut || chance.next());
        self.faulty.set(self.full.get());
    }

    /// Its faults are over, but that it is full.
    pub fn heal(&self) {
        self.torn.heal();
        self.faulty.set(self.full.get());
    }

    /// No more than `more` bytes fit, or all that anybody likes.
    pub fn fill(&self, more: Option<u64>) {
        let used = || -> u64 {
            let names = self.torn.list().unwrap_or_default();
            names
                .iter()
                .filter_map(|name| self.torn.len(name).ok())
                .sum()
        };
        self.torn.set_capacity(more.map(|more| used() + more));
        self.full.set(more.is_some());
        self.faulty.set(more.is_some());
    }

    fn note(&self, what: u64, name: &str, bytes: &[u8]) {
        let mut fingerprint = self.fingerprint.get();
        fingerprint.number(what);
        fingerprint.number(hash_of(name.as_bytes()));
        fingerprint.bytes(bytes);
        self.fingerprint.set(fingerprint);
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.torn.list()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.torn.len(name)
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.torn.read(name, offset, buffer)
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.note(1, name, &size.to_le_bytes());
        self.torn.create(name, size)
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.note(2, name, bytes);
        self.torn.write(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.note(3, name, &[]);
        self.torn.sync(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.note(4, from, to.as_bytes());
        self.torn.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.note(5, name, &[]);
        self.torn.remove(name)
    }
}
