//! How proposals and whole states are written: a little-endian u16 version, then values in bincode's
//! format (`wincode`). A version this build does not know is refused, never guessed at. What a version of
//! states did not have yet is left out where it is written or read (`stored!`, `versions`); version 1 has a
//! module of its own (`v1`).
//!
//! A state goes out row by row and comes in row by row: neither side holds it in memory twice, and
//! nothing is allocated for more than what has arrived, but for one row's texts and lists, which
//! wincode holds to 4 MiB.

use super::{Proposal, State, v1, versions};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Take, Write};
use trireme_shared::limits;
use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite};

/// Version of a proposal's encoding. 1 was a bare command.
pub const COMMAND_VERSION: u16 = 2;
/// Version of a state's encoding.
pub const STATE_VERSION: u16 = 5;

/// Rows go to the writer in pieces of about this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Why bytes are not a proposal or a state, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it cannot be encoded: {0}")]
    Encode(String),
    #[error("it cannot be written: {0}")]
    Write(std::io::Error),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it was written by another version (format {found}, this build reads {known})")]
    Version { found: u16, known: u16 },
    #[error("it takes more than {} bytes", limits::STATE_BYTES_MAX)]
    TooLarge,
}

/// The value as bytes behind the version of commands: an entry's proposal.
pub fn encode(proposal: &Proposal) -> Result<Vec<u8>, CodecError> {
    let mut bytes = COMMAND_VERSION.to_le_bytes().to_vec();
    <Proposal as SchemaWrite<DefaultConfig>>::write(&mut bytes, proposal)
        .map_err(|e| CodecError::Encode(e.to_string()))?;
    Ok(bytes)
}

pub fn decode(bytes: &[u8]) -> Result<Proposal, CodecError> {
    let (found, body) = version_of(bytes)?;
    if found != COMMAND_VERSION {
        let known = COMMAND_VERSION;
        return Err(CodecError::Version { found, known });
    }
    wincode::deserialize_exact(body).map_err(|e| CodecError::Damaged(e.to_string()))
}

pub(super) fn version_of(bytes: &[u8]) -> Result<(u16, &[u8]), CodecError> {
    let (version, body) = bytes
        .split_first_chunk::<2>()
        .ok_or_else(|| CodecError::Damaged("it is shorter than its header".into()))?;
    Ok((u16::from_le_bytes(*version), body))
}

/// Writes the state. Equal states make equal bytes.
pub fn write_state(state: &State, out: &mut dyn Write) -> Result<(), CodecError> {
    write_as(STATE_VERSION, state, out)
}

fn write_as(version: u16, state: &impl Stored, out: &mut dyn Write) -> Result<(), CodecError> {
    let mut sink = Sink {
        out,
        version,
        piece: version.to_le_bytes().to_vec(),
        written: 0,
    };
    state.store(&mut sink)?;
    sink.flush()
}

/// As an older version wrote it.
#[cfg(test)]
pub(super) fn written_as(version: u16, state: &impl Stored) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    write_as(version, state, &mut bytes)?;
    Ok(bytes)
}

/// Reads a state to the end of `input`: a peer's snapshot, a file, or what the release before left on
/// our own disk.
pub fn read_state(input: &mut dyn Read) -> Result<State, CodecError> {
    let mut source = Source {
        input: BufReader::with_capacity(PIECE_BYTES, input.take(limits::STATE_BYTES_MAX)),
        version: STATE_VERSION,
    };
    let found: u16 = source.value()?;
    if !(versions::OLDEST..=STATE_VERSION).contains(&found) {
        let known = STATE_VERSION;
        return Err(CodecError::Version { found, known });
    }
    source.version = found;
    let state = State::load(&mut source)?;
    source.end()?;
    Ok(state)
}

pub fn encode_state(state: &State) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    write_state(state, &mut bytes)?;
    Ok(bytes)
}

/// Reads a state of any version, older ones of our own disk too.
pub fn decode_state(mut bytes: &[u8]) -> Result<State, CodecError> {
    match version_of(bytes)? {
        (v1::VERSION, body) => v1::decode_state(body),
        _ => read_state(&mut bytes),
    }
}

/// SHA-256 of the written state.
pub(super) fn digest(state: &State) -> Result<[u8; 32], CodecError> {
    struct Hasher(Sha256);
    impl Write for Hasher {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = Hasher(Sha256::new());
    write_state(state, &mut hasher)?;
    Ok(hasher.0.finalize().into())
}

/// Where a state is written to.
pub(super) struct Sink<'a> {
    out: &'a mut dyn Write,
    version: u16,
    piece: Vec<u8>,
    written: u64,
}

