//! What simulated gateways say of requests, and what an administrator does about money: reports that
//! are repeated, reordered and late, attempts under one idempotency key, leases asked for by several
//! lives at once, and lives that end with them.

use crate::chance::Chance;
use crate::workload::START_MS;
use trireme_coordinator::state::{
    Amounts, Ask, Command, Counts, Ended, Final, KeySettings, Limits, Payment, PriceList, Progress,
    Report, Return, State, Subject, TenantSettings, Topics, Work,
};
use trireme_shared::ids::{
    BasisPoints, CoordinatorId, GatewayLife, KeyId, NanoUsd, RequestId, TenantId, Tokens,
};

const MODELS: [&str; 2] = ["alpha", "beta"];
const PROVIDERS: [Option<&str>; 3] = [None, Some("east"), Some("west")];

/// Requests that a client still tells of, the newest last.
const REMEMBERED: usize = 12;

/// The requests of one client.
#[derive(Default)]
pub struct Charges {
    requests: Vec<Progress>,
}

impl Charges {
    /// The next command. `state` is the replica of the node that is asked: it may be behind.
    pub fn next(
        &mut self,
        chance: &mut Chance,
        state: &State,
        keys: &[(TenantId, KeyId)],
        tenants: &[&str],
    ) -> Option<Command> {
        let (tenant, key) = chance.pick(keys)?;
        let lives: Vec<GatewayLife> = state.gateways().map(|g| g.life).collect();
        let life = chance.pick(&lives);
        let command = match (chance.below(100), life) {
            (0..=4, _) | (_, None) => {
                let coordinators: Vec<CoordinatorId> = state.coordinators().map(|c| c.id).collect();
                Command::OpenGateway {
                    coordinator: chance.pick(&coordinators)?,
                }
            }
            (5..=6, Some(life)) => Command::CloseGateway { life },
            (7..=8, Some(life)) => Command::ReapGateway { life },
            (9..=16, _) => Command::Credit {
                tenant,
                amount: NanoUsd(chance.range(1, 40_000) as i64 - 8_000),
                reason: "paid".into(),
            },
            (17..=19, _) => Command::PutTenant {
                name: chance.pick(tenants)?.into(),
                settings: tenant_settings(chance),
            },
            (20, _) => Command::SetFee {
                fee: BasisPoints(chance.below(5_000) as u32),
            },
            (21..=22, _) => put_price(chance, state),
            (23, _) => Command::RotateKey {
                key,
                key_hash: chance.bytes(),
                overlap: 1 << 40,
            },
            (24..=25, _) => Command::UpdateKey {
                key,
                settings: KeySettings {
                    monthly_budget: chance.happens(500).then(|| money(chance, 200_000)),
                    ..KeySettings::default()
                },
            },
            (26..=27, _) => Command::Refund {
                request: self.requests.last()?.request.clone(),
                amount: money(chance, 500),
                reason: "slow".into(),
            },
            (28, _) => Command::Payout {
                provider: "east".into(),
                amount: money(chance, 5_000),
                reason: "a month".into(),
            },
            (29..=30, _) => Command::PutWebhook {
                tenant,
                url: "https://192.0.2.1/hook".into(),
                topics: Topics {
                    budget: chance.happens(800),
                    statements: chance.happens(800),
                },
                secret: chance.bytes(),
                rotate: chance.happens(200),
            },
            (31, _) => Command::TestWebhook { tenant },
            (32..=33, _) => deliver(chance, state)?,
            (34, _) if chance.happens(300) => Command::RemoveWebhook { tenant },
            (_, Some(life)) => self.report(chance, state, life, tenant, key),
        };
        Some(command)
    }

    fn report(
        &mut self,
        chance: &mut Chance,
        state: &State,
        life: GatewayLife,
        tenant: TenantId,
        key: KeyId,
    ) -> Command {
        let mut report = Report::new(life);
        // A replica that is behind may not know the key, and whose line it is of.
        let line = state.key(key).map(|key| Subject::Key(key.line));
        let own = Subject::Tenant(tenant);
        for subject in [Some(own), line].into_iter().flatten() {
            if chance.happens(400) {
                continue;
            }
            report.asks.push(Ask {
                subject,
                least: amounts(chance, 15_000),
                most: amounts(chance, 30_000),
            });
        }
        if chance.happens(300) {
            report.returns.push(Return {
                subject: own,
                unneeded: amounts(chance, 10_000),
            });
        }
        for _ in 0..chance.below(3) {
            let told = self.told(chance, state, tenant, key);
            report.progress.push(told);
        }
        for _ in 0..chance.below(3) {
            let progress = self.told(chance, state, tenant, key);
            let ended = match chance.below(6) {
                0 => Ended::Disconnected,
                1 => Ended::Failed,
                2 => Ended::Exhausted,
                _ => Ended::Finished,
            };
            report.finals.push(Final { progress, ended });
        }
        Command::Report { report }
    }

