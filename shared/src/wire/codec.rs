//! Encoding and framing of everything that processes say to each other over `transport`.
//!
//! What it keeps true: a length field that a peer wrote never makes us allocate more than a small
//! multiple of the bytes that really arrived; a frame is never larger than its protocol's bound
//! (`limits::*_FRAME_BYTES_MAX`); bytes left over after a message are an error. Neighbours: every
//! protocol of `transport` speaks through it. What a rank tells another (`worker::engine::plan`) and
//! what the coordinator writes to its log (`state::command`) have codecs of their own, with other
//! bounds and the same format.
//!
//! The format is bincode's default one (fixed-width little-endian integers, u64 lengths, u32 tags),
//! by `wincode`.

use crate::limits;
use wincode::config::{self, Configuration};
use wincode::{SchemaRead, SchemaWrite};

/// A sequence may ask for this many times the message's encoded size at once: an element can be
/// larger in memory than on the wire (an enum is as wide as its widest variant), never by this much.
const EXPANSION: usize = 16;

const SMALL_MESSAGE: usize = 4 << 10;
const MEDIUM_MESSAGE: usize = 256 << 10;

/// The allocation bound is a compile-time parameter of wincode, so there is one configuration for
/// each class of message size.
macro_rules! format {
    ($name:ident, $limit:expr) => {
        type $name = Configuration<true, { $limit }>;
    };
}
format!(Small, EXPANSION * SMALL_MESSAGE);
format!(Medium, EXPANSION * MEDIUM_MESSAGE);
format!(Large, limits::LINK_FRAME_BYTES_MAX);

/// Why a message could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {len} bytes is larger than the {max} this protocol allows")]
    TooLarge { len: usize, max: usize },
    #[error("the message is not valid ({0}): are both sides of the same Trireme version?")]
    Invalid(String),
    #[error("the message cannot be encoded: {0}")]
    Encode(String),
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    #[error("the peer gave the stream up (code {0})")]
    Reset(u64),
    #[error("the connection ended: {0}")]
    Lost(String),
}

/// A message both ways; implemented by everything that derives `SchemaRead` and `SchemaWrite`.
pub trait Message:
    SchemaWrite<Large, Src = Self>
    + for<'de> SchemaRead<'de, Small, Dst = Self>
    + for<'de> SchemaRead<'de, Medium, Dst = Self>
    + for<'de> SchemaRead<'de, Large, Dst = Self>
    + Sized
{
}

impl<T> Message for T where
    T: SchemaWrite<Large, Src = T>
        + for<'de> SchemaRead<'de, Small, Dst = T>
        + for<'de> SchemaRead<'de, Medium, Dst = T>
        + for<'de> SchemaRead<'de, Large, Dst = T>
{
}

/// The bytes of a message, without a frame around them.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8>, WireError> {
    config::serialize(message, Large::new()).map_err(|error| WireError::Encode(error.to_string()))
}

/// A message from exactly these bytes.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() <= SMALL_MESSAGE {
        config::deserialize_exact(bytes, Small::new())
    } else if bytes.len() <= MEDIUM_MESSAGE {
        config::deserialize_exact(bytes, Medium::new())
    } else {
        config::deserialize_exact(bytes, Large::new())
    }
    .map_err(|error| WireError::Invalid(error.to_string()))
}

/// Writes one frame. Not to be cancelled half way: the stream would be left in mid-frame.
pub async fn write_frame<T: Message>(
    send: &mut quinn::SendStream,
    message: &T,
    max: usize,
) -> Result<(), WireError> {
    let frame = frame(message, max)?;
    Ok(send.write_all(&frame).await?)
}

/// The bytes of a whole frame: length, then message.
pub fn frame<T: Message>(message: &T, max: usize) -> Result<Vec<u8>, WireError> {
    let body = encode(message)?;
    let len = body.len();
    let prefix = u32::try_from(len).ok().filter(|_| len <= max);
    let prefix = prefix.ok_or(WireError::TooLarge { len, max })?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + len);
    frame.extend_from_slice(&prefix.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Reads one frame; `None` where the peer finished the stream before a new one. Not to be cancelled
/// half way: in a `select!`, use [`FrameReader`].
pub async fn read_frame<T: Message>(
    recv: &mut quinn::RecvStream,
    max: usize,
) -> Result<Option<T>, WireError> {
    Partial::default().complete(recv, max).await
}

/// Reads frames from a stream it owns; cancelling `next` loses nothing.
pub struct FrameReader {
    recv: quinn::RecvStream,
    max: usize,
    partial: Partial,
}

impl FrameReader {
    /// `max` bounds each frame, in bytes.
    pub fn new(recv: quinn::RecvStream, max: usize) -> Self {
        Self {
            recv,
            max,
            partial: Partial::default(),
        }
    }

    /// The stream, and what has arrived of it but was not read as a frame: for streams whose frames are
    /// followed by raw bytes.
    pub fn into_inner(self) -> (Vec<u8>, quinn::RecvStream) {
        (self.partial.bytes, self.recv)
    }

    /// The next message; `None` at a clean end. After an error the stream is of no more use.
    pub async fn next<T: Message>(&mut self) -> Result<Option<T>, WireError> {
        self.partial.complete(&mut self.recv, self.max).await
    }
}

const HEADER_BYTES: usize = 4;

/// What has arrived of a frame, its length included.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
}

impl Partial {
    /// Bytes the frame needs as far as is known, its header included.
    fn wanted(&self, max: usize) -> Result<usize, WireError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(HEADER_BYTES);
        };
        let len = u32::from_le_bytes(*header) as usize;
        if len > max {
            return Err(WireError::TooLarge { len, max });
        }
        Ok(HEADER_BYTES + len)
    }

    /// Grows only by what the peer really sent: a claimed length alone costs us nothing.
    async fn complete<T: Message>(
        &mut self,
        recv: &mut quinn::RecvStream,
        max: usize,
    ) -> Result<Option<T>, WireError> {
        loop {
            let wanted = self.wanted(max)?;
            let missing = wanted - self.bytes.len();
            if missing == 0 && wanted > HEADER_BYTES {
                let message = decode(&self.bytes[HEADER_BYTES..])?;
                self.bytes.clear();
                return Ok(Some(message));
            }
            if missing == 0 {
                // No message is empty: a unit struct would be, and none is sent.
                return Err(WireError::Invalid("an empty frame".into()));
            }
            match recv.read_chunk(missing, true).await? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk.bytes),
                None if self.bytes.is_empty() => return Ok(None),
                None => return Err(WireError::Truncated),
            }
        }
    }
}

impl From<quinn::ReadError> for WireError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into_inner()),
            other => Self::Lost(why(&other)),
        }
    }
}

impl From<quinn::WriteError> for WireError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Reset(code.into_inner()),
            other => Self::Lost(why(&other)),
        }
    }
}

impl From<quinn::ConnectionError> for WireError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost(why(&error))
    }
}

/// The innermost reason: quinn's outer texts only say "connection lost".
fn why(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests;
