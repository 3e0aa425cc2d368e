//! The group as an administrator sees it: the state's wish for it beside what Raft has. Pure.

use crate::raft::member::MemberStatus;
use crate::raft::types::MemberId;
use crate::state::{CoordinatorRecord, State};
use trireme_shared::api::{CoordinatorReport, CoordinatorStatus, MemberRole};
use trireme_shared::ids::CoordinatorId;

/// Every coordinator that is in the state or counts in the group. `group` is the leader's view, or this
/// member's own where nobody leads.
pub fn view(
    state: &State,
    group: Option<&MemberStatus>,
    this: &CoordinatorReport,
) -> Vec<CoordinatorStatus> {
    let mut all: Vec<CoordinatorStatus> = state.coordinators().map(from_state).collect();
    if let Some(group) = group {
        let known = |id: &MemberId| state.coordinators().any(|c| u64::from(c.id.0) == *id);
        let leaving = counted(group).filter(|id| !known(id));
        all.extend(
            leaving
                .filter_map(|id| u32::try_from(id).ok())
                .map(|id| from_raft(CoordinatorId(id))),
        );
        for one in &mut all {
            positions(one, group);
        }
    }
    for one in all.iter_mut().filter(|one| one.id == this.id) {
        one.pid = Some(this.pid);
    }
    all.sort_by_key(|one| one.id);
    all
}

fn counted(group: &MemberStatus) -> impl Iterator<Item = MemberId> {
    let members = &group.members;
    let mut all: Vec<MemberId> = [
        &members.voters,
        &members.learners,
        &members.voters_outgoing,
        &members.learners_next,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter()
}

fn from_state(record: &CoordinatorRecord) -> CoordinatorStatus {
    CoordinatorStatus {
        id: record.id,
        pid: None,
        http: record.http.clone(),
        control: record.control.clone(),
        version: record.version.clone(),
        role: MemberRole::Joining,
        wants_vote: record.wants_vote,
        active: None,
        last: None,
        lag: None,
        joined_at: record.joined_at,
        certificate_expires_at: record.certificate.as_ref().map(|c| c.expires_at),
    }
}

fn from_raft(id: CoordinatorId) -> CoordinatorStatus {
    CoordinatorStatus {
        id,
        pid: None,
        http: String::new(),
        control: String::new(),
        version: String::new(),
        role: MemberRole::Removed,
        wants_vote: false,
        active: None,
        last: None,
        lag: None,
        joined_at: 0,
        certificate_expires_at: None,
    }
}

fn positions(one: &mut CoordinatorStatus, group: &MemberStatus) {
    let id = u64::from(one.id.0);
    let members = &group.members;
    if one.role != MemberRole::Removed {
        let votes = members.voters.contains(&id) || members.voters_outgoing.contains(&id);
        let listens = members.learners.contains(&id) || members.learners_next.contains(&id);
        one.role = match () {
            () if id == group.office.leader => MemberRole::Leader,
            () if votes => MemberRole::Follower,
            () if listens => MemberRole::Learner,
            () => MemberRole::Joining,
        };
    }
    if id == group.id {
        one.active = Some(true);
        one.last = Some(group.last);
        one.lag = (group.office.leader == id).then_some(0);
    } else if let Some(follower) = group.followers.iter().find(|f| f.id == id) {
        one.active = Some(follower.active);
        one.last = Some(follower.matched);
        one.lag = Some(group.last.saturating_sub(follower.matched));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::member::{Follower, Office};
    use crate::raft::types::Membership;
    use crate::state::apply::tests::filled;

    fn this() -> CoordinatorReport {
        CoordinatorReport {
            id: CoordinatorId(1),
            pid: 7,
            http: String::new(),
            control: String::new(),
        }
    }

    fn leader() -> MemberStatus {
        let follower = |id, matched, active| Follower {
            id,
            matched,
            active,
            receives_snapshot: false,
        };
        MemberStatus {
            id: 1,
            office: Office {
                term: 2,
                leader: 1,
                leads: true,
            },
            first: 1,
            last: 50,
            commit: 50,
            applied: 50,
            snapshot: 1,
            members: Membership {
                voters: vec![1, 90],
                learners: vec![91],
                ..Membership::default()
            },
            followers: vec![follower(90, 50, true), follower(91, 30, false)],
        }
    }

    #[test]
    fn what_raft_counts_and_the_state_has_not_is_on_its_way_out() {
        let state = filled().state;
        let all = view(&state, Some(&leader()), &this());
        let of = |id: u32| all.iter().find(|m| m.id.0 == id).unwrap();
        assert_eq!(of(1).role, MemberRole::Leader);
        assert_eq!(
            (of(1).pid, of(1).last, of(1).lag),
            (Some(7), Some(50), Some(0))
        );
        assert_eq!((of(90).role, of(90).lag), (MemberRole::Removed, Some(0)));
        assert_eq!((of(91).lag, of(91).active), (Some(20), Some(false)));
        let others = state.coordinators().filter(|c| c.id.0 != 1);
        for joining in others {
            assert_eq!(of(joining.id.0).role, MemberRole::Joining);
            assert_eq!(of(joining.id.0).pid, None);
        }
    }

    #[test]
    fn without_a_leader_nobodys_lag_is_known() {
        let state = filled().state;
        let mut follower = leader();
        follower.office.leader = 0;
        follower.followers.clear();
        let all = view(&state, Some(&follower), &this());
        assert!(
            all.iter()
                .all(|m| m.lag.is_none() && m.role != MemberRole::Leader)
        );
    }
}
