//! Frames over any [`Link`]: a fixed header and raw bytes.
//!
//! Kept true: a frame of another epoch, kind, order, tag or size than the reader expects is an
//! error, never data. Header, little-endian, 32 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic `TL` |
//! | 2 | format version |
//! | 3 | kind |
//! | 4..8 | payload bytes |
//! | 8..16 | epoch |
//! | 16..24 | sequence: frames sent before this one in this direction |
//! | 24..32 | tag, meaning by kind: the step of a hidden state; else 0 |
//!
//! Tensors travel as little-endian f32, the memory format of every machine that can build this.

use super::{Link, LinkError};
use trireme_shared::ids::Epoch;
use trireme_shared::limits::{LINK_FRAME_BYTES_MAX, LINK_GROW_BYTES};

#[cfg(target_endian = "big")]
compile_error!("frames carry tensors in memory format, which must be little-endian");

const MAGIC: [u8; 2] = *b"TL";
const VERSION: u8 = 1;
/// Bytes before each payload.
pub const HEADER_BYTES: usize = 32;
/// Payloads up to this size leave together with their header, in one write (and one packet train).
const JOINED_BYTES: usize = 16 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Part of an all-reduce.
    Reduce = 1,
    /// Part of a gather.
    Gather = 2,
    /// Activations of a step, for the next stage.
    Hidden = 3,
    /// A step plan; opaque here.
    Plan = 4,
    /// Sampled tokens; opaque here.
    Sampled = 5,
}

struct Header {
    kind: u8,
    bytes: usize,
    epoch: u64,
    sequence: u64,
    tag: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..2].copy_from_slice(&MAGIC);
        out[2] = VERSION;
        out[3] = self.kind;
        out[4..8].copy_from_slice(&(self.bytes as u32).to_le_bytes());
        out[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.tag.to_le_bytes());
        out
    }

    fn decode(raw: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let word = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        if raw[0..2] != MAGIC || raw[2] != VERSION {
            return Err("its header is not a Trireme link frame of this version".into());
        }
        let bytes = (word(0) >> 32) as usize;
        if bytes > LINK_FRAME_BYTES_MAX {
            return Err(format!("{bytes} bytes is above the largest frame"));
        }
        Ok(Self {
            kind: raw[3],
            bytes,
            epoch: word(8),
            sequence: word(16),
            tag: word(24),
        })
    }
}

/// A link that speaks frames of one epoch.
pub struct FramedLink {
    link: Box<dyn Link>,
    epoch: Epoch,
    sent: u64,
    received: u64,
    joined: Vec<u8>,
}

impl FramedLink {
    pub fn new(link: Box<dyn Link>, epoch: Epoch) -> Self {
        Self {
            link,
            epoch,
            sent: 0,
            received: 0,
            joined: Vec::new(),
        }
    }

    pub fn peer(&self) -> usize {
        self.link.peer()
    }

    /// Payload bytes both sides may each have under way without waiting for the other to read.
    pub fn chunk_bytes(&self) -> usize {
        (self.link.window_bytes() / 2).saturating_sub(HEADER_BYTES)
    }

    /// Sends one frame; `payload` is at most `LINK_FRAME_BYTES_MAX`.
    pub fn send(&mut self, kind: Kind, tag: u64, payload: &[u8]) -> Result<(), LinkError> {
        if payload.len() > LINK_FRAME_BYTES_MAX {
            return Err(self.corrupt(format!(
                "a frame of {} bytes is too large to send",
                payload.len()
            )));
        }
        let header = Header {
            kind: kind as u8,
            bytes: payload.len(),
            epoch: self.epoch.0,
            sequence: self.sent,
            tag,
        };
        self.sent += 1;
        let (first, rest) = payload.split_at(payload.len().min(JOINED_BYTES));
        self.joined.clear();
        self.joined.extend_from_slice(&header.encode());
        self.joined.extend_from_slice(first);
        self.link.write_all(&self.joined)?;
        if !rest.is_empty() {
            self.link.write_all(rest)?;
        }
        Ok(())
    }

    /// Receives a frame whose kind, tag and size are known, within a step.
    pub fn receive_into(&mut self, kind: Kind, tag: u64, out: &mut [u8]) -> Result<(), LinkError> {
        let mut raw = [0; HEADER_BYTES];
        self.link.read_exact(&mut raw)?;
        let header = self.check(&raw, kind)?;
        if header.tag != tag {
            return Err(self.corrupt(format!("tag {} where {tag} is due", header.tag)));
        }
        if header.bytes != out.len() {
            return Err(self.corrupt(format!(
                "{} bytes where {} are due",
                header.bytes,
                out.len()
            )));
        }
        self.link.read_exact(out)
    }

    /// Receives a frame of any size, waiting for it without a deadline.
    pub fn receive_idle(&mut self, kind: Kind) -> Result<Vec<u8>, LinkError> {
        let mut raw = [0; HEADER_BYTES];
        self.link.read_exact_idle(&mut raw)?;
        self.receive_payload(kind, &raw)
    }

    /// Receives a frame of any size, within a step.
    pub fn receive(&mut self, kind: Kind) -> Result<Vec<u8>, LinkError> {
        let mut raw = [0; HEADER_BYTES];
        self.link.read_exact(&mut raw)?;
        self.receive_payload(kind, &raw)
    }

