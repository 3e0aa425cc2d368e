//! Encryption of a backup at rest: any stream of bytes, with a key of 32 bytes.
//!
//! What it keeps true: no byte comes out of `Opener` that was not sealed with this key, at this place
//! of this file; a cut, reordered or spliced file is an error and never a shorter one.
//!
//! The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption
//! and its Nonce-Reuse Misuse-Resistance", 2015) over AES-256-GCM, with a key of its own for each file,
//! so that no nonce is ever used twice under one key:
//!
//! ```text
//! bytes  header
//!   8    "triresea"
//!   4    format version, 1 (little-endian)
//!  32    salt, random
//!        then chunks of `CHUNK_BYTES`, the last one perhaps shorter (empty only in an empty file),
//!        each followed by its tag of 16 bytes
//!
//! key of the file   HKDF-SHA-256(key, salt, "trireme sealed file 1")
//! nonce of a chunk  its number from 0 (11 bytes, big-endian), then 1 for the last one, else 0
//! also bound        the header
//! ```

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use std::io::{self, Read, Write};

pub const MAGIC: &[u8; 8] = b"triresea";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 44;
/// Large against the tag, small against memory.
const CHUNK_BYTES: usize = 64 << 10;
const SEALED_BYTES: usize = CHUNK_BYTES + MAX_TAG_LEN;

/// Of a key file. Has no `Debug`.
pub struct SealKey([u8; 32]);

/// Why a sealed file does not open.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("a key file holds 32 bytes, or 64 hexadecimal digits")]
    Key,
    #[error("it is of encryption format {found}, this version of Trireme reads {FORMAT_VERSION}")]
    Version { found: u32 },
    #[error("chunk {chunk} does not open: the key is another one, or the file is damaged or cut")]
    Closed { chunk: u64 },
}

