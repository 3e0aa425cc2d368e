//! A large state, for measuring and for tests of what reads states.

use super::requests::{Counts, Ended, Progress, Work};
use super::settle::settle;
use super::{KeySettings, State};
use trireme_shared::ids::{CoordinatorId, KeyId, RequestId, TenantId};

impl State {
    /// A state with that many settled requests of one tenant.
    pub fn with_ledger_rows(rows: u64) -> Self {
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
                model: "m".into(),
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
}
