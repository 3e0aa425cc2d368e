//! `cluster restore`: a new group of one from a backup.

use super::backup::read_key;
use crate::failure::Failure;
use crate::term;
use anyhow::Result;
use clap::Args;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use trireme_coordinator::backup::restore;
use trireme_shared::wall_clock::unix_ms;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster restore state.backup --data-dir /var/lib/trireme-new\n  \
                        cluster coordinator --data-dir /var/lib/trireme-new\n\nThe new cluster has its own \
                        name, CA and admin key, so that nodes of the old one are strangers to it. \
                        Deployments, tenants, their keys, the ledger and the audit log stay; \
                        workers and further coordinators join it with new tokens."
)]
pub struct RestoreArgs {
    /// A file of `cluster backup`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder for the new coordinator; must be empty or missing
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The key that the backup was encrypted with
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl RestoreArgs {
    pub fn run(self) -> Result<()> {
        let key = self.key_file.as_deref().map(read_key).transpose()?;
        let failed = || {
            Failure::new(
                format!("{} was not restored", self.file.display()),
                "nothing was changed; check the file, its key and the folder",
            )
        };
        let input = File::open(&self.file).map_err(|error| failed().because(error))?;
        let restored = restore(
            BufReader::new(input),
            key.as_ref(),
            &self.data_dir,
            unix_ms(),
        )
        .map_err(|error| failed().because(error))?;
        if self.json {
            return term::json(&serde_json::json!({
                "cluster": restored.cluster,
                "coordinator": restored.coordinator,
                "admin_key": restored.admin_key,
                "deployments": restored.deployments,
                "tenants": restored.tenants,
            }));
        }
        term::out(format!(
            "cluster {}: {} deployments and {} tenants, as coordinator {}",
            term::bold(&restored.cluster),
            restored.deployments,
            restored.tenants,
            restored.coordinator
        ));
        term::out(format!("admin key {}", restored.admin_key));
        term::err(format!(
            "the key is also in {}; start it with `cluster coordinator --data-dir {}`",
            self.data_dir.join("admin.key").display(),
            self.data_dir.display()
        ));
        Ok(())
    }
}
