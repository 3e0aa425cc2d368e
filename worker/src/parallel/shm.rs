//! Shared memory between two processes of one host: a file under `/dev/shm` that holds the two
//! rings of a [`RingLink`].
//!
//! Kept true: the file's name lives only until both sides have it mapped, so a later `kill -9` leaves
//! nothing; each side holds a lock that the kernel drops when its process dies, so the other
//! notices within a park slice; a file that a kill left before both met is swept at worker start.
//! The peer is trusted no further than our own certificate: its indices are checked by `ring`, the
//! file must be ours alone (owner, mode 0600, exact size). A process of the same user can still
//! truncate the file and so fault us; it could as well kill us.
//!
//! The file's first page: magic (8 bytes, written last), version (4), and at 64 the flag that the
//! higher index joined. Locks (open file description locks, which work across PID namespaces):
//! byte 0 is the creator's, byte 1 the joiner's.

use super::ring::{Region, RingBytes, RingLink};
use super::topology::LinkSpec;
use super::wait::Waits;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use trireme_shared::limits::SHM_UNLOCKED_AGE_MAX;

/// Where shared memory lives on Linux.
const SHM_DIR: &str = "/dev/shm";
const NAME_PREFIX: &str = "trireme-";
/// `TRISHM` and the version of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"TRISHM\0\x01");
const HEADER_BYTES: usize = 4096;
const JOINED_AT: usize = 64;
const CREATOR_LOCK: i64 = 0;
const JOINER_LOCK: i64 = 1;

/// The folder for this host's shared memory.
pub(super) fn directory() -> &'static Path {
    Path::new(SHM_DIR)
}

/// `trireme-<nonce>-<lower>-<higher>-<channel>`
pub(super) fn file_name(nonce: &[u8; 16], link: LinkSpec) -> String {
    let hex: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    let LinkSpec { lower, higher, .. } = link;
    format!("{NAME_PREFIX}{hex}-{lower}-{higher}-{}", link.channel as u8)
}

/// The lower index's side, until the peer joins. Dropping it removes the file's name.
pub(super) struct Created {
    path: PathBuf,
    region: Arc<Region>,
    bytes: RingBytes,
}

impl Created {
    /// Makes the file; an existing one of the same name is an error.
    pub(super) fn new(dir: &Path, name: &str, bytes: RingBytes) -> io::Result<Self> {
        let path = dir.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let size = bytes.region_bytes(HEADER_BYTES);
        let made = (|| {
            lock(&file, CREATOR_LOCK)?;
            // Allocated now, so that a full /dev/shm is an error here and not a fault later.
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size as u64)?;
            map(file, size, JOINER_LOCK)
        })();
        let region = match made {
            Ok(region) => Arc::new(region),
            Err(error) => {
                remove(&path);
                return Err(error);
            }
        };
        magic(&region).store(MAGIC, Ordering::Release);
        Ok(Self {
            path,
            region,
            bytes,
        })
    }

    /// Whether the peer has the memory mapped.
    pub(super) fn is_joined(&self) -> bool {
        joined(&self.region).load(Ordering::Acquire) != 0
    }

    /// The link; call once joined.
    pub(super) fn into_link(self, waits: Waits) -> RingLink {
        RingLink::on(&self.region, HEADER_BYTES, self.bytes, true, waits)
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // The joiner removes it as well; whoever is first. The mapping lives on in the link.
        remove(&self.path);
    }
}

/// The higher index's side: `None` while the creator has not made the file ready.
pub(super) fn join(
    dir: &Path,
    name: &str,
    bytes: RingBytes,
    waits: Waits,
) -> io::Result<Option<RingLink>> {
    let path = dir.join(name);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (size, meta) = (bytes.region_bytes(HEADER_BYTES), file.metadata()?);
    if meta.len() == 0 {
        return Ok(None);
    }
    let ours = meta.uid() == rustix::process::getuid().as_raw() && meta.mode() & 0o077 == 0;
    if !meta.is_file() || !ours || meta.len() != size as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is not the file its peer should have made",
                path.display()
            ),
        ));
    }
    lock(&file, JOINER_LOCK)?;
    let region = Arc::new(map(file, size, CREATOR_LOCK)?);
    if magic(&region).load(Ordering::Acquire) != MAGIC {
        return Ok(None);
    }
    let link = RingLink::on(&region, HEADER_BYTES, bytes, false, waits);
    joined(&region).store(1, Ordering::Release);
    remove(&path);
    Ok(Some(link))
}

