//! Long random histories, held after each command against another account of what billing must come
//! to: the model of the simulator (`tests/sim/billing/`).

use super::super::apply::tests::{
    Member, amounts, bootstrap_command, filled, hash, join_group, key,
};
use super::super::{
    Amounts, Ask, Command, Counts, Final, KeySettings, Limits, Outcome, Payment, PriceList,
    Progress, Report, Return, TokenRole, Topics, Work,
};
use super::*;
use model::Model;
use trireme_shared::ids::{BasisPoints, EventSeq, KeyId, Tokens};

#[path = "../../../tests/sim/billing/mod.rs"]
mod model;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const TENANTS: u64 = 3;

/// Keys 1 to 3 are those of tenants 1 to 3, and 4 takes the place of 1.
fn told(chance: &mut Chance, now_ms: u64) -> Progress {
    let tenant = 1 + chance.below(TENANTS) as u32;
    let key = match (tenant, chance.one_in(2)) {
        (1, true) => 4,
        // Now and then another tenant's.
        _ if chance.one_in(20) => 1 + chance.below(4) as u32,
        _ => tenant,
    };
    let attempt = 1 + chance.below(30);
    let work = (0..chance.below(4)).map(|_| Work {
        provider: [None, Some("a".to_owned()), Some("b".to_owned())][chance.below(3) as usize]
            .clone(),
        units: chance.below(1 << 20),
    });
    let work = work.collect();
    Progress {
        request: RequestId::parse(&format!("{tenant}-{attempt}")).unwrap(),
        caller_id: None,
        tenant: TenantId(tenant),
        key: KeyId(key),
        model: ["a", "b"][(attempt % 2) as usize].into(),
        began_at_ms: now_ms - chance.below(5_000),
        // Every third stands for an attempt at one of few requests.
        idempotency: attempt.is_multiple_of(3).then(|| hash((attempt % 4) as u8)),
        counts: Counts::new(chance.below(200), chance.below(200), chance.below(100)),
        work,
    }
}

fn subject(chance: &mut Chance) -> Subject {
    match chance.one_in(3) {
        true => Subject::Key(KeyId(1 + chance.below(3) as u32)),
        false => Subject::Tenant(TenantId(1 + chance.below(TENANTS) as u32)),
    }
}

fn some(chance: &mut Chance) -> Amounts {
    let money = chance.below(20_000) as i64;
    amounts(money, chance.below(5), chance.below(300), chance.below(4))
}

fn report(chance: &mut Chance, life: GatewayLife, now_ms: u64) -> Command {
    let mut report = Report::new(life);
    for _ in 0..chance.below(3) {
        report.asks.push(Ask {
            subject: subject(chance),
            least: some(chance),
            most: some(chance),
        });
    }
    for _ in 0..chance.below(2) {
        report.returns.push(Return {
            subject: subject(chance),
            unneeded: some(chance),
        });
    }
    for _ in 0..chance.below(3) {
        report.progress.push(told(chance, now_ms));
    }
    for _ in 0..chance.below(3) {
        let ended = [Ended::Finished, Ended::Disconnected][chance.below(2) as usize];
        let progress = told(chance, now_ms);
        report.finals.push(Final { progress, ended });
    }
    Command::Report { report }
}

fn limits(chance: &mut Chance) -> Limits {
    let mut some = |end: u64| chance.one_in(2).then(|| chance.below(end));
    Limits {
        requests_per_minute: some(30),
        tokens_per_minute: some(2_000).map(Tokens),
        tokens_per_day: some(50_000).map(Tokens),
        concurrency: some(8),
    }
}

fn command(chance: &mut Chance, member: &Member, lives: u64) -> Command {
    let now_ms = member.now * 1_000 + 999;
    let life = GatewayLife(1 + chance.below(lives.max(1)));
    let tenant = TenantId(1 + chance.below(TENANTS) as u32);
    match chance.below(100) {
        0..=2 => Command::OpenGateway {
            coordinator: CoordinatorId(1 + chance.below(3) as u32),
        },
        3 => Command::CloseGateway { life },
        4..=5 => Command::ReapGateway { life },
        6..=13 => Command::Credit {
            tenant,
            amount: NanoUsd(chance.below(30_000) as i64 - 8_000),
            reason: "paid".into(),
        },
        14..=15 => Command::Refund {
            request: told(chance, now_ms).request,
            amount: NanoUsd(chance.below(3_000) as i64),
            reason: "slow".into(),
        },
        16 => Command::Payout {
            provider: ["a", "b"][chance.below(2) as usize].into(),
            amount: NanoUsd(chance.below(3_000) as i64),
            reason: "month".into(),
        },
        17 => Command::SetFee {
            fee: BasisPoints(chance.below(10_001) as u32),
        },
        18..=19 => Command::PutPrice {
            model: ["a", "b"][chance.below(2) as usize].into(),
            effective_from: [0, member.now + chance.below(20)][chance.below(2) as usize],
            list: PriceList {
                input: NanoUsd(chance.below(40_000_001) as i64),
                cached_input: NanoUsd(chance.below(9_000_001) as i64),
                output: NanoUsd(chance.below(90_000_001) as i64),
                minimum: NanoUsd(chance.below(900) as i64),
            },
        },
        20..=21 => {
            let budget = chance
                .one_in(2)
                .then(|| NanoUsd(chance.below(100_000) as i64));
            Command::PutTenant {
                name: format!("tenant {tenant}"),
                settings: TenantSettings {
                    payment: match chance.below(2) {
                        0 => Payment::Prepaid,
                        _ => Payment::Credit {
                            limit: NanoUsd(chance.below(50_000) as i64),
                        },
                    },
                    monthly_budget: budget,
                    limits: limits(chance),
                    ..TenantSettings::default()
                },
            }
        }
        22 => Command::UpdateKey {
            key: KeyId(1 + chance.below(4) as u32),
            settings: KeySettings {
                monthly_budget: chance
                    .one_in(2)
                    .then(|| NanoUsd(chance.below(60_000) as i64)),
                limits: limits(chance),
                ..KeySettings::default()
            },
        },
        23 => Command::PutWebhook {
            tenant,
            url: "https://192.0.2.1/hook".into(),
            topics: Topics {
                budget: !chance.one_in(8),
                statements: !chance.one_in(8),
            },
            secret: hash(chance.below(200) as u8),
            rotate: chance.one_in(4),
        },
        24 => Command::TestWebhook { tenant },
        25..=26 => {
            let event = member.state.webhook_events().next();
            Command::NoteDelivery {
                tenant,
                event: event.map_or(EventSeq(1), |event| event.seq),
                failures: chance.below(2) as u32 * event.map_or(0, |event| event.failures),
                error: (!chance.one_in(4)).then(|| "it answered 500".into()),
            }
        }
        27 if chance.one_in(6) => Command::RemoveWebhook { tenant },
        _ => report(chance, life, now_ms),
    }
}

