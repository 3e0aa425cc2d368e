//! How a step is shared out before anything of it is planned: what each tenant may have of it, and how much of
//! it is for prompts. The rule between tenants is that of `shares`; here is what they could use.

use super::Batcher;
use crate::engine::sequence::SequenceId;
use crate::engine::shares::Demand;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use trireme_shared::ids::TenantId;
use trireme_shared::limits;

/// What a tenant may have of one step, in tokens.
#[derive(Debug, Default)]
pub(super) struct Turn {
    wanted: usize,
    /// It wants more than it gets.
    pub(super) is_cut: bool,
    /// What it gets and has not used yet.
    pub(super) left: usize,
    /// What decoding sequences leave to prompts.
    kept: usize,
}

pub(super) type Turns = BTreeMap<TenantId, Turn>;

impl Turn {
    /// It gets all that it wants.
    pub(super) fn uncut(&mut self) {
        *self = Self {
            wanted: self.wanted,
            left: self.wanted,
            ..Self::default()
        };
    }

    /// Takes the token of a decoding sequence, if there is one for it.
    pub(super) fn decode(&mut self) -> bool {
        let has = self.left > self.kept;
        self.left -= usize::from(has);
        has
    }
}

impl Batcher {
    /// Tokens of prompts that a step has at most. Beside decoding sequences each prompt that is there makes
    /// it longer by what the decodes alone take, no more: one prompt halves their pace, and many share in what
    /// the longest step has room for.
    pub(super) fn prefill_most(&self) -> usize {
        let running = self.running.iter().map(|id| &self.sequences[id]);
        let (mut decodes, mut prompts) = (0usize, self.waiting.len());
        for sequence in running.filter(|sequence| !sequence.paused) {
            match sequence.decodes() {
                true => decodes += 1,
                false => prompts += 1,
            }
        }
        if decodes == 0 {
            return limits::STEP_TOKENS_MAX;
        }
        let decodes = decodes.div_ceil(self.capacity.steps_in_flight);
        let longest = limits::STEP_BESIDE_DECODE_MAX;
        let tokens = self.shares.pace.longer(decodes, prompts + 1, longest);
        let tokens = tokens.unwrap_or(limits::PREFILL_BESIDE_DECODE_TOKENS);
        tokens.clamp(
            limits::PREFILL_BESIDE_DECODE_TOKENS_MIN,
            limits::STEP_TOKENS_MAX,
        )
    }

    /// What each tenant may have of the next step, of prompts `most` tokens.
    pub(super) fn turns(&mut self, most: usize) -> Turns {
        let mut wanted: BTreeMap<TenantId, (usize, usize)> = BTreeMap::new();
        for id in self.running.iter().copied().chain(self.waiting.iter()) {
            let sequence = &self.sequences[&id];
            if !sequence.paused {
                let (decodes, prompts) = wanted.entry(sequence.tenant()).or_default();
                match sequence.decodes() {
                    true => *decodes += 1,
                    false => *prompts += sequence.remaining(),
                }
            }
        }
        let demand = |(tenant, (decodes, prompts)): (TenantId, (usize, usize))| {
            let demand = Demand {
                weight: self.waiting.weight(tenant),
                tokens: decodes.div_ceil(self.capacity.steps_in_flight) + prompts.min(most),
            };
            (tenant, demand)
        };
        let demands: BTreeMap<_, _> = wanted.into_iter().map(demand).collect();
        let given = self.shares.give(&demands);
        let turn = |(tenant, left): (TenantId, usize)| {
            let wanted = demands.get(&tenant).map_or(0, |d| d.tokens);
            let turn = Turn {
                wanted,
                is_cut: left < wanted,
                left,
                kept: 0,
            };
            (tenant, turn)
        };
        given.into_iter().map(turn).collect()
    }

    /// Keeps half of what tenants get that want more for their prompts, of those that have some which can
    /// run; where it is one token, in every other step.
    pub(super) fn keep_for_prompts(&mut self, turns: &mut Turns) {
        let next = self.next_that_fits(turns);
        for id in self.running.iter().copied().chain(next) {
            let sequence = &self.sequences[&id];
            let turn = turns.get_mut(&sequence.tenant());
            let cut = turn.filter(|turn| turn.is_cut);
            if let Some(turn) = cut
                && !sequence.paused
                && sequence.remaining() > 1
            {
                let half = (turn.left + self.next_step as usize % 2) / 2;
                turn.kept = half.min(turn.kept + sequence.remaining());
            }
        }
    }

    /// Prompts of running sequences, in the order in which they go on, and what the first may have of `budget`
    /// tokens.
    ///
    /// As they would be admitted, those of the tenant that was served least first; of one those of a higher
    /// priority, and of these the shortest, so that a long one does not hold them all up. But the oldest, or
    /// what its tenant would rather have, keeps half, or what the others leave.
    pub(super) fn prompts(
        &mut self,
        budget: usize,
        turns: &Turns,
    ) -> (Vec<SequenceId>, Option<usize>) {
        let next = self.next_that_fits(turns);
        let sequence = |id: &SequenceId| &self.sequences[id];
        let mut prompts = Vec::from_iter(self.running.iter().copied());
        prompts.retain(|id| !sequence(id).paused && sequence(id).remaining() > 1);
        let Some(&oldest) = prompts.first() else {
            return (prompts, None);
        };
        let is_theirs = |id: &&SequenceId| sequence(id).tenant() == sequence(&oldest).tenant();
        let best_first = |id: &&SequenceId| (Reverse(sequence(id).priority()), **id);
        let theirs = prompts.iter().filter(is_theirs);
        let first = theirs.min_by_key(best_first).copied().unwrap_or(oldest);
        let yields = |id: &&SequenceId| {
            is_theirs(id) && sequence(id).priority() < sequence(&first).priority()
        };
        let others = prompts.iter().chain(&next);
        let others = others.filter(|id| **id != first && !yields(id));
        let others: usize = others.map(|id| sequence(id).remaining()).sum();
        prompts.sort_by_cached_key(|id| {
            let of = sequence(id);
            let served = self.waiting.served(of.tenant());
            (
                *id != first,
                served,
                Reverse(of.priority()),
                of.remaining(),
                *id,
            )
        });
        (prompts, Some(budget - others.min(budget / 2)))
    }
}