impl SealKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new key, and what to write to its file.
    pub fn random() -> io::Result<(Self, String)> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        Ok((Self(bytes), hex::encode(bytes)))
    }

    /// The content of a key file: 32 bytes, or 64 hexadecimal digits and perhaps a line's end.
    pub fn from_file(content: &[u8]) -> Result<Self, SealError> {
        if let Ok(bytes) = <[u8; 32]>::try_from(content) {
            return Ok(Self(bytes));
        }
        let mut bytes = [0; 32];
        match hex::decode_to_slice(content.trim_ascii_end(), &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(SealError::Key),
        }
    }

    fn of_file(&self, salt: &[u8]) -> io::Result<LessSafeKey> {
        let broken = |_| io::Error::other("a key could not be derived");
        let mixed = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let derived = mixed
            .expand(&[b"trireme sealed file 1"], &AES_256_GCM)
            .map_err(broken)?;
        Ok(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

fn nonce(chunk: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[3..11].copy_from_slice(&chunk.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

/// Seals what is written to it; `finish` seals the last chunk. Dropped before that, it left a file that
/// does not open.
pub struct Sealer<W> {
    out: W,
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
    chunk: Vec<u8>,
    number: u64,
}

impl<W: Write> Sealer<W> {
    pub fn new(mut out: W, key: &SealKey) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        getrandom::fill(&mut header[12..]).map_err(|e| io::Error::other(e.to_string()))?;
        out.write_all(&header)?;
        Ok(Self {
            out,
            key: key.of_file(&header[12..])?,
            header,
            chunk: Vec::with_capacity(SEALED_BYTES),
            number: 0,
        })
    }

    /// Gives back what was written to (unflushed).
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let (nonce, aad) = (nonce(self.number, last), Aad::from(self.header));
        let sealed = self
            .key
            .seal_in_place_append_tag(nonce, aad, &mut self.chunk);
        sealed.map_err(|_| io::Error::other("a chunk could not be encrypted"))?;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits for the next byte: only then is it certain that it is not the last.
        if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Chunks are of fixed size, so bytes may stay behind until `finish`.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Opens what a `Sealer` wrote. Errors that are not the input's own carry a `SealError`.
pub struct Opener<R> {
    input: R,
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
    /// Read and not opened yet: up to a sealed chunk and one byte, which tells whether it is the last.
    raw: Vec<u8>,
    open: Vec<u8>,
    given: usize,
    number: u64,
    done: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the header, which must begin with `MAGIC`.
    pub fn new(mut input: R, key: &SealKey) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        input.read_exact(&mut header)?;
        let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if &header[..8] != MAGIC || found != FORMAT_VERSION {
            return Err(io::Error::other(SealError::Version { found }));
        }
        Ok(Self {
            input,
            key: key.of_file(&header[12..])?,
            header,
            raw: Vec::with_capacity(SEALED_BYTES + 1),
            open: Vec::new(),
            given: 0,
            number: 0,
            done: false,
        })
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let want = (SEALED_BYTES + 1 - self.raw.len()) as u64;
        (&mut self.input).take(want).read_to_end(&mut self.raw)?;
        let last = self.raw.len() <= SEALED_BYTES;
        let rest = self.raw.split_off(self.raw.len().min(SEALED_BYTES));
        self.open = std::mem::replace(&mut self.raw, rest);
        let (nonce, aad) = (nonce(self.number, last), Aad::from(self.header));
        let opened = self.key.open_in_place(nonce, aad, &mut self.open);
        let chunk = self.number;
        let len = match opened {
            // An empty chunk is the only one of an empty file.
            Ok(plain) if !plain.is_empty() || chunk == 0 => plain.len(),
            _ => return Err(io::Error::other(SealError::Closed { chunk })),
        };
        self.open.truncate(len);
        self.given = 0;
        self.number += 1;
        self.done = last;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.given == self.open.len() {
            if self.done {
                return Ok(0);
            }
            if let Err(error) = self.next_chunk() {
                // Nothing of a chunk that did not open may come out later.
                self.open.clear();
                self.given = 0;
                return Err(error);
            }
        }
        let taken = buffer.len().min(self.open.len() - self.given);
        buffer[..taken].copy_from_slice(&self.open[self.given..self.given + taken]);
        self.given += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SealKey {
        SealKey::new([7; 32])
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    fn seal(plain: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), &key()).unwrap();
        // In pieces that do not fit chunks.
        for piece in plain.chunks(10_007) {
            sealer.write_all(piece).unwrap();
        }
        sealer.finish().unwrap()
    }

    fn open(sealed: &[u8], key: &SealKey) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Opener::new(sealed, key)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_was_sealed_opens_at_every_length() {
        for len in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
            3 * CHUNK_BYTES + 5,
        ] {
            let sealed = seal(&bytes(len));
            let chunks = len.div_ceil(CHUNK_BYTES).max(1);
            assert_eq!(sealed.len(), HEADER_BYTES + len + chunks * MAX_TAG_LEN);
            assert!(open(&sealed, &key()).unwrap() == bytes(len), "{len}");
        }
    }

    #[test]
    fn the_same_bytes_are_sealed_differently_each_time() {
        assert_ne!(seal(b"same")[HEADER_BYTES..], seal(b"same")[HEADER_BYTES..]);
    }

    #[test]
    fn a_changed_bit_anywhere_and_a_wrong_key_are_refused() {
        let sealed = seal(&bytes(CHUNK_BYTES + 100));
        for at in [0, 9, 12, 43, HEADER_BYTES, CHUNK_BYTES, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &key()).is_err(), "{at}");
        }
        let error = open(&sealed, &SealKey::new([8; 32])).unwrap_err();
        assert!(error.to_string().contains("another one"), "{error}");
    }

    #[test]
    fn a_cut_reordered_or_spliced_file_is_refused() {
        let sealed = seal(&bytes(3 * CHUNK_BYTES));
        let chunk = |n: usize| {
            let from = HEADER_BYTES + n * SEALED_BYTES;
            sealed[from..from + SEALED_BYTES].to_vec()
        };
        let header = sealed[..HEADER_BYTES].to_vec();
        // Cut where chunks meet too: the chunk before was not sealed as the last.
        for end in [
            0,
            HEADER_BYTES - 1,
            HEADER_BYTES,
            HEADER_BYTES + SEALED_BYTES,
            HEADER_BYTES + 2 * SEALED_BYTES,
            sealed.len() - 1,
        ] {
            assert!(open(&sealed[..end], &key()).is_err(), "{end}");
        }
        let join = |parts: [Vec<u8>; 4]| parts.concat();
        let swapped = join([header.clone(), chunk(1), chunk(0), chunk(2)]);
        assert!(open(&swapped, &key()).is_err());
        let dropped = join([header.clone(), chunk(0), chunk(2), vec![]]);
        assert!(open(&dropped, &key()).is_err());
        let followed = [sealed.clone(), vec![0]].concat();
        assert!(open(&followed, &key()).is_err());
        let other = seal(&bytes(3 * CHUNK_BYTES));
        let spliced = [
            &sealed[..HEADER_BYTES + SEALED_BYTES],
            &other[HEADER_BYTES + SEALED_BYTES..],
        ];
        assert!(open(&spliced.concat(), &key()).is_err());
    }

    #[test]
    fn key_files_are_bytes_or_hex() {
        assert!(SealKey::from_file(&[3; 32]).is_ok());
        assert!(SealKey::from_file(&[b'a'; 64]).is_ok());
        assert!(SealKey::from_file(&[&[b'a'; 64][..], b"\n"].concat()).is_ok());
        for wrong in [&b""[..], &[b'g'; 64], &[b'a'; 63], &[3; 33]] {
            assert!(SealKey::from_file(wrong).is_err());
        }
    }
}
