//! Bodies that must be refused: each with a 4xx in OpenAI's shape, none with a 5xx, none reaching
//! the engine.

use super::house::{Answer, House, KEY, MODEL, post};
use axum::http::{Request, header};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn refused(house: &House, request: Request<axum::body::Body>, what: &str) -> Answer {
    let answer = house.ask(request).await;
    assert!(
        answer.status.is_client_error(),
        "{what}: {} {}",
        answer.status,
        answer.text
    );
    answer.error_code();
    assert!(answer.headers.contains_key("x-request-id"), "{what}");
    answer
}

#[tokio::test]
async fn bytes_that_are_no_request() {
    let house = House::new().await;
    let deep_array = "[".repeat(10_000) + &"]".repeat(10_000);
    let deep_object = r#"{"a":"#.repeat(10_000) + "1" + &"}".repeat(10_000);
    let within = |value: &str| {
        format!(r#"{{"model":"{MODEL}","prompt":"a","max_tokens":1,"temperature":{value}}}"#)
    };
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "null",
        "true",
        "3",
        "\"text\"",
        "[]",
        "[1,2]",
        "{}",
        "{]",
        "{\"model\"}",
        "{\"model\":}",
        "{'model':'tiny'}",
        "model=tiny",
        "\u{feff}{}",
        "{} {}",
        "{\"model\":\"tiny\",}",
        "<xml/>",
    ]
    .iter()
    .map(|body| body.as_bytes().to_vec())
    .collect();
    for number in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "0x10",
        "01",
        "+1",
        ".5",
        "1.",
        "--1",
    ] {
        bodies.push(within(number).into_bytes());
    }
    bodies.push(deep_array.clone().into_bytes());
    bodies.push(deep_object.into_bytes());
    bodies.push(format!(r#"{{"model":"{MODEL}","prompt":{deep_array}}}"#).into_bytes());
    bodies.push(format!(r#"{{"model":"{MODEL}","messages":{deep_array}}}"#).into_bytes());
    for raw in [
        &b"\xff\xfe"[..],
        b"\xc3",
        b"\xed\xa0\x80",
        b"\x00",
        b"\\ud800",
    ] {
        let mut body = format!(r#"{{"model":"{MODEL}","prompt":""#).into_bytes();
        body.extend_from_slice(raw);
        body.extend_from_slice(b"\"}");
        bodies.push(body);
    }
    for body in bodies {
        let what = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        for path in [CHAT, TEXT] {
            refused(&house, post(path, KEY, body.clone()), &what).await;
        }
    }
    assert!(house.engine.seen().is_empty());
}

/// Values that no parameter but a free-form one takes.
fn wrong_values(name: &str) -> Vec<Value> {
    let numbers = [
        json!(-1e300),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
    ];
    let strange = [
        json!("x\u{0}"),
        json!([[]]),
        json!({"a": {}}),
        json!([null]),
    ];
    match name {
        // Every i64 is a seed; the others are refused.
        "seed" => numbers[..3].iter().chain(&strange).cloned().collect(),
        "stop" => numbers
            .into_iter()
            .chain([json!({}), json!([1]), json!([""]), json!(""), json!(true)])
            .chain([json!(vec!["a"; 17]), json!("a".repeat(1_025))])
            .collect(),
        "user" => numbers
            .into_iter()
            .chain(strange.into_iter().skip(1))
            .collect(),
        "metadata" => numbers.to_vec(),
        _ => numbers
            .into_iter()
            .chain(strange)
            .chain([json!("1")])
            .collect(),
    }
}

#[tokio::test]
async fn every_parameter_with_values_it_does_not_take() {
    let house = House::new().await;
    let common = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "speculative_tokens",
        "seed",
        "stop",
        "n",
        "stream",
        "max_tokens",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "user",
        "metadata",
        "store",
        "service_tier",
        "stream_options",
        "tools",
        "functions",
        "tool_choice",
        "response_format",
        "modalities",
        "audio",
        "prediction",
        "parallel_tool_calls",
        "stop_token_ids",
        "ignore_eos",
        "return_tokens_as_token_ids",
        "web_search_options",
        "reasoning_effort",
        "repetition_penalty",
        "model",
        "no_such_parameter",
    ];
    let chat = ["messages", "max_completion_tokens", "top_logprobs"];
    let text = ["prompt", "echo", "suffix", "best_of"];
    let mut count = 0;
    for (path, own) in [(CHAT, &chat[..]), (TEXT, &text[..])] {
        for name in common.iter().chain(own) {
            for value in wrong_values(name) {
                // A model or prompt may be any string: the first is unknown, the second is fine.
                if *name == "prompt" && value.is_string() {
                    continue;
                }
                let mut body = if path == CHAT {
                    json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
                } else {
                    json!({"model": MODEL, "prompt": "hi"})
                };
                body[*name] = value.clone();
                let what = format!("{path} {name} = {value}");
                let answer = refused(&house, post(path, KEY, body.to_string()), &what).await;
                let param = answer.json()["error"]["param"].clone();
                let param = param.as_str().unwrap_or_default().to_owned();
                assert!(param.starts_with(name), "{what}: {param}");
                count += 1;
            }
        }
    }
    assert!(count > 500, "{count}");
    assert!(house.engine.seen().is_empty());
}

#[tokio::test]
async fn messages_that_are_none() {
    let house = House::new().await;
    for messages in [
        json!([]),
        json!(["hi"]),
        json!([[]]),
        json!([{}]),
        json!([{"role": "user"}]),
        json!([{"content": "hi"}]),
        json!([{"role": 3, "content": "hi"}]),
        json!([{"role": "owner", "content": "hi"}]),
        json!([{"role": "user", "content": 3}]),
        json!([{"role": "user", "content": null}]),
        json!([{"role": "user", "content": []}]),
        json!([{"role": "user", "content": ["hi"]}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": [{"text": "hi"}]}]),
        json!([{"role": "user", "content": [{"type": "text", "text": 3}]}]),
        json!([{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]),
        json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        json!([{"role": "user", "content": "hi", "name": 3}]),
        json!([{"role": "user", "content": "hi", "colour": "red"}]),
        json!([{"role": "tool", "content": "hi", "tool_call_id": "x"}]),
        json!([{"role": "assistant", "content": "hi", "tool_calls": [{}]}]),
    ] {
        let body = json!({"model": MODEL, "messages": messages}).to_string();
        let answer = refused(&house, post(CHAT, KEY, body.clone()), &body).await;
        let param = answer.json()["error"]["param"].clone();
        assert!(param.as_str().unwrap().starts_with("messages"), "{body}");
    }
    assert!(house.engine.seen().is_empty());
}

#[tokio::test]
async fn wrong_models_media_types_and_sizes() {
    let house = House::new().await;
    for model in ["", "tinyy", "../tiny", &"m".repeat(100_000)] {
        let body = json!({"model": model, "prompt": "a"}).to_string();
        let answer = refused(&house, post(TEXT, KEY, body), "model").await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.error_code().as_deref(), Some("model_not_found"));
        assert!(answer.text.len() < 1_000, "the name is not repeated whole");
    }
    let body = json!({"model": MODEL, "prompt": "a"}).to_string();
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "json",
        "",
    ] {
        let mut request = post(TEXT, KEY, body.clone());
        let value = media.parse().unwrap();
        request.headers_mut().insert(header::CONTENT_TYPE, value);
        assert_eq!(refused(&house, request, media).await.status, 415);
    }
    // Without a length to go by.
    let large = vec![b' '; trireme_shared::limits::HTTP_BODY_BYTES_MAX + 1];
    let pieces = large
        .chunks(1 << 20)
        .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let body =
        axum::body::Body::from_stream(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
    let answer = refused(&house, post(TEXT, KEY, body), "large").await;
    assert_eq!(answer.status, 413);
    // Within the size, beyond any context.
    let body = json!({"model": MODEL, "prompt": "a ".repeat(2_000_000)}).to_string();
    let answer = refused(&house, post(TEXT, KEY, body), "long").await;
    assert_eq!(
        answer.error_code().as_deref(),
        Some("context_length_exceeded")
    );
    assert!(house.engine.seen().is_empty());
}
