//! Event streams: framing, order, usage, errors in mid-stream, clients that leave.

use super::engine::{End, Script};
use super::house::{House, KEY, chat_body, chat_prompt, post};
use crate::fleet::dispatch::DispatchError;
use futures_util::StreamExt;
use serde_json::{Value, json};
use trireme_shared::ids::Tokens;

fn content(chunks: &[Value], index: u64) -> String {
    chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

#[tokio::test]
async fn a_stream_is_role_text_finish_usage_done() {
    let house = House::new().await;
    house.engine.script(Script::says("日本"));
    let answer = house
        .chat(json!({"stream": true, "stream_options": {"include_usage": true}}))
        .await;
    assert_eq!(answer.status, 200);
    let chunks = answer.chunks();
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    // Three bytes a character: never half of one.
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({"content": "日"}));
    assert_eq!(chunks[2]["choices"][0]["delta"], json!({"content": "本"}));
    assert_eq!(chunks[3]["choices"][0]["delta"], json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"]["completion_tokens"], 7);
    assert_eq!(chunks[4]["usage"]["prompt_tokens"], chat_prompt().len());
    assert_eq!(chunks.len(), 5);
    for chunk in &chunks[..4] {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
    }
    assert_eq!(house.recorded().await.completion, Tokens(7));
}

#[tokio::test]
async fn usage_is_recorded_even_where_it_is_not_asked_for() {
    let house = House::new().await;
    let chunks = house.chat(json!({"stream": true})).await.chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(house.recorded().await.requests, 1);
}

#[tokio::test]
async fn choices_interleave_and_each_is_whole() {
    let house = House::new().await;
    let chunks = house.chat(json!({"stream": true, "n": 4})).await.chunks();
    for index in 0..4 {
        assert_eq!(content(&chunks, index), "Hello!");
        let of: Vec<_> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(of[0]["delta"]["role"], "assistant");
        assert_eq!(of[of.len() - 1]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn held_back_text_comes_at_the_end() {
    let house = House::new().await;
    house.engine.script(Script::says("to be sto"));
    let chunks = house
        .chat(json!({"stream": true, "stop": "stop", "logprobs": true}))
        .await
        .chunks();
    assert_eq!(content(&chunks, 0), "to be sto");
    let reported: usize = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(reported, "to be sto".len());
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event_and_what_was_delivered_is_billed() {
    let house = House::new().await;
    house
        .engine
        .script(Script::says("abc").then(End::Fail(DispatchError::Lost("gone".into()))));
    let answer = house.chat(json!({"stream": true})).await;
    assert_eq!(answer.status, 200);
    let events = answer.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "replica_lost");
    assert!(!events.iter().any(|event| event == "[DONE]"));
    let recorded = house.recorded().await;
    assert_eq!((recorded.requests, recorded.completion), (1, Tokens(3)));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_every_choice_and_pays_for_what_it_got() {
    let mut house = House::new().await;
    for _ in 0..2 {
        house.engine.script(Script::says("abc").then(End::Hang));
    }
    let body = chat_body(json!({"stream": true, "n": 2})).to_string();
    let response = house.send(post("/v1/chat/completions", KEY, body)).await;
    let mut frames = response.into_body().into_data_stream();
    // Two roles and three tokens of each choice: all that the engine says.
    for _ in 0..8 {
        frames.next().await.unwrap().unwrap();
    }
    drop(frames);
    house.cancels.recv().await.unwrap();
    house.cancels.recv().await.unwrap();
    let recorded = house.recorded().await;
    assert_eq!((recorded.requests, recorded.completion), (1, Tokens(6)));
    assert_eq!(recorded.prompt, Tokens(chat_prompt().len() as u64));
    let metrics = house.get("/metrics", "").await.text;
    assert!(
        metrics.contains("finished_reason=\"abort\",model_name=\"tiny\"} 2"),
        "{metrics}"
    );
    let billed = format!(
        "trireme_billed_nano_usd_total{{model_name=\"tiny\"}} {}\n",
        recorded.cost.0
    );
    assert!(metrics.contains(&billed), "{billed}{metrics}");
}

#[tokio::test]
async fn a_client_that_leaves_pays_for_nothing_that_was_held_back() {
    let mut house = House::new().await;
    house
        .engine
        .script(Script::says("to be sto").then(End::Hang));
    let body = chat_body(json!({"stream": true, "stop": "stop"})).to_string();
    let response = house.send(post("/v1/chat/completions", KEY, body)).await;
    let mut frames = response.into_body().into_data_stream();
    // The role, and six characters.
    for _ in 0..7 {
        frames.next().await.unwrap().unwrap();
    }
    drop(frames);
    house.cancels.recv().await.unwrap();
    assert_eq!(house.recorded().await.completion, Tokens(6));
}
