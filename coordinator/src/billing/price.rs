//! What tokens cost. Pure integer arithmetic.
//!
//! Keeps true: a cost is the exact sum of its parts, rounded up once to the next nano-dollar, so
//! that splitting a request into parts never makes it cheaper and no float touches money.

use crate::state::PriceList;
use trireme_shared::ids::{NanoUsd, Tokens};

/// Prices are for this many tokens.
const TOKENS_PER_PRICE: i128 = 1_000_000;

impl PriceList {
    /// What `prompt` tokens, `cached` of them found in the KV cache, and `completion` tokens cost.
    /// More cached tokens than prompt tokens count as all of them; a cost beyond `i64` (nine
    /// thousand million dollars) is held there.
    pub fn cost(&self, prompt: Tokens, cached: Tokens, completion: Tokens) -> NanoUsd {
        let cached = cached.0.min(prompt.0);
        let fresh = prompt.0 - cached;
        let part = |tokens: u64, price: NanoUsd| i128::from(tokens) * i128::from(price.0.max(0));
        let sum = part(fresh, self.input)
            .saturating_add(part(cached, self.cached_input))
            .saturating_add(part(completion.0, self.output));
        let rounded = sum.saturating_add(TOKENS_PER_PRICE - 1) / TOKENS_PER_PRICE;
        NanoUsd(i64::try_from(rounded).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: PriceList = PriceList {
        input: NanoUsd(20_000_000),
        cached_input: NanoUsd(5_000_000),
        output: NanoUsd(60_000_000),
    };

    fn cost(prompt: u64, cached: u64, completion: u64) -> i64 {
        PRICES
            .cost(Tokens(prompt), Tokens(cached), Tokens(completion))
            .0
    }

    #[test]
    fn each_kind_has_its_price() {
        assert_eq!(cost(1, 0, 0), 20);
        assert_eq!(cost(1, 1, 0), 5);
        assert_eq!(cost(0, 0, 1), 60);
        assert_eq!(cost(100, 40, 10), 60 * 20 + 40 * 5 + 10 * 60);
        assert_eq!(cost(0, 0, 0), 0);
    }

    #[test]
    fn the_sum_is_rounded_up_once() {
        let odd = PriceList {
            input: NanoUsd(1),
            cached_input: NanoUsd(1),
            output: NanoUsd(999_999),
        };
        // 1 + 1 + 999,999 millionths: 1.000001 nano-dollars.
        assert_eq!(odd.cost(Tokens(2), Tokens(1), Tokens(1)), NanoUsd(2));
        // 1 + 999,999 millionths are exactly one.
        assert_eq!(odd.cost(Tokens(1), Tokens(0), Tokens(1)), NanoUsd(1));
    }

    #[test]
    fn absurd_counts_neither_wrap_nor_turn_negative() {
        assert_eq!(cost(u64::MAX, 0, u64::MAX), i64::MAX);
        assert_eq!(cost(5, 100, 0), 25);
        let negative = PriceList {
            output: NanoUsd(-1),
            ..PRICES
        };
        assert_eq!(negative.cost(Tokens(0), Tokens(0), Tokens(9)), NanoUsd(0));
    }
}