    fn receive_payload(
        &mut self,
        kind: Kind,
        raw: &[u8; HEADER_BYTES],
    ) -> Result<Vec<u8>, LinkError> {
        let header = self.check(raw, kind)?;
        // Grown as bytes arrive, so that a header alone cannot make us allocate its claim.
        let mut payload = Vec::new();
        while payload.len() < header.bytes {
            let at = payload.len();
            payload.resize(header.bytes.min(at + LINK_GROW_BYTES), 0);
            self.link.read_exact(&mut payload[at..])?;
        }
        Ok(payload)
    }

    fn check(&mut self, raw: &[u8; HEADER_BYTES], kind: Kind) -> Result<Header, LinkError> {
        let header = Header::decode(raw).map_err(|reason| self.corrupt(reason))?;
        if header.epoch != self.epoch.0 {
            return Err(LinkError::WrongEpoch {
                peer: self.link.peer(),
                got: header.epoch,
                want: self.epoch.0,
            });
        }
        if header.kind != kind as u8 {
            return Err(self.corrupt(format!("kind {} where {kind:?} is due", header.kind)));
        }
        if header.sequence != self.received {
            return Err(self.corrupt(format!(
                "frame {} where {} is due",
                header.sequence, self.received
            )));
        }
        self.received += 1;
        Ok(header)
    }

    fn corrupt(&self, reason: String) -> LinkError {
        LinkError::Corrupt {
            peer: self.link.peer(),
            reason,
        }
    }
}

/// What travels as raw little-endian numbers.
pub(super) trait Float: Copy {}
impl Float for f32 {}
impl Float for f64 {}

/// The bytes of `values`, as they travel.
pub(super) fn as_bytes<T: Float>(values: &[T]) -> &[u8] {
    // SAFETY: floats have no padding and u8 no alignment; length and lifetime are `values`'.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of `values`, to be filled.
pub(super) fn as_bytes_mut<T: Float>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`; any bytes are a valid float, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{RingBytes, pair};
    use super::super::{Abort, WaitPolicy, Waits};
    use super::*;

    fn framed(lower: Epoch, higher: Epoch) -> (FramedLink, FramedLink) {
        let waits = |peer| Waits {
            peer,
            abort: Abort::default(),
            policy: WaitPolicy::crowded(),
        };
        let bytes = RingBytes {
            forward: 1 << 16,
            backward: 1 << 16,
        };
        let (a, b) = pair(bytes, waits(1), waits(0)).unwrap();
        (
            FramedLink::new(Box::new(a), lower),
            FramedLink::new(Box::new(b), higher),
        )
    }

    #[test]
    fn another_epoch_is_refused() {
        let (mut a, mut b) = framed(Epoch(4), Epoch(5));
        a.send(Kind::Reduce, 0, &[1, 2, 3]).unwrap();
        let got = b.receive_into(Kind::Reduce, 0, &mut [0; 3]);
        assert!(matches!(
            got,
            Err(LinkError::WrongEpoch {
                peer: 0,
                got: 4,
                want: 5
            })
        ));
    }

    #[test]
    fn another_kind_tag_size_or_order_is_refused() {
        type Spoil = fn(&mut FramedLink);
        let cases: [(&str, Spoil); 4] = [
            ("kind", |a| a.send(Kind::Gather, 7, &[1, 2]).unwrap()),
            ("tag", |a| a.send(Kind::Hidden, 8, &[1, 2]).unwrap()),
            ("bytes", |a| a.send(Kind::Hidden, 7, &[1]).unwrap()),
            ("frame", |a| {
                a.sent = 1;
                a.send(Kind::Hidden, 7, &[1, 2]).unwrap();
            }),
        ];
        for (named, spoil) in cases {
            let (mut a, mut b) = framed(Epoch(1), Epoch(1));
            spoil(&mut a);
            let got = b.receive_into(Kind::Hidden, 7, &mut [0; 2]);
            let Err(LinkError::Corrupt { reason, .. }) = got else {
                panic!("a wrong {named} went through: {got:?}");
            };
            assert!(reason.contains(named), "{named}: {reason}");
        }
        // The same frame unspoilt is taken.
        let (mut a, mut b) = framed(Epoch(1), Epoch(1));
        a.send(Kind::Hidden, 7, &[1, 2]).unwrap();
        b.receive_into(Kind::Hidden, 7, &mut [0; 2]).unwrap();
    }

    #[test]
    fn noise_and_absurd_sizes_are_refused() {
        let (mut a, mut b) = framed(Epoch(1), Epoch(1));
        a.link.write_all(&[0xff; HEADER_BYTES]).unwrap();
        assert!(matches!(
            b.receive_idle(Kind::Plan),
            Err(LinkError::Corrupt { .. })
        ));
        let huge = Header {
            kind: Kind::Plan as u8,
            bytes: LINK_FRAME_BYTES_MAX + 1,
            epoch: 1,
            sequence: 0,
            tag: 0,
        };
        a.link.write_all(&huge.encode()).unwrap();
        assert!(matches!(
            b.receive_idle(Kind::Plan),
            Err(LinkError::Corrupt { .. })
        ));
    }

    #[test]
    fn a_frame_larger_than_the_ring_arrives_whole() {
        let (mut a, mut b) = framed(Epoch(1), Epoch(1));
        let sent: Vec<u8> = (0..3_000_001u32).map(|i| (i % 253) as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || a.send(Kind::Plan, 0, &sent).map(|()| a));
        assert!(b.receive_idle(Kind::Plan).unwrap() == expected);
        assert!(writer.join().unwrap().is_ok());
    }
}
