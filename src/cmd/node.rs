//! `cluster node`: whoever has a certificate of the cluster.

use super::{ClientArgs, WriteArgs, when};
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::{NodeReport, Removed, Role};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster node list\n  cluster node remove w3")]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// List workers and coordinators with their certificates
    #[command(after_help = "Example:\n  cluster node list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Cut a node off at once, everywhere and for ever
    #[command(after_help = "Example:\n  cluster node remove w3")]
    Remove {
        #[command(flatten)]
        write: WriteArgs,
        /// w3 or c2, as `node list` shows it
        #[arg(value_parser = node_id)]
        id: String,
    },
}

impl NodeArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            NodeCommand::List { client } => {
                let nodes: Vec<NodeReport> = client.admin()?.get("/admin/v1/nodes")?;
                if client.json {
                    return term::json(&nodes);
                }
                term::out(table(&nodes));
            }
            NodeCommand::Remove { write, id } => {
                let path = format!("/admin/v1/nodes/{id}");
                let removed: Removed = write.admin()?.delete(&path)?;
                if write.json() {
                    return term::json(&removed);
                }
                term::out(format!("{} is cut off", removed.removed));
            }
        }
        Ok(())
    }
}

fn table(nodes: &[NodeReport]) -> String {
    let rows = nodes
        .iter()
        .map(|node| {
            let role = match node.role {
                Role::Worker => "worker",
                Role::Coordinator => "coordinator",
            };
            let state = match node.connected {
                Some(true) => "connected",
                Some(false) => "lost",
                None => "unknown",
            };
            let address = match node.address.as_str() {
                "" => "-",
                address => address,
            };
            let ends = node.certificate_expires_at;
            vec![
                node.id.clone(),
                role.to_owned(),
                state.to_owned(),
                address.to_owned(),
                node.provider.clone().unwrap_or_else(|| "-".to_owned()),
                ends.map_or_else(|| "-".to_owned(), when),
            ]
        })
        .collect();
    term::table(
        &[
            "node",
            "role",
            "state",
            "address",
            "provider",
            "certificate ends",
        ],
        rows,
    )
}

fn node_id(text: &str) -> Result<String, String> {
    let number = text.strip_prefix(['w', 'c']);
    match number.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("name it as `cluster node list` does, such as w3 or c2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_with_its_letter() {
        assert_eq!(node_id("w3").as_deref(), Ok("w3"));
        assert_eq!(node_id("c2").as_deref(), Ok("c2"));
        for wrong in ["3", "j3", "w", "w3/../c1", ""] {
            assert!(node_id(wrong).is_err(), "{wrong}");
        }
    }
}
