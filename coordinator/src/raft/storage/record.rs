//! The write-ahead log's format. All integers are little-endian.
//!
//! The log is a row of files `log-<number, 16 hex digits>.wal`, numbered without a gap; the oldest
//! ones are removed. Each file is made of zeros, of the size it will keep, and holds:
//!
//! ```text
//! at   bytes  segment header
//!  0     8    "trirewal"
//!  8     4    format version, 1
//! 12     4    CRC-32C of the 64 header bytes, these four taken as zero
//! 16     8    segment number, as in the file's name
//! 24     8    sequence number of the segment's first record
//! 32    16    log id: random, of the member that made the log, the same in all its segments
//! 48    16    zero
//! 64          records, each at a multiple of 32; zeros after the last
//! ```
//!
//! ```text
//! at   bytes  record
//!  0     4    "rec1"
//!  4     4    payload bytes
//!  8     8    sequence number: +1 from record to record, over all segments
//! 16     4    CRC-32C of the payload
//! 20     4    CRC-32C of: log id, segment number (8 bytes), the 20 bytes above
//! 24          payload
//! ```
//!
//! A payload is a `Mark` and a list of `LogEntry` in bincode's fixed-width layout: options and bools a byte, lengths u64,
//! enum tags u32. It says, in this order of effect: the ballot from now on; `resets`: forget all
//! entries; a snapshot stands for all entries up to its index; these entries (one gap-free run)
//! replace all from the first one's index on. A record with a snapshot has the ballot too, so that
//! segments before it can go.
//!
//! The id in the checksums ties a record to its place: bytes of another log, another segment, or
//! inside an entry (which others choose) are never taken for a record. Header and alignment are such
//! that a sector of 512 bytes holds a record header wholly or not at all: a torn write leaves a whole
//! header or zeros.

use super::SnapshotRef;
use crate::raft::types::{Ballot, EntryKind, LogEntry};
use trireme_shared::limits;
use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

pub const FORMAT_VERSION: u32 = 1;
pub const SEGMENT_HEADER_BYTES: usize = 64;
pub const RECORD_HEADER_BYTES: usize = 24;
pub const RECORD_ALIGN: usize = 32;
/// What a disk writes wholly or not at all.
pub const SECTOR_BYTES: usize = 512;

const SEGMENT_MAGIC: &[u8; 8] = b"trirewal";
const RECORD_MAGIC: &[u8; 4] = b"rec1";
/// Index, term, kind and length of an entry's data.
const ENTRY_HEAD_BYTES: usize = 28;

/// Tells one log from every other; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub [u8; 16]);

/// What a record's checksum ties it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub log: LogId,
    pub segment: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub place: Place,
    pub first_sequence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the payload.
    pub len: u32,
    pub sequence: u64,
    pub payload_crc: u32,
}

/// What a record says beside its entries; see the format above.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Mark {
    pub ballot: Option<Ballot>,
    pub resets: bool,
    pub snapshot: Option<SnapshotRef>,
}

/// One record's meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    pub mark: Mark,
    pub entries: Vec<LogEntry>,
}

/// The beginning of a payload: all but the entries, whose number follows.
#[derive(SchemaRead)]
struct Head {
    mark: Mark,
    entries: u64,
}

/// Names and members only: far below this.
const HEAD_CONFIG: Configuration<true, { limits::SNAPSHOT_META_BYTES_MAX }> =
    Configuration::default().with_preallocation_size_limit::<{ limits::SNAPSHOT_META_BYTES_MAX }>();

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    #[error("a record of {len} bytes is larger than the {max} that the log takes")]
    TooLarge { len: usize, max: usize },
    #[error("the record cannot be encoded: {0}")]
    Encode(String),
    #[error("the record's content is not valid: {0}")]
    Invalid(String),
}

/// Why 64 bytes are no segment header.
#[derive(Debug, PartialEq, Eq)]
pub enum SegmentHeaderError {
    /// Nothing was ever written here.
    Zero,
    Damaged,
    Version(u32),
}

pub fn encode_segment_header(header: &SegmentHeader) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[..8].copy_from_slice(SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&header.place.segment.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.first_sequence.to_le_bytes());
    bytes[32..48].copy_from_slice(&header.place.log.0);
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads the header at the start of `bytes`.
pub fn decode_segment_header(bytes: &[u8]) -> Result<SegmentHeader, SegmentHeaderError> {
    let bytes = &bytes[..bytes.len().min(SEGMENT_HEADER_BYTES)];
    if bytes.iter().all(|&b| b == 0) {
        return Err(SegmentHeaderError::Zero);
    }
    let Some(&whole) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
        return Err(SegmentHeaderError::Damaged);
    };
    let mut unsigned = whole;
    unsigned[12..16].fill(0);
    if &whole[..8] != SEGMENT_MAGIC || u32_at(&whole, 12) != crc32c::crc32c(&unsigned) {
        return Err(SegmentHeaderError::Damaged);
    }
    let version = u32_at(&whole, 8);
    if version != FORMAT_VERSION {
        return Err(SegmentHeaderError::Version(version));
    }
    let mut log = [0; 16];
    log.copy_from_slice(&whole[32..48]);
    Ok(SegmentHeader {
        place: Place {
            log: LogId(log),
            segment: u64_at(&whole, 16),
        },
        first_sequence: u64_at(&whole, 24),
    })
}

