//! `cluster bench settle`: how many requests a group lets in and charges, beside what it commits.

use super::in_a_new_folder;
use crate::term;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use trireme_coordinator::gateway::desk::bench::{SettleBench, SettleReport};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench settle\n  cluster bench settle --clients 1024 --ledger \
                        10000000"
)]
pub struct SettleArgs {
    /// Members of the group
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
    members: u32,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    clients: usize,
    /// How long bare commands, and then requests, are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Requests settled beforehand in the state that is asked for a month's usage by day
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    ledger: u64,
    /// Folder on the disk to measure; a new folder is made in it and removed [default: here]
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl SettleArgs {
    pub fn run(self) -> Result<()> {
        let report = in_a_new_folder(&self.dir, async |folder, tell| {
            let bench = SettleBench {
                folder,
                members: self.members,
                clients: self.clients,
                duration: Duration::from_secs(self.seconds),
                ledger: self.ledger,
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

fn json(report: &SettleReport) -> serde_json::Value {
    let us = |d: Duration| d.as_micros() as u64;
    serde_json::json!({
        "members": report.members,
        "clients": report.clients,
        "settled_per_second": report.settled_per_second,
        "admit_p50_us": us(report.admit_p50),
        "admit_p99_us": us(report.admit_p99),
        "settle_p50_us": us(report.settle_p50),
        "settle_p99_us": us(report.settle_p99),
        "commands_per_second": report.commands_per_second,
        "ledger_requests": report.ledger,
        "month_us": us(report.month),
        "month_rows": report.month_rows,
    })
}

fn show(report: &SettleReport) {
    let us = |d: Duration| d.as_micros().to_string();
    term::out(format!(
        "{} members, {} requests at once: {:.0} settled a second, {:.2} of the {:.0} bare commands a second \
         in the same run",
        report.members,
        report.clients,
        report.settled_per_second,
        report.settled_per_second / report.commands_per_second,
        report.commands_per_second,
    ));
    let rows = vec![
        vec!["admit".into(), us(report.admit_p50), us(report.admit_p99)],
        vec![
            "settle".into(),
            us(report.settle_p50),
            us(report.settle_p99),
        ],
    ];
    term::out(term::table(&["step", ">p50 us", ">p99 us"], rows));
    term::out(format!(
        "after {} requests, a tenant's month by day: {} rows in {} us",
        report.ledger,
        report.month_rows,
        us(report.month)
    ));
}
