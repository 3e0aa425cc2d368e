//! `cluster key`: API keys of tenants. A key is shown when it is made and never again.

use super::account::{LimitArgs, bounds, key_id};
use super::{ClientArgs, WriteArgs, seconds, when};
use crate::{term, url};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;
use trireme_shared::api::{
    KeyCreated, KeyReport, KeyRequest, KeySettings, KeyStatus, RotateRequest, Scope,
};
use trireme_shared::ids::KeyId;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster key create acme\n  cluster key list --tenant acme\n  \
                        cluster key rotate k3 --overlap 24h"
)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Create a key for a tenant, who is made if need be; it is shown once
    #[command(
        after_help = "Example:\n  cluster key create acme\n  cluster key create acme --name laptop --expires-in 30d \
                      --model smollm2\n  cluster chat --api-key \"$(cluster key create me)\""
    )]
    Create {
        #[command(flatten)]
        write: WriteArgs,
        /// Who uses the key and is charged for it
        tenant: String,
        #[command(flatten)]
        change: KeyChange,
    },
    /// List keys (never the keys themselves)
    #[command(after_help = "Example:\n  cluster key list --tenant acme")]
    List {
        #[command(flatten)]
        client: ClientArgs,
        /// Of this tenant only
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Show one key: what is set for it, what it spent this month and what is left
    #[command(after_help = "Example:\n  cluster key show k3")]
    Show {
        #[command(flatten)]
        client: ClientArgs,
        /// The key's number, as `key list` shows it
        #[arg(value_parser = key_id)]
        id: KeyId,
    },
    /// Change what is set for a key; what is not given stays
    #[command(after_help = "Example:\n  cluster key set k3 --scope billing --monthly-budget 20")]
    Set {
        #[command(flatten)]
        write: WriteArgs,
        /// The key's number, as `key list` shows it
        #[arg(value_parser = key_id)]
        id: KeyId,
        #[command(flatten)]
        change: KeyChange,
    },
    /// Let a key in no more
    #[command(after_help = "Example:\n  cluster key revoke k3")]
    Revoke {
        #[command(flatten)]
        write: WriteArgs,
        /// The key's number, as `key list` shows it
        #[arg(value_parser = key_id)]
        id: KeyId,
    },
    /// Create a key that takes another one's place, with its settings; it is shown once
    #[command(after_help = "Example:\n  cluster key rotate k3 --overlap 24h")]
    Rotate {
        #[command(flatten)]
        write: WriteArgs,
        /// The key's number, as `key list` shows it
        #[arg(value_parser = key_id)]
        id: KeyId,
        /// How long both work: seconds, or with a unit (30m, 24h, 7d); without it the old one ends at once
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        overlap: Option<u64>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeChoice {
    /// /v1: using models
    Inference,
    /// /billing/v1: usage, requests, statements
    Billing,
}

/// When a key ends.
#[derive(Clone, Copy)]
enum Expiry {
    Never,
    InSeconds(u64),
}

fn expiry(text: &str) -> Result<Expiry, String> {
    match text {
        "never" => Ok(Expiry::Never),
        text => seconds(text)
            .map(Expiry::InSeconds)
            .map_err(|why| format!("{why}, or never")),
    }
}

/// What of a key's settings is given.
#[derive(Args, Clone)]
struct KeyChange {
    /// What people call it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// When it ends: a time from now (30m, 24h, 30d), or never
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires_in: Option<Expiry>,
    /// What it opens; give it twice for both [default of a new key: both]
    #[arg(long, value_enum, value_name = "SCOPE")]
    scope: Vec<ScopeChoice>,
    /// The only model that it may use; may be given several times, or `any`
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

impl KeyChange {
    fn of(self, mut settings: KeySettings) -> KeySettings {
        settings.name = self.name.unwrap_or(settings.name);
        match self.expires_in {
            None => {}
            Some(Expiry::Never) => settings.expires_at = None,
            Some(Expiry::InSeconds(seconds)) => {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                let now = u64::try_from(now).unwrap_or_default();
                settings.expires_at = Some(now.saturating_add(seconds));
            }
        }
        if !self.scope.is_empty() {
            let has = |choice, scope| self.scope.contains(&choice).then_some(scope);
            let inference = has(ScopeChoice::Inference, Scope::Inference);
            let billing = has(ScopeChoice::Billing, Scope::Billing);
            settings.scopes = inference.into_iter().chain(billing).collect();
        }
        match &self.model[..] {
            [] => {}
            [any] if any == "any" => settings.models = None,
            _ => settings.models = Some(self.model),
        }
        let budget = &mut settings.monthly_budget_nano_usd;
        self.limits.change(&mut settings.limits, budget);
        settings
    }
}

fn path(id: KeyId) -> String {
    format!("/admin/v1/keys/{id}")
}

impl KeyArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            KeyCommand::Create {
                write,
                tenant,
                change,
            } => {
                let request = KeyRequest::new(tenant.clone(), change.of(KeySettings::default()));
                let created = write.admin()?.post("/admin/v1/keys", &request)?;
                made(&created, &format!("of {tenant}"), write.json())?;
            }
            KeyCommand::List { client, tenant } => {
                let query = url::query(&[("tenant", tenant.as_deref())]);
                let path = format!("/admin/v1/keys{query}");
                let all: Vec<KeyReport> = client.admin()?.get(&path)?;
                match client.json {
                    true => term::json(&all)?,
                    false => list(&all),
                }
            }
            KeyCommand::Show { client, id } => {
                let key: KeyReport = client.admin()?.get(&path(id))?;
                show(&key, client.json)?;
            }
            KeyCommand::Set { write, id, change } => {
                let admin = write.admin()?;
                let settings = admin.get::<KeyReport>(&path(id))?.settings;
                let key: KeyReport = admin.put(&path(id), &change.of(settings))?;
                show(&key, write.json())?;
            }
            KeyCommand::Revoke { write, id } => {
                let key: KeyReport = write.admin()?.delete(&path(id))?;
                match write.json() {
                    true => term::json(&key)?,
                    false => term::out(format!("key {id} is revoked")),
                }
            }
            KeyCommand::Rotate { write, id, overlap } => {
                let request = RotateRequest {
                    overlap_seconds: overlap.unwrap_or_default(),
                };
                let path = format!("{}/rotate", path(id));
                let created = write.admin()?.post(&path, &request)?;
                made(&created, &format!("in the place of {id}"), write.json())?;
            }
        }
        Ok(())
    }
}

