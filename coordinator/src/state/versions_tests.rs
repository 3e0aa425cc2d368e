//! States as older versions wrote them, and members that come from them at different entries of one log.

use super::super::apply::tests::{Member, filled, report, told, usage};
use super::super::webhooks::tests::filled_with_webhooks;
use super::super::{Command, codec};
use super::*;
use trireme_shared::ids::{EventSeq, RequestNumber, SettlementSeq};

fn fixture(version: u16) -> Vec<u8> {
    let path = format!(
        "{}/src/state/fixtures/state-v{version}.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).unwrap()
}

#[test]
fn this_build_writes_older_versions_as_their_releases_did() {
    for version in OLDEST..STATE_VERSION {
        let state = match version {
            ..4 => filled().state,
            _ => filled_with_webhooks().state,
        };
        let written = codec::written_as(version, &state).unwrap();
        assert!(written == fixture(version), "version {version}");
    }
}

/// As the release of that version had it at this entry.
fn old(state: &State, version: u16) -> State {
    codec::decode_state(&codec::written_as(version, state).unwrap()).unwrap()
}

/// One takes the state up before some commands and one after them; both go on by the same log.
#[test]
fn members_that_come_from_an_older_version_at_different_entries_come_to_the_same() {
    for version in OLDEST..STATE_VERSION {
        let mut early = Member {
            state: old(&filled().state, version),
            ..filled()
        };
        let rules = if version == 4 { 5 } else { version };
        assert_eq!(early.state.version(), rules);
        early.ask(usage(1, 50));
        early.ask(report(1, |r| r.progress.push(told(51))));
        let mut late = Member {
            state: old(&early.state, version),
            ..early.clone()
        };
        let newest = STATE_VERSION;
        for member in [&mut early, &mut late] {
            member.ask(usage(1, 52));
            assert_eq!(member.state.version(), rules);
            member.ask(Command::UpgradeTo { version: newest });
            assert!(member.state.is_current());
            member.ask(usage(1, 51));
            member.ask(Command::UpgradeTo { version: newest });
            member.ask(usage(1, 53));
            member.state.check().unwrap();
        }
        assert!(early.state == late.state);
    }
}

#[test]
fn version_3_begins_a_log_of_settlements() {
    let mut member = Member {
        state: old(&filled().state, 2),
        ..filled()
    };
    member.ask(usage(1, 50));
    member.ask(Command::UpgradeTo { version: 3 });
    assert_eq!(member.state.version(), 3);
    member.ask(usage(1, 51));
    let logged = member.state.settlements_from(SettlementSeq(0));
    let logged: Vec<_> = logged.map(|s| (s.seq, s.request)).collect();
    assert_eq!(logged, [(SettlementSeq(1), RequestNumber(5))]);
}

/// The release that brought version 3 logs `Upgrade` as often as it has members: none of these may take
/// some of a group to version 4 and others not.
#[test]
fn what_an_older_release_logged_goes_no_further_than_it_did_there() {
    let mut member = Member {
        state: old(&filled().state, 2),
        ..filled()
    };
    for _ in 0..3 {
        member.ask(Command::Upgrade);
        assert_eq!(member.state.version(), 3);
    }
    let refused = member.refused(Command::TestWebhook {
        tenant: trireme_shared::ids::TenantId(1),
    });
    assert_eq!(refused, Refusal::NoWebhook);
    let newer = STATE_VERSION + 1;
    let refused = member.refused(Command::UpgradeTo { version: newer });
    assert_eq!(refused, Refusal::NewerVersion(newer));
    assert_eq!(member.state.webhook_event_last(), EventSeq(0));
}
