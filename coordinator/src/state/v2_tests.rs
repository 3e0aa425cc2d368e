//! Members that come from version 2 at different entries of one log.

use super::super::apply::tests::{Member, filled, report, told, usage};
use super::super::{Command, codec};
use super::*;
use trireme_shared::ids::{RequestNumber, SettlementSeq};

/// The state as version 2 wrote it.
fn written(state: State) -> Vec<u8> {
    let old = StateV2 {
        identity: state.identity,
        members: state.members,
        tokens: state.tokens,
        workers: state.workers,
        deployments: state.deployments,
        plans: state.plans,
        tenants: state.tenants,
        prices: state.prices,
        ledger: LedgerV2 {
            postings: state.ledger.postings,
            balances: state.ledger.balances,
            opening: state.ledger.opening,
            last: state.ledger.last,
        },
        requests: state.requests,
        rollups: state.rollups,
        leases: state.leases,
        now_ms: state.now_ms,
        audit: state.audit,
        proposals: state.proposals,
    };
    codec::written_as(VERSION, &old).unwrap()
}

#[test]
fn this_build_writes_version_2_as_its_release_did() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/state/fixtures/state-v2.bin"
    );
    assert!(written(filled().state) == std::fs::read(fixture).unwrap());
}

/// One takes the state up before some commands and one after them; both go on by the same log.
#[test]
fn members_that_come_from_version_2_at_different_entries_come_to_the_same() {
    let old = |state: &State| codec::decode_state(&written(state.clone())).unwrap();
    let mut early = Member {
        state: old(&filled().state),
        ..filled()
    };
    early.ask(usage(1, 50));
    early.ask(report(1, |r| r.progress.push(told(51))));
    let mut late = Member {
        state: old(&early.state),
        ..early.clone()
    };
    for member in [&mut early, &mut late] {
        member.ask(usage(1, 52));
        assert!(!member.state.is_current());
        member.ask(Command::Upgrade);
        assert!(member.state.is_current());
        member.ask(usage(1, 51));
        member.ask(Command::Upgrade);
        member.ask(usage(1, 53));
        member.state.check().unwrap();
    }
    assert!(early.state == late.state);
    let logged = early.state.settlements_from(SettlementSeq(0));
    let logged: Vec<_> = logged.map(|s| (s.seq, s.request)).collect();
    let expected = [(1, 6), (2, 7)].map(|(s, r)| (SettlementSeq(s), RequestNumber(r)));
    assert_eq!(logged, expected);
}
