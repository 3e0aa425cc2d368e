use super::*;
use crate::state::apply::apply;
use crate::state::{Command, KeySettings, Payment, Proposal, ProposalId, TenantSettings};
use trireme_shared::ids::{RequestId, TenantId};

/// A quiet second of 2001.
const NOW_MS: u64 = 1_000_000_000_000;

struct Books {
    state: State,
    payer: Payer,
    made: u8,
}

impl Books {
    /// A prepaid tenant with that balance; input costs 1, output 2 nano-dollars a token.
    fn new(balance: i64) -> Self {
        let mut books = Self {
            state: State::default(),
            payer: Payer {
                request: RequestId::parse("r").unwrap(),
                tenant: TenantId(1),
                key: trireme_shared::ids::KeyId(1),
                idempotency: None,
            },
            made: 0,
        };
        books.does(Command::PutPrice {
            model: "m".into(),
            effective_from: 1,
            list: PriceList {
                input: NanoUsd(1_000_000),
                cached_input: NanoUsd(500_000),
                output: NanoUsd(2_000_000),
                minimum: NanoUsd(0),
            },
        });
        books.tenant(|_| {});
        books.key(|_| {});
        if balance > 0 {
            books.does(Command::Credit {
                tenant: TenantId(1),
                amount: NanoUsd(balance),
                reason: "paid".into(),
            });
        }
        books
    }

    fn does(&mut self, command: Command) {
        self.made += 1;
        let proposal = Proposal {
            id: ProposalId([self.made; 16]),
            base: self.state.commands(),
            // Prices are set for a second to come: the first command's is 0.
            at_ms: if self.made == 1 { 0 } else { NOW_MS },
            origin: None,
            command,
        };
        let applied = apply(&mut self.state, &proposal);
        assert!(
            !matches!(applied.outcome, crate::state::Outcome::Refused(_)),
            "{applied:?}"
        );
    }

    fn tenant(&mut self, change: impl FnOnce(&mut TenantSettings)) {
        let mut settings = TenantSettings {
            payment: Payment::Prepaid,
            ..TenantSettings::default()
        };
        change(&mut settings);
        self.does(Command::PutTenant {
            name: "acme".into(),
            settings,
        });
    }

    fn key(&mut self, change: impl FnOnce(&mut KeySettings)) {
        let mut settings = KeySettings::default();
        change(&mut settings);
        let made = self.state.keys().next().map(|key| key.id);
        self.does(match made {
            Some(key) => Command::UpdateKey { key, settings },
            None => Command::CreateKey {
                tenant: "acme".into(),
                key_hash: [1; 32],
                settings,
            },
        });
    }

    fn needs(&self, wish: &Wish) -> Result<Needs, Denied> {
        needs(
            &self.state,
            &self.payer,
            wish,
            |_| Amounts::default(),
            NOW_MS,
        )
    }
}

fn wish(prompt: u64, max: u32) -> Wish {
    Wish {
        model: "m".into(),
        prompts: vec![(prompt, max)],
        choices_per_prompt: 1,
        may_shorten: false,
    }
}

#[test]
fn the_worst_case_is_held_and_not_a_nano_dollar_less() {
    let exact = 100 + 2 * 50;
    let books = Books::new(exact);
    let held = books.needs(&wish(100, 50)).unwrap();
    assert_eq!(held.shortened, None);
    assert_eq!(held.needs.len(), 1);
    assert_eq!(held.needs[0].amounts.money, NanoUsd(exact));
    let denied = Books::new(exact - 1).needs(&wish(100, 50)).unwrap_err();
    assert_eq!(denied.why, Shortage::Funds);
    // Every choice of every prompt counts, its prompt once.
    let wide = Wish {
        prompts: vec![(10, 5), (20, 6)],
        choices_per_prompt: 3,
        ..wish(0, 0)
    };
    let held = Books::new(10_000).needs(&wide).unwrap();
    assert_eq!(held.needs[0].amounts.money, NanoUsd(30 + 3 * 2 * 11));
}

#[test]
fn a_wish_without_a_length_is_shortened_to_what_there_is() {
    let books = Books::new(100 + 2 * 30 + 1);
    let open = Wish {
        may_shorten: true,
        ..wish(100, 5_000)
    };
    let held = books.needs(&open).unwrap();
    assert_eq!(held.shortened, Some(30));
    assert_eq!(held.needs[0].amounts.money, NanoUsd(160));
    // A few tokens are no answer.
    let least = i64::from(limits::HOLD_TOKENS_LEAST);
    assert!(Books::new(100 + 2 * least).needs(&open).is_ok());
    let denied = Books::new(100 + 2 * least - 1).needs(&open).unwrap_err();
    assert_eq!(denied.why, Shortage::Funds);
    // A wish that is short by itself is not shortened further.
    let short = Wish {
        may_shorten: true,
        ..wish(100, 4)
    };
    assert!(Books::new(108).needs(&short).is_ok());
    assert!(Books::new(107).needs(&short).is_err());
}

#[test]
fn only_what_is_bounded_is_needed() {
    let mut books = Books::new(10_000);
    books.key(|key| key.limits.concurrency = Some(2));
    books.tenant(|tenant| tenant.limits.tokens_per_minute = Some(Tokens(1_000)));
    let held = books.needs(&wish(100, 50)).unwrap();
    let of = |subject| held.needs.iter().find(|n| n.subject == subject).unwrap();
    let tenant = of(Subject::Tenant(TenantId(1))).amounts;
    assert_eq!(
        (tenant.tokens, tenant.requests, tenant.slots),
        (Tokens(150), 0, 0)
    );
    let key = of(Subject::Key(trireme_shared::ids::KeyId(1))).amounts;
    assert_eq!(
        (key.money, key.tokens, key.slots),
        (NanoUsd(0), Tokens(0), 1)
    );
}

#[test]
fn each_limit_denies_by_its_own_name() {
    type Set = fn(&mut Limits);
    let cases: [(Set, Shortage, bool); 4] = [
        (
            |l| l.requests_per_minute = Some(0),
            Shortage::RequestsPerMinute,
            false,
        ),
        (
            |l| l.tokens_per_minute = Some(Tokens(149)),
            Shortage::TokensPerMinute,
            false,
        ),
        (
            |l| l.tokens_per_day = Some(Tokens(149)),
            Shortage::TokensPerDay,
            true,
        ),
        (|l| l.concurrency = Some(0), Shortage::Concurrency, false),
    ];
    for (set, why, waits) in cases {
        for of_key in [false, true] {
            let mut books = Books::new(10_000);
            match of_key {
                true => books.key(|key| set(&mut key.limits)),
                false => books.tenant(|tenant| set(&mut tenant.limits)),
            }
            let denied = books.needs(&wish(100, 50)).unwrap_err();
            assert_eq!(denied.why, why);
            assert_eq!(denied.retry_after_ms.is_some(), waits, "{why:?}");
            assert_eq!(matches!(denied.subject, Subject::Key(_)), of_key);
        }
    }
    let mut books = Books::new(10_000);
    books.key(|key| key.monthly_budget = Some(NanoUsd(199)));
    let denied = books.needs(&wish(100, 50)).unwrap_err();
    assert_eq!(denied.why, Shortage::MonthlyBudget);
    assert!(denied.retry_after_ms.is_some());
}
