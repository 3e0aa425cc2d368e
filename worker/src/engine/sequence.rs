//! One sequence in the batcher: how far it is and what its next chunk looks like. Pure.

use super::draft::{self, Trust};
use super::plan::{AddedSequence, Drawn, PlanEntry, Score, SequenceKey};
use super::prefix::{PageName, PageNames};
use super::sampler::wants_history;
use std::collections::BTreeMap;
use trireme_shared::ids::TenantId;
use trireme_shared::limits::{DRAFT_TOKENS_MAX, LOGIT_BIAS_MAX, PAGE_TOKENS, WEIGHT_MAX};
use trireme_shared::wire::generate::{FinishReason, GenerateRequest, Priority};

/// Orders sequences by arrival; unique for the driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What the batcher keeps of a request until its stream ends.
#[derive(Debug)]
pub struct Sequence {
    request: GenerateRequest,
    /// Prompt and everything generated so far.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens to generate in all, clamped to the replica's context.
    generate_max: usize,
    /// Set while running.
    pub key: Option<SequenceKey>,
    pages: Vec<u32>,
    /// How many of them, the last ones, the ranks were not told of yet.
    pages_untold: usize,
    names: PageNames,
    /// Tokens in the KV cache by the end of the planned steps, without guesses that did not come true.
    scheduled: usize,
    /// Of those, guesses whose step has not ended.
    drafts: usize,
    trust: Trust,
    /// Pages whose tokens steps that have ended put there.
    named: usize,
    /// Tokens that its tenant was charged for: those that steps computed, but not again those that are
    /// computed again because it was preempted.
    charged: usize,
    /// First prompt position whose log-probability has not been reported, and not been planned.
    scored: usize,
    score_planned: usize,
    /// The client is behind; the sequence is not scheduled.
    pub paused: bool,
    pub started: bool,
    /// The step that last carried it, for turns among micro-batches.
    pub last_step: u64,
}

/// Why a request cannot run here, in words for its sender.
pub fn check(request: &GenerateRequest, vocab: u32, context: u32) -> Result<(), String> {
    if request.prompt.is_empty() {
        return Err("the prompt has no tokens".into());
    }
    if !(1..=WEIGHT_MAX).contains(&request.weight) {
        let weight = request.weight;
        return Err(format!("its weight is {weight}, not 1 to {WEIGHT_MAX}"));
    }
    let held = request.prompt.len() + request.emitted.len();
    if held > context as usize {
        return Err(format!(
            "prompt and generated tokens are {held}, this replica holds at most {context}; \
             shorten the prompt"
        ));
    }
    let all = request.prompt.iter().chain(&request.emitted);
    if let Some(token) = all.copied().find(|&token| token >= vocab) {
        return Err(format!("token {token} is not in the vocabulary of {vocab}"));
    }
    let s = &request.sampling;
    let numbers = [
        s.temperature,
        s.top_p,
        s.min_p,
        s.frequency_penalty,
        s.presence_penalty,
    ];
    let biases = s.logit_bias.iter().map(|&(_, bias)| bias);
    if numbers.into_iter().chain(biases).any(|n| !n.is_finite()) {
        return Err("a sampling parameter is not a finite number".into());
    }
    if s.drafts > DRAFT_TOKENS_MAX {
        return Err(format!("more than {DRAFT_TOKENS_MAX} speculative tokens"));
    }
    if s.logit_bias.len() > LOGIT_BIAS_MAX {
        return Err("too many logit_bias entries".into());
    }
    Ok(())
}

impl Sequence {
    /// `request` has passed [`check`].
    pub fn new(request: GenerateRequest, context: u32) -> Self {
        let prompt_len = request.prompt.len();
        let room = (context as usize).saturating_sub(prompt_len);
        let mut tokens = request.prompt.clone();
        tokens.extend_from_slice(&request.emitted);
        // With tokens emitted by an earlier attempt, that attempt has sent the prompt's scores.
        let scores = request.prompt_logprobs.is_some() && request.emitted.is_empty();
        let scored = if scores { 1 } else { prompt_len };
        Self {
            generate_max: (request.max_tokens as usize).min(room),
            prompt_len,
            tokens,
            key: None,
            pages: Vec::new(),
            pages_untold: 0,
            names: PageNames::new(request.tenant),
            scheduled: 0,
            drafts: 0,
            trust: Trust::new(),
            named: 0,
            charged: 0,
            scored,
            score_planned: scored,
            paused: false,
            started: false,
            last_step: 0,
            request,
        }
    }