/// A whole record, header and payload, as it stands at `place`.
pub fn encode(
    place: &Place,
    sequence: u64,
    mark: &Mark,
    entries: &[LogEntry],
) -> Result<Vec<u8>, RecordError> {
    let mut head = wincode::config::serialize(mark, HEAD_CONFIG)
        .map_err(|e| RecordError::Encode(e.to_string()))?;
    head.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    let data: usize = entries.iter().map(|e| e.data.len()).sum();
    let len = head.len() + data + entries.len() * ENTRY_HEAD_BYTES;
    let max = limits::WAL_RECORD_BYTES_MAX;
    let prefix = u32::try_from(len).ok().filter(|_| len <= max);
    let prefix = prefix.ok_or(RecordError::TooLarge { len, max })?;

    let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + len);
    bytes.extend_from_slice(RECORD_MAGIC);
    bytes.extend_from_slice(&prefix.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&head);
    for entry in entries {
        let kind: u32 = match entry.kind {
            EntryKind::Commands => 0,
            EntryKind::Members => 1,
        };
        bytes.extend_from_slice(&entry.index.to_le_bytes());
        bytes.extend_from_slice(&entry.term.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&(entry.data.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&entry.data);
    }
    let payload_crc = crc32c::crc32c(&bytes[RECORD_HEADER_BYTES..]);
    bytes[16..20].copy_from_slice(&payload_crc.to_le_bytes());
    let header_crc = header_crc(place, &bytes[..20]);
    bytes[20..24].copy_from_slice(&header_crc.to_le_bytes());
    Ok(bytes)
}

/// The record header at the start of `bytes`, if there is one that belongs to `place`.
pub fn decode_header(place: &Place, bytes: &[u8]) -> Option<RecordHeader> {
    let header = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
    let is_record = &header[..4] == RECORD_MAGIC
        && u32_at(header, 20) == header_crc(place, &header[..20])
        && u32_at(header, 4) as usize <= limits::WAL_RECORD_BYTES_MAX;
    is_record.then(|| RecordHeader {
        len: u32_at(header, 4),
        sequence: u64_at(header, 8),
        payload_crc: u32_at(header, 16),
    })
}

/// Reads a payload; allocates no more than a small multiple of `bytes`, whatever they claim.
pub fn decode(bytes: &[u8]) -> Result<Payload, RecordError> {
    let mut rest = bytes;
    let head: Head = wincode::config::deserialize_from(&mut rest, HEAD_CONFIG)
        .map_err(|e| RecordError::Invalid(e.to_string()))?;
    let count = usize::try_from(head.entries).unwrap_or(usize::MAX);
    if count > rest.len() / ENTRY_HEAD_BYTES {
        let reason = format!("{count} entries in {} bytes", rest.len());
        return Err(RecordError::Invalid(reason));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(take_entry(&mut rest)?);
    }
    if !rest.is_empty() {
        return Err(RecordError::Invalid("bytes are left over".into()));
    }
    Ok(Payload {
        mark: head.mark,
        entries,
    })
}

fn take_entry(rest: &mut &[u8]) -> Result<LogEntry, RecordError> {
    let short = || RecordError::Invalid("an entry is cut off".into());
    let (head, tail) = rest
        .split_first_chunk::<ENTRY_HEAD_BYTES>()
        .ok_or_else(short)?;
    let kind = match u32_at(head, 16) {
        0 => EntryKind::Commands,
        1 => EntryKind::Members,
        other => return Err(RecordError::Invalid(format!("entry kind {other}"))),
    };
    let len = usize::try_from(u64_at(head, 20)).map_err(|_| short())?;
    let (data, tail) = tail.split_at_checked(len).ok_or_else(short)?;
    *rest = tail;
    Ok(LogEntry {
        index: u64_at(head, 0),
        term: u64_at(head, 8),
        kind,
        data: data.to_vec(),
    })
}

fn header_crc(place: &Place, header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&place.log.0);
    let crc = crc32c::crc32c_append(crc, &place.segment.to_le_bytes());
    crc32c::crc32c_append(crc, header)
}

/// Where the next record begins after one that ends at `offset`.
pub fn align(offset: u64) -> u64 {
    offset.next_multiple_of(RECORD_ALIGN as u64)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// `log-<number>.wal`.
pub fn segment_file(number: u64) -> String {
    format!("log-{number:016x}.wal")
}

/// The number in a segment's file name, if it is one.
pub fn segment_number(file: &str) -> Option<u64> {
    let number = file.strip_prefix("log-")?.strip_suffix(".wal")?;
    let number = u64::from_str_radix(number, 16).ok()?;
    (segment_file(number) == file).then_some(number)
}

/// Bytes of a segment that holds one record with a payload of `len` bytes and nothing else.
pub fn oversize(len: usize) -> u64 {
    align((SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + len) as u64)
}
