//! The format of a snapshot file, and of a backup's body: written to any `Write`, read from any
//! `Read`, or checked as its bytes arrive. All integers are little-endian.
//!
//! ```text
//! bytes  header
//!   8    "triresnp"
//!   4    format version, 1
//!   4    bytes of the meta, at most `SNAPSHOT_META_BYTES_MAX`
//!        meta: `SnapshotMeta` in bincode's fixed-width layout
//!   4    CRC-32C of all the above
//! ```
//!
//! Then the body in chunks of `SNAPSHOT_CHUNK_BYTES`, the last one perhaps shorter, none empty:
//!
//! ```text
//!   4    bytes of the chunk
//!   4    CRC-32C of: the header's CRC, the chunk's number from 0 (u64), its bytes
//!        the bytes
//! ```
//!
//! Then the end, after which nothing may follow:
//!
//! ```text
//!   4    0, where a chunk's length would be
//!   4    CRC-32C of: the header's CRC, the number of chunks (u64), the 40 bytes that follow
//!   8    bytes of the body
//!  32    SHA-256 of the body
//! ```

use super::record::{u32_at, u64_at};
use crate::raft::types::SnapshotMeta;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use trireme_shared::limits;
use wincode::config::Configuration;

pub const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"triresnp";
const PREFIX_BYTES: usize = 16;
const CHUNK_HEAD_BYTES: usize = 8;
const END_BYTES: usize = 40;
/// Asked of a reader at once.
const READ_BYTES: usize = 64 << 10;

const META_CONFIG: Configuration<true, { limits::SNAPSHOT_META_BYTES_MAX }> =
    Configuration::default().with_preallocation_size_limit::<{ limits::SNAPSHOT_META_BYTES_MAX }>();

/// Why bytes are no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("it is not a whole and sound snapshot: at byte {offset}, {reason}")]
    Damaged { offset: u64, reason: String },
    #[error("it is of format {found}, this version of Trireme reads {known}")]
    Version { found: u32, known: u32 },
    #[error("it is larger than the {max} bytes that a snapshot may have")]
    TooLarge { max: u64 },
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Writes a snapshot: the body by `Write`, then `finish`. Dropped before that, it is no snapshot.
pub struct Encoder<W> {
    out: W,
    header_crc: u32,
    chunk: Vec<u8>,
    chunks: u64,
    body_bytes: u64,
    file_bytes: u64,
    hash: Sha256,
}

impl<W: Write> Encoder<W> {
    pub fn new(mut out: W, meta: &SnapshotMeta) -> io::Result<Self> {
        let meta = wincode::config::serialize(meta, META_CONFIG).map_err(io::Error::other)?;
        let len = u32::try_from(meta.len())
            .ok()
            .filter(|&len| len as usize <= limits::SNAPSHOT_META_BYTES_MAX)
            .ok_or_else(|| io::Error::other("the snapshot's members are too many"))?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&meta);
        let header_crc = crc32c::crc32c(&header);
        header.extend_from_slice(&header_crc.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self {
            out,
            header_crc,
            chunk: Vec::with_capacity(CHUNK_HEAD_BYTES + limits::SNAPSHOT_CHUNK_BYTES),
            chunks: 0,
            body_bytes: 0,
            file_bytes: header.len() as u64,
            hash: Sha256::new(),
        })
    }

    /// Writes the end and gives back what was written to (unflushed).
    pub fn finish(mut self) -> io::Result<W> {
        if !self.chunk.is_empty() {
            self.write_chunk()?;
        }
        let mut end = [0; CHUNK_HEAD_BYTES + END_BYTES];
        end[8..16].copy_from_slice(&self.body_bytes.to_le_bytes());
        end[16..].copy_from_slice(&self.hash.finalize());
        let crc = piece_crc(self.header_crc, self.chunks, &end[CHUNK_HEAD_BYTES..]);
        end[4..8].copy_from_slice(&crc.to_le_bytes());
        self.out.write_all(&end)?;
        Ok(self.out)
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        // The chunk begins with room for its head, so that it is one write.
        let body = &self.chunk[CHUNK_HEAD_BYTES..];
        let len = body.len();
        self.hash.update(body);
        let crc = piece_crc(self.header_crc, self.chunks, body);
        self.body_bytes += len as u64;
        self.file_bytes += self.chunk.len() as u64;
        let room_for_end = (CHUNK_HEAD_BYTES + END_BYTES) as u64;
        if self.file_bytes + room_for_end > limits::SNAPSHOT_BYTES_MAX {
            let max = limits::SNAPSHOT_BYTES_MAX;
            return Err(io::Error::other(FormatError::TooLarge { max }));
        }
        self.chunk[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.chunk[4..8].copy_from_slice(&crc.to_le_bytes());
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.chunks += 1;
        Ok(())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.chunk.is_empty() {
            self.chunk.extend_from_slice(&[0; CHUNK_HEAD_BYTES]);
        }
        let room = CHUNK_HEAD_BYTES + limits::SNAPSHOT_CHUNK_BYTES - self.chunk.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.chunk.extend_from_slice(taken);
        if taken.len() == room {
            self.write_chunk()?;
        }
        Ok(taken.len())
    }

    /// Chunks are of fixed size, so bytes may stay behind until `finish`.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Checks a snapshot's bytes as they come. Holds at most one chunk; allocates for what came, not for
/// what was announced.
pub struct Decoder {
    /// Bytes that it takes.
    max: u64,
    state: State,
    /// Of the piece that `state` waits for.
    piece: Vec<u8>,
    /// Bytes taken in all.
    offset: u64,
    header_crc: u32,
    meta: Option<SnapshotMeta>,
    chunks: u64,
    last_was_short: bool,
    body_bytes: u64,
    hash: Sha256,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Prefix,
    Meta {
        len: usize,
    },
    ChunkHead,
    Chunk {
        len: usize,
        crc: u32,
    },
    /// `piece` is a sound chunk, until the next bytes.
    ChunkReady,
    End {
        crc: u32,
    },
    Done,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::bounded(limits::SNAPSHOT_BYTES_MAX)
    }
}

