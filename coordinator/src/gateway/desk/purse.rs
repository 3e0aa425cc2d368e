//! What the group lent to this gateway's life, and what of it requests hold. Pure: the desk's driver
//! tells it what was granted and asks it for what is to be returned.
//!
//! Keeps true: what is free and what is held together are never more than what the state has lent to
//! this life; nothing is given out of a life that is over, or may be by the clock; a hold of an earlier
//! life comes back to nobody.

use crate::state::{Amounts, Ask, Left, Return, Subject};
use std::collections::HashMap;
use std::time::Instant;
use trireme_shared::ids::{GatewayLife, NanoUsd, Tokens};
use trireme_shared::limits;

/// What one request needs of one subject; parts that bound nothing are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub subject: Subject,
    pub amounts: Amounts,
}

/// What a request holds until it is settled. It must be given back (`Purse::put_back`).
#[derive(Debug, PartialEq, Eq)]
pub struct Hold {
    life: GatewayLife,
    needs: Vec<Need>,
}

/// What is lent of one subject.
#[derive(Debug, Default)]
struct Pocket {
    /// Held by no request.
    free: Amounts,
    /// Requests that hold some.
    holds: usize,
    /// Asks and returns under way.
    asks: usize,
    returns: usize,
    /// What the last request needed.
    usual: Amounts,
    /// For so many further requests like the last one something is asked for beforehand.
    reserve: u64,
    /// A request came since the last look.
    busy: bool,
}

impl Pocket {
    fn kept(&self) -> Amounts {
        times(self.usual, self.reserve)
    }

    /// Nothing is held or under way: what the state says of the lease is what is free.
    fn is_quiet(&self) -> bool {
        self.holds == 0 && self.asks == 0 && self.returns == 0
    }

    fn give(&mut self, subject: Subject, kept: Amounts) -> Option<Return> {
        let unneeded = self.free.minus(kept);
        if unneeded == Amounts::default() {
            return None;
        }
        self.free = self.free.minus(unneeded);
        self.returns += 1;
        Some(Return { subject, unneeded })
    }
}

/// One life's leases.
#[derive(Debug, Default)]
pub struct Purse {
    /// The life, and until when its leases are its own by this machine's clock.
    life: Option<(GatewayLife, Instant)>,
    pockets: HashMap<Subject, Pocket>,
}

/// Why nothing can be held now.
#[derive(Debug, PartialEq, Eq)]
pub enum Lacking {
    /// No life, or one that may be over: wait for the next.
    Life,
    /// These asks would do.
    Lease(Vec<Ask>),
}

impl Purse {
    /// A new life, which has nothing yet.
    pub fn begin(&mut self, life: GatewayLife, until: Instant) {
        self.pockets.clear();
        self.life = Some((life, until));
    }

    /// A report of that life was taken, which was sent `limits::GATEWAY_LEASE` before `until`.
    pub fn renewed(&mut self, life: GatewayLife, until: Instant) {
        if let Some((current, known)) = &mut self.life
            && *current == life
        {
            *known = until.max(*known);
        }
    }

    /// The state has ended that life.
    pub fn end(&mut self, life: GatewayLife) {
        if self.life.is_some_and(|(current, _)| current == life) {
            self.life = None;
            self.pockets.clear();
        }
    }

    fn is_current(&self, life: GatewayLife) -> bool {
        self.life.is_some_and(|(current, _)| current == life)
    }

    /// What is free of a subject; nothing once the life may be over.
    pub fn free(&self, subject: Subject, now: Instant) -> Amounts {
        let lives = self.life.is_some_and(|(_, until)| now < until);
        let pocket = self.pockets.get(&subject).filter(|_| lives);
        pocket.map_or_else(Amounts::default, |pocket| pocket.free)
    }

    /// Holds all of it or nothing.
    pub fn hold(&mut self, needs: &[Need], now: Instant) -> Result<Hold, Lacking> {
        let life = match self.life {
            Some((life, until)) if now < until => life,
            _ => return Err(Lacking::Life),
        };
        let mut asks = Vec::new();
        for need in needs {
            let pocket = self.pockets.entry(need.subject).or_default();
            pocket.busy = true;
            pocket.usual = need.amounts;
            let missing = need.amounts.minus(pocket.free);
            if missing == Amounts::default() {
                continue;
            }
            // Whoever comes while an ask is under way asks for itself only.
            let mut most = missing;
            if pocket.asks == 0 {
                pocket.reserve = (pocket.reserve * 2).clamp(1, limits::LEASE_RESERVE_MAX);
                most = missing.plus(pocket.kept());
            }
            pocket.asks += 1;
            asks.push(Ask {
                subject: need.subject,
                least: missing,
                most,
            });
        }
        if !asks.is_empty() {
            return Err(Lacking::Lease(asks));
        }
        for need in needs {
            let pocket = self.pockets.entry(need.subject).or_default();
            pocket.free = pocket.free.minus(need.amounts);
            pocket.holds += 1;
        }
        Ok(Hold {
            life,
            needs: needs.to_vec(),
        })
    }

