//! What is told twice, late, in another order, by two lives, or under one idempotency key.

use super::*;
use crate::state::apply::tests::{
    Member, bootstrap_command, ended, filled, hash, key, open_gateway, report, told,
};
use crate::state::{Account, Command, Outcome, State, codec};

/// A cluster with a tenant, and lives 1 and 2.
fn house() -> Member {
    let mut member = Member::default();
    for command in [
        bootstrap_command(),
        crate::state::apply::tests::token(1, crate::state::TokenRole::Coordinator, 5),
        crate::state::apply::tests::join_group(1, 1),
        key("acme", 1),
        key("zeta", 2),
        open_gateway(1),
        open_gateway(2),
    ] {
        let outcome = member.ask(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    member
}

fn at(n: u64, completion: u64) -> Progress {
    let mut progress = told(n);
    progress.counts = Counts::new(10, 4, completion);
    progress.work[0].units = 2 * completion;
    progress
}

fn progress(life: u64, told: Progress) -> Command {
    report(life, |r| r.progress.push(told))
}

fn last(life: u64, told: Progress) -> Command {
    report(life, |r| r.finals.push(ended(told)))
}

fn owed(state: &State) -> i64 {
    -state.balance(&Account::Tenant(TenantId(1))).0
}

/// By the default prices.
fn cost(completion: i64) -> i64 {
    6 * 20 + 4 * 5 + completion * 60
}

#[test]
fn a_request_is_charged_once_for_the_most_that_was_told() {
    let mut member = house();
    for completion in [3, 1, 5, 5, 2] {
        member.ask(progress(1, at(1, completion)));
    }
    let open = member.state.open_request(&told(1).request).unwrap();
    assert_eq!(
        (open.progress.counts, open.life),
        (Counts::new(10, 4, 5), GatewayLife(1))
    );
    assert_eq!(open.progress.work[0].units, 10);
    assert_eq!(owed(&member.state), 0);
    // A final that is behind the checkpoints, again, and older checkpoints after it.
    for _ in 0..3 {
        member.ask(last(1, at(1, 4)));
        assert_eq!(owed(&member.state), cost(5));
    }
    for completion in 0..=5 {
        member.ask(progress(1, at(1, completion)));
    }
    assert_eq!(member.state.open_requests().count(), 0, "nothing new");
    let row = member.state.request_by_id(&told(1).request).unwrap();
    assert_eq!((row.number, row.ended), (RequestNumber(1), Ended::Finished));
    assert_eq!((row.counts, row.postings.len()), (Counts::new(10, 4, 5), 1));
    // More of it than was known: the difference.
    member.ask(last(1, at(1, 9)));
    assert_eq!(owed(&member.state), cost(9));
    let row = member.state.request_by_id(&told(1).request).unwrap();
    assert_eq!(
        (row.cost.0, row.charged.0, row.postings.len()),
        (cost(9), cost(9), 2)
    );
    let (_, sum) = member.state.usage().next().unwrap();
    assert_eq!(
        (sum.requests, sum.completion, sum.cost.0),
        (1, Tokens(9), cost(9))
    );
    member.state.check().unwrap();
}

/// Every order of the same reports, each once or twice, comes to the same row but for its postings.
#[test]
fn the_order_of_reports_does_not_matter() {
    let reports = [
        progress(1, at(1, 2)),
        progress(2, at(1, 6)),
        last(1, at(1, 4)),
        last(2, at(1, 7)),
    ];
    let mut orders = 0;
    for order in 0..4u32.pow(4) {
        let picked: Vec<usize> = (0..4).map(|n| (order / 4u32.pow(n) % 4) as usize).collect();
        let mut member = house();
        // Four in any order, some twice and some missing; then all.
        for n in picked.into_iter().chain(0..4) {
            member.ask(reports[n].clone());
        }
        let row = member.state.request_by_id(&told(1).request).unwrap();
        assert_eq!(
            (row.counts, row.charged.0),
            (Counts::new(10, 4, 7), cost(7))
        );
        assert_eq!(row.work, at(1, 7).work);
        assert_eq!(owed(&member.state), cost(7));
        assert_eq!(member.state.open_requests().count(), 0);
        member.state.check().unwrap();
        orders += 1;
    }
    assert_eq!(orders, 256);
}

#[test]
fn a_life_that_ends_settles_its_requests_as_last_told_and_another_goes_on() {
    let mut member = house();
    member.ask(progress(1, at(1, 3)));
    member.ask(progress(1, at(2, 3)));
    member.ask(progress(2, at(2, 4)));
    let close = Command::CloseGateway {
        life: GatewayLife(1),
    };
    assert_eq!(member.ask(close.clone()), Outcome::Done);
    let row = member.state.request_by_id(&told(1).request).unwrap();
    assert_eq!((row.ended, row.charged.0), (Ended::GatewayLost, cost(3)));
    // The second is another life's by now.
    assert_eq!(owed(&member.state), cost(3));
    assert_eq!(member.state.open_requests().count(), 1);
    let gone = crate::state::Refusal::GatewayGone(GatewayLife(1));
    assert_eq!(member.refused(last(1, at(1, 8))), gone);
    assert_eq!(member.refused(close), gone);
    // Its coordinator's next life tells the rest of it.
    assert_eq!(
        member.ask(open_gateway(1)),
        Outcome::Gateway(GatewayLife(3))
    );
    member.ask(progress(3, at(1, 5)));
    assert_eq!(owed(&member.state), cost(3));
    member.ask(last(3, at(1, 6)));
    let row = member.state.request_by_id(&told(1).request).unwrap();
    assert_eq!((row.ended, row.charged.0), (Ended::Finished, cost(6)));
    assert_eq!(member.state.requests().count(), 1);
    member.state.check().unwrap();
}

fn attempt(n: u64, completion: u64) -> Progress {
    Progress {
        idempotency: Some(hash(50)),
        ..at(n, completion)
    }
}

#[test]
fn attempts_under_one_idempotency_key_are_charged_once() {
    let mut member = house();
    member.ask(last(1, attempt(1, 5)));
    // Another attempt, at another gateway, twice told; a shorter and a longer one.
    member.ask(last(2, attempt(2, 5)));
    member.ask(last(2, attempt(2, 5)));
    member.ask(last(1, attempt(3, 2)));
    assert_eq!(owed(&member.state), cost(5));
    member.ask(progress(2, attempt(4, 9)));
    member.ask(last(2, attempt(4, 9)));
    assert_eq!(owed(&member.state), cost(9));
    let found = member.state.request_by_idempotency(TenantId(1), &hash(50));
    let row = found.unwrap();
    assert_eq!((row.number, row.attempts.len()), (RequestNumber(1), 3));
    assert_eq!(member.state.request_by_id(&told(4).request).unwrap(), row);
    assert_eq!(member.state.requests().count(), 1);
    // The same key of another tenant is another one's.
    let mut other = attempt(5, 5);
    (other.tenant, other.key) = (TenantId(2), KeyId(2));
    member.ask(last(1, other));
    assert_eq!(member.state.requests().count(), 2);
    assert_eq!(owed(&member.state), cost(9));
    member.state.check().unwrap();
}

#[test]
fn too_many_attempts_are_a_request_of_their_own() {
    let mut member = house();
    let most = limits::REQUEST_ATTEMPTS_MAX as u64;
    for n in 1..=most {
        member.ask(last(1, attempt(n, 5)));
    }
    assert_eq!(owed(&member.state), cost(5));
    member.ask(last(1, attempt(most + 1, 5)));
    assert_eq!(
        (owed(&member.state), member.state.requests().count()),
        (2 * cost(5), 2)
    );
    // Those that were counted stay so, and the newer row goes on, whatever comes of the older one.
    for n in (1..=most + 1).rev() {
        member.ask(last(1, attempt(n, 5)));
    }
    assert_eq!(owed(&member.state), 2 * cost(5));
    member.ask(last(1, attempt(1, 6)));
    member.ask(last(1, attempt(most + 2, 7)));
    assert_eq!(owed(&member.state), cost(6) + cost(7));
    let newer = member.state.request_by_idempotency(TenantId(1), &hash(50));
    assert_eq!(newer.unwrap().number, RequestNumber(2));
    member.state.check().unwrap();
}

#[test]
fn what_cannot_be_is_skipped_and_costs_the_others_nothing() {
    let mut member = house();
    member.ask(last(1, at(1, 5)));
    member.ask(progress(1, at(2, 5)));
    let foreign_key = Progress {
        key: KeyId(2),
        ..at(3, 5)
    };
    let unknown_key = Progress {
        key: KeyId(9),
        ..at(4, 5)
    };
    // Another tenant's, under way and settled.
    let stolen = |n: u64| Progress {
        tenant: TenantId(2),
        key: KeyId(2),
        ..at(n, 9)
    };
    member.ask(report(1, |r| {
        for odd in [foreign_key, unknown_key, stolen(1), stolen(2)] {
            r.progress.push(odd.clone());
            r.finals.push(ended(odd));
        }
        r.finals.push(ended(at(2, 5)));
    }));
    assert_eq!(member.state.requests().count(), 2);
    assert_eq!(owed(&member.state), 2 * cost(5));
    assert_eq!(member.state.balance(&Account::Tenant(TenantId(2))).0, 0);
    member.state.check().unwrap();
}

#[test]
fn forgotten_requests_are_not_charged_again() {
    let mut member = house();
    for n in 1..=6 {
        let mut one = attempt(n, 5);
        one.idempotency = Some(hash(n as u8));
        one.began_at_ms = 1_000 * n;
        member.ask(last(1, one));
    }
    member.state.requests.trim(4, usize::MAX);
    member.state.check().unwrap();
    assert_eq!(
        member.state.requests().next().unwrap().number,
        RequestNumber(3)
    );
    assert!(member.state.request_by_id(&told(2).request).is_none());
    assert!(
        member
            .state
            .request_by_idempotency(TenantId(1), &hash(2))
            .is_none()
    );
    let mut late = attempt(1, 50);
    for began_at_ms in [1_000, 2_000] {
        late.began_at_ms = began_at_ms;
        member.ask(progress(1, late.clone()));
        member.ask(last(1, late.clone()));
        assert_eq!(owed(&member.state), 6 * cost(5));
    }
    // One that began later cannot have been forgotten.
    late.began_at_ms = 2_001;
    member.ask(last(1, late));
    assert_eq!(owed(&member.state), 6 * cost(5) + cost(50));
    let numbers = |below: u64| -> Vec<u64> {
        let rows = member.state.requests_of(TenantId(1), RequestNumber(below));
        rows.map(|row| row.number.0).collect()
    };
    assert_eq!(numbers(u64::MAX), [7, 6, 5, 4, 3]);
    assert_eq!(numbers(5), [4, 3]);
}

#[test]
fn work_is_merged_by_the_most_of_each_provider() {
    let work = |of: &[(&str, u64)]| -> Vec<Work> {
        let work = |(name, units): &(&str, u64)| Work {
            provider: Some((*name).into()),
            units: *units,
        };
        of.iter().map(work).collect()
    };
    let (a, b) = (
        work(&[("b", 3), ("a", 1), ("b", 9)]),
        work(&[("c", 2), ("a", 5), ("b", 4)]),
    );
    let merged = work(&[("a", 5), ("b", 9), ("c", 2)]);
    assert_eq!(merge_work(&a, &b), merged);
    assert_eq!(merge_work(&b, &a), merged);
    let many: Vec<Work> = (0..100)
        .map(|n| Work {
            provider: Some(format!("{n:03}")),
            units: n,
        })
        .collect();
    let kept = merge_work(&many[50..], &many[..50]);
    assert_eq!(kept, &many[..limits::REQUEST_PROVIDERS_MAX]);
}

#[test]
fn indexes_come_back_with_the_rows() {
    let state = filled().state;
    let bytes = codec::encode_state(&state).unwrap();
    let back = codec::decode_state(&bytes).unwrap();
    assert!(back.requests == state.requests);
    let row = back.request_by_idempotency(TenantId(1), &hash(77)).unwrap();
    assert_eq!(row.caller_id, RequestId::parse("mine"));
    assert_eq!(back.requests_of(TenantId(1), RequestNumber(9)).count(), 3);
    let mine = RequestId::parse("mine").unwrap();
    let known = |tenant| {
        back.request_by_caller(TenantId(tenant), &mine)
            .map(|r| r.number)
    };
    assert_eq!((known(1), known(2)), (Some(row.number), None));
    let open = |tenant| back.open_requests_of(TenantId(tenant)).count();
    assert_eq!((open(1), open(2)), (1, 0));
    let mut damaged = state;
    damaged.requests.index = Index::default();
    assert!(damaged.check().unwrap_err().contains("index of requests"));
}