impl Decoder {
    /// A decoder of snapshots of at most `max` bytes, all counted.
    pub fn bounded(max: u64) -> Self {
        Self {
            max,
            state: State::Prefix,
            piece: Vec::new(),
            offset: 0,
            header_crc: 0,
            meta: None,
            chunks: 0,
            last_was_short: false,
            body_bytes: 0,
            hash: Sha256::new(),
        }
    }

    /// Takes bytes up to the end of the next piece and gives their number. Call it again with the
    /// rest, and look at `chunk` in between.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, FormatError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.state == State::ChunkReady {
            self.piece.clear();
            self.state = State::ChunkHead;
        }
        let need = match self.state {
            State::Prefix => PREFIX_BYTES,
            State::Meta { len } => PREFIX_BYTES + len + 4,
            State::ChunkHead | State::ChunkReady => CHUNK_HEAD_BYTES,
            State::Chunk { len, .. } => len,
            State::End { .. } => END_BYTES,
            State::Done => return Err(self.damaged("bytes follow the end")),
        };
        let taken = bytes.len().min(need - self.piece.len());
        if self.offset + taken as u64 > self.max {
            return Err(FormatError::TooLarge { max: self.max });
        }
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == need {
            self.complete()?;
        }
        self.offset += taken as u64;
        Ok(taken)
    }

    /// The header's content, once it has come.
    pub fn meta(&self) -> Option<&SnapshotMeta> {
        self.meta.as_ref()
    }

    /// The chunk of the body that the last `feed` completed and checked.
    pub fn chunk(&self) -> Option<&[u8]> {
        (self.state == State::ChunkReady).then_some(self.piece.as_slice())
    }

    /// Whether all has come and is sound.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// To be called where the bytes end.
    pub fn finish(&self) -> Result<(), FormatError> {
        if self.is_done() {
            return Ok(());
        }
        Err(self.damaged("it ends before its end"))
    }

    fn complete(&mut self) -> Result<(), FormatError> {
        self.state = match self.state {
            State::Prefix => self.prefix()?,
            State::Meta { len } => self.header(len)?,
            State::ChunkHead | State::ChunkReady => self.chunk_head()?,
            State::Chunk { crc, .. } => {
                if piece_crc(self.header_crc, self.chunks, &self.piece) != crc {
                    return Err(self.damaged("a chunk fails its checksum"));
                }
                self.hash.update(&self.piece);
                self.body_bytes += self.piece.len() as u64;
                self.chunks += 1;
                // Kept for `chunk`.
                self.state = State::ChunkReady;
                return Ok(());
            }
            State::End { crc } => self.end(crc)?,
            State::Done => State::Done,
        };
        Ok(())
    }

    fn prefix(&mut self) -> Result<State, FormatError> {
        if &self.piece[..8] != MAGIC {
            return Err(self.damaged("it does not begin as a snapshot does"));
        }
        let len = u32_at(&self.piece, 12) as usize;
        if len > limits::SNAPSHOT_META_BYTES_MAX {
            return Err(self.damaged("its header is too long"));
        }
        // The checksum covers the prefix too, so it stays.
        Ok(State::Meta { len })
    }

    fn header(&mut self, len: usize) -> Result<State, FormatError> {
        let (header, crc) = self.piece.split_at(PREFIX_BYTES + len);
        self.header_crc = crc32c::crc32c(header);
        if u32_at(crc, 0) != self.header_crc {
            return Err(self.damaged("its header fails its checksum"));
        }
        let found = u32_at(header, 8);
        if found != FORMAT_VERSION {
            return Err(FormatError::Version {
                found,
                known: FORMAT_VERSION,
            });
        }
        let meta = wincode::config::deserialize_exact(&header[PREFIX_BYTES..], META_CONFIG)
            .map_err(|e| self.damaged(&format!("its header is not valid: {e}")))?;
        self.meta = Some(meta);
        self.piece.clear();
        Ok(State::ChunkHead)
    }

    fn chunk_head(&mut self) -> Result<State, FormatError> {
        let (len, crc) = (u32_at(&self.piece, 0) as usize, u32_at(&self.piece, 4));
        if len == 0 {
            self.piece.clear();
            return Ok(State::End { crc });
        }
        if len > limits::SNAPSHOT_CHUNK_BYTES || self.last_was_short {
            return Err(self.damaged("a chunk has the wrong length"));
        }
        self.last_was_short = len < limits::SNAPSHOT_CHUNK_BYTES;
        self.piece.clear();
        Ok(State::Chunk { len, crc })
    }

    fn end(&mut self, crc: u32) -> Result<State, FormatError> {
        if piece_crc(self.header_crc, self.chunks, &self.piece) != crc {
            return Err(self.damaged("its end fails its checksum"));
        }
        let hash = std::mem::take(&mut self.hash).finalize();
        if u64_at(&self.piece, 0) != self.body_bytes || self.piece[8..] != hash[..] {
            return Err(self.damaged("its body is not the one that was written"));
        }
        Ok(State::Done)
    }

    fn damaged(&self, reason: &str) -> FormatError {
        FormatError::Damaged {
            offset: self.offset,
            reason: reason.into(),
        }
    }
}

