//! Two hundred bad requests against a real `cluster up`: each is answered with a 4xx in OpenAI's
//! shape, none with a 5xx, and no process restarts.

// The measures are for whoever reads the run.
#![allow(clippy::print_stdout)]

#[path = "../harness/mod.rs"]
mod harness;

use harness::{Answer, Cluster, processes};
use serde_json::{Value, json};
use std::io::{Read, Write};

/// One bad request.
struct Bad {
    what: String,
    path: &'static str,
    body: Vec<u8>,
    headers: Vec<(&'static str, &'static str)>,
    status: &'static [u16],
}

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(model: &str) -> Value {
    json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
}

fn text(model: &str) -> Value {
    json!({"model": model, "max_tokens": 1, "prompt": "hi"})
}

/// Values no numeric parameter takes.
fn not_numbers() -> Vec<Value> {
    vec![
        json!("1"),
        json!([1]),
        json!({"a": 1}),
        json!(true),
        json!(-1e300),
        json!(1e300),
    ]
}

fn bad(model: &str) -> Vec<Bad> {
    let mut all = Vec::new();
    let mut push = |what: String, path, body: Vec<u8>, status| {
        all.push(Bad {
            what,
            path,
            body,
            headers: Vec::new(),
            status,
        });
    };
    let with = |base: Value, name: &str, value: Value| {
        let mut body = base;
        body[name] = value;
        body.to_string().into_bytes()
    };
    let bases: [(&'static str, Value); 2] = [(CHAT, chat(model)), (TEXT, text(model))];
    for (path, base) in &bases {
        for name in [
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "n",
            "max_tokens",
            "frequency_penalty",
            "presence_penalty",
        ] {
            for value in not_numbers() {
                let what = format!("{path} {name} = {value}");
                push(what, path, with(base.clone(), name, value), &[400]);
            }
        }
        for (name, value) in [
            ("temperature", json!(-0.1)),
            ("temperature", json!(2.1)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("min_p", json!(-0.5)),
            ("n", json!(0)),
            ("n", json!(100_000)),
            ("n", json!(1.5)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1u64 << 62)),
            ("presence_penalty", json!(3)),
            ("stop", json!(7)),
            ("stop", json!([1, 2])),
            ("stop", json!(vec!["x"; 1_000])),
            ("stop", json!("x".repeat(100_000))),
            ("stream", json!("yes")),
            ("stream_options", json!([])),
            ("logit_bias", json!([1])),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": "a"})),
            ("logit_bias", json!({"1": 1000})),
            ("logit_bias", json!({"999999999": 1})),
            ("model", json!(7)),
            ("model", json!(null)),
            ("no_such_parameter", json!(1)),
            ("user", json!({})),
        ] {
            let shown: String = value.to_string().chars().take(40).collect();
            let what = format!("{path} {name} = {shown}");
            push(what, path, with(base.clone(), name, value), &[400, 404]);
        }
        push(
            format!("{path} unknown model"),
            path,
            with(base.clone(), "model", json!("nope")),
            &[404],
        );
        let raw = base.to_string();
        for (what, body) in [
            ("an empty body", Vec::new()),
            ("not JSON", b"hello".to_vec()),
            ("half a body", raw.as_bytes()[..raw.len() / 2].to_vec()),
            ("a list", b"[]".to_vec()),
            ("a number", b"7".to_vec()),
            ("null", b"null".to_vec()),
            ("NaN", raw.replace(":1", ":NaN").into_bytes()),
            ("Infinity", raw.replace(":1", ":Infinity").into_bytes()),
            ("1e999", raw.replace(":1", ":1e999").into_bytes()),
            (
                "invalid UTF-8",
                raw.replace("hi", "\u{1}")
                    .into_bytes()
                    .iter()
                    .map(|&b| if b == 1 { 0xff } else { b })
                    .collect(),
            ),
            (
                "a lone surrogate",
                raw.replace("hi", "\\ud800").into_bytes(),
            ),
            (
                "10,000 lists deep",
                format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(),
            ),
            (
                "10,000 objects deep",
                format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000)).into_bytes(),
            ),
            (
                "deep in a field",
                raw.replacen(
                    "\"hi\"",
                    &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)),
                    1,
                )
                .into_bytes(),
            ),
            ("text after the body", format!("{raw} x").into_bytes()),
            ("two bodies", format!("{raw}{raw}").into_bytes()),
        ] {
            push(format!("{path} {what}"), path, body, &[400]);
        }
        push(
            format!("{path} too large"),
            path,
            vec![b' '; 5 << 20],
            &[413],
        );
        let long = "word ".repeat(20_000);
        let body = if *path == CHAT {
            json!({"model": model, "messages": [{"role": "user", "content": long}]})
        } else {
            json!({"model": model, "prompt": long})
        };
        push(
            format!("{path} over-long prompt"),
            path,
            body.to_string().into_bytes(),
            &[400],
        );
    }
    for messages in [
        json!(null),
        json!("hi"),
        json!([]),
        json!([1]),
        json!([{}]),
        json!([{"role": "user"}]),
        json!([{"content": "hi"}]),
        json!([{"role": 1, "content": "hi"}]),
        json!([{"role": "wizard", "content": "hi"}]),
        json!([{"role": "user", "content": 1}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": "hi", "surprise": 1}]),
    ] {
        push(
            format!("messages = {messages}"),
            CHAT,
            with(chat(model), "messages", messages),
            &[400],
        );
    }
    for prompt in [
        json!(null),
        json!(1),
        json!({}),
        json!([]),
        json!([[]]),
        json!(["a", 1]),
        json!([1, "a"]),
        json!([-1]),
        json!([1.5]),
        json!([49152]),
        json!([1u64 << 40]),
        json!([[1], ["a"]]),
        json!(["a", [1]]),
        json!(vec![1; 20_000]),
        json!(vec!["a"; 5_000]),
    ] {
        let shown: String = prompt.to_string().chars().take(40).collect();
        push(
            format!("prompt = {shown}"),
            TEXT,
            with(text(model), "prompt", prompt),
            &[400],
        );
    }
    for (name, value) in [
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f"}}]),
        ),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "json_object"})),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(3)),
        ("top_logprobs", json!(-1)),
        ("modalities", json!(["audio"])),
        ("audio", json!({})),
        ("functions", json!([{"name": "f"}])),
        ("reasoning_effort", json!("high")),
    ] {
        push(
            format!("chat {name} = {value}"),
            CHAT,
            with(chat(model), name, value),
            &[400],
        );
    }
    for (name, value) in [
        ("logprobs", json!(true)),
        ("logprobs", json!(1_000)),
        ("logprobs", json!(-1)),
        ("suffix", json!("end")),
        ("best_of", json!(7)),
        ("echo", json!("yes")),
    ] {
        push(
            format!("completions {name} = {value}"),
            TEXT,
            with(text(model), name, value),
            &[400],
        );
    }
    let whole = chat(model).to_string().into_bytes();
    for (what, headers, status) in [
        ("no key", vec![("authorization", "")], &[401][..]),
        (
            "a wrong key",
            vec![("authorization", "Bearer sk-tr-0000")],
            &[401],
        ),
        ("an empty key", vec![("authorization", "Bearer ")], &[401]),
        (
            "another scheme",
            vec![("authorization", "Basic eDp5")],
            &[401],
        ),
        (
            "another content type",
            vec![("content-type", "text/plain")],
            &[415, 400],
        ),
        ("no content type", vec![("content-type", "")], &[415, 400]),
    ] {
        all.push(Bad {
            what: what.into(),
            path: CHAT,
            body: whole.clone(),
            headers,
            status,
        });
    }
    for path in [
        "/v1/nothing",
        "/v2/chat/completions",
        "/admin/v1/nothing",
        "/v1/chat/../../etc",
    ] {
        all.push(Bad {
            what: path.into(),
            path,
            body: whole.clone(),
            headers: Vec::new(),
            status: &[404, 405],
        });
    }
    for path in ["/admin/v1/tokens", "/admin/v1/keys"] {
        all.push(Bad {
            what: format!("{path} with a tenant's key"),
            path,
            body: b"{}".to_vec(),
            headers: Vec::new(),
            status: &[401, 403],
        });
    }
    all
}

