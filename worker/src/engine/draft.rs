//! Speculative decoding without a second model: what a sequence says next is guessed from what it said
//! before. Pure.
//!
//! The guess is what followed the last place that ended as the sequence does now (Saxena, "Prompt Lookup
//! Decoding", 2023; Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding",
//! ICML 2023, for the principle). A step runs the last token and the guessed ones as rows of one chunk, and each
//! row draws its token by its own random number, as it would have alone; the first that differs from its guess
//! ends the chunk. So the tokens are the very ones that come without guessing, not only of their
//! distribution, whatever is guessed.
//!
//! A guess costs a row, and saves a step if it comes true. So as many are made as are expected to pay:
//! [`depth`] has the rule, [`Trust`] how often a sequence's guesses came true. Its only user is the batcher.

use trireme_shared::limits;

/// Tokens at a sequence's end that must have stood before for a guess.
const MATCH_MIN: usize = 2;
/// More of them make no better guess.
const MATCH_ENOUGH: usize = 8;

/// Up to `most` tokens that may follow: those behind the latest of the longest earlier matches of the end.
/// Looks back over `limits::DRAFT_LOOKBACK_TOKENS` at most.
pub fn propose(tokens: &[u32], most: usize) -> &[u32] {
    let Some((&last, before)) = tokens.split_last() else {
        return &[];
    };
    let mut best = (MATCH_MIN - 1, 0);
    let earliest = before.len().saturating_sub(limits::DRAFT_LOOKBACK_TOKENS);
    for at in (earliest..before.len())
        .rev()
        .filter(|at| before[*at] == last)
    {
        let ends = before[..at].iter().rev().zip(before.iter().rev());
        let alike = ends.take(MATCH_ENOUGH - 1).take_while(|(a, b)| a == b);
        let length = 1 + alike.count();
        if length > best.0 {
            best = (length, at + 1);
            if length == MATCH_ENOUGH {
                break;
            }
        }
    }
    match best {
        (_, 0) => &[],
        (_, from) => &tokens[from..tokens.len().min(from + most)],
    }
}

/// The price of a row where nothing is known of it.
pub const PRICE_UNKNOWN: f64 = 0.5;

/// How many guesses pay, where each comes true with probability `trust` if the one before it did, and a row
/// costs `price` of what a token takes now: while the chance that a row counts exceeds that.
pub fn depth(trust: f64, price: f64, most: usize) -> usize {
    let chances = std::iter::successors(Some(trust), |chance| Some(chance * trust));
    chances
        .take(most)
        .take_while(|chance| *chance > price)
        .count()
}

/// How often guesses came true lately.
#[derive(Clone, Copy, Debug)]
pub struct Trust(f64);

impl Trust {
    /// Before anything was guessed, and what it goes back to while nothing is.
    const UNKNOWN: f64 = 0.6;

    pub fn new() -> Self {
        Self(Self::UNKNOWN)
    }

    pub fn value(self) -> f64 {
        self.0
    }

    /// Of so many guesses that were looked at all came true, but perhaps the last.
    pub fn learn(&mut self, came_true: usize, looked_at: usize) {
        for guess in 0..looked_at {
            let seen = f64::from(u8::from(guess < came_true));
            self.0 += (seen - self.0) / 8.0;
        }
    }

    /// There was a guess that was not worth its price: some day it may be again.
    pub fn not_asked(&mut self) {
        self.0 += (Self::UNKNOWN - self.0) / 64.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_match_is_guessed() {
        // "4 5" stood twice before; "3 4 5" once.
        let tokens = [3, 4, 5, 6, 7, 9, 4, 5, 8, 3, 4, 5];
        assert_eq!(propose(&tokens, 3), [6, 7, 9]);
        assert_eq!(propose(&tokens, 1), [6]);
        // Of equals the latest.
        assert_eq!(propose(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        // A single token is no match, and nothing has no end.
        assert!(propose(&[1, 2, 1], 3).is_empty());
        assert!(propose(&[], 3).is_empty());
        // What repeats goes on.
        assert_eq!(propose(&[7, 8, 7, 8, 7, 8], 4), [7, 8]);
    }

    #[test]
    fn guesses_are_made_while_they_pay() {
        assert_eq!(depth(0.9, 0.5, 8), 6);
        assert_eq!(depth(0.9, 0.0, 8), 8);
        assert_eq!(depth(0.5, 0.6, 8), 0);
        let mut trust = Trust::new();
        for _ in 0..20 {
            trust.learn(4, 4);
        }
        assert!(trust.value() > 0.98);
        for _ in 0..20 {
            trust.learn(0, 1);
        }
        assert!(trust.value() < 0.1);
        for _ in 0..200 {
            trust.not_asked();
        }
        assert!(trust.value() > 0.55);
    }
}
