//! `cluster usage` and `cluster statement`: what a tenant used and owes. A tenant asks with its own key;
//! the admin, with the admin key, names a tenant.

use super::{ClientArgs, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::{term, url};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use trireme_shared::api::{Statement, StatementMonth, UsagePage, UsageRow, UsageSums};
use trireme_shared::ids::NanoUsd;

/// Who is asked about.
#[derive(Args, Clone)]
struct Whose {
    #[command(flatten)]
    client: ClientArgs,
    /// Another tenant, with the admin key [default: the tenant whose key is used]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

impl Whose {
    fn client(&self) -> Result<Client> {
        match self.tenant {
            Some(_) => self.client.admin(),
            None => self.client.tenant(),
        }
    }

    /// Where the tenant's `what` is asked for.
    fn path(&self, what: &str) -> String {
        match &self.tenant {
            Some(name) => format!("/admin/v1/tenants/{}/{what}", url::part(name)),
            None => format!("/billing/v1/{what}"),
        }
    }
}

/// Show what was used and what it cost
#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster usage\n  cluster usage --by day,model --from 2026-11-01\n  \
                        cluster usage --tenant acme --by key --json"
)]
pub struct UsageArgs {
    #[command(flatten)]
    whose: Whose,
    /// What to sum by: hour or day, model, key, with commas between
    #[arg(long, value_name = "FIELDS", default_value = "day")]
    by: String,
    /// First day or whole hour (RFC 3339, UTC) [default: this month's first]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// First day or whole hour after it [default: next month's first]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

impl UsageArgs {
    pub fn run(self) -> Result<()> {
        let client = self.whose.client()?;
        let mut page = self.page(&client, None)?;
        // Later pages are of the same days, whatever the clock says meanwhile.
        while let Some(cursor) = page.next_cursor.take() {
            let next = self.page(&client, Some(&cursor))?;
            page.rows.extend(next.rows);
            page.next_cursor = next.next_cursor;
        }
        match self.whose.client.json {
            true => term::json(&page)?,
            false => show(&page),
        }
        Ok(())
    }

