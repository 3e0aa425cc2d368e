//! Who joins, with which token, and who is a member no more.

use super::*;
use crate::state::apply::tests::{
    Member, bootstrap_command, certificate, inventory, join, join_group, token,
};
use crate::state::{Command, Effect, TokenRole};
use trireme_shared::ids::WorkerId;

#[test]
fn a_token_lets_in_exactly_as_many_as_it_says() {
    let mut member = Member {
        now: 5,
        ..Member::default()
    };
    let id = TokenRecordId(1);
    assert_eq!(
        member.ask(token(1, TokenRole::Worker, 2)),
        Outcome::Token(id)
    );
    assert_eq!(member.refused(join(9, 1)), Refusal::UnknownToken);
    assert_eq!(member.refused(join(1, 2)), Refusal::UnknownToken);
    member.now = 100;
    assert_eq!(member.refused(join(1, 1)), Refusal::TokenExpired(id));
    member.now = 99;
    assert_eq!(member.ask(join(1, 1)), Outcome::Worker(WorkerId(1)));
    assert_eq!(member.ask(join(1, 1)), Outcome::Worker(WorkerId(2)));
    assert_eq!(member.refused(join(1, 1)), Refusal::TokenUsedUp(id));
    member.ask(token(1, TokenRole::Worker, 2));
    let second = TokenRecordId(2);
    member.ask(Command::RevokeToken { id: second });
    assert_eq!(member.refused(join(2, 1)), Refusal::TokenRevoked(second));
    assert_eq!(member.state.workers().count(), 2);
    let worker = member.state.worker(WorkerId(1)).unwrap();
    assert_eq!(worker.joined_at, 99);
    assert_eq!(worker.provider.as_deref(), Some("hosts"));
}

#[test]
fn a_token_lets_in_its_own_role_only() {
    let mut member = Member::default();
    member.ask(bootstrap_command());
    member.ask(token(1, TokenRole::Coordinator, 1));
    member.ask(token(2, TokenRole::Worker, 1));
    let why = member.refused(join(1, 1));
    assert_eq!(why, Refusal::TokenRole(TokenRecordId(1)));
    let why = member.refused(join_group(2, 2));
    assert_eq!(why, Refusal::TokenRole(TokenRecordId(2)));
    for id in [1, 2] {
        assert_eq!(member.state.token(TokenRecordId(id)).unwrap().uses_left, 1);
    }
}

#[test]
fn a_group_grows_and_shrinks_and_gives_no_number_twice() {
    let mut member = Member::default();
    member.ask(bootstrap_command());
    member.ask(token(1, TokenRole::Coordinator, 99));
    member.ask(token(2, TokenRole::Learner, 1));
    let (c1, c2, c3) = (CoordinatorId(1), CoordinatorId(2), CoordinatorId(3));
    let why = member.refused(Command::RemoveCoordinator { id: c1 });
    assert_eq!(why, Refusal::LastVoter(c1));
    assert_eq!(member.ask(join_group(2, 2)), Outcome::Coordinator(c2));
    let votes = |m: &Member, id| m.state.coordinator(id).unwrap().wants_vote;
    assert!(!votes(&member, c2));
    // A learner does not stand in for a voter until it is one.
    let why = member.refused(Command::RemoveCoordinator { id: c1 });
    assert_eq!(why, Refusal::LastVoter(c1));
    assert_eq!(
        member.ask(Command::PromoteCoordinator { id: c2 }),
        Outcome::Done
    );
    assert!(votes(&member, c2));
    let applied = member.apply(Command::RemoveCoordinator { id: c1 });
    let gone = NodeId::Coordinator(c1);
    assert_eq!(applied.effects, [Effect::Members, Effect::Removed(gone)]);
    assert!(member.state.is_removed(gone) && !member.state.is_member(gone));
    for command in [
        Command::RemoveCoordinator { id: c1 },
        Command::PromoteCoordinator { id: c1 },
        certificate(gone),
        Command::PutCoordinator {
            id: c1,
            http: String::new(),
            control: String::new(),
            version: String::new(),
        },
    ] {
        assert_eq!(member.refused(command), Refusal::Removed(gone));
    }
    assert_eq!(member.ask(join_group(1, 1)), Outcome::Coordinator(c3));
    assert!(votes(&member, c3));
    while member.state.coordinators().count() < trireme_shared::limits::COORDINATORS_MAX {
        member.ask(join_group(1, 1));
    }
    let left = member.state.token(TokenRecordId(1)).unwrap().uses_left;
    assert_eq!(member.refused(join_group(1, 1)), Refusal::GroupFull);
    let now = member.state.token(TokenRecordId(1)).unwrap().uses_left;
    assert_eq!(now, left);
    member.state.check().unwrap();
}

#[test]
fn a_removed_worker_is_nobody_and_its_number_is_not_given_again() {
    let mut member = Member::default();
    member.ask(token(1, TokenRole::Worker, 9));
    for n in [1, 2] {
        assert_eq!(member.ask(join(1, 1)), Outcome::Worker(WorkerId(n)));
    }
    let gone = NodeId::Worker(WorkerId(2));
    let applied = member.apply(Command::RemoveWorker { id: WorkerId(2) });
    assert_eq!(applied.effects, [Effect::Workers, Effect::Removed(gone)]);
    for command in [
        inventory(2),
        certificate(gone),
        Command::RemoveWorker { id: WorkerId(2) },
    ] {
        assert_eq!(member.refused(command), Refusal::Removed(gone));
    }
    assert_eq!(
        member.refused(inventory(7)),
        Refusal::UnknownWorker(WorkerId(7))
    );
    assert_eq!(member.ask(join(1, 1)), Outcome::Worker(WorkerId(3)));
    assert_eq!(member.state.removed().collect::<Vec<_>>(), [gone]);
}
