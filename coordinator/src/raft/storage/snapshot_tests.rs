//! Snapshot files: nothing but a whole and sound one is ever believed.

use super::memory::SplitMix;
use super::snapshot::{ReceiveError, snapshot_file};
use super::snapshot_format::{Decoder, Encoder, FormatError, Reader};
use super::{
    Disk, SnapshotReceiver, SnapshotRef, SnapshotSource, SnapshotWriter, StorageError, TornDisk,
    read_snapshot,
};
use crate::raft::types::{Membership, SnapshotMeta};
use sha2::Digest;
use std::io::{Read, Write};
use trireme_shared::limits;

const CHUNK: usize = limits::SNAPSHOT_CHUNK_BYTES;

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        index: 77,
        term: 5,
        members: Membership {
            voters: vec![1, 2, 3],
            learners: vec![4],
            ..Membership::default()
        },
    }
}

fn body(len: usize) -> Vec<u8> {
    let mut random = SplitMix(len as u64);
    (0..len).map(|_| random.draw() as u8).collect()
}

fn encoded(body: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), &meta()).unwrap();
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Everything a reader gives of these bytes, or why nothing.
fn decoded(bytes: &[u8]) -> Result<(SnapshotMeta, Vec<u8>), String> {
    let mut reader = Reader::new(bytes).map_err(|e| e.to_string())?;
    let mut body = Vec::new();
    reader.read_to_end(&mut body).map_err(|e| e.to_string())?;
    Ok((reader.meta().clone(), body))
}

#[test]
fn a_snapshot_of_any_length_comes_back() {
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + CHUNK / 2] {
        let body = body(len);
        assert_eq!(decoded(&encoded(&body)).unwrap(), (meta(), body));
    }
}

