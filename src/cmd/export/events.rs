//! Settlements as CloudEvents 1.0 (JSON event format), a line each: what OpenMeter and its like take.
//!
//! An event's id is a function of what it tells, so that whoever gets it twice counts it once.

use super::chain::{Content, End};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use trireme_shared::api::{RequestStatus, SettlementReport};
use trireme_shared::ids::{KeyId, NanoUsd, RequestId, SettlementSeq, TenantId};

const VERSION: &str = "1.0";
const USAGE: &str = "trireme.usage.v1";
const LOST: &str = "trireme.usage.lost.v1";
const SOURCE: &str = "trireme/";

#[derive(Serialize, Deserialize)]
struct Event<D> {
    specversion: String,
    /// `<cluster>-<sequence>`.
    id: String,
    /// `trireme/<cluster>`.
    source: String,
    r#type: String,
    /// The tenant's name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    time: Option<String>,
    datacontenttype: String,
    data: D,
}

/// Flat: what is counted are numbers, all else are names to group by.
#[derive(Serialize)]
struct Usage<'a> {
    sequence: SettlementSeq,
    tenant_id: Option<TenantId>,
    key: KeyId,
    model: Option<&'a str>,
    request_id: Option<&'a RequestId>,
    caller_id: Option<&'a RequestId>,
    status: RequestStatus,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    charged_nano_usd: NanoUsd,
}

#[derive(Serialize)]
struct Lost {
    first_sequence: SettlementSeq,
    last_sequence: SettlementSeq,
}

/// What tells where a file ends.
#[derive(Deserialize)]
struct Last {
    sequence: Option<SettlementSeq>,
    last_sequence: Option<SettlementSeq>,
}

/// An event's id: of a settlement, or of the first of those that are lost.
pub fn id(cluster: &str, sequence: SettlementSeq) -> String {
    format!("{cluster}-{sequence}")
}

/// A file's bytes.
pub fn file(cluster: &str, content: &Content<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match content {
        Content::Rows(rows) => {
            for row in *rows {
                line(&mut bytes, &usage(cluster, row)?)?;
            }
        }
        Content::Lost { first, last } => {
            let data = Lost {
                first_sequence: *first,
                last_sequence: *last,
            };
            line(&mut bytes, &event(cluster, *first, LOST, data))?;
        }
    }
    Ok(bytes)
}

fn line(bytes: &mut Vec<u8>, event: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *bytes, event)?;
    bytes.push(b'\n');
    Ok(())
}

fn event<D>(cluster: &str, sequence: SettlementSeq, kind: &str, data: D) -> Event<D> {
    Event {
        specversion: VERSION.to_owned(),
        id: id(cluster, sequence),
        source: format!("{SOURCE}{cluster}"),
        r#type: kind.to_owned(),
        subject: None,
        time: None,
        datacontenttype: "application/json".to_owned(),
        data,
    }
}

fn usage<'a>(cluster: &str, row: &'a SettlementReport) -> Result<Event<Usage<'a>>> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(row.settled_at_ms) * 1_000_000);
    let data = Usage {
        sequence: row.sequence,
        tenant_id: row.tenant,
        key: row.key,
        model: row.model.as_deref(),
        request_id: row.request.as_ref(),
        caller_id: row.caller_id.as_ref(),
        status: row.status,
        prompt_tokens: row.prompt_tokens,
        cached_tokens: row.cached_tokens,
        completion_tokens: row.completion_tokens,
        charged_nano_usd: row.charged_nano_usd,
    };
    Ok(Event {
        subject: row.tenant_name.clone(),
        time: Some(at?.format(&Rfc3339)?),
        ..event(cluster, row.sequence, USAGE, data)
    })
}

/// Where a file ends.
pub fn end(bytes: &[u8]) -> Result<End> {
    let whole = bytes
        .strip_suffix(b"\n")
        .context("its last line has no end")?;
    let last = whole.rsplit(|b| *b == b'\n').next().unwrap_or(whole);
    let last: Event<Last> = serde_json::from_slice(last)?;
    let Some(cluster) = last.source.strip_prefix(SOURCE) else {
        bail!("its source is {}", last.source);
    };
    let sequence = match last.r#type.as_str() {
        USAGE => last.data.sequence,
        LOST => last.data.last_sequence,
        other => bail!("it holds events of type {other}"),
    };
    Ok(End {
        cluster: cluster.to_owned(),
        last: sequence.context("its last event has no number")?,
    })
}