fn in_shape(answer: &Answer) -> Result<(), String> {
    let body: Value = serde_json::from_str(&answer.text).map_err(|e| format!("not JSON: {e}"))?;
    let error = &body["error"];
    for field in ["message", "type"] {
        if error[field].as_str().is_none_or(str::is_empty) {
            return Err(format!("no error.{field}"));
        }
    }
    for field in ["param", "code"] {
        if error.get(field).is_none() {
            return Err(format!("no error.{field}"));
        }
    }
    answer
        .header("x-request-id")
        .map(|_| ())
        .ok_or_else(|| "no x-request-id".into())
}

#[test]
fn bad_requests_are_refused_in_shape_and_harm_nothing() {
    let cluster = Cluster::up(&["--workers", "1"]);
    let all = bad(cluster.model());
    assert!(all.len() >= 200, "{} bad requests", all.len());
    let mut wrong = Vec::new();
    for request in &all {
        let answer = cluster.post_raw(request.path, &request.body, &request.headers);
        let shown: String = answer.text.chars().take(200).collect();
        if !request.status.contains(&answer.status) {
            wrong.push(format!(
                "{}: {} not {:?}: {shown}",
                request.what, answer.status, request.status
            ));
        } else if let Err(why) = in_shape(&answer) {
            wrong.push(format!("{}: {why}: {shown}", request.what));
        }
    }
    println!(
        "{} bad requests, {} answered wrongly",
        all.len(),
        wrong.len()
    );
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    odd_requests(&cluster);
    connections_survive_refusals(&cluster);
    broken_connections(&cluster);

    // What is right is still answered, by the same processes.
    let answer = cluster.ask(CHAT, &chat(cluster.model()));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    for pid in [cluster.coordinator_pids(), cluster.worker_pids()].concat() {
        assert!(
            processes::is_alive(pid),
            "process {pid} was restarted:\n{}",
            cluster.logs()
        );
    }
}