    /// A new request, another attempt at one, or one that goes on, or that was told of before.
    fn told(
        &mut self,
        chance: &mut Chance,
        state: &State,
        tenant: TenantId,
        key: KeyId,
    ) -> Progress {
        let known = match self.requests.len() {
            0 => None,
            len => Some(chance.below(len as u64) as usize),
        };
        let new = RequestId::parse(&format!("req_{:024x}", chance.next()));
        let new = new.unwrap_or_else(RequestId::random);
        let at = match (chance.below(10), known) {
            (0..=3, _) | (_, None) => {
                self.requests.push(Progress {
                    request: new,
                    caller_id: None,
                    tenant,
                    key,
                    model: MODELS[chance.below(2) as usize].into(),
                    began_at_ms: state.now_ms().max(START_MS) - chance.below(2_000),
                    idempotency: chance.happens(500).then(|| chance.bytes()),
                    counts: Counts::new(chance.below(200), chance.below(50), 0),
                    work: Vec::new(),
                });
                self.requests.len() - 1
            }
            (4..=6, Some(at)) if self.requests[at].idempotency.is_some() => {
                let attempt = Progress {
                    request: new,
                    counts: Counts::new(self.requests[at].counts.prompt.0, 0, 0),
                    work: Vec::new(),
                    ..self.requests[at].clone()
                };
                self.requests.push(attempt);
                self.requests.len() - 1
            }
            (_, Some(at)) => at,
        };
        let request = &mut self.requests[at];
        // Sometimes nothing is new: what was told comes again.
        if chance.happens(700) {
            let tokens = chance.below(60);
            request.counts.completion.0 += tokens;
            for provider in PROVIDERS {
                if chance.happens(500) {
                    continue;
                }
                let provider = provider.map(str::to_owned);
                let known = request.work.iter_mut().find(|w| w.provider == provider);
                match known {
                    Some(work) => work.units += tokens * chance.range(1, 9),
                    None => request.work.push(Work {
                        provider,
                        units: tokens * chance.range(1, 9),
                    }),
                }
            }
        }
        let mut told = request.clone();
        if chance.happens(200) {
            // An older report, come late.
            told.counts.completion.0 /= 2;
        }
        let forgotten = self.requests.len().saturating_sub(REMEMBERED);
        self.requests.drain(..forgotten);
        told
    }
}

/// What came of a try of an event, by this replica, which may have been tried by another leader.
fn deliver(chance: &mut Chance, state: &State) -> Option<Command> {
    let waiting: Vec<_> = state
        .webhook_events()
        .map(|event| (event.tenant, event.seq, event.failures))
        .collect();
    let (tenant, event, failures) = chance.pick(&waiting)?;
    Some(Command::NoteDelivery {
        tenant,
        event,
        failures,
        error: chance.happens(600).then(|| "it answered 500".into()),
    })
}

fn money(chance: &mut Chance, most: u64) -> NanoUsd {
    NanoUsd(chance.range(1, most) as i64)
}

fn amounts(chance: &mut Chance, most: u64) -> Amounts {
    Amounts {
        money: money(chance, most),
        requests: chance.below(3),
        tokens: Tokens(chance.below(300)),
        slots: chance.below(3),
    }
}

fn tenant_settings(chance: &mut Chance) -> TenantSettings {
    TenantSettings {
        payment: match chance.below(3) {
            0 => Payment::Credit {
                limit: money(chance, 60_000),
            },
            _ => Payment::Prepaid,
        },
        monthly_budget: chance.happens(300).then(|| money(chance, 400_000)),
        limits: Limits {
            concurrency: chance.happens(500).then(|| chance.below(9)),
            tokens_per_day: chance.happens(300).then(|| Tokens(chance.below(50_000))),
            ..Limits::default()
        },
        ..TenantSettings::default()
    }
}

fn put_price(chance: &mut Chance, state: &State) -> Command {
    let now = state.now_ms() / 1_000;
    Command::PutPrice {
        model: MODELS[chance.below(2) as usize].into(),
        effective_from: [0, now + chance.range(1, 10)][chance.below(2) as usize],
        list: PriceList {
            input: money(chance, 40_000_000),
            cached_input: money(chance, 9_000_000),
            output: money(chance, 90_000_000),
            minimum: money(chance, 900),
        },
    }
}
