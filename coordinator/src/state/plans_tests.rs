//! Epochs over the lives of deployments and their plans.

use crate::state::apply::tests::{Member, commit, put};
use crate::state::{Command, Effect, Outcome, Refusal};
use trireme_shared::ids::{DeploymentId, Epoch};

#[test]
fn epochs_grow_over_replans_replacements_and_deployments() {
    let mut member = Member {
        now: 7,
        ..Member::default()
    };
    let d = DeploymentId(1);
    assert_eq!(member.ask(put("a", 2)), Outcome::Deployment(d));
    let first = member.ask(commit(1, "a", 0, None));
    assert_eq!(first, Outcome::Planned(Epoch(1)));
    // A planner that did not see epoch 1 is refused; one that did gets a newer epoch.
    let current = Some(Epoch(1));
    let why = member.refused(commit(1, "a", 0, None));
    assert_eq!(why, Refusal::StalePlan { current });
    let second = member.ask(commit(1, "a", 0, current));
    assert_eq!(second, Outcome::Planned(Epoch(2)));
    let other = member.ask(commit(1, "a", 1, None));
    assert_eq!(other, Outcome::Planned(Epoch(3)));
    // The same spec again keeps its plans, another spec drops them; the epoch goes on.
    member.now = 8;
    assert_eq!(member.apply(put("a", 2)).effects, [Effect::Deployments]);
    assert_eq!(member.state.plans().count(), 2);
    member.ask(put("a", 1));
    assert_eq!(member.state.plans().count(), 0);
    let again = member.ask(commit(1, "a", 0, None));
    assert_eq!(again, Outcome::Planned(Epoch(4)));
    // Only replicas of the spec, only its model.
    let why = member.refused(commit(1, "a", 1, None));
    assert!(matches!(why, Refusal::PlanMismatch(_)));
    let why = member.refused(commit(1, "b", 0, Some(Epoch(4))));
    assert!(matches!(why, Refusal::PlanMismatch(_)));
    assert_eq!(member.state.deployment_named("a").unwrap().created_at, 7);
    // A removed deployment takes its plans along; a new one of its name is another.
    let removed = member.ask(Command::RemoveDeployment { id: d });
    assert_eq!(removed, Outcome::Done);
    assert!(member.state.deployment_named("a").is_none());
    member.state.check().unwrap();
    assert_eq!(member.state.plans().count(), 0);
    let why = member.refused(Command::RemoveDeployment { id: d });
    assert_eq!(why, Refusal::UnknownDeployment(d));
    let why = member.refused(commit(1, "a", 0, None));
    assert_eq!(why, Refusal::UnknownDeployment(d));
    assert_eq!(
        member.ask(put("a", 1)),
        Outcome::Deployment(DeploymentId(2))
    );
    let last = member.ask(commit(2, "a", 0, None));
    assert_eq!(last, Outcome::Planned(Epoch(5)));
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_a_removed_plans_epoch_is_given_again() {
    use crate::planted::{Bug, plant};
    plant(Some(Bug::EpochReused));
    let mut member = Member::default();
    member.ask(put("a", 2));
    let first = member.ask(commit(1, "a", 0, None));
    member.ask(put("a", 1));
    assert_eq!(member.ask(commit(1, "a", 0, None)), first);
    plant(None);
}
