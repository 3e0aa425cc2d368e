//! Authorities that come and go, and a restored state's new identity.

use super::*;
use crate::state::apply::tests::{
    Member, bootstrap_command, commit, filled, fingerprint, hash, join, pem, token,
};
use crate::state::{Command, Effect, KeyFault, Principal, TokenRole};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, Epoch, WorkerId};

#[test]
fn an_authority_is_added_signs_and_the_old_one_is_retired() {
    let mut member = Member::default();
    let add = |n| Command::AddAuthority { pem: pem(n) };
    let sign = |n| Command::SignWith {
        fingerprint: fingerprint(n),
    };
    let retire = |n| Command::RetireAuthority {
        fingerprint: fingerprint(n),
    };
    assert_eq!(member.refused(add(1)), Refusal::NotBootstrapped);
    member.ask(bootstrap_command());
    assert_eq!(member.refused(retire(0)), Refusal::AuthoritySigns);
    assert_eq!(member.refused(add(0)), Refusal::AuthorityExists);
    let no_pem = Command::AddAuthority {
        pem: "words".into(),
    };
    assert_eq!(member.refused(no_pem), Refusal::BadAuthority);
    let unknown = Refusal::UnknownAuthority(fingerprint(1));
    assert_eq!(member.refused(sign(1)), unknown);
    assert_eq!(member.apply(add(1)).effects, [Effect::Authorities]);
    assert_eq!(member.refused(add(2)), Refusal::TooManyAuthorities);
    let signs = |m: &Member| m.state.signing_authority().unwrap().fingerprint.clone();
    assert_eq!(signs(&member), fingerprint(0));
    assert_eq!(member.ask(sign(1)), Outcome::Done);
    assert_eq!(signs(&member), fingerprint(1));
    let stages = member.state.trusted_authorities().map(|a| a.stage);
    let signing = stages.filter(|s| *s == AuthorityStage::Signing).count();
    assert_eq!(signing, 1);
    assert_eq!(member.ask(retire(0)), Outcome::Done);
    let trusted: Vec<_> = member.state.trusted_authorities().collect();
    assert_eq!(trusted.len(), 1);
    assert!(trusted[0].pem == pem(1));
    member.state.check().unwrap();
}

#[test]
fn a_restored_state_is_another_cluster_that_serves_the_same() {
    let mut member = filled();
    let before = member.state.clone();
    let refound = |n, key| Command::Refound {
        cluster: ClusterId([n; 16]),
        name: "again".into(),
        authority_pem: pem(5),
        admin_key_hash: key,
    };
    assert_eq!(member.refused(refound(7, None)), Refusal::SameCluster);
    let applied = member.apply(refound(8, None));
    let founder = CoordinatorId(4);
    assert_eq!(applied.outcome, Outcome::Coordinator(founder));
    let state = &member.state;
    state.check().unwrap();
    for node in before
        .coordinators()
        .map(|c| NodeId::Coordinator(c.id))
        .chain(before.workers().map(|w| NodeId::Worker(w.id)))
    {
        assert!(state.is_removed(node) && !state.is_member(node), "{node}");
        assert!(applied.effects.contains(&Effect::Removed(node)));
    }
    let coordinators: Vec<_> = state.coordinators().map(|c| c.id).collect();
    assert_eq!(coordinators, [founder]);
    assert_eq!(state.workers().count(), 0);
    assert_eq!((state.tokens().count(), state.plans().count()), (0, 0));
    let authorities: Vec<_> = state.trusted_authorities().collect();
    assert!(authorities.len() == 1 && authorities[0].pem == pem(5));
    assert_eq!(state.authenticate(&hash(200), 0), Ok(Principal::Admin));
    assert!(state.deployments().eq(before.deployments()));
    assert!(state.usage().eq(before.usage()));
    assert!(state.postings().eq(before.postings()));
    assert_eq!(
        state.authenticate(&hash(10), 0),
        before.authenticate(&hash(10), 0)
    );
    assert_eq!(state.last_epoch(), before.last_epoch());
    assert_eq!(state.audit_head().seq, before.audit_head().seq + 2);
    // Numbers go on.
    member.ask(token(9, TokenRole::Worker, 1));
    assert_eq!(member.ask(join(4, 9)), Outcome::Worker(WorkerId(3)));
    let planned = member.ask(commit(1, "a", 0, None));
    assert_eq!(planned, Outcome::Planned(Epoch(before.last_epoch().0 + 1)));
    member.ask(refound(9, Some(hash(201))));
    assert_eq!(
        member.state.authenticate(&hash(200), 0),
        Err(KeyFault::Unknown)
    );
    assert_eq!(
        member.state.authenticate(&hash(201), 0),
        Ok(Principal::Admin)
    );
}
