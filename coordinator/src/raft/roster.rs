//! Who should be a member, by the state, against who is one: what the leader changes next. Pure.
//!
//! What it keeps true: a coordinator first listens (learner) and votes only once it has caught up, so
//! that a newcomer never holds up a quorum; only a removed coordinator leaves; what can change
//! together does, through joint consensus.

use super::codec::MemberChange;
use super::types::{MemberId, Membership};
use crate::state::State;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::CoordinatorId;

/// The next change; `None` where members and state agree, or have to wait. An empty change leaves a
/// joint configuration.
pub(super) fn next_changes(
    state: &State,
    members: &Membership,
    caught_up: impl Fn(MemberId) -> bool,
) -> Option<Vec<MemberChange>> {
    if !members.voters_outgoing.is_empty() {
        // raft-rs leaves a joint configuration by itself, unless its leader changed at the wrong
        // moment.
        return members.auto_leave.then(Vec::new);
    }
    let mut changes = Vec::new();
    for record in state.coordinators() {
        let id = MemberId::from(record.id.0);
        let votes = members.voters.contains(&id);
        let listens = members.learners.contains(&id);
        if !votes && !listens && !record.control.is_empty() {
            changes.push(MemberChange::AddLearner(id));
        } else if listens && record.wants_vote && caught_up(id) {
            changes.push(MemberChange::AddVoter(id));
        }
    }
    let all = members.voters.iter().chain(&members.learners);
    let gone: Vec<MemberId> = all.copied().filter(|id| is_removed(state, *id)).collect();
    // A group without voters could never change again: then the others come first.
    let someone = members.voters.iter().any(|id| !gone.contains(id))
        || changes
            .iter()
            .any(|c| matches!(c, MemberChange::AddVoter(_)));
    if someone {
        changes.extend(gone.into_iter().map(MemberChange::Remove));
    }
    (!changes.is_empty()).then_some(changes)
}

/// Whether the state has this member removed.
pub(super) fn is_removed(state: &State, id: MemberId) -> bool {
    u32::try_from(id).is_ok_and(|id| state.is_removed(NodeId::Coordinator(CoordinatorId(id))))
}
