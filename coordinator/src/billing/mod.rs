//! Prices, and what every account has used.
//!
//! Neighbours: `state` keeps the totals; the gateway prices each request and records it through
//! the state.

pub mod price;
pub mod usage;

use crate::state::PriceList;
use trireme_shared::ids::NanoUsd;

/// The price of a model nobody priced: 20, 5 and 60 dollars for a thousand million input, cached
/// input and output tokens.
pub const DEFAULT_PRICES: PriceList = PriceList {
    input: NanoUsd(20_000_000),
    cached_input: NanoUsd(5_000_000),
    output: NanoUsd(60_000_000),
};
