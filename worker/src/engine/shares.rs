//! How a step is shared between tenants, so that one with much to do makes it no longer for the others
//! than their share allows. Pure.
//!
//! A tenant with weight `w` of all those that have something to do, `W`, may expect its sequences to go on
//! at `w/W` of the pace they would have alone: no step should take more than `W/w` times what its own part
//! of it would take. So a step's length is bounded by the tenant that has least to do for its weight, and
//! the tokens that fit into that are given out by weight, max-min (Bertsekas and Gallager, "Data Networks",
//! 2nd ed. 1992, 6.5.2): who wants less than its share gets all of it, who wants more shares the rest. Parts
//! of a token are owed from step to step, as by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995).
//!
//! How long steps take is learnt from those that were run ([`Pace`]): on a CPU nearly in proportion to
//! their tokens, on a GPU hardly longer with many than with one. There nothing needs to be cut, and nothing
//! is. With one tenant nothing ever is. Its only user is the batcher.

use std::collections::BTreeMap;
use std::time::Duration;
use trireme_shared::ids::TenantId;

/// Powers of two up to 1,024 tokens, more than a step has.
const CLASSES: usize = 11;

/// How much a new measurement counts against those before it.
const NEW: f64 = 1.0 / 8.0;

/// What a quotient may be off by, of itself.
const ROUNDING: f64 = 1e-9;

/// The lengths of steps by their tokens, as they were seen last.
#[derive(Debug, Default)]
pub struct Pace {
    /// By the logarithm of a step's tokens.
    classes: [Option<Point>; CLASSES],
}

#[derive(Clone, Copy, Debug)]
struct Point {
    tokens: f64,
    seconds: f64,
}

impl Pace {
    /// A step of `tokens` took so long, from its plan to its results. One that took far too long (the
    /// machine slept) counts as twice the usual, or as what is expected by others that are known.
    pub fn took(&mut self, tokens: usize, took: Duration) {
        let class = tokens.max(1).ilog2() as usize;
        let (tokens, seconds) = (tokens as f64, took.as_secs_f64());
        let expected = self.seconds(tokens).unwrap_or(seconds);
        match &mut self.classes[class.min(CLASSES - 1)] {
            Some(known) => {
                known.tokens += NEW * (tokens - known.tokens);
                known.seconds += NEW * (seconds.min(2.0 * known.seconds) - known.seconds);
            }
            unknown => {
                let seconds = seconds.min(2.0 * expected);
                *unknown = Some(Point { tokens, seconds });
            }
        }
    }

    /// What is known, by tokens; none takes longer than one with more tokens. The first is what a step takes
    /// whatever it has, going by the smallest two that were seen, and nothing where only one was.
    fn points(&self) -> Vec<Point> {
        let mut points: Vec<_> = self.classes.iter().flatten().copied().collect();
        let mut shortest = f64::INFINITY;
        for point in points.iter_mut().rev() {
            shortest = shortest.min(point.seconds);
            point.seconds = shortest;
        }
        let seconds = match points[..] {
            [a, b, ..] => a.seconds - a.tokens * (b.seconds - a.seconds) / (b.tokens - a.tokens),
            _ => 0.0,
        };
        let nothing = Point {
            tokens: 0.0,
            seconds: seconds.max(0.0),
        };
        points.insert(0, nothing);
        points
    }

    /// Seconds that a step of so many tokens takes; more than were ever seen take that much longer. `None`
    /// where nothing was seen.
    fn seconds(&self, tokens: f64) -> Option<f64> {
        let points = self.points();
        let last = points.last().filter(|last| last.tokens > 0.0)?;
        let between = points.windows(2).find(|pair| tokens <= pair[1].tokens);
        Some(match between {
            Some(pair) => {
                let part = (tokens - pair[0].tokens) / (pair[1].tokens - pair[0].tokens);
                pair[0].seconds + part * (pair[1].seconds - pair[0].seconds)
            }
            None => last.seconds * tokens / last.tokens,
        })
    }

    /// How many tokens a step of so many may have beside them, to be so many times as long, and `longest` at
    /// most. `None` where nothing was seen.
    pub fn longer(&self, tokens: usize, times: usize, longest: Duration) -> Option<usize> {
        let seconds = self.seconds(tokens as f64)? * times as f64;
        let all = self.tokens(seconds.min(longest.as_secs_f64()))?;
        Some((all - tokens as f64).max(0.0) as usize)
    }

