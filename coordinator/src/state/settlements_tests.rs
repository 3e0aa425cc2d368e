//! The log of settlements, against the rows.

use super::super::apply::tests::{Member, ended, filled, report, told, usage};
use super::super::{Command, Ended, Final, Progress};
use super::*;

fn completed(n: u64, completion: u64) -> Progress {
    let mut progress = told(n);
    progress.counts = Counts::new(10, 4, completion);
    progress
}

fn last(n: u64, completion: u64, ended: Ended) -> Command {
    let progress = completed(n, completion);
    report(1, |r| r.finals.push(Final { progress, ended }))
}

fn log(member: &Member, from: u64) -> Vec<(u64, u64, u64, i64)> {
    let rows = member.state.settlements_from(SettlementSeq(from));
    rows.map(|s| (s.seq.0, s.request.0, s.added.completion.0, s.charged.0))
        .collect()
}

#[test]
fn each_settlement_that_changed_a_request_is_written_down_once() {
    let mut member = filled();
    assert_eq!(member.state.settlement_last(), SettlementSeq(3));
    member.ask(last(20, 5, Ended::Disconnected));
    // More of it, told late; then less, which changes nothing.
    member.ask(last(20, 8, Ended::Finished));
    member.ask(last(20, 6, Ended::Finished));
    // Nothing was delivered of this one.
    let mut free = told(21);
    free.counts = Counts::default();
    free.work.clear();
    member.ask(report(1, |r| r.finals.push(ended(free))));
    assert_eq!(
        log(&member, 4),
        [(4, 4, 5, 440), (5, 4, 3, 180), (6, 5, 0, 0)]
    );
    let first = member.state.settlements_from(SettlementSeq(4)).next();
    let first = first.unwrap();
    assert_eq!(first.ended, Ended::Disconnected);
    assert_eq!(
        (first.added.prompt, first.added.cached),
        (Tokens(10), Tokens(4))
    );
    assert_eq!(log(&member, 7), []);
    member.state.check().unwrap();
}

#[test]
fn the_oldest_go_and_their_requests_are_no_longer_held_to_the_log() {
    let mut member = filled();
    for n in 20..25 {
        member.ask(usage(1, n));
    }
    member.ask(last(20, 9, Ended::Finished));
    let settlements = &mut member.state.settlements;
    settlements.trim(4);
    assert_eq!(settlements.lost, RequestNumber(5));
    let kept = log(&member, 0);
    assert_eq!(
        kept.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>(),
        [(6, 6), (7, 7), (8, 8), (9, 4)]
    );
    member.state.check().unwrap();
    // Numbers go on.
    member.ask(usage(1, 30));
    assert_eq!(member.state.settlement_last(), SettlementSeq(10));
    member.state.check().unwrap();
}

#[test]
fn the_full_check_sees_a_row_that_the_log_does_not_make() {
    let state = filled().state;
    let mut changed = state.clone();
    let of = SettlementSeq(2);
    changed.settlements.rows.get_mut(&of).unwrap().charged.0 += 1;
    let fault = changed.check().unwrap_err();
    assert!(fault.contains("not the sum of its settlements"), "{fault}");
    let mut changed = state;
    changed.settlements.rows.remove(&of);
    assert!(changed.check().unwrap_err().contains("gap"));
}
