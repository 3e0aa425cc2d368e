//! `cluster bench commits`: how fast a group of coordinators commits, beside what the disk can do.

use super::in_a_new_folder;
use crate::term;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use trireme_coordinator::raft::bench::{CommitBench, CommitReport};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench commits\n  cluster bench commits --members 3 --clients \
                        1,64,1024 --seconds 5"
)]
pub struct CommitsArgs {
    /// Members of the group
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
    members: u32,
    /// Clients that each wait for one command after the other
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_values_t = [1, 64, 1024])]
    clients: Vec<usize>,
    /// How long each number of clients is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Folder on the disk to measure; a new folder is made in it and removed [default: here]
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl CommitsArgs {
    pub fn run(self) -> Result<()> {
        let report = in_a_new_folder(&self.dir, async |folder, tell| {
            let bench = CommitBench {
                folder,
                members: self.members,
                clients: self.clients.clone(),
                duration: Duration::from_secs(self.seconds),
            };
            bench.run(tell).await
        })?;
        if self.json {
            return term::json(&json(&report));
        }
        show(&report);
        Ok(())
    }
}

fn json(report: &CommitReport) -> serde_json::Value {
    let speeds: Vec<_> = report
        .speeds
        .iter()
        .map(|s| {
            serde_json::json!({
                "clients": s.clients,
                "commands_per_second": s.commands_per_second,
                "p50_us": s.p50.as_micros() as u64,
                "p99_us": s.p99.as_micros() as u64,
                "cpus": s.cpus,
            })
        })
        .collect();
    serde_json::json!({
        "members": report.members,
        "command_bytes": report.command_bytes,
        "record_bytes": report.record_bytes,
        "sync_p50_us": report.sync_p50.as_micros() as u64,
        "sync_p99_us": report.sync_p99.as_micros() as u64,
        "paired_p50_us": report.paired_p50.as_micros() as u64,
        "speeds": speeds,
    })
}

fn show(report: &CommitReport) {
    let us = |d: Duration| d.as_micros().to_string();
    let ratio = |d: Duration, of: Duration| format!("{:.1}", d.as_secs_f64() / of.as_secs_f64());
    term::out(format!(
        "{} members; in turn, a commit takes {} us (p50), a bare write and fdatasync of {} bytes {} us \
         (p99 {}): {} times as long",
        report.members,
        us(report.paired_p50),
        report.record_bytes,
        us(report.sync_p50),
        us(report.sync_p99),
        ratio(report.paired_p50, report.sync_p50)
    ));
    let rows = report
        .speeds
        .iter()
        .map(|s| {
            vec![
                s.clients.to_string(),
                format!("{:.0}", s.commands_per_second),
                us(s.p50),
                us(s.p99),
            ]
        })
        .collect();
    let header = [">clients", ">commands/s", ">p50 us", ">p99 us"];
    term::out(term::table(&header, rows));
}
