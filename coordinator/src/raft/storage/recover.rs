//! Reads the log's segments back and tells a torn end from damage. Changes nothing on the disk.
//!
//! Every record is synced before the next is written, so a crash can hurt only the last one. What it
//! leaves there is that record with some of its sectors still the zeros they were. So the end of the
//! log is torn, and may be cut, if nothing valid follows and the bad record lacks whole sectors.
//! All else was whole once, was perhaps acknowledged, and is damage.

use super::record::{
    self, Payload, Place, RECORD_ALIGN, RECORD_HEADER_BYTES, SECTOR_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeaderError,
};
use super::snapshot::snapshot_index;
use super::{Disk, LogId, SnapshotRef, StorageError};
use crate::raft::types::{Ballot, Index, LogEntry};
use std::ops::Range;
use trireme_shared::limits;

/// Where the end of the log was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub file: String,
    pub offset: u64,
}

/// One segment as the log's writer knows it.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) size: u64,
    /// No living entry of this segment has a greater index; 0: it has none.
    pub(super) last_index: Index,
}

impl Segment {
    pub(super) fn file(&self) -> String {
        record::segment_file(self.number)
    }
}

/// What all records read so far amount to.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) ballot: Ballot,
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) entries: Vec<LogEntry>,
    /// Bytes of records since the snapshot was named.
    pub(super) bytes_since: u64,
}

/// The log as it stands on the disk.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) log: LogId,
    pub(super) segments: Vec<Segment>,
    pub(super) image: Image,
    pub(super) next_sequence: u64,
    /// Where the next record goes in the last segment.
    pub(super) end: u64,
    /// The last record in the last segment, with the segment's header if it is the first one; only
    /// that header if there is none.
    pub(super) last_write: Vec<u8>,
    pub(super) last_write_at: u64,
    /// Bytes from `end` on that must become zeros.
    pub(super) stale: Option<Range<u64>>,
    pub(super) cut: Option<TornTail>,
    /// A segment that was made but never used.
    pub(super) unused: Option<String>,
}

/// Reads the whole log. `None`: there is none yet.
pub(super) fn scan<D: Disk>(disk: &D) -> Result<Option<Scan>, StorageError> {
    let names = disk
        .list()
        .map_err(StorageError::io("list", disk.place(".")))?;
    let has_snapshots = names.iter().any(|name| snapshot_index(name).is_some());
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|n| record::segment_number(n))
        .collect();
    numbers.sort_unstable();
    let Some((&first, &last)) = numbers.first().zip(numbers.last()) else {
        if has_snapshots {
            let file = disk.place(&record::segment_file(1));
            let reason = "the log is missing, while its snapshots are there";
            return Err(StorageError::damaged(file, 0, reason));
        }
        return Ok(None);
    };
    if let Some(missing) = (first..=last).find(|n| numbers.binary_search(n).is_err()) {
        let file = disk.place(&record::segment_file(missing));
        let reason = "this part of the log is missing, while earlier and later ones are there";
        return Err(StorageError::damaged(file, 0, reason));
    }

    let mut reader = Reader {
        disk,
        first,
        scan: None,
    };
    let mut end = None;
    for &number in &numbers {
        let bytes = load(disk, number)?;
        match record::decode_segment_header(&bytes) {
            Ok(header) => {
                reader.enter(number, header, bytes.len() as u64)?;
                reader.records(&bytes, number == last)?;
                end = Some(bytes);
            }
            Err(SegmentHeaderError::Zero) if number == last => reader.unused(number, &bytes)?,
            Err(SegmentHeaderError::Version(found)) => {
                return Err(StorageError::Version {
                    file: disk.place(&record::segment_file(number)),
                    found,
                    known: record::FORMAT_VERSION,
                });
            }
            Err(SegmentHeaderError::Zero | SegmentHeaderError::Damaged) => {
                return Err(reader.damaged(number, 0, "its header is not valid"));
            }
        }
    }
    let fresh = reader
        .scan
        .as_ref()
        .is_none_or(|scan| scan.next_sequence == 1);
    if fresh && has_snapshots {
        return Err(reader.damaged(first, 0, "the log is empty, while its snapshots are there"));
    }
    if let Some(bytes) = end {
        reader.finish(&bytes)?;
    }
    Ok(reader.scan)
}

/// A segment's bytes; never more than any segment has.
fn load<D: Disk>(disk: &D, number: u64) -> Result<Vec<u8>, StorageError> {
    let name = record::segment_file(number);
    let failed = || StorageError::io("read", disk.place(&name));
    let len = disk.len(&name).map_err(failed())?;
    let most = limits::WAL_SEGMENT_BYTES.max(record::oversize(limits::WAL_RECORD_BYTES_MAX));
    if len > most {
        let reason = format!("it has {len} bytes, more than any part of a log");
        return Err(StorageError::damaged(disk.place(&name), most, reason));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = disk.read(&name, 0, &mut bytes).map_err(failed())?;
    bytes.truncate(read);
    Ok(bytes)
}

struct Reader<'a, D> {
    disk: &'a D,
    first: u64,
    scan: Option<Scan>,
}

