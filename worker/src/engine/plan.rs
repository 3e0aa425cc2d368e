//! What the driver tells every rank about a step, and what the sampling rank answers.
//!
//! Every rank applies every [`StepPlan`] in order to its own [`SequenceTable`], so all tables are
//! equal after equal steps and a plan carries only what changed: new sequences, new pages, the
//! tokens of this step. Plans are made by the batcher, carried by `parallel`, and become the
//! model's [`Batch`] here.

use crate::model::{Batch, SequenceSlice};
use std::collections::HashMap;
use trireme_shared::limits;
use trireme_shared::wire::generate::{Sampling, TokenLogprobs};
use wincode::{SchemaRead, SchemaWrite};

/// One stay of a sequence in the running batch. A sequence that is preempted and comes back has a
/// new key, so results of its former stay cannot be mistaken for the new one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct SequenceKey(pub u64);

/// What the ranks must remember of a sequence while it runs.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub struct AddedSequence {
    pub key: SequenceKey,
    pub sampling: Sampling,
    pub logprobs: Option<u8>,
    pub prompt_logprobs: Option<u8>,
    /// (token, times generated so far), by token; empty where no penalty asks for it.
    pub generated: Vec<(u32, u32)>,
    /// Full pages that hold its first tokens already, written by earlier steps. It never writes them.
    pub held: Vec<u32>,
}

/// Prompt positions to score: the logits of row `first_row + i` give the log-probability of
/// `targets[i]`.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Score {
    pub first_row: u32,
    pub targets: Vec<u32>,
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PlanEntry {
    pub key: SequenceKey,
    /// Tokens of the sequence already in the KV cache.
    pub context: u32,
    pub tokens: Vec<u32>,
    /// Pages appended to the sequence's own before the step runs.
    pub new_pages: Vec<u32>,
    pub score: Option<Score>,
    /// Draw a token from the last row, and from each before it that a guess follows; the value is the index
    /// of the first in the generation.
    pub sample: Option<u32>,
    /// How many tokens, the last ones, are guesses. What the KV cache holds of those that do not come true is
    /// void: the next entry's `context` says so.
    pub drafts: u32,
}

impl PlanEntry {
    /// Rows whose logits are wanted.
    pub fn outputs(&self) -> usize {
        self.draws() + self.score.as_ref().map_or(0, |score| score.targets.len())
    }

    /// Rows that a token may be drawn from.
    pub fn draws(&self) -> usize {
        match self.sample {
            Some(_) => 1 + self.drafts as usize,
            None => 0,
        }
    }
}

/// One step, as every rank of the replica sees it.
#[derive(Clone, Debug, Default, PartialEq, SchemaRead, SchemaWrite)]
pub struct StepPlan {
    /// Counts from 0 within the epoch.
    pub step: u64,
    /// Forgotten before `added` are learnt.
    pub removed: Vec<SequenceKey>,
    pub added: Vec<AddedSequence>,
    pub entries: Vec<PlanEntry>,
}

/// What became of one entry that wanted logits.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub struct EntryResult {
    pub key: SequenceKey,
    pub prompt: Vec<TokenLogprobs>,
    pub sampled: Sampled,
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Sampled {
    /// The entry did not ask for a token.
    None,
    /// One, and one more for each guess that came true.
    Tokens(Vec<Drawn>),
    /// The logits were not numbers; nothing can be drawn from them.
    NotFinite,
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub struct Drawn {
    pub token: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// The sampling rank's answer to one step; sent for every step, even without results, so that the
/// driver knows how many steps are in flight.
#[derive(Clone, Debug, Default, PartialEq, SchemaRead, SchemaWrite)]
pub struct StepResults {
    pub step: u64,
    pub results: Vec<EntryResult>,
}

/// A plan or a result that a rank cannot have sent; the epoch is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a step message is not valid: {0}")]
pub struct PlanError(pub String);

impl StepPlan {
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        decode(bytes)
    }

    /// Rows of the step: tokens over all entries.
    pub fn rows(&self) -> usize {
        self.entries.iter().map(|entry| entry.tokens.len()).sum()
    }
}

impl StepResults {
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        decode(bytes)
    }
}

