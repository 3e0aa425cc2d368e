//! `cluster bench catch-up`: what a new member costs a group while it is sent a large snapshot.

use super::in_a_new_folder;
use crate::term;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use trireme_coordinator::raft::bench::catch_up::{CatchUpBench, CatchUpReport, CommitTimes};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench catch-up\n  cluster bench catch-up --rows 200000 --rate 500"
)]
pub struct CatchUpArgs {
    /// Settled requests in the state: some 520 bytes each in the snapshot, and more in memory, three times
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    rows: u64,
    /// Commands a second, whatever becomes of those before
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long is measured without the new member, and with it when it has all
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Folder on the disk to measure; a new folder is made in it and removed
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The new member's folder, where its disk is another one
    #[arg(long, value_name = "DIR")]
    late_dir: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl CatchUpArgs {
    pub fn run(self) -> Result<()> {
        let late = self.late_dir.as_deref().map(super::NewFolder::make);
        let late = late.transpose()?;
        let report = in_a_new_folder(&self.dir, async |folder, tell| {
            let bench = CatchUpBench {
                folder,
                late_folder: late.as_ref().map(|f| f.path().to_owned()),
                rows: self.rows,
                rate: self.rate,
                duration: Duration::from_secs(self.seconds),
            };
            bench.run(tell).await
        })?;
        drop(late);
        if self.json {
            return term::json(&json(&report));
        }
        show(&report);
        Ok(())
    }
}

fn phases(report: &CatchUpReport) -> [(&'static str, &CommitTimes); 3] {
    [
        ("without it", &report.before),
        ("while it catches up", &report.during),
        ("with it", &report.after),
    ]
}

fn json(report: &CatchUpReport) -> serde_json::Value {
    let phase = |(name, times): (&str, &CommitTimes)| {
        serde_json::json!({
            "phase": name,
            "commits": times.commits,
            "p50_us": times.p50.as_micros() as u64,
            "p99_us": times.p99.as_micros() as u64,
            "longest_us": times.longest.as_micros() as u64,
        })
    };
    serde_json::json!({
        "snapshot_bytes": report.snapshot_bytes,
        "took_ms": report.took.as_millis() as u64,
        "phases": phases(report).map(phase),
    })
}

fn show(report: &CatchUpReport) {
    term::out(format!(
        "a snapshot of {} MB reached the new member, and it all that came meanwhile, in {:.1} s; commits' \
         p99 meanwhile: {:.1} times that without it",
        report.snapshot_bytes / 1_000_000,
        report.took.as_secs_f64(),
        report.during.p99.as_secs_f64() / report.before.p99.as_secs_f64()
    ));
    let us = |d: Duration| d.as_micros().to_string();
    let rows = phases(report).map(|(name, t)| {
        vec![
            name.into(),
            t.commits.to_string(),
            us(t.p50),
            us(t.p99),
            us(t.longest),
        ]
    });
    let header = [
        "new member",
        ">commits",
        ">p50 us",
        ">p99 us",
        ">longest us",
    ];
    term::out(term::table(&header, rows.into()));
}