impl Sink<'_> {
    /// Of the state that is written.
    pub fn version(&self) -> u16 {
        self.version
    }

    pub fn value<T>(&mut self, value: &T) -> Result<(), CodecError>
    where
        T: SchemaWrite<DefaultConfig, Src = T>,
    {
        T::write(&mut self.piece, value).map_err(|e| CodecError::Encode(e.to_string()))?;
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CodecError> {
        self.written += self.piece.len() as u64;
        if self.written > limits::STATE_BYTES_MAX {
            return Err(CodecError::TooLarge);
        }
        self.out.write_all(&self.piece).map_err(CodecError::Write)?;
        self.piece.clear();
        Ok(())
    }
}

/// Where a state is read from.
pub(super) struct Source<'a> {
    input: BufReader<Take<&'a mut dyn Read>>,
    version: u16,
}

impl Source<'_> {
    /// Of the state that is read.
    pub fn version(&self) -> u16 {
        self.version
    }

    pub fn value<T>(&mut self) -> Result<T, CodecError>
    where
        T: for<'de> SchemaRead<'de, DefaultConfig, Dst = T>,
    {
        T::get(&mut self.input).map_err(|e| CodecError::Damaged(e.to_string()))
    }

    fn end(&mut self) -> Result<(), CodecError> {
        match self.input.fill_buf() {
            Ok([]) => Ok(()),
            Ok(_) => Err(CodecError::Damaged("bytes follow it".into())),
            Err(error) => Err(CodecError::Damaged(error.to_string())),
        }
    }
}

/// What a state is written of: tables, areas, single values.
pub(super) trait Stored: Sized {
    fn store(&self, out: &mut Sink<'_>) -> Result<(), CodecError>;
    fn load(input: &mut Source<'_>) -> Result<Self, CodecError>;
}

/// What older versions of states have not: what stands in its place where one of them is read.
pub(super) trait Newer {
    /// It keeps nothing until the state is raised (`versions`).
    fn not_yet() -> Self;
}

/// `Stored` for a struct, field by field in the order given, which the format fixes. A field that came
/// `since` a version of states is in none of the older ones; a table that `was` of other rows has those in
/// versions `before` the one given.
macro_rules! stored {
    ($area:ident {
        $($field:ident $(since $version:literal)? $(was $old:ident before $newer:literal)?),+ $(,)?
    }) => {
        impl $crate::state::codec::Stored for $area {
            fn store(
                &self,
                out: &mut $crate::state::codec::Sink<'_>,
            ) -> Result<(), $crate::state::codec::CodecError> {
                $(stored!(@store self.$field, out $(, since $version)? $(, was $old before $newer)?);)+
                Ok(())
            }

            fn load(
                input: &mut $crate::state::codec::Source<'_>,
            ) -> Result<Self, $crate::state::codec::CodecError> {
                $(let $field = stored!(@load input $(, since $version)? $(, was $old before $newer)?);)+
                Ok(Self { $($field),+ })
            }
        }
    };
    (@store $field:expr, $out:ident) => {
        $field.store($out)?
    };
    (@store $field:expr, $out:ident, since $version:literal) => {
        if $out.version() >= $version {
            $field.store($out)?;
        }
    };
    (@store $field:expr, $out:ident, was $old:ident before $newer:literal) => {
        match $out.version() >= $newer {
            true => $field.store($out)?,
            false => $field.with_rows::<$old>().store($out)?,
        }
    };
    (@load $input:ident) => {
        $crate::state::codec::Stored::load($input)?
    };
    (@load $input:ident, since $version:literal) => {
        match $input.version() >= $version {
            true => $crate::state::codec::Stored::load($input)?,
            false => $crate::state::codec::Newer::not_yet(),
        }
    };
    (@load $input:ident, was $old:ident before $newer:literal) => {
        match $input.version() >= $newer {
            true => $crate::state::codec::Stored::load($input)?,
            false => {
                let old: $crate::state::table::Table<_, $old> =
                    $crate::state::codec::Stored::load($input)?;
                old.with_rows()
            }
        }
    };
}
pub(super) use stored;

/// `Stored` for types that wincode writes.
macro_rules! stored_value {
    ($($value:ty),+ $(,)?) => {$(
        impl $crate::state::codec::Stored for $value {
            fn store(
                &self,
                out: &mut $crate::state::codec::Sink<'_>,
            ) -> Result<(), $crate::state::codec::CodecError> {
                out.value(self)
            }

            fn load(
                input: &mut $crate::state::codec::Source<'_>,
            ) -> Result<Self, $crate::state::codec::CodecError> {
                input.value()
            }
        }
    )+};
}
pub(super) use stored_value;

stored_value!(bool, u32, u64);

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
