//! Snapshot files in a `Disk`: written by this member, received from another, read and sent. The
//! format is `snapshot_format`'s.
//!
//! What it keeps true: a file `snapshot-*.snap` is whole and durable, for it gets that name only
//! then; what a peer sends is checked as it comes and never takes more than `SNAPSHOT_BYTES_MAX`.
//! The log must name it (`Wal::checkpoint`, `Wal::install`), or the next start removes it.

use super::snapshot_format::{Decoder, Encoder, FormatError, Reader};
use super::{Disk, SnapshotRef, StorageError};
use crate::raft::types::{Index, SnapshotMeta};
use std::io::{self, Read, Write};
use trireme_shared::limits;

/// `snapshot-<index>-<term>.snap`.
pub fn snapshot_file(meta: &SnapshotMeta) -> String {
    format!("snapshot-{:016x}-{:x}.snap", meta.index, meta.term)
}

/// The index in a snapshot's file name, if it is one.
pub(super) fn snapshot_index(name: &str) -> Option<Index> {
    let (index, term) = name
        .strip_prefix("snapshot-")?
        .strip_suffix(".snap")?
        .split_once('-')?;
    let meta = SnapshotMeta {
        index: Index::from_str_radix(index, 16).ok()?,
        term: u64::from_str_radix(term, 16).ok()?,
        ..SnapshotMeta::default()
    };
    (snapshot_file(&meta) == name).then_some(meta.index)
}

/// A snapshot that is being written or received.
pub(super) fn is_temporary_file(name: &str) -> bool {
    name.starts_with("snapshot-") && name.ends_with(".tmp")
}

/// Why a snapshot from a peer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the snapshot that was sent is refused: {0}")]
    Format(#[from] FormatError),
    #[error("the snapshot that was sent is not the one announced")]
    OtherSnapshot,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A file that grows at its end, synced every few megabytes.
struct Appender<D> {
    disk: D,
    name: String,
    offset: u64,
    synced: u64,
}

impl<D: Disk> Appender<D> {
    fn create(mut disk: D, name: String) -> Result<Self, StorageError> {
        let failed = StorageError::io("make", disk.place(&name));
        disk.create(&name, 0).map_err(failed)?;
        Ok(Self {
            disk,
            name,
            offset: 0,
            synced: 0,
        })
    }

    /// Makes all durable, then gives the file its name.
    fn finish(mut self, meta: SnapshotMeta) -> Result<SnapshotRef, StorageError> {
        let file = snapshot_file(&meta);
        let failed = StorageError::io("write", self.disk.place(&file));
        self.disk
            .sync(&self.name)
            .and_then(|()| self.disk.rename(&self.name, &file))
            .map_err(failed)?;
        Ok(SnapshotRef { meta, file })
    }
}

impl<D: Disk> Write for Appender<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&self.name, self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= limits::SNAPSHOT_SYNC_BYTES {
            self.disk.sync(&self.name)?;
            self.synced = self.offset;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes this member's own snapshot: the state by `Write`, then `finish`.
pub struct SnapshotWriter<D> {
    encoder: Encoder<Appender<D>>,
    meta: SnapshotMeta,
}

impl<D: Disk> SnapshotWriter<D> {
    /// One at a time for each index and term.
    pub fn create(disk: D, meta: SnapshotMeta) -> Result<Self, StorageError> {
        let name = format!("{}.made.tmp", snapshot_file(&meta));
        let place = disk.place(&name);
        let appender = Appender::create(disk, name)?;
        let encoder = Encoder::new(appender, &meta).map_err(StorageError::io("write", place))?;
        Ok(Self { encoder, meta })
    }

    /// The snapshot is whole and durable on return. Now the log may name it.
    pub fn finish(self) -> Result<SnapshotRef, StorageError> {
        let file = snapshot_file(&self.meta);
        let appender = self.encoder.finish();
        let appender = appender.map_err(StorageError::io("write", file))?;
        appender.finish(self.meta)
    }
}

impl<D: Disk> Write for SnapshotWriter<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

/// Takes a snapshot file from a peer, byte for byte, checking it as it comes.
pub struct SnapshotReceiver<D> {
    appender: Appender<D>,
    decoder: Decoder,
    announced: SnapshotMeta,
}

impl<D: Disk> SnapshotReceiver<D> {
    /// One at a time for each index and term. Given up, it leaves a `.tmp` file: call `discard`, or
    /// the next start removes it.
    pub fn create(disk: D, announced: SnapshotMeta) -> Result<Self, StorageError> {
        let name = format!("{}.received.tmp", snapshot_file(&announced));
        Ok(Self {
            appender: Appender::create(disk, name)?,
            decoder: Decoder::default(),
            announced,
        })
    }

    /// The next bytes of the file. After an error it takes no more: `discard` it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.decoder.feed(rest)?;
            rest = &rest[taken..];
            if self
                .decoder
                .meta()
                .is_some_and(|meta| *meta != self.announced)
            {
                return Err(ReceiveError::OtherSnapshot);
            }
        }
        let failed = StorageError::io("write", self.appender.disk.place(&self.appender.name));
        self.appender.write_all(bytes).map_err(failed)?;
        Ok(())
    }

    /// Bytes taken so far.
    pub fn received(&self) -> u64 {
        self.appender.offset
    }

    /// All bytes were given. The snapshot is whole, sound and durable on return; now `Wal::install`.
    pub fn finish(self) -> Result<SnapshotRef, ReceiveError> {
        self.decoder.finish()?;
        Ok(self.appender.finish(self.announced)?)
    }

    /// Removes what came.
    pub fn discard(mut self) -> Result<(), StorageError> {
        let name = &self.appender.name;
        let failed = StorageError::io("remove", self.appender.disk.place(name));
        self.appender.disk.remove(name).map_err(failed)
    }
}

