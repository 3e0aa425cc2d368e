//! What a request needs before it is served: money for the worst case, and its part of every limit that
//! its tenant and its key have. Pure.
//!
//! Keeps true: what is held covers the request whatever comes of it: no prompt token is found cached, and
//! every choice runs to its last token. A request that did not say how long its answer may be is
//! shortened to what there is for it (at least `limits::HOLD_TOKENS_LEAST`), one that did is refused.

use super::purse::Need;
use crate::gateway::usage::Payer;
use crate::state::{Amounts, Counts, Limits, PriceList, Shortage, State, Subject};
use trireme_shared::ids::{NanoUsd, Tokens};
use trireme_shared::limits;

/// What somebody wants served.
#[derive(Clone, Debug)]
pub struct Wish {
    pub model: String,
    /// Of each prompt: its tokens, and how many each of its choices may have.
    pub prompts: Vec<(u64, u32)>,
    pub choices_per_prompt: u64,
    /// The caller left the length of the answer to us.
    pub may_shorten: bool,
}

/// What must be held for a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    pub needs: Vec<Need>,
    /// No choice may be longer than this, where that is less than was wished.
    pub shortened: Option<u32>,
}

/// Why there is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    pub subject: Subject,
    pub why: Shortage,
    /// Milliseconds until there may be, as far as that is a matter of time.
    pub retry_after_ms: Option<u64>,
}

/// `free` is what this gateway was lent already; `now_ms` milliseconds since 1970.
pub fn needs(
    state: &State,
    payer: &Payer,
    wish: &Wish,
    free: impl Fn(Subject) -> Amounts,
    now_ms: u64,
) -> Result<Needs, Denied> {
    let price = state.price(&wish.model, now_ms / 1_000);
    let subjects = bounded(state, payer);
    let needs_at = |longest: u32| -> Vec<Need> {
        let whole = wish.amounts(&price, longest);
        let of = subjects.iter().map(|bounds| Need {
            subject: bounds.subject,
            amounts: bounds.of(whole),
        });
        of.filter(|need| need.amounts != Amounts::default())
            .collect()
    };
    let shortage = |needs: &[Need]| {
        needs.iter().find_map(|need| {
            let missing = need.amounts.minus(free(need.subject));
            if missing == Amounts::default() {
                return None;
            }
            let (why, retry_after_ms) = state.shortage(need.subject, &missing, now_ms)?;
            Some(Denied {
                subject: need.subject,
                why,
                retry_after_ms,
            })
        })
    };
    let longest = wish.prompts.iter().map(|(_, max)| *max).max().unwrap_or(0);
    let wished = needs_at(longest);
    let Some(denied) = shortage(&wished) else {
        return Ok(Needs {
            needs: wished,
            shortened: None,
        });
    };
    let least = longest.min(limits::HOLD_TOKENS_LEAST);
    if !wish.may_shorten || least == longest {
        return Err(denied);
    }
    if let Some(denied) = shortage(&needs_at(least)) {
        return Err(denied);
    }
    // `good` can be held, `bad` cannot.
    let (mut good, mut bad) = (least, longest);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match shortage(&needs_at(middle)) {
            None => good = middle,
            Some(_) => bad = middle,
        }
    }
    Ok(Needs {
        needs: needs_at(good),
        shortened: Some(good),
    })
}

impl Wish {
    /// Where no choice is longer than `longest`.
    fn amounts(&self, price: &PriceList, longest: u32) -> Amounts {
        let prompt: u64 = self.prompts.iter().map(|(tokens, _)| *tokens).sum();
        let lengths = self
            .prompts
            .iter()
            .map(|(_, max)| u64::from(*max.min(&longest)));
        let completion = lengths.sum::<u64>().saturating_mul(self.choices_per_prompt);
        // Whichever of the two is dearer: usually a token that was not found.
        let cost = |cached| price.cost(&Counts::new(prompt, cached, completion));
        Amounts {
            money: cost(0).max(cost(prompt)),
            requests: 1,
            tokens: Tokens(prompt.saturating_add(completion)),
            slots: 1,
        }
    }
}

/// What of a subject is bounded.
struct Bounded {
    subject: Subject,
    money: bool,
    limits: Limits,
}

impl Bounded {
    fn of(&self, whole: Amounts) -> Amounts {
        let limits = &self.limits;
        let tokens = limits.tokens_per_minute.is_some() || limits.tokens_per_day.is_some();
        Amounts {
            money: if self.money { whole.money } else { NanoUsd(0) },
            requests: limits.requests_per_minute.map_or(0, |_| whole.requests),
            tokens: if tokens { whole.tokens } else { Tokens(0) },
            slots: limits.concurrency.map_or(0, |_| whole.slots),
        }
    }
}

fn bounded(state: &State, payer: &Payer) -> Vec<Bounded> {
    let tenant = state.tenant(payer.tenant).map(|tenant| Bounded {
        subject: Subject::Tenant(tenant.id),
        money: true,
        limits: tenant.settings.limits.clone(),
    });
    let key = state.key(payer.key).map(|key| Bounded {
        subject: Subject::Key(key.line),
        money: key.settings.monthly_budget.is_some(),
        limits: key.settings.limits.clone(),
    });
    tenant.into_iter().chain(key).collect()
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
