//! `cluster key`: API keys of tenants.

use super::WriteArgs;
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::{KeyCreated, KeyRequest, KeySettings};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster key create acme")]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Create a key for a tenant, who is made if need be; it is shown once
    #[command(
        after_help = "Example:\n  cluster key create acme\n  cluster chat --api-key \"$(cluster key create me)\""
    )]
    Create {
        #[command(flatten)]
        write: WriteArgs,
        /// Who uses the key and is charged for it
        tenant: String,
    },
}

impl KeyArgs {
    pub fn run(self) -> Result<()> {
        let KeyCommand::Create { write, tenant } = self.command;
        let request = KeyRequest::new(tenant, KeySettings::default());
        let created: KeyCreated = write.admin()?.post("/admin/v1/keys", &request)?;
        if write.json() {
            return term::json(&created);
        }
        term::out(&created.key);
        term::err(format!(
            "key {} of {} ({}); it is not shown again",
            created.key_id, request.tenant, created.tenant
        ));
        Ok(())
    }
}