impl<D: Disk> Reader<'_, D> {
    /// A segment with a sound header begins.
    fn enter(
        &mut self,
        number: u64,
        header: record::SegmentHeader,
        size: u64,
    ) -> Result<(), StorageError> {
        if header.place.segment != number {
            return Err(self.damaged(number, 16, "it is another segment than its name says"));
        }
        let head = record::encode_segment_header(&header).to_vec();
        let segment = Segment {
            number,
            size,
            last_index: 0,
        };
        let Some(scan) = &mut self.scan else {
            if number == 1 && header.first_sequence != 1 {
                return Err(self.damaged(number, 24, "the log does not begin at its beginning"));
            }
            self.scan = Some(Scan {
                log: header.place.log,
                segments: vec![segment],
                image: Image::default(),
                next_sequence: header.first_sequence,
                end: SEGMENT_HEADER_BYTES as u64,
                last_write: head,
                last_write_at: 0,
                stale: None,
                cut: None,
                unused: None,
            });
            return Ok(());
        };
        if header.place.log != scan.log {
            return Err(self.damaged(number, 32, "it belongs to another log"));
        }
        if header.first_sequence != scan.next_sequence {
            let lost = format!(
                "record {} should follow here, and the next segment begins with {}",
                scan.next_sequence, header.first_sequence
            );
            let end = scan.end;
            return Err(self.damaged(number - 1, end, lost));
        }
        scan.segments.push(segment);
        scan.end = SEGMENT_HEADER_BYTES as u64;
        (scan.last_write, scan.last_write_at) = (head, 0);
        Ok(())
    }

    /// Takes records up to the first place that holds none.
    fn records(&mut self, bytes: &[u8], is_last: bool) -> Result<(), StorageError> {
        while let Some(scan) = &mut self.scan {
            let Some(segment) = scan.segments.last() else {
                break;
            };
            let number = segment.number;
            let place = Place {
                log: scan.log,
                segment: number,
            };
            let at = scan.end;
            let rest = bytes.get(at as usize..).unwrap_or_default();
            let head = &rest[..rest.len().min(RECORD_HEADER_BYTES)];
            if head.iter().all(|&b| b == 0) {
                break;
            }
            let Some(header) = record::decode_header(&place, rest) else {
                return Err(self.damaged(number, at, "there is no record where one must be"));
            };
            if header.sequence != scan.next_sequence {
                let reason = format!(
                    "record {} stands where {} must be",
                    header.sequence, scan.next_sequence
                );
                return Err(self.damaged(number, at, reason));
            }
            let len = RECORD_HEADER_BYTES + header.len as usize;
            let Some(whole) = rest.get(..len) else {
                return Err(self.damaged(number, at, "the file ends within a record"));
            };
            let payload = &whole[RECORD_HEADER_BYTES..];
            if crc32c::crc32c(payload) != header.payload_crc {
                if is_last && lacks_sectors(at, whole) {
                    break;
                }
                return Err(self.damaged(number, at, "a record fails its checksum"));
            }
            let applied = record::decode(payload)
                .map_err(|e| e.to_string())
                .and_then(|payload| scan.take(payload, len as u64));
            if let Err(reason) = applied {
                return Err(self.damaged(number, at, reason));
            }
            let from = if at == SEGMENT_HEADER_BYTES as u64 {
                0
            } else {
                at
            };
            scan.last_write_at = from;
            scan.last_write = bytes[from as usize..at as usize + len].to_vec();
            scan.next_sequence += 1;
            scan.end = record::align(at + len as u64);
        }
        Ok(())
    }

    /// The last segment has no header: it is one that a crash left unused, unless records say that
    /// it was in use.
    fn unused(&mut self, number: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let Some(scan) = &mut self.scan else {
            if number != 1 || bytes.iter().any(|&b| b != 0) {
                return Err(self.damaged(number, 0, "its header is not valid"));
            }
            return Ok(());
        };
        let place = Place {
            log: scan.log,
            segment: number,
        };
        let next = scan.next_sequence;
        let file = record::segment_file(number);
        if later_record(&place, bytes, 0, next).is_some() {
            return Err(self.damaged(number, 0, "its header is not valid"));
        }
        if bytes.iter().any(|&b| b != 0) {
            scan.cut = Some(TornTail {
                file: self.disk.place(&file),
                offset: 0,
            });
        }
        scan.unused = Some(file);
        Ok(())
    }

    /// All is read; `bytes` are those of the last segment in use.
    fn finish(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let Some(scan) = &mut self.scan else {
            return Ok(());
        };
        let Some(segment) = scan.segments.last() else {
            return Ok(());
        };
        let number = segment.number;
        let place = Place {
            log: scan.log,
            segment: number,
        };
        let end = scan.end;
        if let Some(later) = later_record(&place, bytes, end, scan.next_sequence) {
            let reason =
                format!("a record is missing or broken, while a later one at {later} is sound");
            return Err(self.damaged(number, end, reason));
        }
        let rest = bytes.get(end as usize..).unwrap_or_default();
        if let Some(used) = rest.iter().rposition(|&b| b != 0) {
            scan.stale = Some(end..end + used as u64 + 1);
            scan.cut = Some(TornTail {
                file: self.disk.place(&record::segment_file(number)),
                offset: end,
            });
        }
        // The end may lie past the file's by the alignment, never the other way round.
        if let Some(segment) = scan.segments.last_mut() {
            segment.size = segment.size.max(end);
        }
        if self.first != 1 && scan.image.snapshot.is_none() {
            let reason = "the beginning of the log is missing, and no snapshot stands for it";
            return Err(self.damaged(self.first - 1, 0, reason));
        }
        if let Err(reason) = scan.image.check() {
            return Err(self.damaged(number, end, reason));
        }
        Ok(())
    }

    fn damaged(&self, number: u64, offset: u64, reason: impl Into<String>) -> StorageError {
        let file = self.disk.place(&record::segment_file(number));
        StorageError::damaged(file, offset, reason)
    }
}

