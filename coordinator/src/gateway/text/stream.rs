//! Ids to text, piece by piece.

use super::pieces::Pieces;

/// Turns a stream of ids into text without ever emitting half a character. `push` returns the text
/// that became certain; `finish` what is left (U+FFFD for bytes that never became a character).
/// Special tokens are left out.
pub struct StreamDecoder<'a> {
    pieces: &'a Pieces,
    /// The start of a character whose rest has not come: at most three bytes between calls.
    pending: Vec<u8>,
    at_start: bool,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(pieces: &'a Pieces) -> Self {
        Self {
            pieces,
            pending: Vec::new(),
            at_start: true,
        }
    }

    pub fn push(&mut self, id: u32) -> String {
        if self.pieces.is_special(id) {
            return String::new();
        }
        let mut bytes = self.pieces.bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if self.pieces.drops_first_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        let (text, rest) = certain(&self.pending);
        self.pending = rest;
        text
    }

    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// The text that no further byte can change, and the bytes after it. Bytes that can be no part of a
/// character become U+FFFD, as `String::from_utf8_lossy` has it.
fn certain(mut bytes: &[u8]) -> (String, Vec<u8>) {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(rest) => {
                text.push_str(rest);
                return (text, Vec::new());
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(bad) = error.error_len() else {
                    return (text, rest.to_vec());
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[bad..];
            }
        }
    }
}
