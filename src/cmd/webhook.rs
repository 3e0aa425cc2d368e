//! `cluster webhook`: where a tenant is told of its account, by its own key.

use super::{ClientArgs, WriteArgs, when};
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use trireme_shared::api::{WebhookEvent, WebhookReport, WebhookRequest, WebhookSet, WebhookTested};

const PATH: &str = "/billing/v1/webhook";

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster webhook set https://example.com/hook\n  cluster webhook test\n  \
                        cluster webhook show"
)]
pub struct WebhookArgs {
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Clone, Copy, ValueEnum)]
enum Event {
    /// 50, 80 or 100 % of the month's budget are spent
    #[value(name = "budget.threshold")]
    BudgetThreshold,
    /// A month has ended, and its statement is whole
    #[value(name = "statement.ready")]
    StatementReady,
}

impl From<Event> for WebhookEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::BudgetThreshold => Self::BudgetThreshold,
            Event::StatementReady => Self::StatementReady,
        }
    }
}

#[derive(Subcommand)]
enum WebhookCommand {
    /// Show the webhook, and how deliveries go
    #[command(after_help = "Example:\n  cluster webhook show --json")]
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Set where events are sent; writes the secret that signs them, where it is a new one
    #[command(
        after_help = "Example:\n  cluster webhook set https://example.com/hook\n  \
                      cluster webhook set https://example.com/hook --event statement.ready --rotate"
    )]
    Set {
        #[command(flatten)]
        write: WriteArgs,
        /// Where they are sent: https, at a public address
        url: String,
        /// What to be told of, with commas between
        #[arg(
            long = "event",
            value_name = "EVENT",
            value_delimiter = ',',
            default_values = ["budget.threshold", "statement.ready"]
        )]
        events: Vec<Event>,
        /// Have another secret sign from now on
        #[arg(long)]
        rotate: bool,
    },
    /// Remove the webhook; what waits for it is told to nobody
    #[command(after_help = "Example:\n  cluster webhook remove")]
    Remove {
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Send an event to it
    #[command(after_help = "Example:\n  cluster webhook test")]
    Test {
        #[command(flatten)]
        write: WriteArgs,
    },
}

impl WebhookArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            WebhookCommand::Show { client } => {
                let webhook: WebhookReport = client.tenant()?.get(PATH)?;
                match client.json {
                    true => term::json(&webhook)?,
                    false => show(&webhook),
                }
            }
            WebhookCommand::Set {
                write,
                url,
                events,
                rotate,
            } => {
                let wanted = WebhookRequest {
                    url,
                    events: events.into_iter().map(WebhookEvent::from).collect(),
                    rotate,
                };
                let set: WebhookSet = write.tenant()?.put(PATH, &wanted)?;
                match (write.json(), &set.secret) {
                    (true, _) => term::json(&set)?,
                    (false, Some(secret)) => term::out(secret),
                    (false, None) => show(&set.webhook),
                }
            }
            WebhookCommand::Remove { write } => {
                let was: WebhookReport = write.tenant()?.delete(PATH)?;
                match write.json() {
                    true => term::json(&was)?,
                    false => term::out(format!("{} is told no more", was.url)),
                }
            }
            WebhookCommand::Test { write } => {
                let path = format!("{PATH}/test");
                let sent: WebhookTested = write.tenant()?.post(&path, &json!({}))?;
                match write.json() {
                    true => term::json(&sent)?,
                    false => term::out(format!(
                        "{} is on its way; `cluster webhook show` tells how it goes",
                        sent.id
                    )),
                }
            }
        }
        Ok(())
    }
}

fn show(webhook: &WebhookReport) {
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let at = |second: Option<u64>| second.map_or("-".to_owned(), when);
    let names = webhook.events.iter().map(|event| match event {
        WebhookEvent::BudgetThreshold => "budget.threshold",
        WebhookEvent::StatementReady => "statement.ready",
    });
    let rows = vec![
        line("url", webhook.url.clone()),
        line("events", names.collect::<Vec<_>>().join(", ")),
        line("since", when(webhook.created_at)),
        line("waiting", webhook.waiting.to_string()),
        line("delivered", webhook.delivered.to_string()),
        line("last delivered", at(webhook.delivered_at)),
        line("failing since", at(webhook.failed_since)),
        line(
            "last error",
            webhook.last_error.clone().unwrap_or("-".into()),
        ),
        line("given up", webhook.given_up.to_string()),
        line("dropped", webhook.dropped.to_string()),
    ];
    term::out(term::table(&["", ""], rows));
}