#[test]
fn a_broken_snapshot_is_never_believed() {
    let body = body(300);
    let whole = encoded(&body);
    for at in 0..whole.len() {
        for mask in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            assert!(decoded(&bytes).is_err(), "byte {at}");
        }
        assert!(decoded(&whole[..at]).is_err(), "cut at {at}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(decoded(&longer).unwrap_err().contains("follow the end"));
    let mut random = SplitMix(9);
    for _ in 0..2_000 {
        let mut bytes = whole.clone();
        let from = random.below(bytes.len() as u64) as usize;
        bytes[from..].fill_with(|| random.draw() as u8);
        assert!(decoded(&bytes).is_err());
    }
}

#[test]
fn chunks_of_another_place_or_snapshot_are_refused() {
    let body = body(3 * CHUNK);
    let whole = encoded(&body);
    let piece = 8 + CHUNK;
    let first = whole.len() - 48 - 3 * piece;
    let mut swapped = whole.clone();
    let second = swapped[first + piece..first + 2 * piece].to_vec();
    swapped.copy_within(first..first + piece, first + piece);
    swapped[first..first + piece].copy_from_slice(&second);
    assert!(decoded(&swapped).is_err());
    // One left out.
    let short = [&whole[..first], &whole[first + piece..]].concat();
    assert!(decoded(&short).is_err());
    // The end right after two of three.
    let early = [&whole[..first + 2 * piece], &whole[whole.len() - 48..]].concat();
    assert!(decoded(&early).is_err());

    // The same body under another header.
    let other = SnapshotMeta {
        index: 78,
        ..meta()
    };
    let mut encoder = Encoder::new(Vec::new(), &other).unwrap();
    encoder.write_all(&body).unwrap();
    let other = encoder.finish().unwrap();
    let mixed = [&other[..first], &whole[first..]].concat();
    assert!(decoded(&mixed).is_err());
}

#[test]
fn what_is_announced_is_not_allocated() {
    let mut bytes = encoded(&[])[..16].to_vec();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decoded(&bytes).unwrap_err().contains("too long"));
    let header = encoded(&[]).len() - 48;
    let mut bytes = encoded(&[])[..header].to_vec();
    bytes.extend_from_slice(&(CHUNK as u32 + 1).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    assert!(decoded(&bytes).unwrap_err().contains("wrong length"));
}

/// Pieces whose own checksums are right, put together wrongly.
#[test]
fn sound_pieces_of_a_wrong_whole_are_refused() {
    let body = body(CHUNK + 100);
    let whole = encoded(&body);
    let header = &whole[..whole.len() - 48 - 100 - 8 - CHUNK - 8];
    let header_crc = crc32c::crc32c(&header[..header.len() - 4]);
    let piece = |len: usize, number: u64, bytes: &[u8]| {
        let crc = crc32c::crc32c(&header_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, bytes);
        [&(len as u32).to_le_bytes(), &crc.to_le_bytes(), bytes].concat()
    };
    let end = |chunks: u64, len: usize, of: &[u8]| {
        let hash = sha2::Sha256::digest(of);
        piece(
            0,
            chunks,
            &[&(len as u64).to_le_bytes()[..], &hash].concat(),
        )
    };
    let (one, two) = body.split_at(CHUNK);
    let chunks = [piece(CHUNK, 0, one), piece(100, 1, two)].concat();
    let sound = [header, &chunks, &end(2, body.len(), &body)].concat();
    assert_eq!(sound, whole);

    let other_hash = [header, &chunks, &end(2, body.len(), one)].concat();
    let other_len = [header, &chunks, &end(2, body.len() + 1, &body)].concat();
    let (short, long) = body.split_at(100);
    let chunks = [piece(100, 0, short), piece(CHUNK, 1, long)].concat();
    let short_first = [header, &chunks, &end(2, body.len(), &body)].concat();
    for (bytes, reason) in [
        (other_hash, "not the one"),
        (other_len, "not the one"),
        (short_first, "wrong length"),
    ] {
        let error = decoded(&bytes).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn another_version_says_so() {
    let mut bytes = encoded(&[]);
    bytes[8] = 2;
    let crc = bytes.len() - 48 - 4;
    let sum = crc32c::crc32c(&bytes[..crc]);
    bytes[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
    let error = Reader::new(&bytes[..]).err().expect("an error");
    assert!(
        matches!(error, FormatError::Version { found: 2, .. }),
        "{error}"
    );
}

fn written(disk: &TornDisk, body: &[u8]) -> SnapshotRef {
    let mut writer = SnapshotWriter::create(disk.clone(), meta()).unwrap();
    writer.write_all(body).unwrap();
    writer.finish().unwrap()
}

#[test]
fn a_written_snapshot_is_durable_and_a_half_one_has_no_name() {
    let disk = TornDisk::new();
    let body = body(5 * CHUNK + 7);
    let mut writer = SnapshotWriter::create(disk.clone(), meta()).unwrap();
    writer.write_all(&body).unwrap();
    let half = disk.copy();
    half.crash(&mut || 0);
    assert_eq!(
        half.list().unwrap(),
        [format!("{}.made.tmp", snapshot_file(&meta()))]
    );

    let snapshot = writer.finish().unwrap();
    disk.crash(&mut || 1 << 32);
    assert_eq!(disk.list().unwrap(), std::slice::from_ref(&snapshot.file));
    let (found, mut reader) = read_snapshot(disk.clone(), &snapshot.file).unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!((found, bytes), (meta(), body));

    // Damage found while reading names the file and the place.
    disk.flip(&snapshot.file, 3 * CHUNK, 1);
    let (_, mut reader) = read_snapshot(disk.clone(), &snapshot.file).unwrap();
    let error = std::io::copy(&mut reader, &mut std::io::sink()).unwrap_err();
    let error = error.downcast::<StorageError>().unwrap();
    match error {
        StorageError::Damaged { file, offset, .. } => {
            assert_eq!(file, snapshot.file);
            assert!(
                offset > 2 * CHUNK as u64 && offset < 4 * CHUNK as u64,
                "{offset}"
            );
        }
        other => panic!("{other}"),
    }
}

/// Sends in pieces of odd sizes.
fn send(
    from: &TornDisk,
    snapshot: &SnapshotRef,
    receiver: &mut SnapshotReceiver<TornDisk>,
) -> Result<(), ReceiveError> {
    let mut source = SnapshotSource::open(from.clone(), snapshot).unwrap();
    let mut piece = vec![0; 99_991];
    loop {
        match source.read(&mut piece).unwrap() {
            0 => return Ok(()),
            read => receiver.write(&piece[..read])?,
        }
    }
}

#[test]
fn a_received_snapshot_is_the_sent_one() {
    let (from, to) = (TornDisk::new(), TornDisk::new());
    let snapshot = written(&from, &body(2 * CHUNK + 3));
    let mut receiver = SnapshotReceiver::create(to.clone(), meta()).unwrap();
    send(&from, &snapshot, &mut receiver).unwrap();
    assert_eq!(receiver.received(), from.bytes(&snapshot.file).len() as u64);
    let received = receiver.finish().unwrap();
    to.crash(&mut || 1 << 32);
    assert_eq!(received, snapshot);
    assert_eq!(to.bytes(&received.file), from.bytes(&snapshot.file));
}

#[test]
fn what_a_peer_sends_wrong_is_refused_and_leaves_nothing() {
    let from = TornDisk::new();
    let snapshot = written(&from, &body(CHUNK + 3));
    let to = TornDisk::new();
    let receiver = |announced| SnapshotReceiver::create(to.clone(), announced).unwrap();

    let mut other = receiver(SnapshotMeta { term: 6, ..meta() });
    let refused = send(&from, &snapshot, &mut other).unwrap_err();
    assert!(matches!(refused, ReceiveError::OtherSnapshot), "{refused}");
    other.discard().unwrap();

    let damaged = from.copy();
    damaged.flip(&snapshot.file, 2_000, 1);
    let mut receiving = receiver(meta());
    let refused = send(&damaged, &snapshot, &mut receiving).unwrap_err();
    assert!(matches!(refused, ReceiveError::Format(_)), "{refused}");
    receiving.discard().unwrap();

    let mut unfinished = receiver(meta());
    let bytes = from.bytes(&snapshot.file);
    unfinished.write(&bytes[..bytes.len() - 1]).unwrap();
    assert!(unfinished.finish().is_err());
    let mut longer = receiver(meta());
    longer.write(&bytes).unwrap();
    assert!(longer.write(&[0]).is_err());
    longer.discard().unwrap();
    assert_eq!(to.list().unwrap(), Vec::<String>::new());
}

#[test]
fn a_snapshot_that_is_too_large_is_cut_off() {
    let bytes = encoded(&body(3 * CHUNK));
    for max in [40, CHUNK, 3 * CHUNK, bytes.len() - 1, bytes.len()] {
        let mut decoder = Decoder::bounded(max as u64);
        let mut rest = &bytes[..];
        let error = loop {
            match decoder.feed(rest) {
                Ok(0) => break None,
                Ok(taken) => rest = &rest[taken..],
                Err(error) => break Some(error),
            }
        };
        if max == bytes.len() {
            assert!(error.is_none() && decoder.is_done());
        } else {
            assert!(matches!(error, Some(FormatError::TooLarge { .. })), "{max}");
        }
    }
}
