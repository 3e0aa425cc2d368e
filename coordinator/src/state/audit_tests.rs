//! The audit chain under attack, and what it may hold.

use super::*;
use crate::state::apply::tests::{Member, filled, pem};
use crate::state::{Command, Origin, State};

fn export(state: &State) -> Vec<String> {
    state.audit_records().map(to_json_line).collect()
}

fn fault(lines: &[String], head: AuditHead) -> u64 {
    let lines = lines.iter().map(String::as_str);
    verify(lines, Some(head)).expect_err("a fault").line
}

#[test]
fn an_edited_dropped_or_reordered_line_is_found() {
    let member = filled();
    let (lines, head) = (export(&member.state), member.state.audit_head());
    assert!(lines.len() > 10);
    let whole = verify(lines.iter().map(String::as_str), Some(head)).unwrap();
    assert_eq!((whole.first, whole.last), (1, lines.len() as u64));
    assert_eq!(whole.head, head.hash);
    for at in 0..lines.len() {
        let number = at as u64 + 1;
        // Any one byte.
        for byte in 0..lines[at].len() {
            let mut edited = lines.clone();
            let mut bytes = lines[at].clone().into_bytes();
            bytes[byte] ^= 1;
            edited[at] = String::from_utf8(bytes).unwrap();
            assert!(fault(&edited, head) >= number);
        }
        // Another spelling of the same record.
        let mut spaced = lines.clone();
        spaced[at].push(' ');
        assert_eq!(fault(&spaced, head), number);
        // A forger can mend the record's own hash, and not the next one's.
        let mut forged = lines.clone();
        let mut record = from_json_line(&lines[at]).unwrap();
        record.who = "somebody else".into();
        record.hash = hash(&record);
        forged[at] = to_json_line(&record);
        assert!(fault(&forged, head) > number);
        let mut dropped = lines.clone();
        dropped.remove(at);
        let told = verify(dropped.iter().map(String::as_str), Some(head));
        if at == 0 {
            // Older records may be gone for good: the numbers tell.
            assert_eq!(told.unwrap().first, 2);
        } else {
            assert_eq!(told.unwrap_err().line, number);
        }
        if at > 0 {
            let mut swapped = lines.clone();
            swapped.swap(at - 1, at);
            // At the first of the two, but where the chain just begins there.
            assert!(fault(&swapped, head) <= number.max(2));
        }
        let mut doubled = lines.clone();
        doubled.insert(at, lines[at].clone());
        assert_eq!(fault(&doubled, head), number + 1);
    }
    // Without a head nobody can tell that there was more.
    let shorter = &lines[..lines.len() - 1];
    assert!(verify(shorter.iter().map(String::as_str), None).is_ok());
    assert_eq!(fault(&[], head), 1);
    let none = verify(std::iter::empty(), Some(AuditHead::default())).unwrap();
    assert_eq!(none.last, 0);
}

#[test]
fn acts_are_recorded_and_daily_work_is_not() {
    let member = filled();
    let whats: Vec<_> = member
        .state
        .audit_records()
        .map(|r| r.what.as_str())
        .collect();
    for expected in [
        "set up cluster c (07070707070707070707070707070707)",
        "create a worker token of provider hosts, 3 uses, expires at 100",
        "join as a worker with token j1",
        "join as a coordinator with token j2",
        "remove worker w2",
        "revoke token j3",
        "deploy a, tensor parallel 1, pipeline parallel 1, 2 replicas",
        "create a key for tenant acme",
        "set tenant acme: active, credit 1000000000000000, budget 1000000000, weight 3, requests a \
         minute 60, tokens a minute 6000, tokens a day 1000000, at once 10",
        "replace key k2, which works for 60 more seconds",
        "set key k4: named \"laptop\", expires at none, inference true, billing true, models a b, \
         budget none, requests a minute none, tokens a minute none, tokens a day none, at once none",
        "revoke key k3",
        "price b from 0 on: input 20000000, cached input 5000000, output 60000000 a million tokens, \
         at least 7 a request",
        "set the platform's fee to 2500 basis points",
        "credit tenant t1 with 1000000: paid",
        "refund 40 of request req_2: slow",
        "pay 100 out to provider hosts: November",
        "backup: to a file",
    ] {
        assert!(whats.contains(&expected), "{expected} in {whats:#?}");
    }
    // Gateways, plans, inventories and addresses are none; of the rest one each.
    let commands = member.state.commands() as usize;
    assert_eq!(whats.len(), commands - 5 - 2 - 1 - 1);
    let record = member.state.audit_records().last().unwrap();
    assert_eq!(
        (record.who.as_str(), record.from.as_str()),
        ("admin", "127.0.0.1:1")
    );
    assert_eq!(record.outcome, "done");
}

#[test]
fn joins_are_recorded_whoever_asks_and_refusals_with_their_reason() {
    let mut member = Member::default();
    member.ask(crate::state::apply::tests::join(3, 1));
    let record = member.state.audit_records().last().unwrap();
    assert_eq!(
        (record.who.as_str(), record.from.as_str()),
        ("token j3", "unknown")
    );
    assert!(record.outcome.starts_with("refused: "));
    // The same from within, without an origin: not an act of anybody.
    member.ask(crate::state::apply::tests::put("a", 1));
    assert_eq!(member.state.audit_records().count(), 1);
}

#[test]
fn no_secret_no_key_and_no_hash_of_one_is_written_down() {
    let mut member = filled();
    member.ask(Command::PutDeployment {
        spec: {
            let mut spec = crate::state::apply::tests::spec("m", 1, 1, 1);
            spec.model.source = "https://user:password@host/m".into();
            spec
        },
    });
    let text = export(&member.state).concat();
    for n in [1u8, 2, 3, 10, 11, 12, 13, 77, 200] {
        assert!(!text.contains(&hex::encode([n; 32])), "{n}");
    }
    assert!(!text.contains("password"));
    assert!(!text.contains(pem(1).lines().nth(1).unwrap()));
}

#[test]
fn long_texts_are_cut_and_old_records_leave_but_the_chain_goes_on() {
    let origin = Origin {
        who: "é".repeat(400),
        from: "x".into(),
    };
    let mut member = Member {
        origin: Some(origin),
        ..Member::default()
    };
    let record = |n: u64| Command::RecordAct {
        what: n.to_string(),
        detail: String::new(),
    };
    let all = limits::AUDIT_RECORDS_MAX + 3;
    for n in 1..=all {
        member.ask(record(n));
    }
    let state = &member.state;
    assert_eq!(
        state.audit_records().count() as u64,
        limits::AUDIT_RECORDS_MAX
    );
    let first = state.audit_records().next().unwrap();
    assert_eq!((first.seq, first.what.as_str()), (4, "4"));
    assert_eq!(first.who.len(), limits::AUDIT_TEXT_BYTES_MAX);
    assert_eq!(state.audit_head().seq, all);
    state.check().unwrap();
}
