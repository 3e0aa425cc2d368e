//! What the commands of accounts share: amounts of money, bounds, and how they are shown.

use clap::Args;
use trireme_shared::api::{Left, Limits};
use trireme_shared::ids::{KeyId, NanoUsd};

/// Dollars as people write them (12.50), exactly.
pub fn dollars(text: &str) -> Result<NanoUsd, String> {
    NanoUsd::from_dollars(text.trim_start_matches('$'))
        .ok_or_else(|| "write dollars like 12.50, with up to nine decimals".to_owned())
}

/// A bound that is set, or taken away (`none`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<T>(pub Option<T>);

pub fn money_bound(text: &str) -> Result<Bound<NanoUsd>, String> {
    match text {
        "none" => Ok(Bound(None)),
        text => dollars(text)
            .map(|amount| Bound(Some(amount)))
            .map_err(|why| format!("{why}, or none")),
    }
}

fn count_bound(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "none" => Ok(Bound(None)),
        text => text
            .parse()
            .map(|count| Bound(Some(count)))
            .map_err(|_| "give a whole number, or none".to_owned()),
    }
}

/// Bounds to be changed; those that are not given stay.
#[derive(Args, Clone)]
pub struct LimitArgs {
    /// Requests begun in any minute, or none for no limit
    #[arg(long, value_name = "N", value_parser = count_bound)]
    requests_per_minute: Option<Bound<u64>>,
    /// Prompt and generated tokens in any minute, or none
    #[arg(long, value_name = "N", value_parser = count_bound)]
    tokens_per_minute: Option<Bound<u64>>,
    /// Prompt and generated tokens in a day (UTC), or none
    #[arg(long, value_name = "N", value_parser = count_bound)]
    tokens_per_day: Option<Bound<u64>>,
    /// Requests that run at once, or none
    #[arg(long, value_name = "N", value_parser = count_bound)]
    concurrency: Option<Bound<u64>>,
    /// Dollars that may be charged in a month (UTC), or none
    #[arg(long, value_name = "DOLLARS", value_parser = money_bound)]
    monthly_budget: Option<Bound<NanoUsd>>,
}

impl LimitArgs {
    pub fn change(&self, limits: &mut Limits, budget: &mut Option<NanoUsd>) {
        for (given, limit) in [
            (self.requests_per_minute, &mut limits.requests_per_minute),
            (self.tokens_per_minute, &mut limits.tokens_per_minute),
            (self.tokens_per_day, &mut limits.tokens_per_day),
            (self.concurrency, &mut limits.concurrency),
        ] {
            if let Some(Bound(bound)) = given {
                *limit = bound;
            }
        }
        if let Some(Bound(bound)) = self.monthly_budget {
            *budget = bound;
        }
    }
}

/// `k3` or `3`.
pub fn key_id(text: &str) -> Result<KeyId, String> {
    let number = text.strip_prefix('k').unwrap_or(text).parse();
    number
        .map(KeyId)
        .map_err(|_| "give the number that `cluster key list` shows, such as k3".to_owned())
}

/// Dollars, or `-` where there is no such bound.
pub fn money(amount: Option<NanoUsd>) -> String {
    amount.map_or_else(|| "-".to_owned(), NanoUsd::dollars)
}

/// Rows of a table of two columns: each bound that is set, and what is left of it.
pub fn bounds(limits: &Limits, budget: Option<NanoUsd>, left: &Left) -> Vec<Vec<String>> {
    let counts = [
        (
            "requests a minute",
            limits.requests_per_minute,
            left.requests_per_minute,
        ),
        (
            "tokens a minute",
            limits.tokens_per_minute,
            left.tokens_per_minute,
        ),
        ("tokens a day", limits.tokens_per_day, left.tokens_per_day),
        ("requests at once", limits.concurrency, left.concurrency),
    ];
    let counts = counts.into_iter().filter_map(|(name, limit, left)| {
        let (limit, left) = (limit?, left.unwrap_or_default());
        Some(vec![name.to_owned(), format!("{limit}, {left} left")])
    });
    let budget = budget.map(|budget| {
        let left = money(left.monthly_budget_nano_usd);
        vec![
            "monthly budget".to_owned(),
            format!("{}, {left} left", budget.dollars()),
        ]
    });
    counts.chain(budget).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_bounds_are_read_as_people_write_them() {
        assert_eq!(dollars("12.50"), Ok(NanoUsd(12_500_000_000)));
        assert_eq!(dollars("$0.1"), Ok(NanoUsd(100_000_000)));
        assert_eq!(dollars("-3"), Ok(NanoUsd(-3_000_000_000)));
        assert!(dollars("1e3").is_err());
        assert_eq!(money_bound("none"), Ok(Bound(None)));
        assert_eq!(money_bound("5"), Ok(Bound(Some(NanoUsd(5_000_000_000)))));
        assert_eq!(count_bound("60"), Ok(Bound(Some(60))));
        assert!(count_bound("-1").is_err());
        assert_eq!(key_id("k3"), Ok(KeyId(3)));
        assert!(key_id("t3").is_err());
    }

    #[test]
    fn what_is_not_given_stays() {
        let args = LimitArgs {
            requests_per_minute: Some(Bound(Some(5))),
            tokens_per_minute: Some(Bound(None)),
            tokens_per_day: None,
            concurrency: None,
            monthly_budget: None,
        };
        let mut limits = Limits {
            tokens_per_minute: Some(1),
            concurrency: Some(2),
            ..Limits::default()
        };
        let mut budget = Some(NanoUsd(7));
        args.change(&mut limits, &mut budget);
        assert_eq!(
            limits,
            Limits {
                requests_per_minute: Some(5),
                concurrency: Some(2),
                ..Limits::default()
            }
        );
        assert_eq!(budget, Some(NanoUsd(7)));
    }
}
