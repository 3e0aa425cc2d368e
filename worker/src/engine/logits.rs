//! What the sampling rank needs of a step's logits, brought to it.
//!
//! Each rank of the last stage holds a span of the vocabulary. Where the largest logits decide (greedy
//! sampling, or a small `top_k`), a rank sends its own largest of a row, and where a distribution over all
//! tokens is wanted, its whole span. Every rank knows which from the plan and its table.

use super::plan::{RankSequence, SequenceTable, StepPlan};
use super::sampler::{self, Candidates};
use crate::parallel::{Collective, LinkError};
use trireme_shared::model::Span;
use trireme_shared::wire::generate::Sampling;

/// A larger `top_k` has whole spans sent: finding that many is then more work than sending all.
const LARGEST_MAX: u32 = 64;

/// What of a row decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    All,
    /// So many of its largest.
    Largest(u32),
}

impl Needed {
    /// Of the rows a token is drawn from.
    fn to_draw(sequence: &RankSequence) -> Self {
        let sampling = &sequence.sampling;
        let as_they_are = sampling.logit_bias.is_empty() && !sampler::wants_history(sampling);
        match largest_that_decide(sampling) {
            Some(count) if as_they_are && sequence.logprobs.is_none() => Self::Largest(count),
            _ => Self::All,
        }
    }

    /// Values that a rank with `span` sends.
    fn values(self, span: Span) -> usize {
        let span = span.len() as usize;
        match self {
            Self::All => span,
            // Logits, then as many ids.
            Self::Largest(count) => 2 * span.min(count as usize),
        }
    }
}

fn largest_that_decide(sampling: &Sampling) -> Option<u32> {
    if sampler::is_greedy(sampling) {
        return Some(1);
    }
    (1..=LARGEST_MAX)
        .contains(&sampling.top_k)
        .then_some(sampling.top_k)
}

/// Gathers rows; owns the memory for it.
pub struct Logits {
    /// Vocabulary spans of the last stage's ranks.
    spans: Vec<Span>,
    needed: Vec<Needed>,
    /// What this rank sends of every row, where that is not all.
    sent: Vec<f32>,
    /// Rank after rank, of each its rows.
    gathered: Vec<f32>,
    /// Where each row of each rank begins: `row * ranks + rank`.
    places: Vec<usize>,
    /// One row put together.
    row: Vec<f32>,
    ids: Vec<u32>,
}

impl Logits {
    pub fn new(spans: Vec<Span>) -> Self {
        Self {
            spans,
            needed: Vec::new(),
            sent: Vec::new(),
            gathered: Vec::new(),
            places: Vec::new(),
            row: Vec::new(),
            ids: Vec::new(),
        }
    }

    /// Brings the rows of `plan`'s entries, of which this rank has `mine` (`rows x its span`), to rank 0.
    /// `table` is as `plan` left it, so that all ranks expect the same.
    pub fn gather(
        &mut self,
        plan: &StepPlan,
        table: &SequenceTable,
        mine: &[f32],
        collective: &mut dyn Collective,
    ) -> Result<(), LinkError> {
        self.needed.clear();
        for entry in &plan.entries {
            let scored = entry.score.as_ref().map_or(0, |score| score.targets.len());
            let draw = table.get(entry.key).map_or(Needed::All, Needed::to_draw);
            // A rank that is alone has all there is.
            let draw = if self.spans.len() == 1 {
                Needed::All
            } else {
                draw
            };
            self.needed.extend(std::iter::repeat_n(Needed::All, scored));
            self.needed.extend(std::iter::repeat_n(draw, entry.draws()));
        }
        // All ranks of the stage know that there is nothing to gather.
        if self.needed.is_empty() {
            return Ok(());
        }
        let counts: Vec<usize> = self.spans.iter().map(|span| self.values(*span)).collect();
        self.find_places(&counts);
        let mine = match self.needed.iter().all(|needed| *needed == Needed::All) {
            true => mine,
            false => {
                self.pick(mine, self.spans[collective.rank()]);
                &self.sent
            }
        };
        collective.gather(mine, &counts, &mut self.gathered)
    }

    /// Values of all rows that a rank with `span` sends.
    fn values(&self, span: Span) -> usize {
        self.needed.iter().map(|needed| needed.values(span)).sum()
    }