    /// What one token more makes a step of so many longer, in parts of what each of those takes. `None` where
    /// nothing was seen.
    pub fn price(&self, tokens: usize) -> Option<f64> {
        const MORE: f64 = 4.0;
        let tokens = tokens as f64;
        let now = self.seconds(tokens)?;
        let more = (self.seconds(tokens + MORE)? - now) / MORE;
        (now > 0.0).then(|| more * tokens / now)
    }

    /// The most tokens that a step of so many seconds has, by the same measure.
    fn tokens(&self, seconds: f64) -> Option<f64> {
        let points = self.points();
        let last = points.last().filter(|last| last.seconds > 0.0)?;
        let between = points.windows(2).find(|pair| seconds < pair[1].seconds);
        Some(match between {
            Some(pair) => {
                let part = (seconds - pair[0].seconds) / (pair[1].seconds - pair[0].seconds);
                pair[0].tokens + part * (pair[1].tokens - pair[0].tokens)
            }
            None => last.tokens * seconds / last.seconds,
        })
    }
}

/// What a tenant could have in the next step.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub weight: u32,
    /// More than 0.
    pub tokens: usize,
}

#[derive(Debug, Default)]
pub struct Shares {
    pub pace: Pace,
    /// Parts of a token that tenants were not given yet.
    owed: BTreeMap<TenantId, f64>,
}

impl Shares {
    /// The most tokens that each tenant gets in the next step; all that it wants where it is alone, or
    /// nothing is known yet of how long steps take.
    pub fn give(&mut self, demands: &BTreeMap<TenantId, Demand>) -> BTreeMap<TenantId, usize> {
        let wanted = |demand: &Demand| demand.tokens as f64;
        let all: f64 = demands.values().map(wanted).sum();
        let level = match self.room(demands) {
            Some(room) if room < all => level(demands, room),
            _ => f64::INFINITY,
        };
        self.owed.retain(|tenant, _| demands.contains_key(tenant));
        let mut given = BTreeMap::new();
        for (tenant, demand) in demands {
            let share = level * f64::from(demand.weight);
            // A share is a quotient: what is missing of a whole token may be its rounding.
            let tokens = if share * (1.0 + ROUNDING) >= wanted(demand) {
                self.owed.remove(tenant);
                demand.tokens
            } else {
                let owed = self.owed.entry(*tenant).or_default();
                *owed += share;
                let whole = (*owed * (1.0 + ROUNDING)).floor();
                *owed = (*owed - whole).max(0.0);
                demand.tokens.min(whole as usize)
            };
            given.insert(*tenant, tokens);
        }
        given
    }

    /// Tokens of the longest step that takes from nobody: `None` where there is no bound.
    fn room(&self, demands: &BTreeMap<TenantId, Demand>) -> Option<f64> {
        if demands.len() < 2 {
            return None;
        }
        let weights: f64 = demands.values().map(|d| f64::from(d.weight)).sum();
        let mut longest = f64::INFINITY;
        // By weight alone, whatever the measurements say: so much the least of them leaves to all.
        let mut least = f64::INFINITY;
        for demand in demands.values() {
            let shares = weights / f64::from(demand.weight);
            let tokens = demand.tokens as f64;
            longest = longest.min(shares * self.pace.seconds(tokens)?);
            least = least.min(shares * tokens);
        }
        Some(self.pace.tokens(longest)?.max(least))
    }
}