fn encode<T>(message: &T) -> Result<Vec<u8>, PlanError>
where
    T: SchemaWrite<wincode::config::DefaultConfig, Src = T>,
{
    let bytes = wincode::serialize(message).map_err(|e| PlanError(e.to_string()))?;
    if bytes.len() > limits::STEP_PLAN_BYTES_MAX {
        return Err(PlanError(format!(
            "{} bytes, the bound is {}",
            bytes.len(),
            limits::STEP_PLAN_BYTES_MAX
        )));
    }
    Ok(bytes)
}

fn decode<'de, T>(bytes: &'de [u8]) -> Result<T, PlanError>
where
    T: SchemaRead<'de, wincode::config::DefaultConfig, Dst = T>,
{
    if bytes.len() > limits::STEP_PLAN_BYTES_MAX {
        return Err(PlanError(format!(
            "{} bytes, the bound is {}",
            bytes.len(),
            limits::STEP_PLAN_BYTES_MAX
        )));
    }
    wincode::deserialize_exact(bytes).map_err(|e| PlanError(e.to_string()))
}

/// A running sequence as a rank knows it.
#[derive(Debug)]
pub struct RankSequence {
    pub sampling: Sampling,
    pub logprobs: Option<u8>,
    pub prompt_logprobs: Option<u8>,
    /// Times each token was generated; kept by the sampling rank where a penalty asks for it.
    pub generated: HashMap<u32, u32>,
    pages: Vec<u32>,
    /// Tokens in the KV cache.
    context: u32,
    /// The last of them that are guesses.
    drafts: u32,
}

/// The running sequences, equal on every rank after the same step.
#[derive(Debug)]
pub struct SequenceTable {
    sequences: HashMap<SequenceKey, RankSequence>,
    next_step: u64,
    kv_pages: u32,
    vocab: u32,
}

impl SequenceTable {
    pub fn new(kv_pages: u32, vocab: u32) -> Self {
        Self {
            sequences: HashMap::new(),
            next_step: 0,
            kv_pages,
            vocab,
        }
    }

    pub fn get(&self, key: SequenceKey) -> Option<&RankSequence> {
        self.sequences.get(&key)
    }

    pub fn get_mut(&mut self, key: SequenceKey) -> Option<&mut RankSequence> {
        self.sequences.get_mut(&key)
    }

    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Applies the plan and gives the model's batch. Everything that indexes memory later is
    /// checked here: page numbers, token ids, positions, row counts.
    pub fn apply(&mut self, plan: &StepPlan) -> Result<Batch, PlanError> {
        let refuse = |what: String| Err(PlanError(format!("step {}: {what}", plan.step)));
        if plan.step != self.next_step {
            return refuse(format!("expected step {}", self.next_step));
        }
        self.next_step += 1;
        if plan.rows() > limits::STEP_TOKENS_MAX || plan.entries.len() > limits::STEP_SEQUENCES_MAX
        {
            return refuse("too many rows or sequences".into());
        }
        for key in &plan.removed {
            if self.sequences.remove(key).is_none() {
                return refuse(format!("sequence {} is not here to remove", key.0));
            }
        }
        for added in &plan.added {
            if added.held.iter().any(|&page| page >= self.kv_pages) {
                return refuse(format!(
                    "sequence {} has a page outside the pool",
                    added.key.0
                ));
            }
            let sequence = RankSequence {
                sampling: added.sampling.clone(),
                logprobs: added.logprobs,
                prompt_logprobs: added.prompt_logprobs,
                generated: added.generated.iter().copied().collect(),
                pages: added.held.clone(),
                context: (added.held.len() * limits::PAGE_TOKENS) as u32,
                drafts: 0,
            };
            if self.sequences.insert(added.key, sequence).is_some() {
                return refuse(format!("sequence {} was added twice", added.key.0));
            }
        }
        let mut batch = Batch::default();
        for entry in &plan.entries {
            self.append(entry, &mut batch).map_err(|what| {
                PlanError(format!(
                    "step {}, sequence {}: {what}",
                    plan.step, entry.key.0
                ))
            })?;
        }
        Ok(batch)
    }

