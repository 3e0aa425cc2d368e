//! `cluster ca`: the certificate authority that makes nodes what they are.

use super::{ClientArgs, WriteArgs, when};
use crate::term;
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::CaReport;

#[derive(Args)]
#[command(after_help = "Example:\n  cluster ca show\n  cluster ca rotate")]
pub struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Subcommand)]
enum CaCommand {
    /// Show the authorities that nodes trust, and what a rotation waits for
    #[command(after_help = "Example:\n  cluster ca show")]
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Replace the authority while everything goes on; it takes half a day to a day
    #[command(
        after_help = "Example:\n  cluster ca rotate\n\nAll nodes first learn to trust the new authority, then \
                      get certificates of it as they renew theirs, and then forget the old one. \
                      Nodes that are away for a day meanwhile join again with a new token; join \
                      tokens made before the new one signs are good for nothing after that."
    )]
    Rotate {
        #[command(flatten)]
        write: WriteArgs,
    },
}

impl CaArgs {
    pub fn run(self) -> Result<()> {
        let (report, json): (CaReport, bool) = match self.command {
            CaCommand::Show { client } => (client.admin()?.get("/admin/v1/ca")?, client.json),
            CaCommand::Rotate { write } => {
                let report = write.admin()?.post("/admin/v1/ca/rotate", &())?;
                (report, write.json())
            }
        };
        if json {
            return term::json(&report);
        }
        let rows = report
            .authorities
            .iter()
            .map(|one| {
                let state = match one.signs {
                    true => "signs",
                    false => "trusted",
                };
                vec![
                    one.fingerprint.clone(),
                    state.to_owned(),
                    when(one.expires_at),
                ]
            })
            .collect();
        term::out(term::table(&["fingerprint", "state", "ends"], rows));
        if let Some(rotation) = &report.rotation {
            term::out(format!("rotation: {rotation}"));
        }
        Ok(())
    }
}
