//! Traces reach the collector that the environment names.

use super::alone;
use super::harness::{Cluster, DEADLINE, tiny_model};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The trace that the caller says its request belongs to.
const TRACE: [u8; 16] = [
    0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c,
];

/// A collector on this machine: its address, and the path and body of what it is sent.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let (told, heard) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let told = told.clone();
            std::thread::spawn(move || take(stream, &told));
        }
    });
    (address, heard)
}

/// Requests of one connection, each answered with an empty 200.
fn take(stream: TcpStream, told: &Sender<(String, Vec<u8>)>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .ok()?;
        told.send((path, body)).ok()?;
    }
}

#[test]
fn a_generation_is_a_span_under_its_callers() {
    let _alone = alone();
    let (endpoint, heard) = collector();
    let (_folder, model) = tiny_model();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
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
    let (path, body) = loop {
        let (path, body) = heard.recv_timeout(DEADLINE).expect("a span comes");
        if has(&body, &TRACE) {
            break (path, body);
        }
    };
    assert_eq!(path, "/v1/traces");
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
        assert!(has(&body, word.as_bytes()), "{word}");
    }
    assert!(!has(&body, b"error.type"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