    fn find_places(&mut self, counts: &[usize]) {
        let ranks = self.spans.len();
        self.places.resize(self.needed.len() * ranks, 0);
        let mut before = 0;
        for (rank, (span, count)) in self.spans.iter().zip(counts).enumerate() {
            let mut at = before;
            for (row, needed) in self.needed.iter().enumerate() {
                self.places[row * ranks + rank] = at;
                at += needed.values(*span);
            }
            before += count;
        }
    }

    /// Fills `sent` from this rank's rows.
    fn pick(&mut self, mine: &[f32], span: Span) {
        self.sent.clear();
        for (needed, row) in self
            .needed
            .iter()
            .zip(mine.chunks_exact(span.len() as usize))
        {
            let Needed::Largest(count) = *needed else {
                self.sent.extend_from_slice(row);
                continue;
            };
            let mut largest = sampler::best(row, count as usize);
            // Where fewer are numbers, the rest is as good as not there.
            largest.resize(row.len().min(count as usize), (0, f32::NEG_INFINITY));
            largest.sort_unstable_by_key(|(id, _)| *id);
            self.sent.extend(largest.iter().map(|(_, logit)| logit));
            // Bits, not numbers: nobody calculates with them.
            let id = |(id, _): &(u32, f32)| f32::from_bits(span.start + id);
            self.sent.extend(largest.iter().map(id));
        }
    }

    /// Row `row` over the whole vocabulary, if all of it was gathered, or else its largest logits.
    pub fn row(&mut self, row: usize) -> Candidates<'_> {
        let ranks = self.spans.len();
        let needed = self.needed[row];
        if ranks == 1 {
            let at = self.places[row];
            return Candidates::All(&self.gathered[at..at + needed.values(self.spans[0])]);
        }
        self.row.clear();
        self.ids.clear();
        for (rank, span) in self.spans.iter().enumerate() {
            let at = self.places[row * ranks + rank];
            let part = &self.gathered[at..at + needed.values(*span)];
            match needed {
                Needed::All => self.row.extend_from_slice(part),
                Needed::Largest(_) => {
                    let (logits, ids) = part.split_at(part.len() / 2);
                    self.row.extend_from_slice(logits);
                    self.ids.extend(ids.iter().map(|id| id.to_bits()));
                }
            }
        }
        match needed {
            Needed::All => Candidates::All(&self.row),
            Needed::Largest(_) => Candidates::Largest {
                logits: &self.row,
                ids: &self.ids,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{AddedSequence, PlanEntry, Score, SequenceKey};
    use super::super::sampler::Sampler;
    use super::*;
    use std::collections::HashMap;

    const SPANS: [Span; 3] = [Span::new(0, 40), Span::new(40, 43), Span::new(43, 101)];
    const VOCAB: usize = 101;

    /// Ranks that call `gather` one after the other, rank 0 last.
    struct Relay<'a> {
        rank: usize,
        sent: &'a mut Vec<Vec<f32>>,
    }

    impl Collective for Relay<'_> {
        fn rank(&self) -> usize {
            self.rank
        }
        fn size(&self) -> usize {
            SPANS.len()
        }
        fn all_reduce(&mut self, _: &mut [f64]) -> Result<(), LinkError> {
            Ok(())
        }
        fn gather(
            &mut self,
            mine: &[f32],
            counts: &[usize],
            out: &mut Vec<f32>,
        ) -> Result<(), LinkError> {
            assert_eq!(mine.len(), counts[self.rank]);
            self.sent[self.rank] = mine.to_vec();
            if self.rank == 0 {
                *out = self.sent.concat();
            }
            Ok(())
        }
    }

    /// Of a row: some logits are equal, and some are no numbers.
    fn logit(row: usize, id: usize) -> f32 {
        match (row * 31 + id * 17) % 53 {
            7 => f32::NAN,
            step => step as f32 / 4.0 - 3.0,
        }
    }