/// Reads a snapshot's body; gives no byte of it that is not checked, and no end that is not the end.
pub struct Reader<R> {
    input: R,
    decoder: Decoder,
    meta: SnapshotMeta,
    /// Read from `input`, and how much of it the decoder took.
    raw: Vec<u8>,
    fed: usize,
    /// How much of the decoder's chunk was given away.
    given: usize,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(input: R) -> Result<Self, FormatError> {
        let mut reader = Self {
            input,
            decoder: Decoder::default(),
            meta: SnapshotMeta::default(),
            raw: Vec::new(),
            fed: 0,
            given: 0,
        };
        loop {
            if let Some(meta) = reader.decoder.meta() {
                reader.meta = meta.clone();
                return Ok(reader);
            }
            if !reader.step()? {
                reader.decoder.finish()?;
            }
        }
    }

    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Feeds the decoder once; false at the end of the input.
    fn step(&mut self) -> Result<bool, FormatError> {
        if self.fed == self.raw.len() {
            self.raw.resize(READ_BYTES, 0);
            self.fed = 0;
            let read = loop {
                match self.input.read(&mut self.raw) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.raw.truncate(*read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(false);
            }
        }
        self.fed += self.decoder.feed(&self.raw[self.fed..])?;
        self.given = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Reader<R> {
    /// Errors that are not the input's own carry a `FormatError`.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(chunk) = self.decoder.chunk()
                && self.given < chunk.len()
            {
                let rest = &chunk[self.given..];
                let taken = rest.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&rest[..taken]);
                self.given += taken;
                return Ok(taken);
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => {
                    self.decoder.finish().map_err(io::Error::other)?;
                    return Ok(0);
                }
                Err(FormatError::Read(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

fn piece_crc(header_crc: u32, number: u64, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header_crc.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
    crc32c::crc32c_append(crc, bytes)
}