impl Scan {
    fn take(&mut self, payload: Payload, bytes: u64) -> Result<(), String> {
        mark_segments(&mut self.segments, payload.mark.resets, &payload.entries);
        self.image.take(payload, bytes)
    }
}

impl Image {
    fn take(&mut self, payload: Payload, bytes: u64) -> Result<(), String> {
        self.ballot = payload.mark.ballot.unwrap_or(self.ballot);
        if payload.mark.resets {
            self.entries.clear();
        }
        self.bytes_since += bytes;
        if let Some(snapshot) = payload.mark.snapshot
            && self.snapshot.as_ref() != Some(&snapshot)
        {
            self.snapshot = Some(snapshot);
            self.bytes_since = 0;
        }
        let mut expected = None;
        for entry in &payload.entries {
            if entry.index == 0 || expected.is_some_and(|index| index != entry.index) {
                return Err(format!("entry {} is out of order", entry.index));
            }
            expected = entry.index.checked_add(1);
        }
        if let Some(first) = payload.entries.first() {
            // Before the first ones that are kept there may be a gap: older segments are gone.
            if let Some(end) = self
                .entries
                .last()
                .filter(|end| end.index + 1 < first.index)
            {
                return Err(format!("entry {} follows {}", first.index, end.index));
            }
            let keep = self.entries.partition_point(|e| e.index < first.index);
            self.entries.truncate(keep);
            self.entries.extend(payload.entries);
        }
        Ok(())
    }

    /// Whether snapshot, entries and ballot fit each other once all is read.
    fn check(&mut self) -> Result<(), String> {
        let snapshot = self.snapshot.as_ref().map_or(0, |s| s.meta.index);
        let first = self.entries.first().map_or(snapshot + 1, |e| e.index);
        let last = self.entries.last().map_or(snapshot, |e| e.index);
        if first > snapshot.saturating_add(1) {
            return Err(format!(
                "the entries begin at {first}, the snapshot ends at {snapshot}"
            ));
        }
        if last < snapshot {
            return Err(format!(
                "the entries end at {last}, before the snapshot at {snapshot}"
            ));
        }
        // A snapshot is of what is committed; a ballot that says so may not have been synced.
        self.ballot.commit = self.ballot.commit.max(snapshot);
        if self.ballot.commit > last {
            return Err(format!(
                "entry {} is committed, and the log ends at {last}",
                self.ballot.commit
            ));
        }
        Ok(())
    }
}

/// Keeps `last_index` of all segments true when the last one takes `entries`.
pub(super) fn mark_segments(segments: &mut [Segment], resets: bool, entries: &[LogEntry]) {
    let replaced_from = match entries.first() {
        _ if resets => 1,
        Some(entry) => entry.index,
        None => return,
    };
    for segment in segments.iter_mut() {
        segment.last_index = segment.last_index.min(replaced_from.saturating_sub(1));
    }
    if let Some((segment, entry)) = segments.last_mut().zip(entries.last()) {
        segment.last_index = entry.index;
    }
}

/// Whether the record at `at` lacks a whole sector, as a torn write does: all its bytes there are
/// zeros. The first one is not looked at, for it holds the header.
fn lacks_sectors(at: u64, whole: &[u8]) -> bool {
    let first = SECTOR_BYTES - at as usize % SECTOR_BYTES;
    let rest = whole.get(first..).unwrap_or_default();
    rest.chunks(SECTOR_BYTES)
        .any(|sector| sector.iter().all(|&b| b == 0))
}

/// Where a sound record header of `next` or later stands, after `from`.
fn later_record(place: &Place, bytes: &[u8], from: u64, next: u64) -> Option<usize> {
    (from as usize..bytes.len())
        .step_by(RECORD_ALIGN)
        .skip(1)
        .find(|&at| record::decode_header(place, &bytes[at..]).is_some_and(|h| h.sequence >= next))
}
