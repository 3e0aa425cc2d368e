//! Which sequences run in the next step: continuous batching with chunked prefill.
//!
//! A pure core: the driver tells it what happened (`submit`, `cancel`, `pause`, `complete`), asks
//! it for the next [`StepPlan`], and carries its [`Effect`]s to the clients. What it keeps true:
//!
//! - Whose sequence is admitted next, and whose is refused when too many wait, is decided between tenants
//!   by their weights and by what they were served (`waiting`), which grows as steps take tokens; it is
//!   admitted when all pages of its known tokens are free, and nobody overtakes it meanwhile. Among a tenant's
//!   own the higher priority goes first: into the batch, through its prompt, and in the tokens of a tenant that
//!   gets less than it wants; of the lowest the pages are taken first.
//! - Where several tenants run, a tenant with many sequences makes steps no longer for the others than its
//!   share of the machine allows (`shares`): of its own only as many have their turn in one step.
//! - Decoding sequences go first in every step, so a new prompt slows running streams by one
//!   bounded chunk, never stops them. (Where a tenant gets less than it wants, half is for its prompts.)
//! - When pages run out the newest sequence of the tenant that was served most for its weight gives its
//!   pages back and is computed again later, before any new one; its client sees a pause, not an error.
//!   So it does where a tenant that holds less than its share of the pages, or of the sequences that may
//!   run, has one waiting (`room`). The oldest is never preempted, so there is always progress.
//! - A sequence that begins as another of its tenant's did takes over that one's full pages, if they are
//!   still there, and computes the rest only (`prefix`, `pages`). A page is found by others once the step
//!   that filled it has ended.
//! - Every sequence ends with exactly one `Finished` or `Failed`, unless it was cancelled.
//!
//! With a pipeline, up to `steps_in_flight` plans are out at once. Ranks run plans in order, so
//! pages freed by one plan may be given out by the next although the former still runs.

mod room;
mod turns;

use super::draft;
use super::pages::PagePool;
use super::plan::{
    AddedSequence, EntryResult, PlanEntry, PlanError, Sampled, SequenceKey, StepPlan, StepResults,
};
use super::sequence::{self, Sequence, SequenceId};
use super::shares::Shares;
use super::waiting::{Served, WaitingRoom};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;
use trireme_shared::limits;
use trireme_shared::wire::control::EngineStats;
use trireme_shared::wire::generate::{
    FailureKind, FinishReason, GenerateEvent, GenerateRequest, Priority,
};
use turns::{Turn, Turns};

/// What a replica can hold.
#[derive(Clone, Debug)]
pub struct Capacity {
    pub kv_pages: u32,
    /// Longest sequence, in tokens.
    pub context: u32,
    pub vocab: u32,
    /// Stages of the pipeline: a step for each may be under way.
    pub steps_in_flight: usize,
}

/// A step on its way through the ranks.
struct Step {
    number: u64,
    planned_at: Instant,
    tokens: usize,
    /// How far it brings each of its sequences, in tokens.
    ends: Vec<(SequenceKey, usize)>,
}

/// Something to tell a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    pub sequence: SequenceId,
    pub event: GenerateEvent,
}

pub struct Batcher {
    capacity: Capacity,
    /// Rows of logits one step may ask for; also bounds the running sequences.
    rows_max: usize,
    pool: PagePool,
    sequences: HashMap<SequenceId, Sequence>,
    waiting: WaitingRoom,
    shares: Shares,
    /// By arrival: the first is the oldest.
    running: BTreeSet<SequenceId>,
    by_key: HashMap<SequenceKey, SequenceId>,
    /// Sequences that the ranks must be told of, and about how many bytes that takes.
    added: Vec<AddedSequence>,
    added_bytes: usize,
    /// Keys that the ranks still know and must forget.
    removed: Vec<SequenceKey>,
    in_flight: VecDeque<Step>,
    next_step: u64,
    next_key: u64,
    next_id: u64,
    effects: Vec<Effect>,
    stats: EngineStats,
}

impl Batcher {
    pub fn new(capacity: Capacity) -> Self {
        let rows = limits::STEP_LOGITS_MAX / (capacity.vocab as usize).max(1);
        Self {
            rows_max: rows.clamp(1, limits::STEP_TOKENS_MAX),
            pool: PagePool::new(capacity.kv_pages),
            capacity,
            sequences: HashMap::new(),
            waiting: WaitingRoom::new(limits::WAITING_SEQUENCES_MAX),
            shares: Shares::default(),
            running: BTreeSet::new(),
            by_key: HashMap::new(),
            added: Vec::new(),
            added_bytes: 0,
            removed: Vec::new(),
            in_flight: VecDeque::new(),
            next_step: 0,
            next_key: 0,
            next_id: 0,
            effects: Vec::new(),
            stats: EngineStats::default(),
        }
    }

