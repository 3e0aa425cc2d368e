//! A large state, for measuring and for tests of what reads states.

use super::requests::{Counts, Ended, Progress, Work};
use super::settle::settle;
use super::{KeySettings, State};
use trireme_shared::ids::{CoordinatorId, KeyId, RequestId, TenantId};

impl State {
    /// A state with that many settled requests of one tenant, all of the model of that name, which is
    /// written into each row: a long one makes large rows.
    pub fn with_ledger_rows(rows: u64, model: &str) -> Self {
        let mut state = Self::default();
        let settings = KeySettings::default();
        let made = state.tenants.create_key("acme", &[1; 32], &settings, 1);
        made.expect("the first key");
        let life = state.leases.open(CoordinatorId(1), 0);
        for row in 0..rows {
            let told = Progress {
                request: RequestId::parse(&format!("req_{row:024x}")).expect("a request's id"),
                caller_id: None,
                tenant: TenantId(1),
                key: KeyId(1),
                model: model.to_owned(),
                began_at_ms: row,
                idempotency: None,
                counts: Counts::new(1 + row % 512, 0, row % 128),
                work: vec![Work {
                    provider: Some("hosts".into()),
                    units: 1,
                }],
            };
            settle(&mut state, life, &told, Ended::Finished, row);
        }
        state
    }

    /// A state with that many settled requests of 20 tenants, two keys and three models each, evenly over
    /// the 31 days of January 2024, and those days (since 1970).
    pub fn with_a_month_of(requests: u64) -> (Self, std::ops::RangeInclusive<u64>) {
        const FIRST_DAY: u64 = 19_723;
        const DAY_MS: u64 = 86_400_000;
        let mut state = Self::default();
        let settings = KeySettings::default();
        for key in 0..40u8 {
            let tenant = format!("tenant-{}", key % 20);
            let made = state.tenants.create_key(&tenant, &[key; 32], &settings, 1);
            made.expect("a key of its own");
        }
        let life = state.leases.open(CoordinatorId(1), 0);
        for n in 0..requests {
            let at_ms = FIRST_DAY * DAY_MS + n * (31 * DAY_MS - 1) / requests.max(1);
            let key = (n % 40) as u32;
            let told = Progress {
                request: RequestId::parse(&format!("req_{n:024x}")).expect("a request's id"),
                caller_id: None,
                tenant: TenantId(1 + key % 20),
                key: KeyId(1 + key),
                model: ["a", "b", "c"][(n / 40 % 3) as usize].into(),
                began_at_ms: at_ms,
                idempotency: None,
                counts: Counts::new(1 + n % 512, 0, n % 128),
                work: Vec::new(),
            };
            settle(&mut state, life, &told, Ended::Finished, at_ms);
        }
        (state, FIRST_DAY..=FIRST_DAY + 30)
    }
}
