//! The log of settlements: what each added to its request, in the order of their sequence numbers. An
//! export reads on from where it was, and misses nothing that it comes for in time.
//!
//! Kept true: sequence numbers have no gaps, and the newest `limits::SETTLEMENTS_KEPT` are kept; of a
//! request none of whose settlements is gone, they sum to its row (`State::check`).

use super::codec::{Newer, stored, stored_value};
use super::requests::{Counts, Ended, RequestRow};
use super::table::Table;
use std::collections::BTreeMap;
use trireme_shared::ids::{KeyId, NanoUsd, RequestNumber, SettlementSeq, Tokens};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// What one settlement added to a request: free ones, and later ones of the same request, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Settlement {
    pub seq: SettlementSeq,
    pub request: RequestNumber,
    /// The key it was told under: an attempt may come under another than its request did.
    pub key: KeyId,
    /// Milliseconds since 1970, by the state's clock.
    pub at_ms: u64,
    /// Tokens that had not been counted before.
    pub added: Counts,
    /// What was charged for them.
    pub charged: NanoUsd,
    /// How the request, or that attempt at it, ended.
    pub ended: Ended,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Settlements {
    /// False in a state of version 2 until it is raised: then nothing is written here.
    pub kept: bool,
    pub rows: Table<SettlementSeq, Settlement>,
    pub last: SettlementSeq,
    /// Settlements of requests up to this one may be gone, or from before there was this log.
    pub lost: RequestNumber,
}

stored_value!(SettlementSeq);
stored!(Settlements {
    kept,
    rows,
    last,
    lost
});

impl Default for Settlements {
    fn default() -> Self {
        Self {
            kept: true,
            rows: Table::default(),
            last: SettlementSeq(0),
            lost: RequestNumber(0),
        }
    }
}

impl Newer for Settlements {
    fn not_yet() -> Self {
        Self {
            kept: false,
            ..Self::default()
        }
    }
}

impl Settlements {
    /// From now on: of the requests there are, nobody wrote it down.
    pub fn begin(&mut self, last: RequestNumber) {
        self.kept = true;
        self.lost = last;
    }

    /// Writes one down; its number is given here.
    pub fn add(&mut self, settlement: Settlement) {
        if !self.kept {
            return;
        }
        let seq = SettlementSeq(self.last.0 + 1);
        self.last = seq;
        self.rows.insert(seq, Settlement { seq, ..settlement });
        self.trim(limits::SETTLEMENTS_KEPT);
    }

    fn trim(&mut self, most: usize) {
        while self.rows.len() > most
            && let Some((seq, oldest)) = self.rows.first().copied()
        {
            self.rows.remove(&seq);
            self.lost = self.lost.max(oldest.request);
        }
    }

    pub fn check<'a>(&self, requests: impl Iterator<Item = &'a RequestRow>) -> Result<(), String> {
        let kept = self.rows.len() as u64;
        let mut expected = (self.last.0 + 1 - kept..).map(SettlementSeq);
        let numbered = |(seq, row): (&SettlementSeq, &Settlement)| {
            *seq == row.seq && expected.next() == Some(*seq)
        };
        if !self.rows.iter().all(numbered) {
            return Err("the log of settlements has a gap".into());
        }
        let mut sums = BTreeMap::<RequestNumber, (Counts, i64)>::new();
        for row in self.rows.values() {
            let (counts, charged) = sums.entry(row.request).or_default();
            let tokens = |a: Tokens, b: Tokens| Tokens(a.0.saturating_add(b.0));
            *counts = Counts {
                prompt: tokens(counts.prompt, row.added.prompt),
                cached: tokens(counts.cached, row.added.cached),
                completion: tokens(counts.completion, row.added.completion),
            };
            *charged = charged.saturating_add(row.charged.0);
        }
        let logged = |row: &&RequestRow| self.kept && row.number > self.lost;
        for row in requests.filter(logged) {
            let sum = sums.get(&row.number).copied();
            if sum != Some((row.counts, row.charged.0)) {
                return Err(format!(
                    "request {} is not the sum of its settlements",
                    row.number
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "settlements_tests.rs"]
mod tests;