/// Removes the files of dead processes; returns how many. Call when a worker starts.
pub fn sweep_stale() -> usize {
    sweep(directory(), SHM_UNLOCKED_AGE_MAX)
}

/// A file is stale if nobody holds its creator's lock and it was once ready (so was once locked) or
/// is older than `unlocked_age_max`.
fn sweep(dir: &Path, unlocked_age_max: std::time::Duration) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name
            .to_str()
            .is_some_and(|name| name.starts_with(NAME_PREFIX))
        {
            continue;
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(entry.path());
        // Another user's file cannot be opened; it is theirs to sweep.
        let Ok(file) = opened else { continue };
        if !is_unlocked(&file, CREATOR_LOCK) {
            continue;
        }
        let old = file.metadata().and_then(|meta| meta.modified());
        let old = old.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= unlocked_age_max));
        if old || has_magic(&file) {
            remove(&entry.path());
            removed += 1;
        }
    }
    removed
}

fn has_magic(file: &File) -> bool {
    let mut raw = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut raw, 0).is_ok()
        && u64::from_le_bytes(raw) == MAGIC
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a shared-memory file");
    }
}

/// Maps `file`, whose peer holds the lock on byte `peer_lock`.
fn map(file: File, size: usize, peer_lock: i64) -> io::Result<Region> {
    let map: MmapRaw = MmapOptions::new().len(size).map_raw(&file)?;
    // Moved into the closure, the file (and with it our own lock) lives as long as the mapping.
    let alive = move || !is_unlocked(&file, peer_lock);
    Ok(Region::new(map, Some(Box::new(alive))))
}

fn magic(region: &Region) -> &AtomicU64 {
    // SAFETY: the mapping is at least a page, begins on a page, and lives as long as the borrow;
    // this word is only ever accessed as an atomic.
    unsafe { AtomicU64::from_ptr(region.map().as_mut_ptr().cast()) }
}

