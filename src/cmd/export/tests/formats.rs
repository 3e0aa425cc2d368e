//! What files hold, field by field.

use super::*;
use crate::cmd::export::chain::Content;
use crate::cmd::export::events;
use parquet::basic::{LogicalType, Type as Physical};
use serde_json::json;

#[test]
fn an_event_is_a_cloudevent_with_flat_data() {
    let rows = [row(4), row(5)];
    let bytes = events::file(CLUSTER, &Content::Rows(&rows)).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        first,
        json!({
            "specversion": "1.0", "id": "0707-4", "source": "trireme/0707",
            "type": "trireme.usage.v1", "subject": "größe & co",
            "time": "2026-05-28T20:26:40.127Z", "datacontenttype": "application/json",
            "data": {
                "sequence": 4, "tenant_id": 2, "key": 3, "model": "tiny", "request_id": "req_4",
                "caller_id": null, "status": "disconnected", "prompt_tokens": 14,
                "cached_tokens": 10, "completion_tokens": 4, "charged_nano_usd": 4_000,
            },
        })
    );
    assert_eq!(text.lines().count(), 2);
    let end = events::end(text.as_bytes()).unwrap();
    assert_eq!(
        (end.cluster.as_str(), end.last),
        (CLUSTER, SettlementSeq(5))
    );
    // Cut anywhere in its last line it is not taken for whole.
    for cut in text.find('\n').unwrap() + 2..text.len() {
        assert!(events::end(&text.as_bytes()[..cut]).is_err(), "{cut}");
    }
    assert!(events::end(b"").is_err());
}

#[test]
fn a_parquet_file_has_the_same_columns() {
    let rows: Vec<_> = (1..=1_000).map(row).collect();
    let bytes = Bytes::from(columns::file(CLUSTER, &Content::Rows(&rows)).unwrap());
    let end = columns::end(bytes.clone()).unwrap();
    assert_eq!(
        (end.cluster.as_str(), end.last),
        (CLUSTER, SettlementSeq(1_000))
    );
    assert!(columns::end(bytes.slice(..bytes.len() - 1)).is_err());
    let reader = SerializedFileReader::new(bytes).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let time = schema.column(2);
    assert_eq!(time.physical_type(), Physical::INT64);
    assert!(matches!(
        time.logical_type_ref(),
        Some(LogicalType::Timestamp(t)) if t.is_adjusted_to_u_t_c
    ));
    let read: Vec<_> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().to_string())
        .collect();
    assert_eq!(read.len(), 1_000);
    assert_eq!(
        read[3],
        "{id: \"0707-4\", sequence: 4, time: 2026-05-28 20:26:40.127 +00:00, subject: \"größe & co\", \
         tenant_id: 2, key: 3, model: \"tiny\", request_id: \"req_4\", caller_id: null, \
         status: \"disconnected\", prompt_tokens: 14, cached_tokens: 10, completion_tokens: 4, \
         charged_nano_usd: 4000}"
    );
}

/// What others' readers make of it.
#[test]
#[ignore = "needs a python3 that has pyarrow"]
fn pyarrow_reads_it() {
    let rows: Vec<_> = (1..=1_000).map(row).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(file_name(SettlementSeq(1), "parquet"));
    std::fs::write(
        &file,
        columns::file(CLUSTER, &Content::Rows(&rows)).unwrap(),
    )
    .unwrap();
    let lost = dir.path().join(file_name(SettlementSeq(1_001), "parquet"));
    let (first, last) = (SettlementSeq(1_001), SettlementSeq(1_100));
    let content = Content::Lost { first, last };
    std::fs::write(&lost, columns::file(CLUSTER, &content).unwrap()).unwrap();
    let code = "
import sys, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1])
assert t.num_rows == 1000, t.num_rows
assert t['sequence'].to_pylist() == list(range(1, 1001))
assert t.schema.field('time').type == pa.timestamp('ms', tz='UTC'), t.schema
assert t.schema.field('prompt_tokens').type == pa.int64()
assert t['time'][3].value == 1780000000127
assert t['subject'][0].as_py() == 'größe & co'
assert t['model'][4].as_py() is None and t['model'][3].as_py() == 'tiny'
assert t['request_id'][3].as_py() == 'req_4' and t['caller_id'].null_count == 1000
assert sum(t['charged_nano_usd'].to_pylist()) == 500500000
";
    let python = std::process::Command::new("python3")
        .args(["-c", code])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(
        python.status.success(),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
}
