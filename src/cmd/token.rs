//! `cluster token`: join tokens.

use super::ClientArgs;
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use trireme_shared::api::{Role, TokenCreated, TokenReport, TokenRequest};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster token create --uses 4 --ttl 1h\n  cluster token list\n  \
                        cluster token revoke 3"
)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Create a token; it is shown once
    #[command(after_help = "Example:\n  cluster token create --uses 4 --ttl 1h")]
    Create {
        #[command(flatten)]
        client: ClientArgs,
        /// What may join with it
        #[arg(long, value_enum, default_value = "worker")]
        role: RoleChoice,
        /// How many nodes may join with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is good for: seconds, or with a unit (90s, 30m, 24h, 7d)
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
        ttl: u64,
    },
    /// List tokens (never their secrets)
    #[command(after_help = "Example:\n  cluster token list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a token worthless
    #[command(after_help = "Example:\n  cluster token revoke 3")]
    Revoke {
        #[command(flatten)]
        client: ClientArgs,
        /// The token's id, as `token list` shows it
        #[arg(value_parser = token_id)]
        id: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleChoice {
    Worker,
    Coordinator,
}

impl TokenArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            TokenCommand::Create {
                client,
                role,
                uses,
                ttl,
            } => {
                let role = match role {
                    RoleChoice::Worker => Role::Worker,
                    RoleChoice::Coordinator => Role::Coordinator,
                };
                let request = TokenRequest {
                    role,
                    uses,
                    ttl_seconds: ttl,
                };
                let created: TokenCreated = client.admin()?.post("/admin/v1/tokens", &request)?;
                if client.json {
                    return term::json(&created);
                }
                term::out(&created.token);
                term::err(format!(
                    "token {}, good for {uses} node{} until {}; it is not shown again",
                    created.id,
                    if uses == 1 { "" } else { "s" },
                    when(created.expires_at)
                ));
            }
            TokenCommand::List { client } => {
                let tokens: Vec<TokenReport> = client.admin()?.get("/admin/v1/tokens")?;
                if client.json {
                    return term::json(&tokens);
                }
                show(&tokens);
            }
            TokenCommand::Revoke { client, id } => {
                let path = format!("/admin/v1/tokens/{id}");
                let token: TokenReport = client.admin()?.delete(&path)?;
                if client.json {
                    return term::json(&token);
                }
                term::out(format!("token {} is revoked", token.id));
            }
        }
        Ok(())
    }
}

fn show(tokens: &[TokenReport]) {
    if tokens.is_empty() {
        return term::out("no tokens; make one with `cluster token create`");
    }
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let rows = tokens
        .iter()
        .map(|token| {
            let state = match token {
                t if t.revoked => "revoked",
                t if i64::try_from(t.expires_at).is_ok_and(|at| at <= now) => "expired",
                t if t.uses_left == 0 => "used up",
                _ => "good",
            };
            let role = match token.role {
                Role::Worker => "worker",
                Role::Coordinator => "coordinator",
            };
            vec![
                token.id.to_string(),
                role.to_owned(),
                token.uses_left.to_string(),
                when(token.expires_at),
                state.to_owned(),
            ]
        })
        .collect();
    term::out(term::table(
        &["id", "role", ">uses left", "expires", "state"],
        rows,
    ));
}

/// A time of the API in RFC 3339.
fn when(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "never".to_owned())
}

/// `3` or `j3`.
fn token_id(text: &str) -> Result<u32, String> {
    text.trim_start_matches('j')
        .parse()
        .map_err(|_| "give the id that `cluster token list` shows".to_owned())
}

fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write it like 90s, 30m, 24h or 7d".to_owned();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .filter(|&s| s > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ids_are_read_as_people_write_them() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("30m"), Ok(1_800));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in ["", "h", "0s", "1y", "-1", "99999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(token_id("j12"), Ok(12));
        assert_eq!(when(0), "1970-01-01T00:00:00Z");
    }
}
