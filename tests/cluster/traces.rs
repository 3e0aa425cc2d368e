//! Traces reach the collector that the environment names.

use super::alone;
use super::harness::{Cluster, tiny_model};
use super::receiver::Receiving;
use serde_json::json;

/// The trace that the caller says its request belongs to.
const TRACE: [u8; 16] = [
    0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c,
];

#[test]
fn a_generation_is_a_span_under_its_callers() {
    let _alone = alone();
    let collector = Receiving::start();
    let (_folder, model) = tiny_model();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.base.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let cluster = Cluster::up_in(&environment, &["--model", &model, "--workers", "1"]);
    let body = json!({"model": cluster.model(), "prompt": "hi", "max_tokens": 3});
    let parent = format!("00-{}-b7ad6b7169203331-01", hex(&TRACE));
    let answer = cluster.post_raw(
        "/v1/completions",
        body.to_string().as_bytes(),
        &[("traceparent", parent.as_str())],
    );
    assert_eq!(answer.status, 200, "{}", answer.text);
    let has = |body: &[u8], what: &[u8]| body.windows(what.len()).any(|w| w == what);
    // The cluster's own first request may be in an export of its own.
    let heard = loop {
        let heard = collector.next();
        if has(&heard.body, &TRACE) {
            break heard;
        }
    };
    assert_eq!(heard.path, "/v1/traces");
    // Protocol buffers hold strings as they are.
    let name = format!("text_completion {}", cluster.model());
    for word in [
        name.as_str(),
        "trireme",
        "gen_ai.operation.name",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
        "trireme.cost_nano_usd",
    ] {
        assert!(has(&heard.body, word.as_bytes()), "{word}");
    }
    assert!(!has(&heard.body, b"error.type"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
