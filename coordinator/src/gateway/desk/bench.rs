//! How many requests a group settles: for `cluster bench settle`.
//!
//! The members of `raft::bench` in this process, and the desk of one gateway, as it runs in a
//! coordinator: each request is let in against a lease, then settled durably. Beside it, in the same
//! run, what the group commits of bare commands; and how long a month's usage by day takes to ask for,
//! out of a state that has settled so many requests.

use super::{About, Desk, Live, Wish};
use crate::fleet::work::WorkLog;
use crate::gateway::usage::Payer;
use crate::raft::bench::{at, commits, leader, start};
use crate::raft::group::Group;
use crate::state::{Command, Counts, Ended, Final, KeySettings, Outcome, State};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use trireme_shared::ids::{RequestId, TenantId};
use trireme_shared::wall_clock::unix_ms;

/// What to measure.
pub struct SettleBench {
    /// An empty folder on the disk to be measured.
    pub folder: PathBuf,
    /// 1, 3 or 5.
    pub members: u32,
    /// Requests at once.
    pub clients: usize,
    pub duration: Duration,
    /// Requests that the state has settled that is asked for usage.
    pub ledger: u64,
}

#[derive(Clone, Debug)]
pub struct SettleReport {
    pub members: u32,
    pub clients: usize,
    pub settled_per_second: f64,
    pub admit_p50: Duration,
    pub admit_p99: Duration,
    pub settle_p50: Duration,
    pub settle_p99: Duration,
    /// Of bare commands, by as many clients.
    pub commands_per_second: f64,
    pub ledger: u64,
    /// To sum a tenant's usage of a month by day, model and key.
    pub month: Duration,
    /// Rows that came of it.
    pub month_rows: usize,
}

const TENANTS: usize = 20;

impl SettleBench {
    /// Runs it. `tell` is called with what is being measured.
    ///
    /// # Errors
    /// In words, where the folder or the network of this machine cannot be used.
    pub async fn run(&self, tell: &(dyn Fn(&str) + Sync)) -> Result<SettleReport, String> {
        tell("starting the members");
        let groups = start(&self.folder, self.members).await?;
        let leading = leader(&groups).await?;
        tell("committing bare commands");
        let bare = commits(&groups[leading], self.clients, self.duration).await?;
        tell("settling requests");
        // The founder has a seat in the state, and so can have a gateway.
        let (began, taken) = self.settle(&groups[0]).await?;
        let seconds = began.as_secs_f64();
        let sorted = |pick: fn(&Taken) -> Duration| {
            let mut all: Vec<_> = taken.iter().map(pick).collect();
            all.sort_unstable();
            all
        };
        let (admits, settles) = (sorted(|t| t.admit), sorted(|t| t.settle));
        for group in &groups {
            group.close().await;
        }
        tell(&format!("settling {} requests in memory", self.ledger));
        let ledger = self.ledger;
        let asked = tokio::task::spawn_blocking(move || month(ledger)).await;
        let (month, month_rows) = asked.map_err(|e| e.to_string())?;
        Ok(SettleReport {
            members: self.members,
            clients: self.clients,
            settled_per_second: taken.len() as f64 / seconds,
            admit_p50: at(&admits, 50),
            admit_p99: at(&admits, 99),
            settle_p50: at(&settles, 50),
            settle_p99: at(&settles, 99),
            commands_per_second: bare.commands_per_second,
            ledger: self.ledger,
            month,
            month_rows,
        })
    }

    async fn settle(&self, group: &Group) -> Result<(Duration, Vec<Taken>), String> {
        let mut payers = Vec::new();
        for n in 0..TENANTS {
            let command = Command::CreateKey {
                tenant: format!("settle-{n}"),
                key_hash: [200 + n as u8; 32],
                settings: KeySettings::default(),
            };
            let Outcome::Key { tenant, key } =
                group.propose(command).await.map_err(|e| e.to_string())?
            else {
                return Err("a key was refused".into());
            };
            payers.push(Payer {
                request: RequestId::random(),
                tenant,
                key,
                idempotency: None,
            });
        }
        let desk = Desk::start(group.clone());
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        let end = began + self.duration;
        for n in 0..self.clients {
            let (desk, payer) = (desk.clone(), payers[n % TENANTS].clone());
            tasks.spawn(async move {
                let mut taken = Vec::new();
                while Instant::now() < end {
                    taken.push(request(&desk, &payer).await?);
                }
                Ok::<_, String>(taken)
            });
        }
        let mut all = Vec::new();
        while let Some(taken) = tasks.join_next().await {
            all.extend(taken.map_err(|e| e.to_string())??);
        }
        let took = began.elapsed();
        desk.close().await;
        Ok((took, all))
    }
}

struct Taken {
    admit: Duration,
    settle: Duration,
}

async fn request(desk: &Desk, payer: &Payer) -> Result<Taken, String> {
    let wish = Wish {
        model: "m".into(),
        prompts: vec![(83, 128)],
        choices_per_prompt: 1,
        may_shorten: false,
    };
    let began = Instant::now();
    let held = desk.admit(payer, &wish).await.map_err(|e| e.to_string())?;
    let admitted = Instant::now();
    let about = About {
        request: RequestId::random(),
        caller_id: payer.request.clone(),
        tenant: payer.tenant,
        key: payer.key,
        model: wish.model,
        began_at_ms: unix_ms(),
        idempotency: None,
    };
    let live = Live::new(about, WorkLog::default());
    let last = Final {
        progress: live.progress(Counts::new(83, 0, 128)),
        ended: Ended::Finished,
    };
    let charged = desk.settle(last, Some(held)).await;
    charged.ok_or("a request was not settled")?;
    Ok(Taken {
        admit: admitted - began,
        settle: admitted.elapsed(),
    })
}

/// How long it takes, the median of some, and how many rows come of it.
fn month(requests: u64) -> (Duration, usize) {
    const ASKED: usize = 101;
    let (state, days) = State::with_a_month_of(requests);
    let mut taken = Vec::with_capacity(ASKED);
    let mut rows = 0;
    for _ in 0..ASKED {
        let began = Instant::now();
        let usage: Vec<_> = state.usage_by_day(TenantId(1), days.clone()).collect();
        taken.push(began.elapsed());
        rows = usage.len();
    }
    taken.sort_unstable();
    (at(&taken, 50), rows)
}
