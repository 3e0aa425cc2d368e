//! Proposals that are made again, by a proposer that heard no answer or by two leaders: they take
//! effect once, however late the repeat comes.

use crate::state::apply::tests::{Member, bootstrap_command, credit, filled, join, key, token};
use crate::state::{Account, Command, Outcome, Refusal, TokenRole, apply};
use trireme_shared::ids::{PostingId, TenantId, TokenRecordId, WorkerId};
use trireme_shared::limits::PROPOSAL_WINDOW;

fn act(n: u64) -> Command {
    // The cheapest command there is: refused at once.
    Command::RevokeToken {
        id: TokenRecordId(1_000 + n as u32),
    }
}

fn credited(member: &Member) -> i64 {
    member.state.balance(&Account::Tenant(TenantId(1))).0
}

#[test]
fn a_repeat_gives_the_old_outcome_and_changes_nothing() {
    let mut member = filled();
    member.ask(token(9, TokenRole::Worker, 5));
    let join = member.proposal(join(4, 9));
    let used = member.proposal(credit(1, 5));
    let refused = member.proposal(bootstrap_command());
    let first = [&join, &used, &refused].map(|p| apply(&mut member.state, p).outcome);
    assert_eq!(first[0], Outcome::Worker(WorkerId(3)));
    let before = member.state.digest().unwrap();
    for (proposal, outcome) in [&join, &used, &refused].into_iter().zip(first) {
        // With another time and base too: the id names the proposal.
        let mut again = proposal.clone();
        again.at_ms += 1;
        again.base = member.state.commands();
        for proposal in [proposal, &again] {
            let applied = apply(&mut member.state, proposal);
            assert_eq!(applied.outcome, outcome);
            assert_eq!(applied.effects, []);
        }
    }
    assert_eq!(member.state.digest().unwrap(), before);
}

/// The rule that lets ids be forgotten: at every age of a proposal its repeat is either remembered or
/// too old.
#[test]
fn a_forgotten_proposal_is_refused_and_never_applied_twice() {
    let mut member = Member::default();
    member.ask(key("acme", 1));
    let proposal = member.proposal(credit(1, 5));
    let posted = Outcome::Posting(PostingId(1));
    // It was proposed, and others were applied before it.
    for n in 0..10 {
        member.ask(act(n));
    }
    assert_eq!(apply(&mut member.state, &proposal).outcome, posted);
    for n in 1..PROPOSAL_WINDOW {
        member.ask(act(n));
    }
    // The newest moment at which it is still remembered.
    assert_eq!(apply(&mut member.state, &proposal).outcome, posted);
    assert_eq!(credited(&member), 5);
    for n in 0..20 {
        member.ask(act(n));
        let before = member.state.digest().unwrap();
        let applied = apply(&mut member.state, &proposal);
        assert_eq!(applied.outcome, Outcome::Refused(Refusal::TooOld));
        assert_eq!(member.state.digest().unwrap(), before, "nothing at all");
    }
    assert_eq!(credited(&member), 5);
    member.state.check().unwrap();
}

#[test]
fn the_window_is_as_long_as_it_says_from_a_proposals_base() {
    let mut member = Member::default();
    member.ask(key("acme", 1));
    let edge = member.proposal(credit(1, 5));
    let late = member.proposal(credit(1, 5));
    for n in 0..PROPOSAL_WINDOW {
        member.ask(act(n));
    }
    let posted = Outcome::Posting(PostingId(1));
    assert_eq!(apply(&mut member.state, &edge).outcome, posted);
    let why = apply(&mut member.state, &late).outcome;
    assert_eq!(why, Outcome::Refused(Refusal::TooOld));
}

#[test]
fn a_base_that_is_not_of_this_history_is_refused() {
    let mut member = filled();
    let mut proposal = member.proposal(credit(1, 5));
    proposal.base += 1;
    let before = member.state.digest().unwrap();
    let why = apply(&mut member.state, &proposal).outcome;
    assert_eq!(why, Outcome::Refused(Refusal::UnknownBase));
    assert_eq!(member.state.digest().unwrap(), before);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_a_proposal_is_applied_twice() {
    use crate::planted::{Bug, plant};
    for bug in [Bug::ApplyTwice, Bug::ForgetProposal] {
        plant(Some(bug));
        let mut member = Member::default();
        member.ask(key("acme", 1));
        let proposal = member.proposal(credit(1, 5));
        apply(&mut member.state, &proposal);
        member.ask(act(1));
        apply(&mut member.state, &proposal);
        plant(None);
        assert_eq!(credited(&member), 10, "{bug:?}");
    }
}