/// Tokens for each unit of weight, so that all together have `room` of them.
fn level(demands: &BTreeMap<TenantId, Demand>, room: f64) -> f64 {
    let for_its_weight = |d: &Demand| d.tokens as f64 / f64::from(d.weight);
    let mut rising: Vec<_> = demands.values().collect();
    rising.sort_by(|a, b| for_its_weight(a).total_cmp(&for_its_weight(b)));
    let mut weights: f64 = rising.iter().map(|d| f64::from(d.weight)).sum();
    let mut left = room;
    for demand in rising {
        let level = left / weights;
        if for_its_weight(demand) > level {
            return level;
        }
        left -= demand.tokens as f64;
        weights -= f64::from(demand.weight);
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps take 4 ms and 1.5 ms a token.
    fn length(tokens: usize) -> Duration {
        Duration::from_micros(4_000 + 1_500 * tokens as u64)
    }

    fn learnt(steps: &[usize]) -> Shares {
        let mut shares = Shares::default();
        for &tokens in steps {
            shares.pace.took(tokens, length(tokens));
        }
        shares
    }

    fn demands(of: &[(u32, usize)]) -> BTreeMap<TenantId, Demand> {
        let demand = |&(weight, tokens)| Demand { weight, tokens };
        let tenants = (1..).map(TenantId);
        tenants.zip(of.iter().map(demand)).collect()
    }

    fn given(shares: &mut Shares, of: &[(u32, usize)]) -> Vec<usize> {
        shares.give(&demands(of)).into_values().collect()
    }

    #[test]
    fn a_flood_leaves_another_its_part_of_the_pace_it_has_alone() {
        let mut shares = learnt(&[1, 2, 4, 8, 16, 32, 64]);
        // Twice the 5.5 ms that one token takes are 4.67 tokens.
        let mut sum = 0;
        for _ in 0..300 {
            let tokens = given(&mut shares, &[(1, 1), (1, 64)]);
            assert_eq!(tokens[0], 1);
            assert!(length(1 + tokens[1]) <= 2 * length(1) + Duration::from_micros(1_500));
            sum += tokens[1];
        }
        assert!((1_095..=1_105).contains(&sum), "{sum}");
        // With three times the weight a step may be 4/3 as long, of the same 5.5 ms: 2.2 tokens.
        let sum: usize = (0..300)
            .map(|_| given(&mut shares, &[(3, 1), (1, 64)])[1])
            .sum();
        assert!((365..=367).contains(&sum), "{sum}");
    }

    #[test]
    fn nothing_is_cut_alone_or_before_anything_is_known_or_where_length_costs_nothing() {
        let mut shares = learnt(&[1, 64]);
        assert_eq!(given(&mut shares, &[(1, 500)]), [500]);
        assert_eq!(given(&mut Shares::default(), &[(1, 1), (1, 64)]), [1, 64]);
        // Twice as long with 128 as with one.
        let mut flat = Shares::default();
        for tokens in [1, 2, 4, 8, 16, 32, 64, 128] {
            flat.pace
                .took(tokens, Duration::from_micros(2_000 + 15 * tokens as u64));
        }
        assert_eq!(given(&mut flat, &[(1, 1), (1, 127)]), [1, 127]);
    }

    #[test]
    fn shares_are_of_weight_and_what_one_does_not_want_is_the_others() {
        let mut shares = learnt(&[1, 2, 4, 8, 16, 32, 64]);
        let mut sums = [0; 3];
        for _ in 0..1_000 {
            let tokens = given(&mut shares, &[(2, 2), (1, 50), (3, 60)]);
            sums.iter_mut().zip(tokens).for_each(|(sum, n)| *sum += n);
        }
        assert_eq!(sums[0], 2_000, "what it wants, of more than it is due");
        assert!(sums[2].abs_diff(3 * sums[1]) <= 3, "{sums:?}");
        // Six shares of a step of two, 7 ms of 2: 21 ms, 11.3 tokens.
        assert!(
            (11_300..11_350).contains(&sums.iter().sum::<usize>()),
            "{sums:?}"
        );
    }

    #[test]
    fn who_wants_least_for_its_weight_has_it_in_each_step() {
        for weight in 1..=100 {
            // One token seems to take a 64th of such a step: its own share is all there is.
            let mut shares = learnt(&[64]);
            for _ in 0..3 {
                let tokens = given(&mut shares, &[(weight, 1), (1, 64), (7, 64)]);
                assert_eq!(tokens[0], 1, "{weight}");
            }
        }
    }

    #[test]
    fn one_of_little_weight_has_its_turns_too() {
        let mut shares = learnt(&[1, 64]);
        let mut sums = [0; 2];
        for _ in 0..1_000 {
            let tokens = given(&mut shares, &[(1, 10), (99, 30)]);
            sums.iter_mut().zip(tokens).for_each(|(sum, n)| *sum += n);
        }
        assert!(sums[0] > 100, "{sums:?}");
    }

    #[test]
    fn what_was_never_seen_is_found_out_and_a_stall_is_forgotten() {
        // Only the flood's steps are known: one token seems to take a 64th of them.
        let mut shares = learnt(&[64]);
        assert_eq!(given(&mut shares, &[(1, 1), (1, 64)]), [1, 1]);
        for _ in 0..100 {
            let tokens = given(&mut shares, &[(1, 1), (1, 64)]).iter().sum();
            shares.pace.took(tokens, length(tokens));
        }
        let sum: usize = (0..30)
            .map(|_| given(&mut shares, &[(1, 1), (1, 64)])[1])
            .sum();
        assert!(
            (90..=140).contains(&sum),
            "{sum}: as if all were known, or near it"
        );

        shares.pace.took(1, length(1));
        shares.pace.took(1, Duration::from_secs(60));
        let seconds = shares.pace.seconds(1.0).unwrap();
        assert!(seconds <= 1.2 * length(1).as_secs_f64(), "{seconds}");
    }
}
