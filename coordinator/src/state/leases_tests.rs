//! What gateways are lent, use, return and lose.

use super::*;
use crate::state::apply::tests::{
    Member, amounts, ask, bootstrap_command, credit, ended, hash, join_group, key, open_gateway,
    report, told,
};
use crate::state::{
    Answer, Command, KeySettings, Left, Outcome, Payment, Return, Shortage, TenantSettings,
    TenantStatus, TokenRole,
};

const TENANT: Subject = Subject::Tenant(TenantId(1));

/// Tenant 1 with those settings and lives 1 to 3, at second 1,000.
fn house(settings: TenantSettings) -> Member {
    let mut member = Member {
        now: 1_000,
        ..Member::default()
    };
    let mut commands = vec![bootstrap_command()];
    commands.push(Command::CreateToken {
        secret_hash: hash(1),
        role: TokenRole::Coordinator,
        provider: None,
        uses: 2,
        expires_at: 2_000,
    });
    commands.extend([join_group(1, 1), join_group(1, 1)]);
    commands.extend([key("acme", 1), put(settings)]);
    commands.extend([1, 2, 3].map(open_gateway));
    for command in commands {
        let outcome = member.ask(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    member
}

fn put(settings: TenantSettings) -> Command {
    Command::PutTenant {
        name: "acme".into(),
        settings,
    }
}

fn prepaid() -> TenantSettings {
    TenantSettings {
        payment: Payment::Prepaid,
        ..TenantSettings::default()
    }
}

fn answer(
    member: &mut Member,
    life: u64,
    subject: Subject,
    least: Amounts,
    most: Amounts,
) -> Answer {
    let command = report(life, |r| r.asks.push(ask(subject, least, most)));
    match member.ask(command) {
        Outcome::Reported { answers } => answers[0],
        other => panic!("{other:?}"),
    }
}

fn wish(member: &mut Member, life: u64, wanted: Amounts) -> Answer {
    answer(member, life, TENANT, wanted, wanted)
}

fn denied(why: Shortage, retry_after_ms: Option<u64>) -> Answer {
    Answer::Denied {
        why,
        retry_after_ms,
    }
}

fn left(member: &Member) -> Left {
    member.state.left(TENANT, member.state.now_ms()).unwrap()
}

fn money(amount: i64) -> Amounts {
    amounts(amount, 0, 0, 0)
}

#[test]
fn money_is_lent_once_to_one_of_all_gateways() {
    let mut member = house(prepaid());
    assert_eq!(
        wish(&mut member, 1, money(1)),
        denied(Shortage::Funds, None)
    );
    member.ask(credit(1, 1_000));
    assert_eq!(
        wish(&mut member, 1, money(600)),
        Answer::Granted(money(600))
    );
    assert_eq!(
        wish(&mut member, 2, money(401)),
        denied(Shortage::Funds, None)
    );
    assert_eq!(
        wish(&mut member, 2, money(400)),
        Answer::Granted(money(400))
    );
    assert_eq!(
        wish(&mut member, 3, money(1)),
        denied(Shortage::Funds, None)
    );
    assert_eq!(left(&member).funds, Some(0));
    // What is lent cannot be taken back from the tenant meanwhile.
    let back = credit(1, -1);
    assert_eq!(member.refused(back), Refusal::Overdraft);
    // A gateway returns what it does not need, and no more than it has.
    member.ask(report(1, |r| {
        r.returns.push(Return {
            subject: TENANT,
            unneeded: money(100),
        });
    }));
    member.ask(report(2, |r| {
        r.returns.push(Return {
            subject: TENANT,
            unneeded: amounts(9_999, 9, 9, 9),
        });
        r.returns.push(Return {
            subject: TENANT,
            unneeded: money(-50),
        });
    }));
    assert_eq!(left(&member).funds, Some(500));
    assert_eq!(member.state.lease(TENANT, GatewayLife(1)), money(500));
    assert_eq!(
        member.state.lease(TENANT, GatewayLife(2)),
        Amounts::default()
    );
    member.state.check().unwrap();
}

#[test]
fn plenty_gives_the_most_and_scarcity_the_least() {
    let mut member = house(prepaid());
    member.ask(credit(1, 1_000));
    let mut got = Vec::new();
    for life in [1, 2, 3, 1, 2, 3, 1, 2] {
        match answer(&mut member, life, TENANT, money(90), money(110)) {
            Answer::Granted(amounts) => got.push(amounts.money.0),
            Answer::Denied { why, .. } => assert_eq!(why, Shortage::Funds),
        }
    }
    // An eighth of what is left, within the wish.
    assert_eq!(got, [110, 110, 97, 90, 90, 90, 90, 90]);
    assert_eq!(left(&member).funds, Some(233));
    // Without a bound, all of it; a `most` below the `least` is not meant.
    let some = amounts(0, 7, 50, 3);
    let got = answer(&mut member, 1, TENANT, some, amounts(0, 1, 60, 5));
    assert_eq!(got, Answer::Granted(amounts(0, 7, 60, 5)));
}

#[test]
fn charges_come_out_of_the_lease_and_then_out_of_what_is_free() {
    let mut member = house(prepaid());
    member.ask(credit(1, 1_000));
    wish(&mut member, 1, money(500));
    wish(&mut member, 2, money(300));
    // 440 nano-dollars: `told`.
    member.ask(report(1, |r| r.finals.push(ended(told(1)))));
    assert_eq!(member.state.lease(TENANT, GatewayLife(1)), money(60));
    assert_eq!(left(&member).funds, Some(200));
    // 60 of its own and 200 that nobody has; the other gateway's 300 are not touched.
    member.ask(report(1, |r| r.finals.push(ended(told(2)))));
    let row = member.state.request_by_id(&told(2).request).unwrap();
    assert_eq!((row.cost, row.charged), (NanoUsd(440), NanoUsd(260)));
    assert_eq!(
        (left(&member).funds, member.state.lent(TENANT)),
        (Some(0), money(300))
    );
    // It is not charged for what is missing when it is told again.
    member.ask(credit(1, 1_000));
    member.ask(report(1, |r| r.finals.push(ended(told(2)))));
    let row = member.state.request_by_id(&told(2).request).unwrap();
    assert_eq!(row.charged, NanoUsd(260));
    member.state.check().unwrap();
}

#[test]
fn a_life_that_ends_loses_its_leases_and_they_are_lent_again() {
    let mut settings = prepaid();
    settings.limits.concurrency = Some(5);
    settings.limits.requests_per_minute = Some(10);
    settings.limits.tokens_per_day = Some(Tokens(100));
    let mut member = house(settings);
    member.ask(credit(1, 1_000));
    let all = amounts(1_000, 10, 100, 5);
    assert_eq!(wish(&mut member, 1, all), Answer::Granted(all));
    // Alive until 10 s and a margin of 5 s after its last report.
    let reap = Command::ReapGateway {
        life: GatewayLife(1),
    };
    member.now = 1_014;
    let alive = Refusal::GatewayAlive(GatewayLife(1));
    assert_eq!(member.refused(reap.clone()), alive);
    assert_eq!(left(&member).funds, Some(0));
    member.now = 1_015;
    assert_eq!(member.ask(reap.clone()), Outcome::Done);
    assert_eq!(member.refused(reap), Refusal::GatewayGone(GatewayLife(1)));
    assert_eq!(member.state.lent(TENANT), Amounts::default());
    assert_eq!(wish(&mut member, 2, all), Answer::Granted(all));
    // A report renews.
    member.now = 1_025;
    member.ask(report(2, |_| {}));
    assert_eq!(
        member.state.gateway(GatewayLife(2)).unwrap().expires_at_ms,
        1_035_999
    );
    // A coordinator that opens another life has left the one before.
    assert_eq!(
        member.ask(open_gateway(2)),
        Outcome::Gateway(GatewayLife(4))
    );
    assert!(member.state.gateway(GatewayLife(2)).is_none());
    assert_eq!(wish(&mut member, 4, all), Answer::Granted(all));
    assert_eq!(
        member.refused(report(2, |_| {})),
        Refusal::GatewayGone(GatewayLife(2))
    );
    assert_eq!(
        member.refused(open_gateway(7)),
        Refusal::UnknownCoordinator(CoordinatorId(7))
    );
    member.state.check().unwrap();
}

#[test]
fn rates_and_slots_are_of_all_gateways_together() {
    let mut settings = TenantSettings::default();
    settings.limits.requests_per_minute = Some(60);
    settings.limits.tokens_per_minute = Some(Tokens(600));
    settings.limits.tokens_per_day = Some(Tokens(1_000));
    settings.limits.concurrency = Some(4);
    let mut member = house(settings);
    assert_eq!(
        wish(&mut member, 1, amounts(0, 50, 100, 3)),
        Answer::Granted(amounts(0, 50, 100, 3))
    );
    let few = wish(&mut member, 2, amounts(0, 11, 0, 0));
    assert_eq!(few, denied(Shortage::RequestsPerMinute, Some(1_000)));
    let never = wish(&mut member, 2, amounts(0, 61, 0, 0));
    assert_eq!(never, denied(Shortage::RequestsPerMinute, None));
    let tokens = wish(&mut member, 2, amounts(0, 0, 510, 0));
    assert_eq!(tokens, denied(Shortage::TokensPerMinute, Some(1_000)));
    let slots = wish(&mut member, 2, amounts(0, 0, 0, 2));
    assert_eq!(slots, denied(Shortage::Concurrency, None));
    member.now = 1_001;
    assert_eq!(
        wish(&mut member, 2, amounts(0, 11, 510, 1)),
        Answer::Granted(amounts(0, 11, 510, 1))
    );
    // The day: 610 are lent.
    member.now = 1_100;
    let today = wish(&mut member, 3, amounts(0, 0, 391, 0));
    let until_midnight = 86_400_000 - 1_100_999;
    assert_eq!(today, denied(Shortage::TokensPerDay, Some(until_midnight)));
    // What was used is not lent any more, and of the day all the same: 15 tokens of `told`.
    member.ask(report(1, |r| r.finals.push(ended(told(1)))));
    assert_eq!(
        member.state.lease(TENANT, GatewayLife(1)),
        amounts(0, 49, 85, 3)
    );
    assert_eq!(left(&member).tokens_per_day, Some(Tokens(390)));
    // What comes back of rates can be used again at once; used slots are free when returned.
    member.ask(report(1, |r| {
        r.returns.push(Return {
            subject: TENANT,
            unneeded: amounts(0, 49, 85, 3),
        });
    }));
    let now = left(&member);
    assert_eq!(
        (now.requests_per_minute, now.concurrency),
        (Some(60), Some(3))
    );
    assert_eq!(now.tokens_per_day, Some(Tokens(475)));
    // On the next day there are all that are not lent.
    let tomorrow = member.state.left(TENANT, 86_400_000).unwrap();
    assert_eq!(tomorrow.tokens_per_day, Some(Tokens(490)));
    member.state.check().unwrap();
}

#[test]
fn budgets_hold_for_the_month_and_for_keys() {
    let mut member = house(TenantSettings {
        monthly_budget: Some(NanoUsd(1_000)),
        ..TenantSettings::default()
    });
    let budget = |amount: i64| KeySettings {
        monthly_budget: Some(NanoUsd(amount)),
        ..KeySettings::default()
    };
    member.ask(Command::UpdateKey {
        key: KeyId(1),
        settings: budget(600),
    });
    let line = Subject::Key(KeyId(1));
    assert_eq!(
        answer(&mut member, 1, line, money(500), money(500)),
        Answer::Granted(money(500))
    );
    assert_eq!(
        wish(&mut member, 1, money(500)),
        Answer::Granted(money(500))
    );
    let month = Some(crate::state::meters::until_next_month_ms(1_000_999));
    let over = answer(&mut member, 2, line, money(101), money(101));
    assert_eq!(over, denied(Shortage::MonthlyBudget, month));
    let over = wish(&mut member, 2, money(501));
    assert_eq!(over, denied(Shortage::MonthlyBudget, month));
    // 440 twice: the key's budget ends the second at 160, whatever the tenant's has left.
    for n in [1, 2] {
        member.ask(report(1, |r| r.finals.push(ended(told(n)))));
    }
    let row = member.state.request_by_id(&told(2).request).unwrap();
    assert_eq!((row.cost, row.charged), (NanoUsd(440), NanoUsd(160)));
    assert_eq!(
        member.state.month_spend(line, member.state.now_ms()),
        NanoUsd(600)
    );
    // A key that takes its place does not begin anew.
    member.ask(Command::RotateKey {
        key: KeyId(1),
        key_hash: hash(2),
        overlap: 60,
    });
    let mut third = told(3);
    third.key = KeyId(2);
    member.ask(report(1, |r| r.finals.push(ended(third))));
    let row = member.state.request_by_id(&told(3).request).unwrap();
    assert_eq!(row.charged, NanoUsd(0));
    // A new month, a new budget.
    member.now = 32 * 86_400;
    let mut fourth = told(4);
    fourth.key = KeyId(2);
    member.ask(report(1, |r| r.finals.push(ended(fourth))));
    let row = member.state.request_by_id(&told(4).request).unwrap();
    assert_eq!(row.charged, NanoUsd(440));
    member.state.check().unwrap();
}

#[test]
fn nothing_is_lent_of_whom_is_suspended_or_unknown() {
    let mut member = house(TenantSettings::default());
    let closed = denied(Shortage::Closed, None);
    let line = Subject::Key(KeyId(1));
    for unknown in [Subject::Tenant(TenantId(9)), Subject::Key(KeyId(9))] {
        assert_eq!(answer(&mut member, 1, unknown, money(1), money(1)), closed);
    }
    member.ask(put(TenantSettings {
        status: TenantStatus::Suspended,
        ..TenantSettings::default()
    }));
    for subject in [TENANT, line] {
        assert_eq!(answer(&mut member, 1, subject, money(1), money(1)), closed);
    }
    // What ran is charged.
    member.ask(report(1, |r| r.finals.push(ended(told(1)))));
    assert_eq!(
        member
            .state
            .request_by_id(&told(1).request)
            .unwrap()
            .charged,
        NanoUsd(440)
    );
}

#[test]
fn a_lowered_credit_excuses_what_is_owed_already_and_no_more() {
    let credit_of = |limit: i64| TenantSettings {
        payment: Payment::Credit {
            limit: NanoUsd(limit),
        },
        ..TenantSettings::default()
    };
    let mut member = house(credit_of(1_000));
    wish(&mut member, 1, money(700));
    member.ask(put(credit_of(500)));
    assert_eq!(left(&member).funds, Some(-200));
    assert_eq!(
        member.state.tenant(TenantId(1)).unwrap().excused,
        NanoUsd(200)
    );
    member.state.check().unwrap();
    assert_eq!(
        wish(&mut member, 2, money(1)),
        denied(Shortage::Funds, None)
    );
    // The lease is still its gateway's.
    member.ask(report(1, |r| r.finals.push(ended(told(1)))));
    assert_eq!(
        member
            .state
            .request_by_id(&told(1).request)
            .unwrap()
            .charged,
        NanoUsd(440)
    );
    assert_eq!(left(&member).funds, Some(-200));
    member.state.check().unwrap();
    member
        .state
        .leases
        .rows
        .get_mut(&(TENANT, GatewayLife(1)))
        .unwrap()
        .money
        .0 += 1;
    assert!(member.state.check().unwrap_err().contains("overdrawn"));
}

#[test]
fn bounds_are_whole_again_when_they_are_said_to_be() {
    let limits = Limits {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(Tokens(6_000)),
        ..Limits::default()
    };
    let mut member = house(TenantSettings {
        limits,
        ..TenantSettings::default()
    });
    let now_ms = member.state.now_ms();
    let resets = |member: &Member, at_ms| member.state.resets(TENANT, at_ms).unwrap();
    let idle = resets(&member, now_ms);
    assert_eq!((idle.requests_ms, idle.tokens_ms), (now_ms, now_ms));
    assert_eq!((idle.day_ms, idle.month_ms), (86_400_000, 31 * 86_400_000));
    // A request a second comes back, and a hundred tokens.
    wish(&mut member, 1, amounts(0, 15, 1_000, 0));
    let now_ms = member.state.now_ms();
    let used = resets(&member, now_ms);
    assert_eq!(used.requests_ms, now_ms + 15_000);
    assert_eq!(used.tokens_ms, now_ms + 10_000);
    let left = member.state.left(TENANT, used.requests_ms).unwrap();
    assert_eq!(left.requests_per_minute, Some(60));
    let left = member.state.left(TENANT, used.requests_ms - 1).unwrap();
    assert_eq!(left.requests_per_minute, Some(59));
    assert!(
        member
            .state
            .resets(Subject::Tenant(TenantId(9)), 0)
            .is_none()
    );
}
