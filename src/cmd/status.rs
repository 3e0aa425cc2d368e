//! `cluster status`: coordinators, workers and deployments, once or watched.

use super::{ClientArgs, member};
use crate::{size, term};
use anyhow::Result;
use clap::Args;
use std::fmt::Write;
use std::time::Duration;
use trireme_shared::api::{DeploymentReport, ReplicaReport, StatusReport};
use trireme_shared::wire::control::RankState;

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster status\n  cluster status --watch\n  cluster status \
                        --coordinator http://10.0.0.1:8080 --json"
)]
pub struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Show it again each second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

impl StatusArgs {
    pub fn run(self) -> Result<()> {
        let client = self.client.admin()?;
        loop {
            let report: Result<StatusReport> = client.get("/admin/v1/status");
            let text = match &report {
                Ok(report) if self.client.json => serde_json::to_string(report)?,
                Ok(report) => render(report),
                // Watching goes on through a coordinator's restart.
                Err(error) if self.watch => format!("{error:#}"),
                Err(_) => String::new(),
            };
            if !self.watch {
                let report = report?;
                match self.client.json {
                    true => term::json(&report)?,
                    false => term::out(text),
                }
                return Ok(());
            }
            if term::is_terminal() && !self.client.json {
                // Home, the text with each line's rest cleared, then all below cleared.
                let text = text.replace('\n', "\x1b[K\n");
                term::part(format_args!("\x1b[H{text}\x1b[K\n\x1b[J"));
            } else {
                term::out(text);
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }
}

fn render(report: &StatusReport) -> String {
    let leader = report
        .leader
        .map_or_else(|| "no leader".to_owned(), |id| format!("leader {id}"));
    let mut text = format!(
        "cluster {}  (version {})  {leader}  term {}  commit {}\n",
        term::bold(&report.cluster),
        report.version,
        report.term,
        report.commit
    );
    if report.stale {
        text.push_str("no leader confirms this: it may be old, and nothing can be changed\n");
    }
    text.push('\n');
    text.push_str(&member::table(&report.coordinators));
    text.push('\n');
    let workers = report
        .workers
        .iter()
        .map(|w| {
            let of = |f: &dyn Fn(&trireme_shared::wire::control::Inventory) -> String| {
                w.inventory.as_ref().map_or_else(|| "-".to_owned(), f)
            };
            vec![
                w.id.to_string(),
                if w.connected { "connected" } else { "lost" }.to_owned(),
                if w.address.is_empty() {
                    "-".to_owned()
                } else {
                    w.address.clone()
                },
                of(&|i| i.threads.to_string()),
                of(&|i| size::bytes(i.memory_bytes)),
                of(&|i| i.isa.clone()),
                of(&|i| i.pid.to_string()),
            ]
        })
        .collect();
    section(
        &mut text,
        &[
            "worker", "state", "address", ">threads", ">memory", "isa", ">pid",
        ],
        workers,
    );
    for deployment in &report.deployments {
        render_deployment(&mut text, deployment);
    }
    if report.deployments.is_empty() {
        text.push_str("\nno model is deployed\n");
    }
    text.trim_end().to_owned()
}

fn render_deployment(text: &mut String, deployment: &DeploymentReport) {
    let spec = &deployment.spec;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "\nmodel {}  tp {} x pp {} x replicas {}{}",
        term::bold(&spec.model.name),
        spec.tensor_parallel,
        spec.pipeline_parallel,
        spec.replicas,
        super::precision(&spec.precision)
    );
    let rows = deployment.replicas.iter().map(replica_row).collect();
    section(
        text,
        &[
            "replica", ">epoch", ">running", ">waiting", ">KV used", ">tokens", "state",
        ],
        rows,
    );
}

fn replica_row(replica: &ReplicaReport) -> Vec<String> {
    let stats = replica.stats.unwrap_or_default();
    let used = (u64::from(stats.kv_pages_used) * 100)
        .checked_div(u64::from(stats.kv_pages_total))
        .unwrap_or(0);
    vec![
        replica.replica.to_string(),
        replica
            .epoch
            .map_or_else(|| "-".to_owned(), |e| e.0.to_string()),
        stats.running.to_string(),
        stats.waiting.to_string(),
        format!("{used} %"),
        stats.generated_tokens.to_string(),
        state_of(replica),
    ]
}

/// What a replica is doing, in a few words.
pub fn state_of(replica: &ReplicaReport) -> String {
    if replica.ready {
        return "ready".to_owned();
    }
    let failed = replica.ranks.iter().find_map(|rank| match rank {
        RankState::Failed { reason } => Some(format!("failed: {reason}")),
        _ => None,
    });
    let waits = replica.waiting_for.as_ref();
    let waits = waits.map(|what| match what.starts_with("its ") {
        true => format!("waiting for {what}"),
        false => what.clone(),
    });
    if let Some(words) = failed.or(waits) {
        return words;
    }
    let (done, total) = replica
        .ranks
        .iter()
        .fold((0u64, 0u64), |(d, t), rank| match rank {
            RankState::Fetching {
                done_bytes,
                total_bytes,
            }
            | RankState::Loading {
                done_bytes,
                total_bytes,
            } => (
                d.saturating_add(*done_bytes),
                t.saturating_add(*total_bytes),
            ),
            _ => (d, t),
        });
    let fetching = replica
        .ranks
        .iter()
        .any(|r| matches!(r, RankState::Fetching { .. }));
    match total {
        0 => "connecting".to_owned(),
        _ => format!(
            "{} {} of {}",
            if fetching { "fetching" } else { "loading" },
            size::bytes(done),
            size::bytes(total)
        ),
    }
}

fn section(text: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&term::table(header, rows));
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::ids::Replica;

    #[test]
    fn a_replica_says_what_it_is_doing() {
        let mut replica = ReplicaReport {
            replica: Replica(0),
            epoch: None,
            ready: false,
            waiting_for: Some("needs 2 workers, 1 is connected".into()),
            plan: None,
            ranks: vec![],
            stats: None,
        };
        assert_eq!(state_of(&replica), "needs 2 workers, 1 is connected");
        replica.waiting_for = Some("its plan to be recorded".into());
        assert_eq!(state_of(&replica), "waiting for its plan to be recorded");
        replica.waiting_for = None;
        replica.ranks = vec![
            RankState::Loading {
                done_bytes: 10_000_000,
                total_bytes: 50_000_000,
            },
            RankState::Ready,
        ];
        assert_eq!(state_of(&replica), "loading 10.0 MB of 50.0 MB");
        replica.ranks[1] = RankState::Failed {
            reason: "no memory".into(),
        };
        assert_eq!(state_of(&replica), "failed: no memory");
        replica.ready = true;
        assert_eq!(state_of(&replica), "ready");
    }
}
