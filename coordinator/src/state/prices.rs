//! What tokens cost: price lists by model and the second they are in force from, and the platform's
//! part of it. Pure integer arithmetic.
//!
//! Kept true: a list that is or was in force never changes, so that a request can be priced at any time
//! after it; a cost is the exact sum of its parts, rounded up once to the next nano-dollar.

use super::codec::{stored, stored_value};
use super::requests::Counts;
use super::table::Table;
use super::{Outcome, Refusal};
use trireme_shared::ids::{BasisPoints, NanoUsd, Tokens};
use wincode::{SchemaRead, SchemaWrite};

/// Prices are for this many tokens.
const TOKENS_PER_PRICE: i128 = 1_000_000;

/// All of a charge, in basis points.
pub(super) const WHOLE: BasisPoints = BasisPoints(10_000);

/// What the platform keeps of a charge where nobody said otherwise: a tenth.
pub const DEFAULT_FEE: BasisPoints = BasisPoints(1_000);

/// What a model's requests cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PriceList {
    /// For a million prompt tokens that were computed.
    pub input: NanoUsd,
    /// For a million prompt tokens that were found in the KV cache.
    pub cached_input: NanoUsd,
    /// For a million generated tokens.
    pub output: NanoUsd,
    /// The least that a request costs of which any generated token was delivered.
    pub minimum: NanoUsd,
}

/// The price of a model nobody priced: 20, 5 and 60 dollars for a thousand million input, cached
/// input and output tokens.
pub const DEFAULT_PRICES: PriceList = PriceList {
    input: NanoUsd(20_000_000),
    cached_input: NanoUsd(5_000_000),
    output: NanoUsd(60_000_000),
    minimum: NanoUsd(0),
};

impl PriceList {
    /// What a request with those counts costs. More cached tokens than prompt tokens count as all of
    /// them; a cost beyond `i64` (nine thousand million dollars) is held there.
    pub fn cost(&self, counts: &Counts) -> NanoUsd {
        self.break_down(counts).cost()
    }

    /// How that cost comes about.
    pub fn break_down(&self, counts: &Counts) -> CostBreakdown {
        let cached = counts.cached.0.min(counts.prompt.0);
        let priced = |tokens: u64, price: NanoUsd| Priced {
            tokens: Tokens(tokens),
            price: NanoUsd(price.0.max(0)),
        };
        CostBreakdown {
            input: priced(counts.prompt.0 - cached, self.input),
            cached_input: priced(cached, self.cached_input),
            output: priced(counts.completion.0, self.output),
            minimum: match counts.completion.0 {
                0 => NanoUsd(0),
                _ => self.minimum,
            },
        }
    }
}

/// Tokens of one kind, and what a million of them cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priced {
    pub tokens: Tokens,
    pub price: NanoUsd,
}

impl Priced {
    /// Exactly: in millionths of a nano-dollar.
    pub fn amount_femto_usd(&self) -> i128 {
        i128::from(self.tokens.0) * i128::from(self.price.0)
    }
}

/// What a cost is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostBreakdown {
    pub input: Priced,
    pub cached_input: Priced,
    pub output: Priced,
    /// The least that it comes to.
    pub minimum: NanoUsd,
}

impl CostBreakdown {
    /// Exactly: in millionths of a nano-dollar.
    pub fn sum_femto_usd(&self) -> i128 {
        let parts = [self.input, self.cached_input, self.output];
        let amounts = parts.iter().map(Priced::amount_femto_usd);
        amounts.fold(0, i128::saturating_add)
    }

    /// The sum, rounded up to the next nano-dollar.
    pub fn rounded(&self) -> NanoUsd {
        let rounded = self.sum_femto_usd().saturating_add(TOKENS_PER_PRICE - 1) / TOKENS_PER_PRICE;
        NanoUsd(i64::try_from(rounded).unwrap_or(i64::MAX))
    }

    pub fn cost(&self) -> NanoUsd {
        self.rounded().max(self.minimum)
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Prices {
    /// By the model's name and the second (since 1970) from which on the list is in force.
    pub lists: Table<(String, u64), PriceList>,
    pub fee: BasisPoints,
}

stored_value!(BasisPoints);
stored!(Prices { lists, fee });

impl Default for Prices {
    fn default() -> Self {
        Self {
            lists: Table::default(),
            fee: DEFAULT_FEE,
        }
    }
}

impl Prices {
    /// `effective_from` and `now`: seconds since 1970; `effective_from` 0 is the next second, so that no
    /// second that has begun changes its prices.
    pub fn put(
        &mut self,
        model: &str,
        effective_from: u64,
        list: PriceList,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        let PriceList {
            input,
            cached_input,
            output,
            minimum,
        } = list;
        if [input, cached_input, output, minimum]
            .iter()
            .any(|p| p.0 < 0)
        {
            return Err(Refusal::NegativePrice);
        }
        let from = match effective_from {
            0 => now.saturating_add(1),
            from => from,
        };
        if from <= now {
            return Err(Refusal::PriceInForce);
        }
        self.lists.insert((model.to_owned(), from), list);
        Ok(Outcome::Done)
    }

    /// `fee`: what the platform keeps of each charge from now on.
    pub fn set_fee(&mut self, fee: BasisPoints) -> Result<Outcome, Refusal> {
        if fee > WHOLE {
            return Err(Refusal::FeeRange);
        }
        self.fee = fee;
        Ok(Outcome::Done)
    }

    /// The list by which a request of that model is priced that began in that second since 1970.
    pub fn in_force(&self, model: &str, at: u64) -> PriceList {
        let since = (model.to_owned(), 0)..=(model.to_owned(), at);
        let newest = self.lists.range(since).next_back();
        newest.map_or(DEFAULT_PRICES, |(_, list)| *list)
    }

    /// Of one model: since when each is in force, and the list, by time.
    pub fn of<'a>(&'a self, model: &str) -> impl Iterator<Item = (u64, &'a PriceList)> + use<'a> {
        let all = (model.to_owned(), 0)..=(model.to_owned(), u64::MAX);
        self.lists.range(all).map(|((_, from), list)| (*from, list))
    }

    pub fn check(&self) -> Result<(), String> {
        if self.fee > WHOLE {
            return Err("the platform's fee is more than all".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "prices_tests.rs"]
mod tests;