    /// Takes a request into the waiting room. A refusal, of it or of another for it, is an effect too.
    pub fn submit(&mut self, request: GenerateRequest) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        if let Err(reason) = sequence::check(&request, self.capacity.vocab, self.capacity.context) {
            self.tell_failed(id, FailureKind::Invalid, reason);
            return id;
        }
        let (tenant, weight, priority) = (request.tenant, request.weight, request.priority);
        let sequence = Sequence::new(request, self.capacity.context);
        let finished = sequence.finished();
        self.sequences.insert(id, sequence);
        if let Some(reason) = finished {
            self.start(id, 0);
            self.sequences.remove(&id);
            self.tell_finished(id, reason);
        } else if let Some(refused) = self.waiting.arrive(id, tenant, weight, priority) {
            self.sequences.remove(&refused);
            let reason = "the waiting room is full; try again later".to_owned();
            self.tell_failed(refused, FailureKind::Overloaded, reason);
        }
        id
    }

    /// Forgets a sequence and frees its pages; its client hears nothing more.
    pub fn cancel(&mut self, id: SequenceId) {
        self.stop_running(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            self.waiting.leave(id, sequence.tenant());
        }
    }

    /// Leaves a sequence out of steps while its client is behind. What is in flight still arrives.
    pub fn pause(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = paused;
        }
    }

    /// Ends every sequence with `Failed`.
    pub fn fail_all(&mut self, kind: FailureKind, reason: &str) {
        let mut ids: Vec<_> = self.sequences.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.cancel(id);
            self.tell_failed(id, kind, reason.to_owned());
        }
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub fn steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            kv_pages_total: self.pool.total() as u32,
            kv_pages_used: self.pool.in_use() as u32,
            ..self.stats
        }
    }

    /// The next step; `None` while the pipeline is full or nothing can run.
    pub fn plan(&mut self, now: Instant) -> Option<StepPlan> {
        if self.in_flight.len() >= self.capacity.steps_in_flight {
            return None;
        }
        let mut plan = StepPlan {
            step: self.next_step,
            ..StepPlan::default()
        };
        let most = self.prefill_most();
        let mut turns = self.turns(most);
        self.fill(&mut plan, &mut turns, most);
        if plan.entries.is_empty() && self.in_flight.is_empty() {
            // Those whose turn it is cannot go on (pages, a client that is behind): nobody loses by the others' going
            // on, and nothing else would bring the next step about.
            turns.values_mut().for_each(Turn::uncut);
            self.fill(&mut plan, &mut turns, most);
        }
        if plan.entries.is_empty() {
            return None;
        }
        plan.added = std::mem::take(&mut self.added);
        self.added_bytes = 0;
        plan.removed = std::mem::take(&mut self.removed);
        let end = |entry: &PlanEntry| entry.context as usize + entry.tokens.len();
        self.in_flight.push_back(Step {
            number: plan.step,
            planned_at: now,
            tokens: plan.rows(),
            ends: plan.entries.iter().map(|e| (e.key, end(e))).collect(),
        });
        self.next_step += 1;
        self.stats.steps += 1;
        Some(plan)
    }

    /// Puts into the plan what these turns allow.
    fn fill(&mut self, plan: &mut StepPlan, turns: &mut Turns, most: usize) {
        self.admit_due(turns);
        self.keep_for_prompts(turns);
        self.plan_decodes(plan, turns);
        self.plan_prefills(plan, turns, most);
        self.plan_drafts(plan, turns);
    }

    /// Takes the results of the oldest step in flight.
    pub fn complete(&mut self, results: StepResults, now: Instant) -> Result<(), PlanError> {
        let step = self.in_flight.pop_front();
        let Some(step) = step.filter(|step| step.number == results.step) else {
            return Err(PlanError(format!(
                "results of step {} came out of turn",
                results.step
            )));
        };
        let took = now.saturating_duration_since(step.planned_at);
        self.shares.pace.took(step.tokens, took);
        for result in results.results {
            // A sequence that left since the step was planned has no key any more.
            if let Some(&id) = self.by_key.get(&result.key) {
                self.take_result(id, result)?;
            }
        }
        for (key, end) in step.ends {
            let Some(&id) = self.by_key.get(&key) else {
                continue;
            };
            if let Some(sequence) = self.sequences.get_mut(&id) {
                for (page, name) in sequence.filled(end) {
                    self.pool.name(page, name);
                }
                if let Some(reason) = sequence.finished() {
                    self.finish(id, reason);
                }
            }
        }
        Ok(())
    }

    fn take_result(&mut self, id: SequenceId, result: EntryResult) -> Result<(), PlanError> {
        let refuse = |what: &str| Err(PlanError(format!("sequence {}: {what}", id.0)));
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return refuse("it has a key and no state");
        };
        if !result.prompt.is_empty() {
            let Some(first) = sequence.take_scores(result.prompt.len()) else {
                return refuse("scores came that were not asked for");
            };
            self.effects.push(Effect {
                sequence: id,
                event: GenerateEvent::PromptLogprobs {
                    first,
                    entries: result.prompt,
                },
            });
        }
        match result.sampled {
            Sampled::None => {}
            Sampled::Tokens(drawn) => {
                if drawn.iter().any(|one| one.token >= self.capacity.vocab) {
                    return refuse("a token outside the vocabulary was sampled");
                }
                let Some((first, taken)) = sequence.take_tokens(&drawn) else {
                    return refuse("tokens came that were not asked for");
                };
                self.stats.generated_tokens += taken as u64;
                for (index, one) in (first..).zip(drawn.into_iter().take(taken)) {
                    self.effects.push(Effect {
                        sequence: id,
                        event: GenerateEvent::Token {
                            index,
                            token: one.token,
                            logprobs: one.logprobs,
                        },
                    });
                }
            }
            Sampled::NotFinite => {
                self.cancel(id);
                let reason = super::sampler::NotFinite.to_string();
                self.tell_failed(id, FailureKind::Invalid, reason);
            }
        }
        Ok(())
    }

    /// Decoding sequences, the longest unscheduled first; with a pipeline each step takes its
    /// share of them, so that the other stages have steps to work on.
    fn plan_decodes(&mut self, plan: &mut StepPlan, turns: &mut Turns) {
        let ready = |s: &Sequence| !s.paused && s.remaining() == 1;
        let mut decoding = 0;
        let mut turn = Vec::new();
        for &id in &self.running {
            let sequence = &self.sequences[&id];
            decoding += usize::from(!sequence.paused && sequence.decodes());
            if ready(sequence) {
                turn.push((Reverse(sequence.priority()), sequence.last_step, id));
            }
        }
        turn.sort_unstable();
        let most = decoding.div_ceil(self.capacity.steps_in_flight).max(1);
        let due = |(_, _, id): &(_, u64, SequenceId)| {
            let theirs = turns.get_mut(&self.sequences[id].tenant());
            theirs.is_some_and(Turn::decode)
        };
        turn.retain(due);
        // Of several tenants' nobody's priority counts.
        turn.sort_unstable_by_key(|&(_, last_step, id)| (last_step, id));
        turn.truncate(most.min(self.rows_max));
        // In the order in which they keep their pages, so that a sequence whose pages are taken has not
        // been planned yet. Nobody is charged meanwhile, which would change it.
        turn.sort_by_cached_key(|&(_, _, id)| self.precedence(id));
        let mut planned = Vec::new();
        for (_, _, id) in turn {
            let page = match self.sequences.get(&id) {
                // Preempted just now.
                Some(sequence) if sequence.key.is_none() => continue,
                Some(sequence) if !sequence.needs_page() => Vec::new(),
                Some(_) => match self.page_for(id) {
                    Some(page) => page,
                    None => continue,
                },
                None => continue,
            };
            let rows_left = self.rows_max - plan.entries.len();
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.take_pages(&page);
                let cached = sequence.prompt_cached();
                let entry = sequence.chunk(plan.step, 1, rows_left);
                plan.entries.extend(entry);
                self.start(id, cached);
                planned.push(id);
            }
        }
        for id in planned {
            self.charge(id);
        }
    }

    /// What goes first keeps its pages longest: the oldest running sequence, whoever's it is; then those
    /// of the tenant that was served least, and of one tenant those of a higher priority and the older ones.
    fn precedence(&self, id: SequenceId) -> (bool, Served, Reverse<Priority>, SequenceId) {
        let is_oldest = self.running.first() == Some(&id);
        let sequence = self.sequences.get(&id);
        let served = sequence.map(|sequence| self.waiting.served(sequence.tenant()));
        let priority = sequence.map(Sequence::priority).unwrap_or_default();
        let served = served.unwrap_or_default();
        (!is_oldest, served, Reverse(priority), id)
    }

    /// One page for a running sequence, taken from the last in precedence if none is free. `None` where
    /// the sequence itself had to go.
    fn page_for(&mut self, id: SequenceId) -> Option<Vec<u32>> {
        loop {
            if let Some(page) = self.pool.allocate(1) {
                return Some(page);
            }
            if self.running.len() == 1 {
                // It has every page there is.
                self.finish(id, FinishReason::Length);
                return None;
            }
            let running = self.running.iter().copied();
            let last = running.max_by_key(|id| self.precedence(*id))?;
            self.preempt(last);
            if last == id {
                return None;
            }
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        self.stop_running(id);
        self.waiting.preempted(id);
        self.stats.preemptions += 1;
    }

    /// Chunks of prompts, `most` tokens in all: first of running sequences, then of waiting ones that fit.
    fn plan_prefills(&mut self, plan: &mut StepPlan, turns: &mut Turns, most: usize) {
        let mut budget = most.min(limits::STEP_TOKENS_MAX - plan.rows());
        let mut rows_left = self.rows_max - plan.entries.len();
        let (prompts, mut kept) = self.prompts(budget, turns);
        let mut prefilling = prompts.into_iter();
        while budget > 0 && rows_left > 0 {
            let next = prefilling.next();
            let Some(id) = next.or_else(|| self.admit(turns)) else {
                return;
            };
            let most = kept.take().unwrap_or(budget);
            let Some(sequence) = self.sequences.get_mut(&id) else {
                continue;
            };
            let cached = sequence.prompt_cached();
            let turn = turns.entry(sequence.tenant()).or_default();
            let tokens = most.min(turn.left);
            if let Some(entry) = sequence.chunk(plan.step, tokens, rows_left) {
                budget -= entry.tokens.len();
                turn.left -= entry.tokens.len();
                rows_left -= entry.outputs();
                plan.entries.push(entry);
                self.start(id, cached);
                // Before the next one is admitted, so that tenants take turns within a step too.
                self.charge(id);
            }
        }
    }

    /// Guesses behind tokens of decoding sequences, as many as pay and as there is room for.
    fn plan_drafts(&mut self, plan: &mut StepPlan, turns: &mut Turns) {
        let outputs: usize = plan.entries.iter().map(PlanEntry::outputs).sum();
        let price = self.shares.pace.price(plan.rows());
        let price = price.unwrap_or(draft::PRICE_UNKNOWN);
        let room = limits::STEP_TOKENS_MAX - plan.rows();
        let mut left = room.min(self.rows_max.saturating_sub(outputs));
        for entry in &mut plan.entries {
            let id = self.by_key.get(&entry.key);
            let sequence = id.and_then(|id| self.sequences.get_mut(id));
            let Some(sequence) =
                sequence.filter(|_| entry.sample.is_some() && entry.tokens.len() == 1)
            else {
                continue;
            };
            let turn = turns.entry(sequence.tenant()).or_default();
            let most = match turn.is_cut {
                true => left.min(turn.left),
                false => left,
            };
            let guess = sequence.guess(most, price);
            left -= guess.len();
            turn.left = turn.left.saturating_sub(guess.len());
            entry.drafts = guess.len() as u32;
            entry.tokens.extend(guess);
        }
    }

    /// Tells the client, once, that its sequence is being worked on.
    fn start(&mut self, id: SequenceId, cached_tokens: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if !sequence.started {
            sequence.started = true;
            self.stats.prompt_tokens += sequence.prompt_len() as u64;
            self.effects.push(Effect {
                sequence: id,
                event: GenerateEvent::Started {
                    cached_tokens: cached_tokens as u32,
                },
            });
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.cancel(id);
        self.tell_finished(id, reason);
    }

    fn tell_finished(&mut self, id: SequenceId, reason: FinishReason) {
        self.effects.push(Effect {
            sequence: id,
            event: GenerateEvent::Finished { reason },
        });
    }

    /// Charges a sequence's tenant for what was planned of it.
    fn charge(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.waiting.charge(sequence.tenant(), sequence.charge());
        }
    }

    fn tell_failed(&mut self, id: SequenceId, kind: FailureKind, reason: String) {
        self.effects.push(Effect {
            sequence: id,
            event: GenerateEvent::Failed { kind, reason },
        });
    }

    /// Takes a sequence out of the running batch, if it is in it, and frees its pages.
    fn stop_running(&mut self, id: SequenceId) {
        if !self.running.remove(&id) {
            return;
        }
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let (key, pages) = sequence.leave();
            self.pool.release(&pages);
            if let Some(key) = key {
                self.by_key.remove(&key);
                let told = self.added.iter().all(|added| added.key != key);
                self.added.retain(|added| added.key != key);
                if told {
                    self.removed.push(key);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "batcher_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "fairness_tests.rs"]
mod fairness_tests;

#[cfg(test)]
#[path = "priority_tests.rs"]
mod priority_tests;