/// How much of a request there is to send.
#[derive(Clone, Copy, PartialEq)]
enum Sending {
    Whole,
    /// No more comes: the sending half is closed, as by a client that left.
    BreaksOff,
}

/// Sends bytes on a connection of their own and reads until the server closes it.
fn raw(cluster: &Cluster, bytes: &[u8], sending: Sending) -> String {
    let address = cluster.base().trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&address).expect("it listens");
    stream
        .set_read_timeout(Some(harness::DEADLINE))
        .expect("a time limit");
    // The server may close before it has read all: both ways of ending are right.
    let _ = stream.write_all(bytes);
    if sending == Sending::BreaksOff {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// One answer as `harness::Answer`; `None` where there is none.
fn parsed(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Some(Answer {
        status,
        headers,
        text: body.to_owned(),
    })
}

/// Whole requests that an HTTP library would not send: refused in shape all the same.
fn odd_requests(cluster: &Cluster) {
    let body = chat(cluster.model()).to_string();
    let key = format!("Bearer {}", cluster.api_key());
    let post = |path: &str, headers: &[u8]| {
        let mut bytes = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body.as_bytes());
        bytes
    };
    let keyed = |more: &str| format!("authorization: {key}\r\n{more}").into_bytes();
    for (what, bytes, status) in [
        (
            "a key of odd bytes",
            post(CHAT, b"authorization: Bearer \xe9\xff\r\n"),
            401,
        ),
        (
            "two keys",
            post(CHAT, &keyed(&format!("authorization: {key}\r\n"))),
            401,
        ),
        (
            "a request id of odd bytes and no key",
            post(CHAT, b"x-request-id: \xe9 \t\xff\r\n"),
            401,
        ),
        (
            "a compressed body",
            post(CHAT, &keyed("content-encoding: gzip\r\n")),
            415,
        ),
        (
            "an invalid escape in the path",
            post("/v1/models/%ff", &keyed("")),
            405,
        ),
        ("an empty path segment", post("//v1//chat", &keyed("")), 404),
        (
            "the server itself",
            b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            404,
        ),
    ] {
        let text = raw(cluster, &bytes, Sending::Whole);
        let answer = parsed(&text).unwrap_or_else(|| panic!("{what}: no answer: {text:?}"));
        assert_eq!(answer.status, status, "{what}: {text}");
        in_shape(&answer).unwrap_or_else(|why| panic!("{what}: {why}: {text}"));
    }
}

