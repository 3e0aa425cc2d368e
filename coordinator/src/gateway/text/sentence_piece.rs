//! SentencePiece's BPE (Kudo and Richardson 2018; `bpe_model.cc` of its repository): which pieces a
//! text is made of, by their scores.
//!
//! Keeps true: ids are those of SentencePiece's own encoder. Of all neighbours the two whose joined
//! piece has the highest score are joined first, of equals the leftmost; what ends as no piece
//! becomes the pieces of its bytes. The tokenizers crate ranks pairs, each differently, while all
//! pairs that make one piece are equal here, so its ids would be near-right ones.
//! Neighbours: `gguf` reads the vocabulary; added tokens are found by the tokenizers crate.

use super::TextError;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use tokenizers::tokenizer::AddedVocabulary;
use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType};
use trireme_shared::limits;

/// A piece that text can become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub id: u32,
    pub score: f32,
    /// Others are made through it, but it is taken apart again.
    pub is_unused: bool,
}

/// A vocabulary, ready to encode. Immutable.
pub(super) struct SentencePiece {
    pieces: HashMap<String, Piece>,
    /// The piece of each byte.
    bytes: [u32; 256],
    /// Bytes of the longest piece.
    longest: usize,
    /// A space is put before the text, and before what follows an added token.
    space_prefix: bool,
}

impl SentencePiece {
    /// `pieces` without those of bytes and what no text may become.
    ///
    /// # Errors
    /// Names the piece that is there twice, is too long or has no finite score.
    pub(super) fn new(
        pieces: Vec<(String, Piece)>,
        bytes: [u32; 256],
        space_prefix: bool,
    ) -> Result<Self, TextError> {
        let mut known = HashMap::new();
        let mut longest = 0;
        for (text, piece) in pieces {
            let id = piece.id;
            let wrong = |what: &str| {
                Err(TextError::Tokenizer(format!(
                    "the piece of token {id} {what}: the vocabulary is damaged"
                )))
            };
            if !piece.score.is_finite() {
                return wrong("has no finite score");
            }
            if text.len() > limits::SENTENCE_PIECE_BYTES_MAX {
                return wrong("is too long");
            }
            longest = longest.max(text.len());
            if known.insert(text, piece).is_some() {
                return wrong("is there twice");
            }
        }
        Ok(Self {
            pieces: known,
            bytes,
            longest,
            space_prefix,
        })
    }

    /// Appends the ids of `text`, in which `added` finds its tokens first.
    pub(super) fn encode(&self, added: &AddedVocabulary, text: &str, ids: &mut Vec<u32>) {
        let parts = added.extract_and_normalize(None::<&NormalizerWrapper>, text);
        for (part, _, tokens) in parts.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.encode_part(part, ids),
            }
        }
    }

    /// The same of a text without added tokens, not empty.
    fn encode_part(&self, part: &str, ids: &mut Vec<u32>) {
        let prefix = if self.space_prefix { " " } else { "" };
        let text = [prefix, part].concat().replace(' ', "\u{2581}");
        let mut joining = Joining::new(self, &text);
        joining.run();
        joining.finish(ids);
    }
}

/// A run of characters that is one piece so far; one that was joined to its left has no bytes.
struct Symbol {
    start: usize,
    bytes: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours that are a piece together.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both: if they have another size by then, they are not what they were.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// A text while its symbols are being joined: in n log n steps of its length.
struct Joining<'a> {
    vocabulary: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Pair>,
    /// Of each unused piece that was seen, where its last two halves meet.
    halves: HashMap<&'a str, usize>,
}

impl<'a> Joining<'a> {
    fn new(vocabulary: &'a SentencePiece, text: &'a str) -> Self {
        let count = text.chars().count();
        let symbols = text.char_indices().enumerate();
        let symbols = symbols.map(|(n, (start, c))| Symbol {
            start,
            bytes: c.len_utf8(),
            left: n.checked_sub(1),
            right: Some(n + 1).filter(|n| *n < count),
        });
        Self {
            vocabulary,
            text,
            symbols: symbols.collect(),
            pairs: BinaryHeap::new(),
            halves: HashMap::new(),
        }
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(Some(right - 1), Some(right));
        }
        while let Some(pair) = self.pairs.pop() {
            let (left, right) = (&self.symbols[pair.left], &self.symbols[pair.right]);
            let is_stale = left.bytes == 0 || right.bytes == 0;
            if is_stale || left.bytes + right.bytes != pair.bytes {
                continue;
            }
            let (before, after) = (left.left, right.right);
            self.symbols[pair.right].bytes = 0;
            let joined = &mut self.symbols[pair.left];
            joined.bytes = pair.bytes;
            joined.right = after;
            if let Some(after) = after {
                self.symbols[after].left = Some(pair.left);
            }
            self.consider(before, Some(pair.left));
            self.consider(Some(pair.left), after);
        }
    }

    /// Notes two neighbours if they are a piece together.
    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let first = &self.symbols[left];
        let bytes = first.bytes + self.symbols[right].bytes;
        if bytes > self.vocabulary.longest {
            return;
        }
        let joined = &self.text[first.start..first.start + bytes];
        let Some(piece) = self.vocabulary.pieces.get(joined) else {
            return;
        };
        if piece.is_unused {
            self.halves.insert(joined, first.bytes);
        }
        self.pairs.push(Pair {
            // Zero has no sign here.
            score: piece.score + 0.0,
            left,
            right,
            bytes,
        });
    }

    /// The ids of what the symbols have become.
    fn finish(self, ids: &mut Vec<u32>) {
        let mut rest = Vec::new();
        for symbol in self.symbols.iter().filter(|symbol| symbol.bytes > 0) {
            rest.push(&self.text[symbol.start..symbol.start + symbol.bytes]);
            while let Some(word) = rest.pop() {
                match (self.vocabulary.pieces.get(word), self.halves.get(word)) {
                    (Some(piece), Some(at)) if piece.is_unused => {
                        let (left, right) = word.split_at(*at);
                        rest.extend([right, left]);
                    }
                    (Some(piece), _) => ids.push(piece.id),
                    (None, _) => {
                        ids.extend(word.bytes().map(|b| self.vocabulary.bytes[usize::from(b)]))
                    }
                }
            }
        }
    }
}
