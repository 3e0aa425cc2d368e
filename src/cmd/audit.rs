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
                      cluster audit verify audit.jsonl --head 1200:6f2a…\n  cluster audit verify audit.jsonl --live\n\n\
                      A file alone cannot tell of lines that were dropped at its end, nor of all of its oldest: \
                      --head (`audit export` prints it) tells the one, --live or --coordinator tells both."
    )]
    Verify {
        #[command(flatten)]
        client: ClientArgs,
        /// Compare it with what the cluster has too; implied by --coordinator
        #[arg(long)]
        live: bool,
        /// An export; `-` is stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The newest record, as an export or the cluster told it: number and hash
        #[arg(long, value_name = "N:HASH", value_parser = head)]
        head: Option<AuditHead>,
    },
}

/// As much of a line as is needed to go on after it, or to compare with it.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
    previous: String,
    hash: String,
}

impl AuditArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            AuditCommand::Export { client, after } => export(&client.admin()?, after),
            AuditCommand::Verify {
                client,
                live,
                file,
                head,
            } => {
                let verified = check(&read(&file)?, head)?;
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
                if live || !client.coordinator.is_empty() {
                    let kept = kept(&client.admin()?, verified.last)?;
                    term::out(compare(&verified, &kept).map_err(unlike)?);
                } else if verified.first > 1 {
                    term::err(format!(
                        "it begins with record {}: this says nothing of earlier ones, --live does",
                        verified.first
                    ));
                }
                Ok(())
            }
        }
    }
}

/// What a running cluster has, as far as a file is compared with it.
struct Kept {
    /// Its oldest record still kept; 0 where there is none.
    oldest: u64,
    head: AuditHead,
    /// The hash of its record with the number of the file's last one; `None` where it has no such
    /// record, any more or yet.
    same: Option<[u8; 32]>,
}

fn kept(client: &Client, last: u64) -> Result<Kept> {
    let (_, oldest) = client.text("/admin/v1/audit?limit=1")?;
    let oldest = oldest.lines().next().map(seq_of).transpose()?;
    // The one before is enough: a record holds the hash of its predecessor.
    let path = format!("/admin/v1/audit?after={}&limit=1", last.saturating_sub(1));
    let (headers, record) = client.text(&path)?;
    let told = headers.get(AUDIT_HEAD_HEADER).and_then(|h| h.to_str().ok());
    let told = told.context("the coordinator did not tell its newest record")?;
    let head = head(told).map_err(anyhow::Error::msg)?;
    let record = record.lines().next().map(numbered).transpose()?;
    let same = match record {
        Some(r) if r.seq == last => Some(r.hash),
        Some(r) if r.seq == last + 1 => Some(r.previous),
        _ => None,
    };
    let same = same.map(|text| hash(&text)).transpose();
    Ok(Kept {
        oldest: oldest.unwrap_or(0),
        head,
        same: same.map_err(anyhow::Error::msg)?,
    })
}

/// What a whole file is to the cluster, in words; the error is why it is not the cluster's log.
fn compare(file: &Verified, kept: &Kept) -> Result<String, String> {
    let newest = kept.head.seq;
    if file.last > newest {
        let last = file.last;
        return Err(format!(
            "it ends with record {last}, and the cluster's last is {newest}"
        ));
    }
    if newest == 0 {
        return Ok("the cluster has no records either".to_owned());
    }
    if file.last == 0 {
        let oldest = kept.oldest;
        return Err(format!(
            "it is empty, and the cluster has records {oldest} to {newest}"
        ));
    }
    match kept.same {
        None => {
            return Err(format!(
                "it ends with record {}, and the cluster keeps none before {}: they cannot be compared",
                file.last, kept.oldest
            ));
        }
        Some(hash) if hash != file.head => {
            return Err(format!("the cluster has another record {}", file.last));
        }
        Some(_) => {}
    }
    // The file may hold older ones than the cluster still does.
    if file.first > kept.oldest {
        return Err(format!(
            "it begins with record {}, and the cluster has records from {} on",
            file.first, kept.oldest
        ));
    }
    Ok(match newest - file.last {
        0 => "it is the cluster's log, up to its newest record".to_owned(),
        newer => format!(
            "it is the cluster's log, which has {newer} newer records ({newest} is its last)"
        ),
    })
}

fn unlike(reason: String) -> anyhow::Error {
    Failure::new(
        "this is not the audit log as the cluster has it",
        "export it again, from its first record, and look for what differs",
    )
    .because(reason)
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
    Ok(numbered(line)?.seq)
}

fn numbered(line: &str) -> Result<Numbered> {
    serde_json::from_str(line).context("the coordinator sent a line that is no audit record")
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
    let hash = hash(digits).map_err(|_| wrong())?;
    let seq = seq.parse().map_err(|_| wrong())?;
    Ok(AuditHead { seq, hash })
}

fn hash(digits: &str) -> Result<[u8; 32], String> {
    let wrong = || format!("`{digits}` is no hash: it has 64 hex digits");
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(hash)
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

    #[test]
    fn a_file_is_held_to_what_the_cluster_has() {
        let file = |first, last| Verified {
            first,
            last,
            head: [last as u8; 32],
        };
        // Records 4 to 9 are kept.
        let kept = |same: u64| Kept {
            oldest: 4,
            head: AuditHead {
                seq: 9,
                hash: [9; 32],
            },
            same: (same >= 3).then_some([same as u8; 32]),
        };
        for whole in [file(4, 9), file(1, 9), file(3, 9), file(1, 6), file(1, 3)] {
            let told = compare(&whole, &kept(whole.last)).expect("it is the cluster's");
            let newer = 9 - whole.last;
            assert_eq!(
                told.contains(&format!("{newer} newer")),
                newer > 0,
                "{told}"
            );
        }
        for (other, same, why) in [
            (file(5, 9), 9, "begins with record 5"),
            (file(9, 9), 9, "begins with record 9"),
            (file(1, 10), 0, "last is 9"),
            (file(1, 9), 8, "another record 9"),
            (file(1, 2), 2, "cannot be compared"),
            (file(0, 0), 0, "is empty"),
        ] {
            let told = compare(&other, &kept(same)).expect_err(why);
            assert!(told.contains(why), "{told}");
        }
        let fresh = Kept {
            oldest: 0,
            head: AuditHead::default(),
            same: None,
        };
        assert!(compare(&file(0, 0), &fresh).is_ok());
        assert!(compare(&file(1, 1), &fresh).is_err());
    }
}