    /// One sequence a sampling, its rows gathered from three ranks, and how many values were sent.
    fn gathered(samplings: &[Sampling], logprobs: Option<u8>) -> (Logits, usize) {
        let key = |index: usize| SequenceKey(index as u64);
        let added = samplings
            .iter()
            .enumerate()
            .map(|(index, sampling)| AddedSequence {
                key: key(index),
                sampling: sampling.clone(),
                logprobs,
                prompt_logprobs: None,
                generated: Vec::new(),
                held: Vec::new(),
            });
        let entries = (0..samplings.len()).map(|index| PlanEntry {
            key: key(index),
            context: 0,
            tokens: vec![1, 2, 3],
            new_pages: vec![index as u32],
            // One sequence's first row is scored too, and another has a guess.
            score: (index == 1).then(|| Score {
                first_row: 0,
                targets: vec![9],
            }),
            sample: Some(0),
            drafts: u32::from(index == 2),
        });
        let plan = StepPlan {
            added: added.collect(),
            entries: entries.collect(),
            ..StepPlan::default()
        };
        let mut table = SequenceTable::new(64, VOCAB as u32);
        let rows = table.apply(&plan).unwrap().outputs.len();
        let mut sent = vec![Vec::new(); SPANS.len()];
        for rank in (0..SPANS.len()).rev() {
            let mine: Vec<f32> = (0..rows)
                .flat_map(|row| SPANS[rank].range().map(move |id| logit(row, id)))
                .collect();
            let mut logits = Logits::new(SPANS.to_vec());
            let mut relay = Relay {
                rank,
                sent: &mut sent,
            };
            logits.gather(&plan, &table, &mine, &mut relay).unwrap();
            if rank == 0 {
                return (logits, sent.iter().map(Vec::len).sum());
            }
        }
        unreachable!("there is a rank 0")
    }

    #[test]
    fn tokens_are_those_of_whole_rows_though_few_logits_are_sent() {
        let base = Sampling {
            temperature: 0.7,
            seed: 5,
            ..Sampling::default()
        };
        let samplings = [
            Sampling::default(),
            Sampling {
                top_k: 5,
                ..base.clone()
            },
            Sampling {
                top_k: 50,
                top_p: 0.8,
                min_p: 0.01,
                ..base.clone()
            },
            Sampling {
                top_k: 64,
                ..base.clone()
            },
        ];
        let (mut logits, sent) = gathered(&samplings, None);
        // Greedy: 1 of each rank. 5, of which one rank has 3. One row scored. Two rows of 40, 3 and 50,
        // 40, 3 and 58.
        let values = 2 * (3 + (5 + 3 + 5) + 2 * (40 + 3 + 50) + (40 + 3 + 58)) + VOCAB;
        assert_eq!(sent, values);

        // The rows in the plan's order, and whose they are; row 1 is scored.
        for (row, sampling) in [0, 1, 1, 2, 2, 3].into_iter().enumerate() {
            let whole: Vec<f32> = (0..VOCAB).map(|id| logit(row, id)).collect();
            let candidates = logits.row(row);
            if row == 1 {
                let Candidates::All(all) = candidates else {
                    panic!("a scored row was cut short")
                };
                assert!(
                    all.iter()
                        .zip(&whole)
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
                continue;
            }
            assert!(matches!(candidates, Candidates::Largest { .. }), "{row}");
            let (mut sampler, none) = (Sampler::default(), HashMap::new());
            for index in 0..200 {
                let mut sample = |from| {
                    sampler
                        .sample(from, &samplings[sampling], &none, index)
                        .unwrap()
                };
                assert_eq!(sample(candidates), sample(Candidates::All(&whole)), "{row}");
            }
        }
    }

    #[test]
    fn whole_rows_are_sent_where_others_than_the_largest_matter() {
        let all = [
            Sampling {
                temperature: 1.0,
                ..Sampling::default()
            },
            Sampling {
                presence_penalty: 0.5,
                ..Sampling::default()
            },
            Sampling {
                logit_bias: vec![(3, -9.0)],
                ..Sampling::default()
            },
        ];
        let (mut logits, sent) = gathered(&all, None);
        assert_eq!(sent, 5 * VOCAB);
        let id = 77;
        let Candidates::All(row) = logits.row(4) else {
            panic!("cut short")
        };
        assert_eq!((row.len(), row[id]), (VOCAB, logit(4, id)));
        assert_eq!(gathered(&[Sampling::default()], Some(0)).1, VOCAB);
    }
}
