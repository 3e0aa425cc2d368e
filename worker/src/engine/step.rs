//! One rank's part of a step: the same for every rank but for the ends of the pipeline.
//!
//! Applies the plan to the rank's table, runs its layers, hands activations on, and on the last
//! stage brings the logits to its rank 0, which draws the tokens.

use super::logits::Logits;
use super::plan::{
    Drawn, EntryResult, PlanEntry, PlanError, Sampled, SequenceTable, StepPlan, StepResults,
};
use super::sampler::{self, Candidates, NotFinite, Sampler};
use crate::model::{Forward, ForwardError, RankModel};
use crate::parallel::stage::{StageReceiver, StageSender};
use crate::parallel::{Collective, LinkError};
use trireme_shared::plan::ReplicaPlan;
use trireme_shared::wire::generate::TokenLogprobs;

/// Why a step did not complete. The epoch is over.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("a rank of stage {0} was given the wrong links")]
    Links(u16),
}

/// What a rank needs to run steps.
pub struct StepRunner {
    model: RankModel,
    collective: Box<dyn Collective>,
    from_previous: Option<StageReceiver>,
    to_next: Option<StageSender>,
    table: SequenceTable,
    /// Activations from the previous stage.
    input: Vec<f32>,
    logits: Logits,
    sampler: Sampler,
}

impl StepRunner {
    pub fn new(
        plan: &ReplicaPlan,
        model: RankModel,
        collective: Box<dyn Collective>,
        from_previous: Option<StageReceiver>,
        to_next: Option<StageSender>,
    ) -> Self {
        let vocab = model.config().vocab;
        let last_stage = |share: &&trireme_shared::model::RankShare| share.is_last_stage();
        let shares = plan.ranks.iter().map(|rank| &rank.share);
        Self {
            table: SequenceTable::new(plan.kv_pages, vocab),
            logits: Logits::new(shares.filter(last_stage).map(|s| s.vocab).collect()),
            model,
            collective,
            from_previous,
            to_next,
            input: Vec::new(),
            sampler: Sampler::default(),
        }
    }

    pub fn vocab(&self) -> u32 {
        self.model.config().vocab
    }

    /// Longest context the model was trained for.
    pub fn model_context(&self) -> u32 {
        self.model.config().context
    }

    /// Runs the plan. Results come from rank 0 of the last stage only.
    pub fn run(&mut self, plan: &StepPlan) -> Result<Option<StepResults>, StepError> {
        let batch = self.table.apply(plan)?;
        let input = match &mut self.from_previous {
            None => None,
            Some(previous) => {
                let hidden = self.model.config().hidden as usize;
                self.input.resize(batch.tokens.len() * hidden, 0.0);
                previous.recv_hidden(plan.step, &mut self.input)?;
                Some(&self.input[..])
            }
        };
        let forward = self.model.forward(&batch, input, &mut *self.collective)?;
        match (forward, &mut self.to_next) {
            (Forward::Hidden(hidden), Some(next)) => {
                next.send_hidden(plan.step, hidden)?;
                Ok(None)
            }
            (Forward::Logits(mine), None) => {
                let collective = &mut *self.collective;
                self.logits.gather(plan, &self.table, mine, collective)?;
                if self.collective.rank() != 0 {
                    return Ok(None);
                }
                self.results(plan).map(Some)
            }
            _ => Err(StepError::Links(self.model.share().stage.0)),
        }
    }

    /// Scores and draws what the plan asks for, from the gathered rows, which are in the plan's
    /// order.
    fn results(&mut self, plan: &StepPlan) -> Result<StepResults, StepError> {
        let mut results = Vec::new();
        let mut row = 0;
        for entry in &plan.entries {
            if entry.score.is_none() && entry.sample.is_none() {
                continue;
            }
            let result = self.result(entry, &mut row).unwrap_or(EntryResult {
                key: entry.key,
                prompt: Vec::new(),
                sampled: Sampled::NotFinite,
            });
            results.push(result);
        }
        Ok(StepResults {
            step: plan.step,
            results,
        })
    }

    /// `row` is the entry's first among the gathered rows and is moved behind its last in any case.
    fn result(&mut self, entry: &PlanEntry, row: &mut usize) -> Result<EntryResult, NotFinite> {
        let first = *row;
        let targets = entry.score.as_ref().map_or(&[][..], |s| &s.targets);
        *row += targets.len() + entry.draws();
        let sequence = self.table.get_mut(entry.key).ok_or(NotFinite)?;

        let top = sequence.prompt_logprobs.unwrap_or(0);
        let prompt = targets
            .iter()
            .enumerate()
            .map(|(i, &target)| logprobs(self.logits.row(first + i), target, top))
            .collect::<Result<Vec<TokenLogprobs>, _>>()?;
        let Some(index) = entry.sample else {
            return Ok(EntryResult {
                key: entry.key,
                prompt,
                sampled: Sampled::None,
            });
        };
        let mut guesses = entry.tokens[entry.tokens.len() - entry.drafts as usize..].iter();
        let mut drawn = Vec::new();
        for draw in 0..entry.draws() {
            let candidates = self.logits.row(first + targets.len() + draw);
            let index = index + draw as u32;
            let (sampling, generated) = (&sequence.sampling, &sequence.generated);
            let token = self
                .sampler
                .sample(candidates, sampling, generated, index)?;
            if sampler::wants_history(&sequence.sampling) {
                *sequence.generated.entry(token).or_insert(0) += 1;
            }
            let logprobs = match sequence.logprobs {
                Some(top) => Some(logprobs(candidates, token, top)?),
                None => None,
            };
            drawn.push(Drawn { token, logprobs });
            if guesses.next() != Some(&token) {
                break;
            }
        }
        Ok(EntryResult {
            key: entry.key,
            prompt,
            sampled: Sampled::Tokens(drawn),
        })
    }
}

/// Of a row that was gathered whole.
fn logprobs(row: Candidates<'_>, token: u32, top: u8) -> Result<TokenLogprobs, NotFinite> {
    match row {
        Candidates::All(logits) => sampler::logprobs(logits, token, top),
        Candidates::Largest { .. } => unreachable!("`Needed` asks for all where logprobs are told"),
    }
}