/// Gives a snapshot file's bytes in order, for a `SnapshotReceiver`. Not checked here: the receiver
/// does. `Wal::hold` the file meanwhile.
pub struct SnapshotSource<D> {
    disk: D,
    file: String,
    offset: u64,
    len: u64,
}

impl<D: Disk> SnapshotSource<D> {
    pub fn open(disk: D, snapshot: &SnapshotRef) -> Result<Self, StorageError> {
        let failed = StorageError::io("read", disk.place(&snapshot.file));
        let len = disk.len(&snapshot.file).map_err(failed)?;
        Ok(Self {
            disk,
            file: snapshot.file.clone(),
            offset: 0,
            len,
        })
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A whole snapshot is never empty; here for `len`'s sake.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<D: Disk> Read for SnapshotSource<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.disk.read(&self.file, self.offset, buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Opens a snapshot file: what it says of itself, and its body, checked as it is read. Errors of
/// `read` that come of damage carry a `StorageError`; at the body's end all of it is checked.
pub fn read_snapshot<D: Disk>(
    disk: D,
    file: &str,
) -> Result<(SnapshotMeta, SnapshotReader<D>), StorageError> {
    let place = disk.place(file);
    let source = SnapshotSource {
        len: 0,
        disk,
        file: file.to_owned(),
        offset: 0,
    };
    let reader = Reader::new(source).map_err(|e| storage_error(&place, e))?;
    Ok((reader.meta().clone(), SnapshotReader { reader, place }))
}

/// The body of a snapshot in a `Disk`.
pub struct SnapshotReader<D> {
    reader: Reader<SnapshotSource<D>>,
    place: String,
}

impl<D: Disk> Read for SnapshotReader<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            let kind = error.kind();
            match error.downcast::<FormatError>() {
                Ok(error) => io::Error::new(kind, storage_error(&self.place, error)),
                Err(error) => error,
            }
        })
    }
}

/// Whether the file that the log names is there and is the one it names.
pub(super) fn check_header<D: Disk>(disk: &D, snapshot: &SnapshotRef) -> Result<(), StorageError> {
    let place = disk.place(&snapshot.file);
    let input = Borrowed {
        disk,
        file: &snapshot.file,
        offset: 0,
    };
    match Reader::new(input) {
        Ok(reader) if *reader.meta() == snapshot.meta => Ok(()),
        Ok(_) => {
            let reason = "it is another snapshot than the one the log names";
            Err(StorageError::damaged(place, 0, reason))
        }
        Err(error) => Err(storage_error(&place, error)),
    }
}

struct Borrowed<'a, D> {
    disk: &'a D,
    file: &'a str,
    offset: u64,
}

impl<D: Disk> Read for Borrowed<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.disk.read(self.file, self.offset, buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}

fn storage_error(place: &str, error: FormatError) -> StorageError {
    let file = place.to_owned();
    match error {
        FormatError::Damaged { offset, reason } => StorageError::damaged(file, offset, reason),
        FormatError::Version { found, known } => StorageError::Version { file, found, known },
        FormatError::TooLarge { max } => {
            StorageError::damaged(file, max, "it is larger than any snapshot")
        }
        FormatError::Read(error) if error.kind() == io::ErrorKind::NotFound => {
            StorageError::damaged(file, 0, "it is missing, while the log needs it")
        }
        FormatError::Read(error) => StorageError::io("read", file)(error),
    }
}
