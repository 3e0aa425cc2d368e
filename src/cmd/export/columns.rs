//! Settlements as Apache Parquet: a column each of what a CloudEvent's fields are, numbers as INT64, the
//! time in milliseconds of UTC. Where the file ends stands in its footer too (`trireme.*`), as one that
//! tells of lost settlements has no rows.

use super::chain::{Content, End};
use super::events;
use anyhow::{Context, Result};
use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;
use trireme_shared::api::SettlementReport;
use trireme_shared::ids::SettlementSeq;

const SCHEMA: &str = "
    message usage {
        REQUIRED BYTE_ARRAY id (UTF8);
        REQUIRED INT64 sequence;
        REQUIRED INT64 time (TIMESTAMP(MILLIS, true));
        OPTIONAL BYTE_ARRAY subject (UTF8);
        OPTIONAL INT64 tenant_id;
        REQUIRED INT64 key;
        OPTIONAL BYTE_ARRAY model (UTF8);
        OPTIONAL BYTE_ARRAY request_id (UTF8);
        OPTIONAL BYTE_ARRAY caller_id (UTF8);
        REQUIRED BYTE_ARRAY status (UTF8);
        REQUIRED INT64 prompt_tokens;
        REQUIRED INT64 cached_tokens;
        REQUIRED INT64 completion_tokens;
        REQUIRED INT64 charged_nano_usd;
    }";

const CLUSTER: &str = "trireme.cluster";
const FIRST: &str = "trireme.first_sequence";
const LAST: &str = "trireme.last_sequence";
/// `usage`, or `lost`: then there are no rows.
const KIND: &str = "trireme.kind";

/// A file's bytes.
pub fn file(cluster: &str, content: &Content<'_>) -> Result<Vec<u8>> {
    let (kind, first, last) = match content {
        Content::Rows(rows) => {
            let end = |row: Option<&SettlementReport>| row.map(|row| row.sequence);
            let ends = end(rows.first()).zip(end(rows.last()));
            let (first, last) = ends.context("a file holds a row at least")?;
            ("usage", first, last)
        }
        Content::Lost { first, last } => ("lost", *first, *last),
    };
    let told = |name: &str, value: String| KeyValue::new(name.to_owned(), value);
    let told = vec![
        told(KIND, kind.to_owned()),
        told(CLUSTER, cluster.to_owned()),
        told(FIRST, first.to_string()),
        told(LAST, last.to_string()),
    ];
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(concat!("trireme ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(told))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    if let Content::Rows(rows) = content {
        let mut group = writer.next_row_group()?;
        write(&mut group, cluster, rows)?;
        group.close()?;
    }
    Ok(writer.into_inner()?)
}

/// Columns in the order of the schema.
fn write(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    cluster: &str,
    rows: &[SettlementReport],
) -> Result<()> {
    texts(group, rows, |r| Some(events::id(cluster, r.sequence)))?;
    numbers(group, rows, |r| Some(whole(r.sequence.0)))?;
    numbers(group, rows, |r| Some(whole(r.settled_at_ms)))?;
    texts(group, rows, |r| r.tenant_name.clone())?;
    numbers(group, rows, |r| r.tenant.map(|id| whole(id.0.into())))?;
    numbers(group, rows, |r| Some(whole(r.key.0.into())))?;
    texts(group, rows, |r| r.model.clone())?;
    texts(group, rows, |r| r.request.as_ref().map(|id| id.to_string()))?;
    texts(group, rows, |r| {
        r.caller_id.as_ref().map(|id| id.to_string())
    })?;
    texts(group, rows, |r| Some(status(r)))?;
    numbers(group, rows, |r| Some(whole(r.prompt_tokens)))?;
    numbers(group, rows, |r| Some(whole(r.cached_tokens)))?;
    numbers(group, rows, |r| Some(whole(r.completion_tokens)))?;
    numbers(group, rows, |r| Some(r.charged_nano_usd.0))
}

/// Parquet's integers are signed; no count of ours comes near the bound.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The word that the JSON has.
fn status(row: &SettlementReport) -> String {
    let word = serde_json::to_value(row.status).ok();
    let word = word.as_ref().and_then(serde_json::Value::as_str);
    word.unwrap_or_default().to_owned()
}

fn numbers(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    rows: &[SettlementReport],
    of: impl Fn(&SettlementReport) -> Option<i64>,
) -> Result<()> {
    let (values, present) = column(rows, of);
    let mut column = group.next_column()?.context("the schema has a column")?;
    // Where a column is required no level is written.
    let typed = column.typed::<Int64Type>();
    typed.write_batch(&values, Some(&present), None)?;
    Ok(column.close()?)
}

fn texts(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    rows: &[SettlementReport],
    of: impl Fn(&SettlementReport) -> Option<String>,
) -> Result<()> {
    let (values, present) = column(rows, |row| {
        of(row).map(|text| ByteArray::from(text.into_bytes()))
    });
    let mut column = group.next_column()?.context("the schema has a column")?;
    let typed = column.typed::<ByteArrayType>();
    typed.write_batch(&values, Some(&present), None)?;
    Ok(column.close()?)
}

/// The values that are there, and for each row whether it has one (1) or not (0).
fn column<T>(
    rows: &[SettlementReport],
    of: impl Fn(&SettlementReport) -> Option<T>,
) -> (Vec<T>, Vec<i16>) {
    let all: Vec<Option<T>> = rows.iter().map(of).collect();
    let present = all.iter().map(|one| i16::from(one.is_some())).collect();
    (all.into_iter().flatten().collect(), present)
}

/// Where a file ends.
pub fn end(bytes: Bytes) -> Result<End> {
    let reader = SerializedFileReader::new(bytes)?;
    let told = reader.metadata().file_metadata().key_value_metadata();
    let told = |name: &str| {
        let mut all = told.into_iter().flatten();
        let found = all
            .find(|one| one.key == name)
            .and_then(|one| one.value.clone());
        found.with_context(|| format!("its footer has no {name}"))
    };
    Ok(End {
        cluster: told(CLUSTER)?,
        last: SettlementSeq(told(LAST)?.parse()?),
    })
}
