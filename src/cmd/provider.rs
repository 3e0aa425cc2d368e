//! `cluster provider`: whoever lends machines, what they earned and were paid.

use super::account::dollars;
use super::money::post;
use super::{ClientArgs, WriteArgs};
use crate::{term, url};
use anyhow::Result;
use clap::{Args, Subcommand};
use time::OffsetDateTime;
use trireme_shared::api::{DayEarned, Earnings, ProviderReport, ProviderStatement};
use trireme_shared::ids::NanoUsd;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster provider list\n  cluster provider earnings hosts\n  \
                        cluster provider payout hosts 100 --reason \"November\""
)]
pub struct ProviderArgs {
    #[command(subcommand)]
    command: ProviderCommand,
}

#[derive(Subcommand)]
enum ProviderCommand {
    /// List providers and what they are owed
    #[command(after_help = "Example:\n  cluster provider list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what a provider earned, by the day
    #[command(
        after_help = "Example:\n  cluster provider earnings hosts --from 2026-11-01 --to 2026-12-01"
    )]
    Earnings {
        #[command(flatten)]
        client: ClientArgs,
        /// The provider's name
        name: String,
        /// First day (UTC) [default: this month's first]
        #[arg(long, value_name = "DAY")]
        from: Option<String>,
        /// First day after it [default: next month's first]
        #[arg(long, value_name = "DAY")]
        to: Option<String>,
    },
    /// Show a provider's month
    #[command(after_help = "Example:\n  cluster provider statement hosts 2026-11")]
    Statement {
        #[command(flatten)]
        client: ClientArgs,
        /// The provider's name
        name: String,
        /// The month, such as 2026-11 [default: the current one]
        month: Option<String>,
    },
    /// Write down that part of a provider's earnings was paid to it
    #[command(after_help = "Example:\n  cluster provider payout hosts 100 --reason \"November\"")]
    Payout {
        #[command(flatten)]
        write: WriteArgs,
        /// The provider's name
        name: String,
        /// Dollars, such as 12.50
        #[arg(value_name = "AMOUNT", value_parser = dollars)]
        amount: NanoUsd,
        /// Why; it stays in the ledger
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

fn path(name: &str, what: &str) -> String {
    format!("/admin/v1/providers/{}/{what}", url::part(name))
}

impl ProviderArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            ProviderCommand::List { client } => {
                let all: Vec<ProviderReport> = client.admin()?.get("/admin/v1/providers")?;
                match client.json {
                    true => term::json(&all)?,
                    false => list(&all),
                }
            }
            ProviderCommand::Earnings {
                client,
                name,
                from,
                to,
            } => {
                let query = url::query(&[("from", from.as_deref()), ("to", to.as_deref())]);
                let path = format!("{}{query}", path(&name, "earnings"));
                let earned: Earnings = client.admin()?.get(&path)?;
                match client.json {
                    true => term::json(&earned)?,
                    false => days(&earned.days, earned.total_nano_usd),
                }
            }
            ProviderCommand::Statement {
                client,
                name,
                month,
            } => {
                let now = OffsetDateTime::now_utc();
                let this = || format!("{:04}-{:02}", now.year(), u8::from(now.month()));
                let month = url::part(&month.unwrap_or_else(this));
                let path = path(&name, &format!("statements/{month}"));
                let statement: ProviderStatement = client.admin()?.get(&path)?;
                match client.json {
                    true => term::json(&statement)?,
                    false => print(&statement),
                }
            }
            ProviderCommand::Payout {
                write,
                name,
                amount,
                reason,
            } => post(&write, &path(&name, "payouts"), amount, reason)?,
        }
        Ok(())
    }
}

fn list(all: &[ProviderReport]) {
    if all.is_empty() {
        return term::out(
            "no providers; their workers join with `cluster token create --provider NAME`",
        );
    }
    let rows = all.iter().map(|provider| {
        vec![
            provider.name.clone(),
            provider.workers.to_string(),
            provider.month_earned_nano_usd.dollars(),
            provider.balance_nano_usd.dollars(),
        ]
    });
    let header = ["provider", ">workers", ">this month", ">owed"];
    term::out(term::table(&header, rows.collect()));
}

fn days(of: &[DayEarned], total: NanoUsd) {
    let rows = of.iter();
    let rows = rows.map(|day| vec![day.day.clone(), day.earned_nano_usd.dollars()]);
    let total = std::iter::once(vec!["total".to_owned(), total.dollars()]);
    let rows = rows.chain(total).collect();
    term::out(term::table(&["day", ">dollars"], rows));
}

fn print(of: &ProviderStatement) {
    let note = if of.provisional { "provisional" } else { "" };
    term::out(format!("{} {} {note}", of.provider, of.month));
    let paid = NanoUsd(of.paid_out_nano_usd.0.wrapping_neg());
    let rows = [
        ("opening balance", of.opening_nano_usd),
        ("earned", of.earned_nano_usd),
        ("paid out", paid),
        ("closing balance", of.closing_nano_usd),
    ];
    let rows = rows.map(|(name, amount)| vec![name.to_owned(), amount.dollars()]);
    term::out(term::table(&["", ">dollars"], rows.to_vec()));
    days(&of.days, of.earned_nano_usd);
}