    fn append(&mut self, entry: &PlanEntry, batch: &mut Batch) -> Result<(), String> {
        let sequence = self
            .sequences
            .get_mut(&entry.key)
            .ok_or("it is not running")?;
        let first = batch.tokens.len() as u32;
        let len = entry.tokens.len() as u32;
        let known = sequence.context - sequence.drafts..=sequence.context;
        if len == 0 || !known.contains(&entry.context) {
            return Err(format!(
                "{len} tokens at {}, {} are cached, the last {} of them guesses",
                entry.context, sequence.context, sequence.drafts
            ));
        }
        if entry.drafts >= len || (entry.drafts > 0 && entry.sample.is_none()) {
            return Err(format!("{} guesses of {len} tokens", entry.drafts));
        }
        if entry.tokens.iter().any(|&token| token >= self.vocab) {
            return Err("a token is outside the vocabulary".into());
        }
        if entry.new_pages.iter().any(|&page| page >= self.kv_pages) {
            return Err("a page is outside the pool".into());
        }
        sequence.pages.extend_from_slice(&entry.new_pages);
        sequence.context = entry.context + len;
        sequence.drafts = entry.drafts;
        if sequence.pages.len() * limits::PAGE_TOKENS < sequence.context as usize {
            return Err("its pages do not hold its tokens".into());
        }
        if let Some(score) = &entry.score {
            let rows = score.targets.len() as u64;
            let free_rows = u64::from(len) - entry.draws() as u64;
            if u64::from(score.first_row) + rows > free_rows
                || score.targets.iter().any(|&token| token >= self.vocab)
            {
                return Err("its scored rows are not among its tokens".into());
            }
            let start = first + score.first_row;
            batch.outputs.extend(start..start + rows as u32);
        }
        let end = first + len;
        batch.outputs.extend(end - entry.draws() as u32..end);
        batch.tokens.extend_from_slice(&entry.tokens);
        batch.sequences.push(SequenceSlice {
            first,
            len,
            context: entry.context,
            pages: sequence.pages.clone(),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(key: u64) -> AddedSequence {
        AddedSequence {
            key: SequenceKey(key),
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: Some(2),
            generated: vec![(3, 2)],
            held: vec![],
        }
    }

    fn entry(key: u64, context: u32, tokens: &[u32], new_pages: &[u32]) -> PlanEntry {
        PlanEntry {
            key: SequenceKey(key),
            context,
            tokens: tokens.to_vec(),
            new_pages: new_pages.to_vec(),
            score: None,
            sample: None,
            drafts: 0,
        }
    }

    #[test]
    fn plans_become_batches() {
        let mut table = SequenceTable::new(8, 100);
        let mut scored = entry(2, 0, &[4, 5, 6], &[7]);
        scored.score = Some(Score {
            first_row: 0,
            targets: vec![5, 6],
        });
        scored.sample = Some(0);
        let plan = StepPlan {
            step: 0,
            removed: vec![],
            added: vec![added(1), added(2)],
            entries: vec![entry(1, 0, &[9, 8], &[3]), scored],
        };
        let sent = StepPlan::decode(&plan.encode().unwrap()).unwrap();
        assert_eq!(sent, plan);
        let batch = table.apply(&sent).unwrap();
        assert_eq!(batch.tokens, vec![9, 8, 4, 5, 6]);
        assert_eq!(batch.outputs, vec![2, 3, 4]);
        assert_eq!(batch.sequences[1].first, 2);

        let next = StepPlan {
            step: 1,
            removed: vec![SequenceKey(2)],
            added: vec![],
            entries: vec![entry(1, 2, &[1], &[])],
        };
        let batch = table.apply(&next).unwrap();
        assert_eq!(batch.sequences[0].context, 2);
        assert_eq!(batch.sequences[0].pages, vec![3]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn hostile_plans_are_refused() {
        let fresh = || {
            let mut table = SequenceTable::new(8, 100);
            table
                .apply(&StepPlan {
                    added: vec![added(1)],
                    ..StepPlan::default()
                })
                .unwrap();
            table
        };
        let refused = |entries: Vec<PlanEntry>| {
            let plan = StepPlan {
                step: 1,
                entries,
                ..StepPlan::default()
            };
            fresh().apply(&plan).unwrap_err().0
        };
        assert!(refused(vec![entry(1, 0, &[100], &[0])]).contains("vocabulary"));
        assert!(refused(vec![entry(1, 0, &[1], &[8])]).contains("outside the pool"));
        assert!(refused(vec![entry(1, 0, &[1], &[])]).contains("do not hold"));
        assert!(refused(vec![entry(1, 1, &[1], &[0])]).contains("cached"));
        assert!(refused(vec![entry(5, 0, &[1], &[0])]).contains("not running"));
        assert!(
            refused(vec![entry(1, 0, &vec![1; 513], &[0, 1, 2, 3, 4, 5, 6, 7])])
                .contains("too many")
        );
        let mut scored = entry(1, 0, &[1], &[0]);
        scored.score = Some(Score {
            first_row: u32::MAX,
            targets: vec![1],
        });
        assert!(refused(vec![scored]).contains("scored rows"));
        assert!(fresh().apply(&StepPlan::default()).is_err(), "step again");
        let holding = |held: Vec<u32>| StepPlan {
            step: 1,
            added: vec![AddedSequence { held, ..added(2) }],
            entries: vec![entry(2, 32, &[1], &[5])],
            ..StepPlan::default()
        };
        assert!(fresh().apply(&holding(vec![3, 8])).is_err(), "outside");
        assert!(fresh().apply(&holding(vec![3])).is_err(), "too few");
        let batch = fresh().apply(&holding(vec![3, 4])).unwrap();
        assert_eq!(batch.sequences[0].pages, vec![3, 4, 5]);
    }

    #[test]
    fn guesses_that_did_not_come_true_are_forgotten() {
        let mut table = SequenceTable::new(8, 100);
        let step = |step, entries| StepPlan {
            step,
            entries,
            ..StepPlan::default()
        };
        let mut guessing = entry(1, 0, &[9, 8, 7, 6], &[3]);
        (guessing.sample, guessing.drafts) = (Some(0), 2);
        let mut first = step(0, vec![guessing.clone()]);
        first.added.push(added(1));
        let sent = StepPlan::decode(&first.encode().unwrap()).unwrap();
        let batch = table.apply(&sent).unwrap();
        assert_eq!(batch.outputs, vec![1, 2, 3]);
        // One of the two came true: three tokens stay.
        let batch = table.apply(&step(1, vec![entry(1, 3, &[5], &[])])).unwrap();
        assert_eq!(batch.sequences[0].context, 3);
        // What is no guess is not forgotten, and a guess is drawn from.
        let mut table = SequenceTable::new(8, 100);
        table.apply(&first).unwrap();
        assert!(table.apply(&step(1, vec![entry(1, 1, &[5], &[])])).is_err());
        for (sample, drafts) in [(None, 2), (Some(0), 4)] {
            let mut table = SequenceTable::new(8, 100);
            (guessing.sample, guessing.drafts) = (sample, drafts);
            first.entries = vec![guessing.clone()];
            assert!(table.apply(&first).unwrap_err().0.contains("guesses"));
        }
    }

    #[test]
    fn cut_and_random_bytes_are_errors() {
        let plan = StepPlan {
            added: vec![added(1)],
            entries: vec![entry(1, 0, &[1, 2], &[0])],
            ..StepPlan::default()
        };
        let bytes = plan.encode().unwrap();
        for end in 0..bytes.len() {
            assert!(StepPlan::decode(&bytes[..end]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(StepPlan::decode(&longer).is_err());
        assert!(StepPlan::decode(&[0xff; 64]).is_err());
    }
}
