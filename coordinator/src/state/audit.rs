//! The audit log: each administrative and security act as a record that holds the hash of the one
//! before, so that an edited, dropped or reordered record shows.
//!
//! Kept true: the records kept are consecutive and chained up to the head; the newest
//! `limits::AUDIT_RECORDS_MAX` are kept, the head always. Texts hold names and numbers, no secret, no
//! key and no hash of one. Neighbour: `apply` records each act as it takes effect, so that an act
//! that is not recorded did not happen.

pub use super::acts::sign_with;
use super::acts::{act, told};
use super::codec::{stored, stored_value};
use super::table::Table;
use super::{Outcome, Proposal};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Hashed before a record's fields, so that a record's hash is no other thing's.
const DOMAIN: &[u8] = b"trireme audit record 1\0";

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AuditRecord {
    /// Counted from 1 without gaps.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Such as `admin` or `token j3`.
    pub who: String,
    /// The address the request came from.
    pub from: String,
    pub what: String,
    /// `done`, what was made, or why it was refused.
    pub outcome: String,
    /// Hash of the record before; zeros for the first.
    pub previous: [u8; 32],
    /// SHA-256 over all of the above.
    pub hash: [u8; 32],
}

/// The newest record: what an export is checked against. `seq` 0 and zeros before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AuditHead {
    pub seq: u64,
    pub hash: [u8; 32],
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Audit {
    pub records: Table<u64, AuditRecord>,
    pub head: AuditHead,
}

stored_value!(AuditHead);
stored!(Audit { records, head });

impl Audit {
    /// Writes the proposal down if it is an act to be recorded.
    pub fn record(&mut self, proposal: &Proposal, outcome: &Outcome) {
        let Some((who, what)) = act(proposal) else {
            return;
        };
        let from = proposal.origin.as_ref().map(|o| o.from.as_str());
        let mut record = AuditRecord {
            seq: self.head.seq + 1,
            at_ms: proposal.at_ms,
            who: cut(&who),
            from: cut(from.unwrap_or("unknown")),
            what: cut(&what),
            outcome: cut(&told(outcome)),
            previous: self.head.hash,
            hash: [0; 32],
        };
        record.hash = hash(&record);
        self.head = AuditHead {
            seq: record.seq,
            hash: record.hash,
        };
        self.records.insert(record.seq, record);
        while self.records.len() as u64 > limits::AUDIT_RECORDS_MAX {
            let oldest = self.records.first().map(|(seq, _)| *seq);
            oldest.map(|seq| self.records.remove(&seq));
        }
    }

    pub fn check(&self) -> Result<(), String> {
        let lines: Vec<String> = self.records.values().map(to_json_line).collect();
        let lines = lines.iter().map(String::as_str);
        if self.records.is_empty() && self.head.seq > 0 {
            return Err("all audit records are gone".into());
        }
        verify(lines, Some(self.head))
            .map(|_| ())
            .map_err(|fault| fault.to_string())
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(limits::AUDIT_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Numbers little-endian; texts behind their lengths, so that no two records hash the same bytes.
fn hash(record: &AuditRecord) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(record.seq.to_le_bytes());
    hasher.update(record.at_ms.to_le_bytes());
    for text in [&record.who, &record.from, &record.what, &record.outcome] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(record.previous);
    hasher.finalize().into()
}

/// A record as a line of an export, without its line end. One record has one line.
pub fn to_json_line(record: &AuditRecord) -> String {
    let line = Line {
        seq: record.seq,
        at_ms: record.at_ms,
        who: record.who.clone(),
        from: record.from.clone(),
        what: record.what.clone(),
        outcome: record.outcome.clone(),
        previous: hex::encode(record.previous),
        hash: hex::encode(record.hash),
    };
    serde_json::to_string(&line).unwrap_or_else(|_| unreachable!("texts and numbers are JSON"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    seq: u64,
    at_ms: u64,
    who: String,
    from: String,
    what: String,
    outcome: String,
    previous: String,
    hash: String,
}

/// The reverse of `to_json_line`; another spelling of the same record is refused.
fn from_json_line(line: &str) -> Option<AuditRecord> {
    let parsed: Line = serde_json::from_str(line).ok()?;
    let (mut previous, mut hash) = ([0; 32], [0; 32]);
    hex::decode_to_slice(&parsed.previous, &mut previous).ok()?;
    hex::decode_to_slice(&parsed.hash, &mut hash).ok()?;
    let record = AuditRecord {
        seq: parsed.seq,
        at_ms: parsed.at_ms,
        who: parsed.who,
        from: parsed.from,
        what: parsed.what,
        outcome: parsed.outcome,
        previous,
        hash,
    };
    (to_json_line(&record) == line).then_some(record)
}

/// A chain without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Numbers of the first and the last record; 0 where there is none. A chain that begins later
    /// than at 1 says nothing of what came before: the exporter kept no more, or somebody cut it.
    pub first: u64,
    pub last: u64,
    pub head: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct AuditFault {
    /// From 1; one more than there are where the end is missing.
    pub line: u64,
    pub reason: String,
}

/// Checks an export line by line. `expect_head` is the newest record by another account (a running
/// cluster's, say): without it, lines that were dropped at the end cannot show.
pub fn verify<'a>(
    lines: impl Iterator<Item = &'a str>,
    expect_head: Option<AuditHead>,
) -> Result<Verified, AuditFault> {
    let mut verified = Verified {
        first: 0,
        last: 0,
        head: [0; 32],
    };
    let mut number = 0;
    for line in lines {
        number += 1;
        let fault = |reason: String| AuditFault {
            line: number,
            reason,
        };
        let record = from_json_line(line)
            .ok_or_else(|| fault("this is no audit record, or not as it was written".into()))?;
        if record.hash != hash(&record) {
            return Err(fault(format!("record {} was changed", record.seq)));
        }
        let first = verified.first == 0;
        if first && record.seq == 0 {
            return Err(fault("records count from 1".into()));
        }
        if !first && record.seq != verified.last + 1 {
            let (last, seq) = (verified.last, record.seq);
            return Err(fault(format!("record {seq} follows record {last}")));
        }
        let begins = record.seq == 1 && record.previous != [0; 32];
        if begins || (!first && record.previous != verified.head) {
            let seq = record.seq;
            return Err(fault(format!("record {seq} does not continue the chain")));
        }
        if first {
            verified.first = record.seq;
        }
        verified.last = record.seq;
        verified.head = record.hash;
    }
    if let Some(head) = expect_head
        && (head.seq, head.hash) != (verified.last, verified.head)
    {
        return Err(AuditFault {
            line: number + 1,
            reason: format!(
                "the chain ends at record {}, and should end at record {}",
                verified.last, head.seq
            ),
        });
    }
    Ok(verified)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