/// A connection goes on after a refusal, whatever was wrong and whether or not its body was read.
fn connections_survive_refusals(cluster: &Cluster) {
    let key = cluster.api_key();
    let large = vec![b' '; 5 << 20];
    let with_length = |path: &str, key: &str, kind: &str, body: &[u8]| {
        let mut bytes = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    let mut chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in large.chunks(1 << 16) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let json = "application/json";
    for (what, bytes, status) in [
        ("not JSON", with_length(CHAT, key, json, b"{"), 400),
        ("a wrong key", with_length(CHAT, "sk-no", json, &large), 401),
        (
            "an unknown URL",
            with_length("/v1/no", key, json, &large),
            404,
        ),
        (
            "a wrong method",
            with_length("/v1/models", key, json, &large),
            405,
        ),
        ("too large", with_length(CHAT, key, json, &large), 413),
        ("too large in chunks", chunked, 413),
        (
            "another type",
            with_length(TEXT, key, "text/plain", &large),
            415,
        ),
    ] {
        let mut bytes = bytes;
        bytes.extend_from_slice(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let text = raw(cluster, &bytes, Sending::Whole);
        let statuses: Vec<&str> = text
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|answer| &answer[..3])
            .collect();
        assert_eq!(statuses, [&status.to_string(), "200"], "{what}: {text}");
    }
}

/// Requests that are not even HTTP, or that stop half-way: a 4xx, which may have no body since no
/// handler saw it, or a closed connection.
fn broken_connections(cluster: &Cluster) {
    let mut huge_header = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-big: ".to_vec();
    huge_header.resize(2 << 20, b'a');
    let mut many_headers = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n".to_vec();
    for i in 0..5_000 {
        many_headers.extend_from_slice(format!("x-{i}: 1\r\n").as_bytes());
    }
    many_headers.extend_from_slice(b"\r\n");
    let mut long_path = b"GET /".to_vec();
    long_path.resize(100_000, b'a');
    long_path.extend_from_slice(b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let post = |rest: &str| {
        format!(
            "POST {TEXT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n{rest}",
            cluster.api_key()
        )
        .into_bytes()
    };
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"G\x00T / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n".to_vec(),
        post("content-length: 100\r\n\r\n{"),
        post("content-length: -5\r\n\r\n"),
        post("content-length: 5\r\ncontent-length: 6\r\n\r\n{}    "),
        post("transfer-encoding: chunked\r\n\r\nZZ\r\n"),
        post("transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}"),
        huge_header,
        many_headers,
        long_path,
    ] {
        let text = raw(cluster, &bytes, Sending::BreaksOff);
        let begin: String = text.chars().take(300).collect();
        let status = text.strip_prefix("HTTP/1.1 ");
        assert!(
            text.is_empty() || status.is_some_and(|rest| rest.starts_with('4')),
            "{begin}"
        );
    }
}
