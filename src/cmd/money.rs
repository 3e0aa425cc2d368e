//! `cluster credit` and `cluster refund`: money that is moved by hand, with a reason.

use super::WriteArgs;
use super::account::dollars;
use crate::{term, url};
use anyhow::Result;
use clap::Args;
use trireme_shared::api::{MoneyRequest, PostingReport};
use trireme_shared::ids::NanoUsd;

/// Credit a tenant with money that it paid in; below zero, take money back
#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster credit acme 250 --reason \"invoice 7\"\n  \
                        cluster credit acme -12.50 --reason \"typing error in invoice 7\""
)]
pub struct CreditArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// The tenant's name
    tenant: String,
    /// Dollars, such as 12.50
    #[arg(value_name = "AMOUNT", value_parser = dollars, allow_hyphen_values = true)]
    amount: NanoUsd,
    /// Why; it stays in the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl CreditArgs {
    pub fn run(self) -> Result<()> {
        let path = format!("/admin/v1/tenants/{}/credits", url::part(&self.tenant));
        post(&self.write, &path, self.amount, self.reason)
    }
}

/// Give part of a request's charge back to its tenant
#[derive(Args)]
#[command(after_help = "Example:\n  cluster refund req_5f0c 0.0004 --reason \"cut off by us\"")]
pub struct RefundArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// The request's id, as usage and `x-request-id` tell it
    request: String,
    /// Dollars, such as 0.0004
    #[arg(value_name = "AMOUNT", value_parser = dollars)]
    amount: NanoUsd,
    /// Why; it stays in the ledger
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl RefundArgs {
    pub fn run(self) -> Result<()> {
        let path = format!("/admin/v1/requests/{}/refunds", url::part(&self.request));
        post(&self.write, &path, self.amount, self.reason)
    }
}

/// Moves money and tells of the posting.
pub fn post(write: &WriteArgs, path: &str, amount: NanoUsd, reason: String) -> Result<()> {
    let request = MoneyRequest {
        amount_nano_usd: amount,
        reason,
    };
    let posted: PostingReport = write.admin()?.post(path, &request)?;
    if write.json() {
        return term::json(&posted);
    }
    let rows = posted.lines.iter();
    let rows = rows.map(|line| vec![line.account.clone(), line.amount_nano_usd.dollars()]);
    term::out(term::table(&["account", ">dollars"], rows.collect()));
    term::err(format!("posting {}", posted.id));
    Ok(())
}