    fn page(&self, client: &Client, cursor: Option<&str>) -> Result<UsagePage> {
        let query = url::query(&[
            ("group_by", Some(&self.by)),
            ("from", self.from.as_deref()),
            ("to", self.to.as_deref()),
            ("limit", Some("1000")),
            ("cursor", cursor),
        ]);
        client.get(&format!("{}{query}", self.whose.path("usage")))
    }
}

fn show(page: &UsagePage) {
    let by = |name: &str| page.group_by.iter().any(|field| field == name);
    let mut header = Vec::new();
    for (field, shown) in [
        (by("hour"), "hour"),
        (by("day"), "day"),
        (by("model"), "model"),
        (by("key"), "key"),
    ] {
        if field {
            header.push(shown);
        }
    }
    let fields = header.len();
    header.extend([">requests", ">prompt", ">cached", ">generated", ">dollars"]);
    let mut rows: Vec<Vec<String>> = page.rows.iter().map(|r| row(r, by("day"))).collect();
    let total = &page.total;
    let mut last = vec![String::new(); fields];
    if let Some(first) = last.first_mut() {
        *first = "total".into();
    }
    last.extend(sums(total));
    rows.push(last);
    term::out(term::table(&header, rows));
}

fn row(of: &UsageRow, by_day: bool) -> Vec<String> {
    let begins = of.begins_at.map(when).map(|text| match by_day {
        // The day of RFC 3339's date and time.
        true => text.chars().take(10).collect(),
        false => text,
    });
    let key = of.key.map(|key| key.to_string());
    let fields = begins.into_iter().chain(of.model.clone()).chain(key);
    fields
        .chain(sums(&UsageSums {
            requests: of.requests,
            prompt_tokens: of.prompt_tokens,
            cached_tokens: of.cached_tokens,
            completion_tokens: of.completion_tokens,
            cost_nano_usd: of.cost_nano_usd,
        }))
        .collect()
}

fn sums(of: &UsageSums) -> [String; 5] {
    [
        of.requests.to_string(),
        of.prompt_tokens.to_string(),
        of.cached_tokens.to_string(),
        of.completion_tokens.to_string(),
        of.cost_nano_usd.dollars(),
    ]
}

/// Show a month's statement
#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster statement\n  cluster statement 2026-11 --html statement.html\n  \
                  cluster statement 2026-11 --tenant acme --csv > acme.csv\n  cluster statement --list"
)]
pub struct StatementArgs {
    #[command(flatten)]
    whose: Whose,
    /// The month, such as 2026-11 [default: the current one]
    #[arg(value_name = "MONTH")]
    month: Option<String>,
    /// List the months there are
    #[arg(long, conflicts_with_all = ["month", "csv", "html"])]
    list: bool,
    /// Write CSV
    #[arg(long, conflicts_with = "html")]
    csv: bool,
    /// Write a page to print to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl StatementArgs {
    pub fn run(self) -> Result<()> {
        let client = self.whose.client()?;
        let json = self.whose.client.json;
        if self.list {
            let months: Vec<StatementMonth> = client.get(&self.whose.path("statements"))?;
            return list(&months, json);
        }
        let month = match &self.month {
            Some(month) => month.clone(),
            None => {
                let months: Vec<StatementMonth> = client.get(&self.whose.path("statements"))?;
                let newest = months.into_iter().next().map(|month| month.month);
                newest.ok_or_else(|| {
                    Failure::new("there is no statement yet", "name a month such as 2026-11")
                })?
            }
        };
        let path = self
            .whose
            .path(&format!("statements/{}", url::part(&month)));
        if self.csv {
            let (_, text) = client.text(&format!("{path}.csv"))?;
            term::part(text);
        } else if let Some(file) = &self.html {
            let (_, page) = client.text(&format!("{path}.html"))?;
            std::fs::write(file, page).map_err(|error| {
                let what = format!("cannot write {}", file.display());
                Failure::new(what, "name a file in a folder that can be written").because(error)
            })?;
            term::err(format!("written to {}", file.display()));
        } else {
            let statement: Statement = client.get(&format!("{path}.json"))?;
            match json {
                true => term::json(&statement)?,
                false => print(&statement),
            }
        }
        Ok(())
    }
}

fn list(months: &[StatementMonth], json: bool) -> Result<()> {
    if json {
        return term::json(&months);
    }
    let rows = months.iter().map(|month| {
        vec![
            month.month.clone(),
            month.opening_nano_usd.dollars(),
            month.closing_nano_usd.dollars(),
            provisional(month.provisional).to_owned(),
        ]
    });
    term::out(term::table(
        &["month", ">opening", ">closing", ""],
        rows.collect(),
    ));
    Ok(())
}

fn provisional(is: bool) -> &'static str {
    if is { "provisional" } else { "" }
}

fn print(of: &Statement) {
    let (tenant, month) = (&of.tenant_name, &of.month);
    term::out(format!("{tenant} {month} {}", provisional(of.provisional)));
    let charges = NanoUsd(of.charges_nano_usd.0.wrapping_neg());
    let rows = [
        ("opening balance", of.opening_nano_usd),
        ("usage", charges),
        ("credits", of.credits_nano_usd),
        ("refunds", of.refunds_nano_usd),
        ("closing balance", of.closing_nano_usd),
    ];
    let rows = rows.map(|(name, amount)| vec![name.to_owned(), amount.dollars()]);
    term::out(term::table(&["", ">dollars"], rows.to_vec()));
    let usage = |name: String, usage: &UsageSums| {
        let mut row = vec![name];
        row.extend(sums(usage));
        row
    };
    let models = of.models.iter().map(|m| usage(m.model.clone(), &m.usage));
    let keys = of.keys.iter();
    let keys = keys.map(|k| usage(format!("{} {}", k.key, k.name), &k.usage));
    for (of, rows) in [
        ("model", models.collect()),
        ("key", keys.collect::<Vec<_>>()),
    ] {
        let header = [
            of,
            ">requests",
            ">prompt",
            ">cached",
            ">generated",
            ">dollars",
        ];
        term::out(term::table(&header, rows));
    }
}
