//! `cluster token`: join tokens.

use super::{ClientArgs, WriteArgs, seconds, when};
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;
use trireme_shared::api::{TokenCreated, TokenReport, TokenRequest, TokenRole};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster token create --uses 4 --ttl 1h\n  \
                        cluster token create --role coordinator\n  cluster token list\n  \
                        cluster token revoke 3")]
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
        write: WriteArgs,
        /// What may join with it
        #[arg(long, value_enum, default_value = "worker")]
        role: RoleChoice,
        /// Whose machines join with it: the account that earns by them
        #[arg(long, value_name = "NAME")]
        provider: Option<String>,
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
        write: WriteArgs,
        /// The token's id, as `token list` shows it
        #[arg(value_parser = token_id)]
        id: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleChoice {
    Worker,
    /// One that votes as soon as it has caught up
    Coordinator,
    /// A coordinator that only listens until it is promoted
    Learner,
}

impl TokenArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            TokenCommand::Create {
                write,
                role,
                provider,
                uses,
                ttl,
            } => {
                let role = match role {
                    RoleChoice::Worker => TokenRole::Worker,
                    RoleChoice::Coordinator => TokenRole::Coordinator,
                    RoleChoice::Learner => TokenRole::Learner,
                };
                let request = TokenRequest {
                    role,
                    provider,
                    uses,
                    ttl_seconds: ttl,
                };
                let created: TokenCreated = write.admin()?.post("/admin/v1/tokens", &request)?;
                if write.json() {
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
            TokenCommand::Revoke { write, id } => {
                let path = format!("/admin/v1/tokens/{id}");
                let token: TokenReport = write.admin()?.delete(&path)?;
                if write.json() {
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
                TokenRole::Worker => "worker",
                TokenRole::Coordinator => "coordinator",
                TokenRole::Learner => "learner",
            };
            vec![
                token.id.to_string(),
                role.to_owned(),
                token.provider.clone().unwrap_or_else(|| "-".to_owned()),
                token.uses_left.to_string(),
                when(token.expires_at),
                state.to_owned(),
            ]
        })
        .collect();
    term::out(term::table(
        &["id", "role", "provider", ">uses left", "expires", "state"],
        rows,
    ));
}

/// `3` or `j3`.
fn token_id(text: &str) -> Result<u32, String> {
    text.trim_start_matches('j')
        .parse()
        .map_err(|_| "give the id that `cluster token list` shows".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_people_write_them() {
        assert_eq!(token_id("j12"), Ok(12));
        assert_eq!(token_id("12"), Ok(12));
        assert!(token_id("w12").is_err());
    }
}