fn joined(region: &Region) -> &AtomicU32 {
    // SAFETY: as in `magic`; offset 64 is aligned and inside the first page.
    unsafe { AtomicU32::from_ptr(region.map().as_mut_ptr().add(JOINED_AT).cast()) }
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain integers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

/// Takes the lock on `byte` for this open file, until it is closed.
fn lock(file: &File, byte: i64) -> io::Result<()> {
    let wanted = range(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open and `wanted` a valid flock for the call's duration.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether no other open file holds the lock on `byte`. Unknown counts as held.
fn is_unlocked(file: &File, byte: i64) -> bool {
    let mut found = range(libc::F_WRLCK, byte);
    // SAFETY: as in `lock`; the kernel writes into `found`.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut found) };
    status == 0 && i32::from(found.l_type) == libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use super::super::topology::Channel;
    use super::super::{Abort, Link, LinkError, WaitPolicy};
    use super::*;
    use std::time::Duration;

    const BYTES: RingBytes = RingBytes {
        forward: 4096,
        backward: 4096,
    };

    struct TempDir(PathBuf);

    impl TempDir {
        fn new(name: &str) -> Self {
            let name = format!("{name}-{}", std::process::id());
            // In shared memory itself, so that the tests run on the file system that counts; not
            // under the prefix that a sweep looks at.
            let path = directory().join(format!("test-of-trireme-{name}"));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn files(&self) -> usize {
            std::fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn waits(peer: usize) -> Waits {
        Waits {
            peer,
            abort: Abort::default(),
            policy: WaitPolicy::crowded(),
        }
    }

    #[test]
    fn two_sides_meet_and_leave_no_file() {
        let dir = TempDir::new("meet");
        let link = LinkSpec {
            lower: 0,
            higher: 1,
            channel: Channel::Collective,
        };
        let name = file_name(&[0xab; 16], link);
        assert!(join(&dir.0, &name, BYTES, waits(0)).unwrap().is_none());
        let created = Created::new(&dir.0, &name, BYTES).unwrap();
        assert!(!created.is_joined());
        assert!(
            Created::new(&dir.0, &name, BYTES).is_err(),
            "the name is taken"
        );
        let mut higher = join(&dir.0, &name, BYTES, waits(0)).unwrap().unwrap();
        assert!(created.is_joined());
        assert_eq!(dir.files(), 0);
        let mut lower = created.into_link(waits(1));
        let mut got = [0; 5];
        lower.write_all(b"down?").unwrap();
        higher.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"down?");
        higher.write_all(b"here!").unwrap();
        lower.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"here!");
    }

    #[test]
    fn a_peer_that_never_came_leaves_no_file() {
        let dir = TempDir::new("alone");
        drop(Created::new(&dir.0, "trireme-alone", BYTES).unwrap());
        assert_eq!(dir.files(), 0);
    }

    #[test]
    fn a_file_of_another_size_or_mode_is_refused() {
        let dir = TempDir::new("wrong");
        let name = "trireme-wrong";
        std::fs::write(dir.0.join(name), vec![0; 100]).unwrap();
        assert!(join(&dir.0, name, BYTES, waits(0)).is_err());
        remove(&dir.0.join(name));
        let _created = Created::new(&dir.0, name, BYTES).unwrap();
        let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(dir.0.join(name), open_to_all).unwrap();
        assert!(join(&dir.0, name, BYTES, waits(0)).is_err());
    }

    /// What `kill -9` does to a process, done to one side: its mapping and its lock go, no flag is
    /// set.
    #[test]
    fn a_killed_peer_is_noticed_without_the_deadline() {
        let dir = TempDir::new("killed");
        let created = Created::new(&dir.0, "trireme-killed", BYTES).unwrap();
        let path = dir.0.join("trireme-killed");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        lock(&file, JOINER_LOCK).unwrap();
        let mut lower = created.into_link(waits(1));
        drop(file);
        let got = lower.read_exact_idle(&mut [0]);
        assert!(matches!(got, Err(LinkError::Closed { peer: 1 })));
    }

    const KILLED: &str = "trireme-killed-process";

    #[test]
    fn a_process_killed_in_the_middle_is_noticed_and_leaves_no_file() {
        let dir = TempDir::new("process");
        let created = Created::new(&dir.0, KILLED, BYTES).unwrap();
        let mut other = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact"])
            .arg("parallel::shm::tests::the_process_that_is_killed")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !created.is_joined() {
            assert!(other.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::yield_now();
        }
        let mut lower = created.into_link(waits(1));
        let mut got = [0; 5];
        lower.read_exact(&mut got).unwrap();
        other.kill().unwrap();
        // Not reaped yet, so its pid still exists: only the lock tells.
        let after = lower.read_exact(&mut got);
        assert!(
            matches!(after, Err(LinkError::Closed { peer: 1 })),
            "{after:?}"
        );
        other.wait().unwrap();
        assert_eq!(dir.files(), 0);
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own"]
    fn the_process_that_is_killed() {
        let parent = std::os::unix::process::parent_id();
        let dir = directory().join(format!("test-of-trireme-process-{parent}"));
        if !dir.exists() {
            return; // Someone ran all ignored tests; there is no test above us.
        }
        let mut link = join(&dir, KILLED, BYTES, waits(0)).unwrap().unwrap();
        link.write_all(b"alive").unwrap();
        // Until the kill; ends as well if the parent dies first.
        let _ = link.read_exact_idle(&mut [0]);
    }

    #[test]
    fn a_sweep_takes_the_dead_and_spares_the_living() {
        let dir = TempDir::new("sweep");
        let living = Created::new(&dir.0, "trireme-living", BYTES).unwrap();
        // A dead creator's file: ready once, its lock gone with the process.
        std::fs::write(dir.0.join("trireme-dead"), MAGIC.to_le_bytes()).unwrap();
        // Made a moment ago, not locked yet.
        std::fs::write(dir.0.join("trireme-young"), []).unwrap();
        std::fs::write(dir.0.join("another-program"), MAGIC.to_le_bytes()).unwrap();
        assert_eq!(sweep(&dir.0, Duration::from_secs(3600)), 1);
        assert_eq!(dir.files(), 3);
        assert_eq!(sweep(&dir.0, Duration::ZERO), 1, "the young one grew old");
        assert!(!living.is_joined() && dir.0.join("trireme-living").exists());
    }
}
