//! The window of remembered outcomes: a proposal made again (its proposer did not hear the answer,
//! or two leaders logged it) is answered as before and applied once.
//!
//! Kept true: an id is applied at most once, ever. Ids are forgotten after `limits::PROPOSAL_WINDOW`
//! further proposals; by then every proposal with that id has a `base` older than the window and is
//! refused, because its base was taken before it was first applied.

use super::codec::{CodecError, Sink, Source, Stored};
use super::table::Table;
use super::{Outcome, Proposal, ProposalId, Refusal};
use crate::planted::{self, Bug};
use trireme_shared::limits;

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Proposals applied, repeats and the too old not counted.
    pub commands: u64,
    /// The newest ones, by the value that `commands` got through them.
    pub outcomes: Table<u64, (ProposalId, Outcome)>,
    /// The other way round; rebuilt when a state is read.
    pub orders: Table<ProposalId, u64>,
}

/// What to do with a proposal.
pub(super) enum Admission {
    Apply,
    /// It was applied before.
    Repeat(Outcome),
    /// Nothing may come of it, and nothing is remembered.
    Refuse(Refusal),
}

impl Window {
    pub fn admit(&self, proposal: &Proposal) -> Admission {
        if let Some(order) = self.orders.get(&proposal.id)
            && let Some((_, outcome)) = self.outcomes.get(order)
            && !planted::is(Bug::ApplyTwice)
        {
            return Admission::Repeat(outcome.clone());
        }
        match self.commands.checked_sub(proposal.base) {
            // Bases are counts of committed commands, and the log keeps their order.
            None => Admission::Refuse(Refusal::UnknownBase),
            Some(age) if age > limits::PROPOSAL_WINDOW => Admission::Refuse(Refusal::TooOld),
            Some(_) => Admission::Apply,
        }
    }

    pub fn remember(&mut self, id: ProposalId, outcome: Outcome) {
        self.commands += 1;
        self.outcomes.insert(self.commands, (id, outcome));
        if let Some(older) = self.orders.insert(id, self.commands) {
            self.outcomes.remove(&older);
        }
        let window = if planted::is(Bug::ForgetProposal) {
            1
        } else {
            limits::PROPOSAL_WINDOW
        };
        while let Some((order, (id, _))) = self.outcomes.first().cloned() {
            if order + window > self.commands {
                break;
            }
            self.outcomes.remove(&order);
            self.orders.remove(&id);
        }
        assert_eq!(
            self.outcomes.len(),
            self.orders.len(),
            "the window of proposals has two sides of one length"
        );
    }

    /// As it was after `commands` proposals of which those outcomes are remembered.
    pub fn rebuild(
        commands: u64,
        outcomes: Table<u64, (ProposalId, Outcome)>,
    ) -> Result<Self, CodecError> {
        let oldest = commands.saturating_sub(limits::PROPOSAL_WINDOW) + 1;
        let mut orders = Table::default();
        for (order, (id, _)) in outcomes.iter() {
            let fits = (oldest..=commands).contains(order);
            if !fits || orders.insert(*id, *order).is_some() {
                let text = "its proposals are not a window";
                return Err(CodecError::Damaged(text.into()));
            }
        }
        Ok(Self {
            commands,
            outcomes,
            orders,
        })
    }

    pub fn check(&self) -> Result<(), String> {
        match Self::rebuild(self.commands, self.outcomes.clone()) {
            Ok(rebuilt) if rebuilt == *self => Ok(()),
            Ok(_) => Err("the two sides of the proposals' window differ".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Stored for Window {
    fn store(&self, out: &mut Sink<'_>) -> Result<(), CodecError> {
        self.commands.store(out)?;
        self.outcomes.store(out)
    }

    fn load(input: &mut Source<'_>) -> Result<Self, CodecError> {
        let commands = Stored::load(input)?;
        Self::rebuild(commands, Stored::load(input)?)
    }
}

#[cfg(test)]
#[path = "proposals_tests.rs"]
mod tests;
