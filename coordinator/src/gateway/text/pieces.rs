//! What each id stands for, as bytes.

use std::collections::HashMap;
use trireme_shared::model::byte_level::char_to_byte;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: one printable character a byte.
    ByteLevel,
    /// SentencePiece's: `▁` for a space, `<0x0A>` for a lone byte; a text's first space is dropped
    /// where `drop_first_space`.
    SentencePiece { drop_first_space: bool },
}

impl Spelling {
    fn bytes_of(self, piece: &str) -> Vec<u8> {
        match self {
            // A character outside the alphabet stands for itself: some files add plain words.
            Self::ByteLevel => match piece.chars().map(char_to_byte).collect() {
                Some(bytes) => bytes,
                None => piece.as_bytes().to_vec(),
            },
            Self::SentencePiece { .. } => match byte_of(piece) {
                Some(byte) => vec![byte],
                None => piece.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// The byte that a piece like `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_two = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_two.then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Every id's bytes in one buffer, and which ids are special.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each id's bytes end.
    ends: Vec<usize>,
    special: Vec<bool>,
    names: HashMap<String, u32>,
    spelling: Spelling,
}

impl Pieces {
    pub(super) fn new(spelling: Spelling) -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            special: Vec::new(),
            names: HashMap::new(),
            spelling,
        }
    }

    /// The next id is an ordinary piece, in the vocabulary's spelling.
    pub(super) fn push(&mut self, piece: &str) {
        let bytes = self.spelling.bytes_of(piece);
        self.push_bytes(&bytes, false);
    }

    /// The next id is a word that stands for itself; `special` ones are not part of the text.
    pub(super) fn push_literal(&mut self, name: &str, special: bool) {
        if special {
            self.names.insert(name.to_owned(), self.ends.len() as u32);
        }
        self.push_bytes(name.as_bytes(), special);
    }

    fn push_bytes(&mut self, bytes: &[u8], special: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..*end]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(super) fn special_named(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn drops_first_space(&self) -> bool {
        matches!(
            self.spelling,
            Spelling::SentencePiece {
                drop_first_space: true
            }
        )
    }
}