/// What went wrong, if anything did, how much was charged in all, and how many events were made.
fn live(seed: u64) -> Result<(i64, u64), String> {
    let mut chance = Chance(seed);
    let (mut member, mut model) = (Member::default(), Model::default());
    // A day before the end of January 1970.
    member.now = 30 * 86_400;
    let mut lives = 0;
    let first = [
        bootstrap_command(),
        Command::CreateToken {
            secret_hash: hash(1),
            role: TokenRole::Coordinator,
            provider: None,
            uses: 2,
            expires_at: u64::MAX,
        },
        join_group(1, 1),
        join_group(1, 1),
        key("tenant t1", 1),
        key("tenant t2", 2),
        key("tenant t3", 3),
        Command::RotateKey {
            key: KeyId(1),
            key_hash: hash(4),
            overlap: 1 << 40,
        },
    ];
    let mut first = first.into_iter();
    for step in 0..400 {
        let next = first.next();
        let next = next.unwrap_or_else(|| command(&mut chance, &member, lives));
        let free = |m: &Member, tenant: u32| m.state.free_funds(TenantId(tenant)).unwrap_or(0);
        let before = [1, 2, 3].map(|tenant| free(&member, tenant));
        let lowers = matches!(next, Command::PutTenant { .. });
        let proposal = member.proposal(next);
        let applied = super::super::apply(&mut member.state, &proposal);
        lives += u64::from(matches!(applied.outcome, Outcome::Gateway(_)));
        let told = model.on(&proposal, &applied.outcome);
        let told = told.and_then(|()| model.agrees(&member.state));
        let told = told.and_then(|()| member.state.check());
        told.map_err(|what| format!("seed {seed}, step {step}: {what}"))?;
        for (tenant, before) in [1, 2, 3].into_iter().zip(before) {
            let after = free(&member, tenant);
            if !lowers && after < before.min(0) {
                return Err(format!(
                    "seed {seed}, step {step}: {tenant} is overdrawn by {after}"
                ));
            }
        }
        // Clocks differ and jump; the state's does not go back.
        member.now = match chance.below(12) {
            0 => member.now - chance.below(30),
            1 => member.now + chance.below(3_600),
            2..=6 => member.now + chance.below(5),
            _ => member.now,
        };
    }
    let charged = member.state.requests().map(|row| row.charged.0).sum();
    Ok((charged, member.state.webhook_event_last().0))
}

#[test]
fn random_histories_come_to_what_the_model_says() {
    let (mut charged, mut events) = (0, 0);
    for seed in 1..=300 {
        let came = live(seed).unwrap_or_else(|what| panic!("{what}"));
        (charged, events) = (charged + came.0, events + came.1);
    }
    assert!(charged > 1_000_000, "{charged}: they settle something");
    assert!(events > 1_000, "{events}: they tell something");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn the_model_catches_what_is_planted() {
    use crate::planted::{Bug, plant};
    for bug in [
        Bug::CountTwiceOnRetry,
        Bug::CheckThenIncrement,
        Bug::LeaseNotReturned,
        Bug::FloatRounding,
        Bug::TellTwice,
    ] {
        plant(Some(bug));
        let caught = (1..=300).find_map(|seed| live(seed).err());
        plant(None);
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} was not caught"));
        eprintln!("{bug:?}: {caught}");
    }
}

#[test]
fn a_retried_report_lends_once() {
    let mut member = filled();
    let ask = Ask {
        subject: Subject::Tenant(TenantId(1)),
        least: amounts(100, 1, 10, 1),
        most: amounts(100, 1, 10, 1),
    };
    let mut report = Report::new(GatewayLife(1));
    report.asks.push(ask);
    let proposal = member.proposal(Command::Report { report });
    let first = super::super::apply(&mut member.state, &proposal);
    let lent = member.state.lent(ask.subject);
    let again = super::super::apply(&mut member.state, &proposal);
    assert_eq!(first.outcome, again.outcome);
    assert_eq!(member.state.lent(ask.subject), lent);
}