    pub fn tenant(&self) -> TenantId {
        self.request.tenant
    }

    pub fn priority(&self) -> Priority {
        self.request.priority
    }

    /// Tokens in its plans that its tenant is not charged for yet, and is now.
    pub fn charge(&mut self) -> usize {
        let fresh = self.scheduled.saturating_sub(self.charged);
        self.charged += fresh;
        fresh
    }

    /// Of its prompt, what it does not compute; asked before its first chunk.
    pub fn prompt_cached(&self) -> usize {
        self.scheduled.min(self.prompt_len)
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    fn generates(&self) -> bool {
        self.generated() < self.generate_max
    }

    /// Why the sequence has nothing left to do, if so.
    pub fn finished(&self) -> Option<FinishReason> {
        let stopped = self.generated() > 0
            && self
                .tokens
                .last()
                .is_some_and(|last| self.request.stop_tokens.contains(last));
        if stopped {
            return Some(FinishReason::Stop);
        }
        (!self.generates() && self.scored >= self.prompt_len).then_some(FinishReason::Length)
    }

    /// Tokens that must go through the model: all known ones where a next one is wanted; for
    /// scoring alone, the last prompt token is only a target.
    fn wanted(&self) -> usize {
        if self.generates() {
            self.tokens.len()
        } else {
            self.prompt_len - 1
        }
    }

    /// Known tokens not yet planned. 0 while its result is outstanding, 1 while it decodes.
    pub fn remaining(&self) -> usize {
        self.wanted().saturating_sub(self.scheduled)
    }

    /// It has its prompt behind it and makes a token each time it is scheduled.
    pub fn decodes(&self) -> bool {
        self.remaining() <= 1 && self.scheduled > 0
    }

    /// Pages its known tokens need in all.
    pub fn pages_wanted(&self) -> usize {
        self.wanted().div_ceil(PAGE_TOKENS)
    }

    /// Names of the full pages that another sequence may have left and that would spare it work: at
    /// least one token remains, and none whose scores are still to be reported.
    pub fn wanted_names(&mut self) -> &[PageName] {
        let spared = match self.scored < self.prompt_len {
            true => 0,
            false => self.wanted().saturating_sub(1) / PAGE_TOKENS,
        };
        self.names.of(&self.tokens, spared)
    }

    /// Pages that are full now that a step which reached token `end` has ended, each with its name. Asked
    /// after the step's tokens were taken: guesses that did not come true fill no page.
    pub fn filled(&mut self, end: usize) -> Vec<(u32, PageName)> {
        let full = end.min(self.scheduled) / PAGE_TOKENS;
        let first = self.named.min(full);
        self.named = full;
        let names = &self.names.of(&self.tokens, full)[first..];
        let pages = self.pages[first..].iter().copied();
        pages.zip(names.iter().copied()).collect()
    }

    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// More pages, which its next chunk tells the ranks of.
    pub fn take_pages(&mut self, pages: &[u32]) {
        self.pages.extend_from_slice(pages);
        self.pages_untold += pages.len();
    }

    /// Whether the next token needs a page more than it has.
    pub fn needs_page(&self) -> bool {
        self.scheduled + 1 > self.pages.len() * PAGE_TOKENS
    }

    /// Bytes, about, that adding it puts into a plan.
    pub fn added_bytes(&self) -> usize {
        let history = if wants_history(&self.request.sampling) {
            self.generated()
        } else {
            0
        };
        64 + 8 * (self.request.sampling.logit_bias.len() + history)
    }

    /// Enters the running batch under `key`, from the first token on that `held` pages do not hold.
    pub fn admit(&mut self, key: SequenceKey, held: Vec<u32>) -> AddedSequence {
        self.key = Some(key);
        self.scheduled = held.len() * PAGE_TOKENS;
        self.named = held.len();
        // What nobody computes costs nobody's turn.
        self.charged = self.charged.max(self.scheduled);
        self.pages.clone_from(&held);
        self.score_planned = self.scored;
        let mut generated = BTreeMap::new();
        if wants_history(&self.request.sampling) {
            for &token in &self.tokens[self.prompt_len..] {
                *generated.entry(token).or_insert(0) += 1;
            }
        }
        AddedSequence {
            key,
            sampling: self.request.sampling.clone(),
            logprobs: self.request.logprobs,
            prompt_logprobs: self.request.prompt_logprobs,
            generated: generated.into_iter().collect(),
            held,
        }
    }

    /// Leaves the running batch; gives its key and pages back. What was in flight is void.
    pub fn leave(&mut self) -> (Option<SequenceKey>, Vec<u32>) {
        self.scheduled = 0;
        self.drafts = 0;
        self.named = 0;
        self.pages_untold = 0;
        self.score_planned = self.scored;
        (self.key.take(), std::mem::take(&mut self.pages))
    }

    /// Plans its next chunk: at most `tokens_max` tokens and `rows_max` rows of logits. `None`
    /// where nothing fits.
    pub fn chunk(&mut self, step: u64, tokens_max: usize, rows_max: usize) -> Option<PlanEntry> {
        let key = self.key?;
        let start = self.scheduled;
        let mut len = self.remaining().min(tokens_max);
        if self.score_planned < self.prompt_len {
            // Each row scores a position or samples, so rows never exceed tokens.
            len = len.min(rows_max);
        }
        let end = start + len;
        let samples = self.generates() && end == self.tokens.len();
        if len == 0 || (samples && rows_max == 0) {
            return None;
        }
        let first_target = self.score_planned.max(start + 1);
        let last_target = (end + 1).min(self.prompt_len);
        let score = (first_target < last_target).then(|| Score {
            first_row: (first_target - 1 - start) as u32,
            targets: self.tokens[first_target..last_target].to_vec(),
        });
        if score.is_some() {
            self.score_planned = last_target;
        }
        self.scheduled = end;
        self.last_step = step;
        let told = self.pages.len() - std::mem::take(&mut self.pages_untold);
        Some(PlanEntry {
            key,
            context: start as u32,
            tokens: self.tokens[start..end].to_vec(),
            new_pages: self.pages[told..].to_vec(),
            score,
            sample: samples.then_some(self.generated() as u32),
            drafts: 0,
        })
    }

    /// Guesses what follows the token of its chunk that was just planned, at most `most` and as many as pay
    /// where a row costs `price` ([`draft::depth`]), within the pages that it has.
    pub fn guess(&mut self, most: usize, price: f64) -> Vec<u32> {
        let left = self.generate_max.saturating_sub(self.generated() + 1);
        let room = self.pages.len() * PAGE_TOKENS - self.scheduled;
        let asked = self.request.sampling.drafts as usize;
        let most = most.min(left).min(room).min(asked);
        let guess = draft::propose(&self.tokens, most);
        let guess = &guess[..draft::depth(self.trust.value(), price, guess.len())];
        if guess.is_empty() {
            self.trust.not_asked();
        }
        self.drafts = guess.len();
        self.scheduled += guess.len();
        guess.to_vec()
    }

    /// Takes `count` scores that came back; gives the first's position, or `None` where they were
    /// not asked for.
    pub fn take_scores(&mut self, count: usize) -> Option<u32> {
        let first = self.scored;
        if first + count > self.score_planned {
            return None;
        }
        self.scored += count;
        Some(first as u32)
    }

    /// Takes the tokens of a step, the last of which is new and the others its guesses come true; gives how
    /// many of them are the sequence's, from the index on: none after one that ends it. `None` where they were
    /// not asked for.
    pub fn take_tokens(&mut self, drawn: &[Drawn]) -> Option<(u32, usize)> {
        let guesses = std::mem::take(&mut self.drafts);
        let asked = self.generates() && self.scheduled == self.tokens.len() + guesses;
        if !asked || drawn.is_empty() || drawn.len() > guesses + 1 {
            return None;
        }
        self.trust.learn(drawn.len() - 1, guesses.min(drawn.len()));
        self.scheduled -= guesses - (drawn.len() - 1);
        let first = self.generated() as u32;
        let mut taken = 0;
        for Drawn { token, .. } in drawn {
            self.tokens.push(*token);
            taken += 1;
            if self.finished().is_some() {
                break;
            }
        }
        Some((first, taken))
    }
}