fn made(created: &KeyCreated, what: &str, json: bool) -> Result<()> {
    if json {
        return term::json(created);
    }
    term::out(&created.key);
    let (id, tenant) = (created.key_id, created.tenant);
    term::err(format!("key {id} {what} ({tenant}); it is not shown again"));
    Ok(())
}

fn word(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Works => "works",
        KeyStatus::Expired => "expired",
        KeyStatus::Revoked => "revoked",
    }
}

fn scopes(key: &KeySettings) -> String {
    let word = |scope: &Scope| match scope {
        Scope::Inference => "inference",
        Scope::Billing => "billing",
    };
    let words: Vec<&str> = key.scopes.iter().map(word).collect();
    words.join(", ")
}

fn expires(key: &KeySettings) -> String {
    key.expires_at.map_or_else(|| "never".into(), when)
}

fn models(key: &KeySettings) -> String {
    let named = key.models.as_ref().map(|models| models.join(", "));
    named.unwrap_or_else(|| "any".into())
}

fn list(all: &[KeyReport]) {
    if all.is_empty() {
        return term::out("no keys; make one with `cluster key create`");
    }
    let rows = all.iter().map(|key| {
        vec![
            key.id.to_string(),
            key.tenant_name.clone(),
            key.settings.name.clone(),
            word(key.status).to_owned(),
            scopes(&key.settings),
            models(&key.settings),
            expires(&key.settings),
            key.month_spend_nano_usd.dollars(),
        ]
    });
    let header = [
        "key",
        "tenant",
        "name",
        "status",
        "scopes",
        "models",
        "expires",
        ">this month",
    ];
    term::out(term::table(&header, rows.collect()));
}

fn show(key: &KeyReport, json: bool) -> Result<()> {
    if json {
        return term::json(key);
    }
    let settings = &key.settings;
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        line("key", key.id.to_string()),
        line("tenant", format!("{} ({})", key.tenant_name, key.tenant)),
        line("name", settings.name.clone()),
        line("status", word(key.status).into()),
        line("since", when(key.created_at)),
        line("expires", expires(settings)),
        line("scopes", scopes(settings)),
        line("models", models(settings)),
        line("this month", key.month_spend_nano_usd.dollars()),
    ];
    if let Some(replaced) = key.replaces {
        rows.push(line("replaces", replaced.to_string()));
    }
    let budget = settings.monthly_budget_nano_usd;
    rows.extend(bounds(&settings.limits, budget, &key.left));
    term::out(term::table(&["", ""], rows));
    Ok(())
}
