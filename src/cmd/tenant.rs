//! `cluster tenant`: accounts, and what is set for them.

use super::account::{LimitArgs, bounds, dollars, money};
use super::{ClientArgs, WriteArgs, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::{term, url};
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::{Limits, Payment, TenantReport, TenantSettings, TenantStatus};
use trireme_shared::ids::NanoUsd;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster tenant list\n  cluster tenant set acme --prepaid --weight 2\n  \
                        cluster tenant suspend acme"
)]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Subcommand)]
enum TenantCommand {
    /// List tenants with their balances
    #[command(after_help = "Example:\n  cluster tenant list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one tenant: settings, balance, what it spent this month and what is left
    #[command(after_help = "Example:\n  cluster tenant show acme")]
    Show {
        #[command(flatten)]
        client: ClientArgs,
        /// The tenant's name
        name: String,
    },
    /// Make a tenant, or change what is set for it; what is not given stays
    #[command(
        after_help = "Example:\n  cluster tenant set acme --credit-limit 500 --monthly-budget 200\n  \
                      cluster tenant set acme --prepaid --requests-per-minute 600 --concurrency none"
    )]
    Set {
        #[command(flatten)]
        write: WriteArgs,
        /// The tenant's name
        name: String,
        /// It pays before: its balance never falls below zero
        #[arg(long, conflicts_with = "credit_limit")]
        prepaid: bool,
        /// It pays after: dollars that it may owe
        #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
        credit_limit: Option<NanoUsd>,
        /// Its share of the machines against other tenants', where they wait or run
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        weight: Option<u32>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Let none of its keys in any more; what runs is finished
    #[command(after_help = "Example:\n  cluster tenant suspend acme")]
    Suspend {
        #[command(flatten)]
        write: WriteArgs,
        /// The tenant's name
        name: String,
    },
    /// Let its keys in again
    #[command(after_help = "Example:\n  cluster tenant resume acme")]
    Resume {
        #[command(flatten)]
        write: WriteArgs,
        /// The tenant's name
        name: String,
    },
}

fn path(name: &str) -> String {
    format!("/admin/v1/tenants/{}", url::part(name))
}

impl TenantArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            TenantCommand::List { client } => {
                let all: Vec<TenantReport> = client.admin()?.get("/admin/v1/tenants")?;
                match client.json {
                    true => term::json(&all)?,
                    false => list(&all),
                }
            }
            TenantCommand::Show { client, name } => {
                let tenant: TenantReport = client.admin()?.get(&path(&name))?;
                show(&tenant, client.json)?;
            }
            TenantCommand::Set {
                write,
                name,
                prepaid,
                credit_limit,
                weight,
                limits,
            } => {
                let admin = write.admin()?;
                let payment = match credit_limit {
                    Some(limit_nano_usd) => Some(Payment::Credit { limit_nano_usd }),
                    None => prepaid.then_some(Payment::Prepaid),
                };
                let mut settings = known_or_new(&admin, &name, payment)?;
                settings.payment = payment.unwrap_or(settings.payment);
                settings.weight = weight.unwrap_or(settings.weight);
                let budget = &mut settings.monthly_budget_nano_usd;
                limits.change(&mut settings.limits, budget);
                let tenant: TenantReport = admin.put(&path(&name), &settings)?;
                show(&tenant, write.json())?;
            }
            TenantCommand::Suspend { write, name } => {
                set_status(&write, &name, TenantStatus::Suspended)?;
            }
            TenantCommand::Resume { write, name } => {
                set_status(&write, &name, TenantStatus::Active)?;
            }
        }
        Ok(())
    }
}

/// What is set for it now; of a new one, what is when nobody said otherwise.
fn known_or_new(admin: &Client, name: &str, payment: Option<Payment>) -> Result<TenantSettings> {
    if admin.status_of(&path(name))? != 404 {
        return Ok(admin.get::<TenantReport>(&path(name))?.settings);
    }
    let payment = payment.ok_or_else(|| {
        Failure::usage(
            format!("there is no tenant {name} yet, and how it pays is not said"),
            "say --prepaid, or --credit-limit with the dollars that it may owe",
        )
    })?;
    Ok(TenantSettings {
        status: TenantStatus::Active,
        payment,
        monthly_budget_nano_usd: None,
        weight: 1,
        limits: Limits::default(),
    })
}

fn set_status(write: &WriteArgs, name: &str, status: TenantStatus) -> Result<()> {
    let admin = write.admin()?;
    let mut settings = admin.get::<TenantReport>(&path(name))?.settings;
    settings.status = status;
    let tenant: TenantReport = admin.put(&path(name), &settings)?;
    if write.json() {
        return term::json(&tenant);
    }
    term::out(format!("{name} is {}", word(status)));
    Ok(())
}

fn word(status: TenantStatus) -> &'static str {
    match status {
        TenantStatus::Active => "active",
        TenantStatus::Suspended => "suspended",
    }
}

fn pays(payment: Payment) -> String {
    match payment {
        Payment::Prepaid => "prepaid".into(),
        Payment::Credit { limit_nano_usd } => format!("credit {}", limit_nano_usd.dollars()),
    }
}

fn list(all: &[TenantReport]) {
    if all.is_empty() {
        return term::out("no tenants; make one with `cluster tenant set`");
    }
    let rows = all.iter().map(|tenant| {
        vec![
            tenant.name.clone(),
            tenant.id.to_string(),
            word(tenant.settings.status).to_owned(),
            pays(tenant.settings.payment),
            tenant.balance_nano_usd.dollars(),
            tenant.month_spend_nano_usd.dollars(),
            money(tenant.settings.monthly_budget_nano_usd),
        ]
    });
    let header = [
        "tenant",
        "id",
        "status",
        "pays",
        ">balance",
        ">this month",
        ">budget",
    ];
    term::out(term::table(&header, rows.collect()));
}

fn show(tenant: &TenantReport, json: bool) -> Result<()> {
    if json {
        return term::json(tenant);
    }
    let settings = &tenant.settings;
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        line("tenant", format!("{} ({})", tenant.name, tenant.id)),
        line("since", when(tenant.created_at)),
        line("status", word(settings.status).into()),
        line("pays", pays(settings.payment)),
        line("balance", tenant.balance_nano_usd.dollars()),
        line("this month", tenant.month_spend_nano_usd.dollars()),
        line("can spend", money(tenant.left.funds_nano_usd)),
        line("weight", settings.weight.to_string()),
    ];
    let budget = settings.monthly_budget_nano_usd;
    rows.extend(bounds(&settings.limits, budget, &tenant.left));
    term::out(term::table(&["", ""], rows));
    Ok(())
}
