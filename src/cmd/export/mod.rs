//! `cluster export`: what was settled, as files for meters and warehouses, in a folder or on S3.
//!
//! What it keeps true: all files together hold every settlement exactly once, whenever an exporter is
//! killed and however many run at once. `chain` says how; `events` and `columns` are the two formats,
//! `place` is where files lie, `s3` how an object store is talked with.

mod chain;
mod columns;
mod events;
mod place;
mod s3;

use super::ClientArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::term;
use anyhow::Result;
use chain::{Exporter, Fault, Step};
use clap::{Args, ValueEnum};
use place::Place;
use std::time::Duration;
use trireme_shared::api::SettlementsPage;
use trireme_shared::ids::SettlementSeq;
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster export --to /var/usage\n  cluster export --to s3://billing/usage --format parquet --follow\n\n\
                  Each file is created whole and never changed, and its name is the first settlement in it: a \
                  killed export goes on with the same line, and two at once do no harm. S3 is set up by the usual \
                  variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL."
)]
pub struct ExportArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// A folder, or `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "DEST")]
    to: String,
    /// What a file holds; all files of one destination hold the same
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "cloudevents")]
    format: Format,
    /// Go on as more is settled
    #[arg(long)]
    follow: bool,
    /// How often to look for more
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::seconds, requires = "follow")]
    every: u64,
    /// Settlements in one file, at most
    #[arg(long, value_name = "N", default_value_t = limits::EXPORT_FILE_ROWS,
        value_parser = clap::value_parser!(u64).range(1..=limits::EXPORT_FILE_ROWS_MAX))]
    rows: u64,
    /// Where settlements are gone before they were exported, say so in a file of its own and go on
    #[arg(long)]
    skip_lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// CloudEvents 1.0, a JSON line each
    Cloudevents,
    /// Apache Parquet
    Parquet,
}

impl Format {
    /// How its files' names end.
    fn extension(self) -> &'static str {
        match self {
            Self::Cloudevents => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

impl ExportArgs {
    pub fn run(self) -> Result<()> {
        let client = self.client.admin()?;
        let place = Place::open(&self.to)?;
        let ask = |after, limit| page(&client, after, limit);
        let mut exporter = Exporter::new(ask, &place, self.format, self.rows, self.skip_lost);
        let (mut rows, mut files, mut began) = (0, 0, false);
        loop {
            match exporter.step() {
                Ok(Step::Wrote { name, first, last }) => {
                    (rows, files) = (rows + last.0 - first.0 + 1, files + 1);
                    if !self.client.json {
                        term::out(format!("{name}: settlements {first} to {last}"));
                    }
                }
                Ok(Step::Skipped { name, first, last }) => {
                    files += 1;
                    term::err(format!("settlements {first} to {last} are lost: {name}"));
                }
                Ok(Step::Theirs) => {}
                Ok(Step::Done) if self.follow => pause(self.every),
                Ok(Step::Done) => break,
                // Whoever follows outlives a restart of the cluster, and an outage of the store.
                Err(Fault::Passing(error)) if self.follow && began => {
                    term::err(format!("{error:#}; it is tried again"));
                    pause(self.every);
                }
                Err(fault) => return Err(fault.into_inner()),
            }
            began = true;
        }
        match self.client.json {
            true => {
                let last = exporter.last();
                term::json(&serde_json::json!({"files": files, "settlements": rows, "last": last}))
            }
            false => {
                term::out(format!("{rows} settlements in {files} files"));
                Ok(())
            }
        }
    }
}

fn pause(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

fn page(client: &Client, after: Option<SettlementSeq>, limit: u64) -> Result<SettlementsPage> {
    let after = after.map_or(String::new(), |after| format!("&after={after}"));
    client.get(&format!("/admin/v1/settlements?limit={limit}{after}"))
}

fn damaged(name: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> anyhow::Error {
    Failure::new(
        format!("{name} is no file that an export wrote"),
        "move it away if it is another's; if it was damaged, delete it, and the export writes it again",
    )
    .because(why)
}

#[cfg(test)]
mod tests;
