//! What tenants are told, and that they are told it once.

use super::super::apply::tests::{
    Member, bootstrap_command, credit, filled, hash, key, limited, open_gateway, report, told,
};
use super::super::{Command, Counts, Ended, Final, TenantSettings};
use super::*;
use trireme_shared::ids::RequestId;

const ACME: TenantId = TenantId(1);
const DAY: u64 = 86_400;

fn put(tenant: TenantId, byte: u8, rotate: bool) -> Command {
    Command::PutWebhook {
        tenant,
        url: "https://example.com/hook".into(),
        topics: Topics {
            budget: true,
            statements: true,
        },
        secret: hash(byte),
        rotate,
    }
}

fn delivered(tenant: TenantId, seq: u64, failures: u32, error: Option<&str>) -> Command {
    Command::NoteDelivery {
        tenant,
        event: EventSeq(seq),
        failures,
        error: error.map(str::to_owned),
    }
}

fn budget(nano_usd: i64) -> Command {
    Command::PutTenant {
        name: "acme".into(),
        settings: TenantSettings {
            monthly_budget: Some(NanoUsd(nano_usd)),
            ..TenantSettings::default()
        },
    }
}

/// Request `n`, of `tokens` generated tokens at 60 nano-dollars each.
fn spend(n: u64, tokens: u64) -> Command {
    let mut progress = told(n);
    progress.request = RequestId::parse(&format!("req_{n}")).unwrap();
    progress.counts = Counts::new(0, 0, tokens);
    report(1, |r| {
        r.finals.push(Final {
            progress,
            ended: Ended::Finished,
        })
    })
}