    /// Asks for more of what is running low, before a request must wait for it.
    pub fn ask_ahead(&mut self, needs: &[Need]) -> Vec<Ask> {
        let mut asks = Vec::new();
        for need in needs {
            let Some(pocket) = self.pockets.get_mut(&need.subject) else {
                continue;
            };
            let low = times(need.amounts, pocket.reserve / 2).minus(pocket.free);
            if pocket.reserve > 1 && pocket.asks == 0 && low != Amounts::default() {
                pocket.asks += 1;
                asks.push(Ask {
                    subject: need.subject,
                    least: Amounts::default(),
                    most: pocket.kept().minus(pocket.free),
                });
            }
        }
        asks
    }

    /// An ask of that life was answered: so much more is free (nothing where it was denied or not told).
    pub fn answered(&mut self, life: GatewayLife, subject: Subject, granted: Amounts) {
        if !self.is_current(life) {
            return;
        }
        // An ask may have waited for this life since an earlier one.
        let pocket = self.pockets.entry(subject).or_default();
        pocket.asks = pocket.asks.saturating_sub(1);
        pocket.free = pocket.free.plus(granted);
    }

    /// The group has heard of a return.
    pub fn returned(&mut self, life: GatewayLife, subject: Subject) {
        if self.is_current(life)
            && let Some(pocket) = self.pockets.get_mut(&subject)
        {
            pocket.returns = pocket.returns.saturating_sub(1);
        }
    }

    /// An ask that was never sent.
    pub fn unasked(&mut self, subject: Subject) {
        if let Some(pocket) = self.pockets.get_mut(&subject) {
            pocket.asks = pocket.asks.saturating_sub(1);
        }
    }

    /// A request is settled, or was never served: what it held and did not use is free again.
    pub fn put_back(&mut self, hold: Hold, used: Amounts) {
        if !self.is_current(hold.life) {
            return;
        }
        for need in &hold.needs {
            if let Some(pocket) = self.pockets.get_mut(&need.subject) {
                pocket.holds = pocket.holds.saturating_sub(1);
                pocket.free = pocket.free.plus(need.amounts.minus(used));
            }
        }
    }

    /// What goes back now, once in a while (`idle`) or because little is left for other gateways: what
    /// is beyond what is kept for the next requests, and, where `left` is scarce, beyond what a new ask
    /// would be granted. It is taken out here: it must be told to the group.
    ///
    /// Where a subject is quiet, what is free is first set to what the `lease` of the state says, so that
    /// nothing that came to be counted otherwise stays lent for the whole life.
    pub fn returns(
        &mut self,
        most: usize,
        lease: impl Fn(Subject, GatewayLife) -> Amounts,
        left: impl Fn(Subject) -> Option<Left>,
    ) -> Vec<Return> {
        let Some((life, _)) = self.life else {
            return Vec::new();
        };
        let mut returns = Vec::new();
        self.pockets.retain(|subject, pocket| {
            if !std::mem::take(&mut pocket.busy) {
                pocket.reserve /= 2;
            }
            if pocket.is_quiet() {
                pocket.free = lease(*subject, life);
            }
            let mut kept = pocket.kept();
            if let Some(left) = left(*subject) {
                kept = kept.min(portion(&left));
            }
            if returns.len() < most {
                returns.extend(pocket.give(*subject, kept));
            }
            !pocket.is_quiet() || pocket.free != Amounts::default() || pocket.reserve > 0
        });
        returns
    }

    /// What of these subjects goes back at once, as there is little left for other gateways.
    pub fn scarce(
        &mut self,
        subjects: impl Iterator<Item = Subject>,
        left: impl Fn(Subject) -> Option<Left>,
    ) -> Vec<Return> {
        let mut returns = Vec::new();
        for subject in subjects {
            let (Some(pocket), Some(left)) = (self.pockets.get_mut(&subject), left(subject)) else {
                continue;
            };
            returns.extend(pocket.give(subject, portion(&left)));
        }
        returns
    }
}

impl Hold {
    pub fn subjects(&self) -> impl Iterator<Item = Subject> + use<> {
        let subjects: Vec<Subject> = self.needs.iter().map(|need| need.subject).collect();
        subjects.into_iter()
    }
}

fn times(amounts: Amounts, n: u64) -> Amounts {
    let money = i64::try_from(n).unwrap_or(i64::MAX);
    Amounts {
        money: NanoUsd(amounts.money.0.saturating_mul(money)),
        requests: amounts.requests.saturating_mul(n),
        tokens: Tokens(amounts.tokens.0.saturating_mul(n)),
        slots: amounts.slots.saturating_mul(n),
    }
}

/// What an ask for plenty would be granted of what is left; where nothing bounds it, all there can be.
fn portion(left: &Left) -> Amounts {
    let part = |left: Option<u64>| left.map_or(u64::MAX, |left| left / limits::LEASE_PARTS);
    let money = left.money().map(|m| u64::try_from(m).unwrap_or(0));
    let tokens = [left.tokens_per_minute, left.tokens_per_day];
    let tokens = tokens.into_iter().flatten().min().map(|t| t.0);
    Amounts {
        money: NanoUsd(i64::try_from(part(money)).unwrap_or(i64::MAX)),
        requests: part(left.requests_per_minute),
        tokens: Tokens(part(tokens)),
        slots: part(left.concurrency),
    }
}

#[cfg(test)]
#[path = "purse_tests.rs"]
mod tests;
