//! `cluster audit`: who did what, from where, with what outcome.

use super::ClientArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::term;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use trireme_coordinator::state::AuditHead;
use trireme_coordinator::state::audit::{Verified, verify};
use trireme_shared::api::AUDIT_HEAD_HEADER;
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster audit export > audit.jsonl\n  cluster audit verify audit.jsonl"
)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Write the records as JSON lines, oldest first
    #[command(
        after_help = "Example:\n  cluster audit export > audit.jsonl\n  cluster audit export --after 1200 >> audit.jsonl"
    )]
    Export {
        #[command(flatten)]
        client: ClientArgs,
        /// Only records after this number
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
    },
    /// Find any edited, dropped or reordered line of an export
    #[command(
        after_help = "Example:\n  cluster audit verify audit.jsonl\n  cluster audit export | cluster audit verify -\n  \
                      cluster audit verify audit.jsonl --head 1200:6f2a…\n\nWithout --head (`audit export` \
                      prints it) lines that were dropped at the end cannot show."
    )]
    Verify {
        /// An export; `-` is stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The newest record, as an export or the cluster told it: number and hash
        #[arg(long, value_name = "N:HASH", value_parser = head)]
        head: Option<AuditHead>,
    },
}

/// As much of a line as an export needs to go on after it.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

impl AuditArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            AuditCommand::Export { client, after } => export(&client.admin()?, after),
            AuditCommand::Verify { file, head } => {
                let text = read(&file)?;
                let verified = check(&text, head)?;
                term::out(match verified.last {
                    0 => "no records".to_owned(),
                    _ => format!(
                        "records {} to {} are whole and in order; the last one is {}:{}",
                        verified.first,
                        verified.last,
                        verified.last,
                        hex(&verified.head)
                    ),
                });
                if verified.first > 1 {
                    term::err(format!(
                        "it begins with record {}: this says nothing of earlier ones",
                        verified.first
                    ));
                }
                Ok(())
            }
        }
    }
}

fn export(client: &Client, mut after: u64) -> Result<()> {
    let limit = limits::AUDIT_PAGE_RECORDS;
    loop {
        let path = format!("/admin/v1/audit?after={after}&limit={limit}");
        let (headers, page) = client.text(&path)?;
        term::part(&page);
        if let Some(first) = page.lines().next().map(seq_of).transpose()?
            && first > after + 1
        {
            term::err(format!(
                "records {} to {} are not kept any more",
                after + 1,
                first - 1
            ));
        }
        if page.lines().count() < limit {
            let head = headers.get(AUDIT_HEAD_HEADER).and_then(|h| h.to_str().ok());
            if let Some(head) = head {
                term::err(format!("the newest record is {head}"));
            }
            return Ok(());
        }
        if let Some(last) = page.lines().last() {
            after = seq_of(last)?;
        }
    }
}

fn seq_of(line: &str) -> Result<u64> {
    let numbered: Numbered = serde_json::from_str(line)
        .context("the coordinator sent a line that is no audit record")?;
    Ok(numbered.seq)
}

fn check(text: &str, head: Option<AuditHead>) -> Result<Verified> {
    verify(text.lines(), head).map_err(|fault| {
        Failure::new(
            "this is not the audit log as it was written",
            "compare it with another export, or with the cluster's own",
        )
        .because(fault)
    })
}

fn read(file: &Path) -> Result<String> {
    let text = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    text.map_err(|error| {
        let what = format!("cannot read {}", file.display());
        Failure::new(what, "name an export of `cluster audit export`").because(error)
    })
}

fn head(text: &str) -> Result<AuditHead, String> {
    let wrong = || "write it as `audit export` prints it, such as 1200:6f2a…".to_owned();
    let (seq, digits) = text.split_once(':').ok_or_else(wrong)?;
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
    }
    let seq = seq.parse().map_err(|_| wrong())?;
    Ok(AuditHead { seq, hash })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_printed() {
        let text = format!("7:{}", "0a".repeat(32));
        let read = head(&text).unwrap();
        assert_eq!(
            read,
            AuditHead {
                seq: 7,
                hash: [10; 32]
            }
        );
        assert_eq!(format!("7:{}", hex(&read.hash)), text);
        for wrong in [
            "",
            "7",
            "7:",
            "x:00",
            &format!("7:{}", "+1".repeat(32)),
            &text[..60],
        ] {
            assert!(head(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_record_is_named_by_its_line() {
        let error = format!("{:#}", check("nonsense\n", None).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
        assert_eq!(check("", None).unwrap().last, 0);
    }
}