/// What `apply`'s tests have, and what version 4 brought: a webhook, events that wait for it, and what came of some.
pub(crate) fn filled_with_webhooks() -> Member {
    let mut member = filled();
    let tenant = TenantId(1);
    let mut settings = limited();
    settings.monthly_budget = Some(NanoUsd(2_000));
    for command in [
        put(tenant, 9, false),
        Command::TestWebhook { tenant },
        Command::PutTenant {
            name: "acme".into(),
            settings,
        },
        delivered(tenant, 1, 0, None),
        delivered(tenant, 2, 0, Some("it answered 500")),
        Command::TestWebhook { tenant },
    ] {
        let outcome = member.ask(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    member.state.check().unwrap();
    member
}

/// Two tenants, a gateway, and money that moved in the first month.
fn house() -> Member {
    let mut member = Member::default();
    for command in [
        bootstrap_command(),
        key("acme", 1),
        key("zeta", 2),
        open_gateway(1),
        credit(1, 1_000_000),
    ] {
        let outcome = member.ask(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    member
}

fn ids(member: &Member) -> Vec<String> {
    member.state.check().unwrap();
    member.state.webhook_events().map(Event::id).collect()
}

#[test]
fn each_threshold_is_told_once_a_month_whatever_the_budget_becomes() {
    let mut member = house();
    member.ask(budget(60_000));
    member.ask(put(ACME, 9, false));
    member.ask(spend(1, 499));
    assert_eq!(ids(&member), [""; 0]);
    member.ask(spend(2, 1));
    assert_eq!(ids(&member), ["budget-t1-1970-01-50"]);
    // The same request told of again, and more below the next threshold.
    member.ask(spend(2, 1));
    member.ask(spend(3, 299));
    assert_eq!(ids(&member).len(), 1);
    // Another budget: half of it is not told of again, four fifths of it is.
    member.ask(budget(100_000));
    member.ask(spend(4, 50));
    assert_eq!(ids(&member).len(), 1);
    member.ask(budget(60_000));
    let all = ["50", "80"].map(|p| format!("budget-t1-1970-01-{p}"));
    assert_eq!(ids(&member), all);
    // Nor by a webhook that is removed and set again.
    member.ask(Command::RemoveWebhook { tenant: ACME });
    member.ask(put(ACME, 9, false));
    assert_eq!(ids(&member), [""; 0]);
    member.ask(budget(56_000));
    member.ask(spend(5, 1));
    assert_eq!(ids(&member), [""; 0]);
    member.ask(budget(51_000));
    assert_eq!(ids(&member), ["budget-t1-1970-01-100"]);
    // A new month, and one charge that passes two at once.
    member.now += 31 * DAY;
    member.ask(spend(6, 700));
    let mut all = ids(&member);
    all.retain(|id| id.starts_with("budget-t1-1970-02"));
    let expected = ["50", "80"].map(|p| format!("budget-t1-1970-02-{p}"));
    assert_eq!(all, expected);
}

#[test]
fn a_webhook_hears_at_once_of_what_is_spent_already_and_only_of_what_it_wants() {
    let mut member = house();
    member.ask(budget(60_000));
    member.ask(spend(1, 700));
    let mut command = put(ACME, 9, false);
    if let Command::PutWebhook { topics, .. } = &mut command {
        topics.budget = false;
    }
    member.ask(command);
    assert_eq!(ids(&member), [""; 0]);
    member.ask(put(ACME, 9, false));
    assert_eq!(ids(&member), ["budget-t1-1970-01-50"]);
    let event = member.state.webhook_events().next().unwrap();
    let tells = Tells::Budget {
        month: 0,
        percent: 50,
        spent: NanoUsd(42_000),
        budget: NanoUsd(60_000),
    };
    assert_eq!(event.tells, tells);
}

#[test]
fn a_statement_is_told_of_when_the_clock_passes_the_month_whoever_moves_it() {
    let mut member = house();
    member.ask(put(ACME, 9, false));
    // Without a movement of its money there is no statement.
    member.ask(put(TenantId(2), 8, false));
    member.ask(spend(1, 100));
    member.now = 31 * DAY - 1;
    member.ask(report(1, |_| {}));
    assert_eq!(ids(&member), [""; 0]);
    member.now += 1;
    // The tenant is idle, and so is everyone but the gateway.
    member.ask(report(1, |_| {}));
    member.ask(report(1, |_| {}));
    assert_eq!(ids(&member), ["statement-t1-1970-01"]);
    let event = member.state.webhook_events().next().unwrap();
    let tells = Tells::Statement {
        month: 0,
        charges: NanoUsd(6_000),
        closing: NanoUsd(994_000),
    };
    assert_eq!(event.tells, tells);
    // Two months in which nothing ran; and a clock that goes back.
    member.now += 60 * DAY;
    member.ask(report(1, |_| {}));
    member.now -= 60 * DAY;
    member.ask(report(1, |_| {}));
    let all = ["1970-01", "1970-02", "1970-03"].map(|m| format!("statement-t1-{m}"));
    assert_eq!(ids(&member), all);
    // A clock that is wrong by a thousand years.
    member.now += 365_000 * DAY;
    member.ask(report(1, |_| {}));
    let most = 3 + limits::WEBHOOK_STATEMENTS_AT_ONCE as usize;
    assert_eq!(ids(&member).len(), most);
}

#[test]
fn a_secret_is_taken_once_and_when_another_is_wanted() {
    let mut member = house();
    let secret = |m: &Member| m.state.webhook(ACME).unwrap().secret;
    let fresh = |fresh| Outcome::Webhook { fresh };
    assert_eq!(member.ask(put(ACME, 9, false)), fresh(true));
    assert_eq!(member.ask(put(ACME, 8, false)), fresh(false));
    assert_eq!(secret(&member), hash(9));
    let rotated = member.proposal(put(ACME, 7, true));
    for _ in 0..2 {
        let outcome = super::super::apply(&mut member.state, &rotated).outcome;
        assert_eq!(outcome, fresh(true));
        assert_eq!(secret(&member), hash(7));
    }
    let nobody = put(TenantId(7), 9, false);
    let refused = member.refused(nobody);
    assert_eq!(refused, Refusal::UnknownTenant(TenantId(7)));
    let nobodys = Command::TestWebhook {
        tenant: TenantId(2),
    };
    assert_eq!(member.refused(nobodys), Refusal::NoWebhook);
}

#[test]
fn what_failed_is_tried_later_and_at_last_given_up() {
    let mut member = house();
    member.now = 1_000;
    member.ask(put(ACME, 9, false));
    let test = || Command::TestWebhook { tenant: ACME };
    assert_eq!(member.ask(test()), Outcome::Event(EventSeq(1)));
    assert_eq!(ids(&member), ["test-t1-1"]);
    let due = |m: &Member| m.state.webhook_events().next().unwrap().due_at_ms;
    assert_eq!(due(&member), 1_000_999);
    let mut waited = Duration::ZERO;
    for failures in 0..limits::WEBHOOK_PAUSES.len() as u32 {
        let before = due(&member);
        member.now = before / 1_000;
        member.ask(delivered(ACME, 1, failures, Some("it answered 500")));
        // A former leader tells of the same try.
        member.ask(delivered(ACME, 1, failures, Some("it answered 500")));
        let pause = pause(failures + 1).unwrap();
        assert_eq!(due(&member) - before, pause.as_millis() as u64);
        waited += pause;
    }
    assert!(waited > Duration::from_secs(3 * DAY) && waited < Duration::from_secs(4 * DAY));
    member.ask(delivered(ACME, 1, 9, Some("it answered 501")));
    let webhook = member.state.webhook(ACME).unwrap();
    assert_eq!((webhook.given_up, webhook.delivered), (1, 0));
    let failing = webhook.failing.clone().unwrap();
    assert_eq!(
        (failing.since, failing.error.as_str()),
        (1_000, "it answered 501")
    );
    assert_eq!(ids(&member), [""; 0]);
    // The next one goes well: nothing fails any more, and it counts once.
    member.ask(test());
    for _ in 0..2 {
        member.ask(delivered(ACME, 2, 0, None));
    }
    let webhook = member.state.webhook(ACME).unwrap();
    assert_eq!((webhook.delivered, &webhook.failing), (1, &None));
    assert_eq!(webhook.delivered_at, Some(member.now));
}

#[test]
fn the_oldest_make_room_and_are_counted() {
    let mut member = house();
    member.ask(put(ACME, 9, false));
    let most = limits::WEBHOOK_EVENTS_MAX;
    for _ in 0..most + 3 {
        member.now += 60;
        let made = member.ask(Command::TestWebhook { tenant: ACME });
        assert!(matches!(made, Outcome::Event(_)), "{made:?}");
    }
    let ids = ids(&member);
    assert_eq!((ids.len(), ids[0].as_str()), (most, "test-t1-4"));
    assert_eq!(member.state.webhook(ACME).unwrap().dropped, 3);
}

#[test]
fn a_tenant_that_acts_too_often_is_refused_for_a_while() {
    let mut member = house();
    member.ask(put(ACME, 9, false));
    let test = || Command::TestWebhook { tenant: ACME };
    for _ in 1..limits::WEBHOOK_ACTS_PER_MINUTE {
        member.ask(test());
    }
    let (before, retry_after_ms) = (member.state.clone(), 60_000 / 30);
    assert_eq!(
        member.refused(test()),
        Refusal::TooManyActs { retry_after_ms }
    );
    assert_eq!(
        before.webhook_event_last(),
        member.state.webhook_event_last()
    );
    // Another tenant is not held up.
    member.ask(put(TenantId(2), 9, false));
    member.now += retry_after_ms / 1_000;
    member.ask(test());
    assert_eq!(
        member.state.webhook_event_last().0,
        before.webhook_event_last().0 + 1
    );
}

#[test]
fn as_many_tenants_as_may_have_webhooks() {
    let mut member = house();
    let row = |n| (TenantId(n), Webhook { ..some() });
    member.state.webhooks.rows = (10..10 + limits::WEBHOOKS_MAX as u32).map(row).collect();
    assert_eq!(
        member.refused(put(ACME, 9, false)),
        Refusal::TooManyWebhooks
    );
    member.state.webhooks.rows.remove(&TenantId(10));
    assert_eq!(
        member.ask(put(ACME, 9, false)),
        Outcome::Webhook { fresh: true }
    );
}

fn some() -> Webhook {
    Webhook {
        url: "https://example.com".into(),
        topics: Topics::default(),
        secret: hash(1),
        created_at: 0,
        delivered: 0,
        delivered_at: None,
        dropped: 0,
        given_up: 0,
        failing: None,
    }
}
