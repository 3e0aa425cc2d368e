//! `cluster member`: the coordinators of the group.

use super::{ClientArgs, WriteArgs, seconds, when};
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::{CoordinatorStatus, MemberInvited, MemberRequest, MemberRole, Removed};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster member add            prints what to run on the new machine\n  \
                        cluster member list\n  cluster member remove 2"
)]
pub struct MemberArgs {
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Subcommand)]
enum MemberCommand {
    /// Make a token for one more coordinator, and print what to run there
    #[command(
        after_help = "Example:\n  cluster member add\n  cluster member add --learner --ttl 1h"
    )]
    Add {
        #[command(flatten)]
        write: WriteArgs,
        /// It only listens until it is promoted
        #[arg(long)]
        learner: bool,
        /// How long the token is good for: seconds, or with a unit (90s, 30m, 24h, 7d)
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
        ttl: u64,
    },
    /// List the coordinators
    #[command(after_help = "Example:\n  cluster member list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let a learner vote
    #[command(after_help = "Example:\n  cluster member promote 4")]
    Promote {
        #[command(flatten)]
        write: WriteArgs,
        /// Its number, as `member list` shows it
        #[arg(value_parser = member_id)]
        id: u32,
    },
    /// Take a coordinator out of the group, for ever
    #[command(after_help = "Example:\n  cluster member remove 2")]
    Remove {
        #[command(flatten)]
        write: WriteArgs,
        /// Its number, as `member list` shows it
        #[arg(value_parser = member_id)]
        id: u32,
    },
}

impl MemberArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            MemberCommand::Add {
                write,
                learner,
                ttl,
            } => {
                let request = MemberRequest {
                    learner,
                    ttl_seconds: ttl,
                };
                let invited: MemberInvited = write.admin()?.post("/admin/v1/members", &request)?;
                if write.json() {
                    return term::json(&invited);
                }
                term::out(&invited.command);
                term::err(format!(
                    "good for one coordinator until {}; it is not shown again (--token-file keeps it \
                     out of the process list)",
                    when(invited.token.expires_at)
                ));
            }
            MemberCommand::List { client } => {
                let members: Vec<CoordinatorStatus> = client.admin()?.get("/admin/v1/members")?;
                if client.json {
                    return term::json(&members);
                }
                term::out(table(&members));
            }
            MemberCommand::Promote { write, id } => {
                let path = format!("/admin/v1/members/{id}/promote");
                let member: CoordinatorStatus = write.admin()?.post(&path, &())?;
                if write.json() {
                    return term::json(&member);
                }
                term::out(format!("{} votes as soon as it has caught up", member.id));
            }
            MemberCommand::Remove { write, id } => {
                let path = format!("/admin/v1/members/{id}");
                let removed: Removed = write.admin()?.delete(&path)?;
                if write.json() {
                    return term::json(&removed);
                }
                term::out(format!("{} is a member no more", removed.removed));
            }
        }
        Ok(())
    }
}

/// The group as a table.
pub fn table(members: &[CoordinatorStatus]) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let text = |text: &str| match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    let rows = members
        .iter()
        .map(|m| {
            vec![
                m.id.to_string(),
                role(m).to_owned(),
                text(m.http.trim_start_matches("http://")),
                text(&m.control),
                number(m.last),
                number(m.lag),
                state(m).to_owned(),
            ]
        })
        .collect();
    term::table(
        &[
            "coordinator",
            "role",
            "http",
            "control",
            ">log",
            ">lag",
            "state",
        ],
        rows,
    )
}

fn role(member: &CoordinatorStatus) -> &'static str {
    match member.role {
        MemberRole::Leader => "leader",
        MemberRole::Follower => "follower",
        MemberRole::Learner => "learner",
        MemberRole::Joining => "joining",
        MemberRole::Removed => "removed",
    }
}

fn state(member: &CoordinatorStatus) -> &'static str {
    match (member.role, member.active) {
        (MemberRole::Removed, _) => "leaving",
        (_, Some(true)) => "up",
        (_, Some(false)) => "silent",
        (MemberRole::Joining, None) => "not here yet",
        (_, None) => "unknown",
    }
}

/// `2` or `c2`.
fn member_id(text: &str) -> Result<u32, String> {
    text.strip_prefix('c')
        .unwrap_or(text)
        .parse()
        .map_err(|_| "give the number that `cluster member list` shows".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_named_as_it_is_shown() {
        assert_eq!(member_id("c2"), Ok(2));
        assert_eq!(member_id("2"), Ok(2));
        assert!(member_id("w2").is_err());
    }
}
