//! `/v1/completions`: prompts of every form, echo and scoring.

use super::engine::{Script, ids};
use super::house::{CONTEXT, House};
use serde_json::json;
use trireme_shared::ids::Tokens;

#[tokio::test]
async fn every_prompt_gets_its_choices_in_order() {
    let house = House::new().await;
    let answer = house
        .complete(
            json!([ids(b"ab"), [70, 71, 72]]),
            json!({"n": 2, "max_tokens": 2}),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"].as_array().unwrap().len(), 4);
    for (index, choice) in body["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], "He");
        assert_eq!(choice["finish_reason"], "length");
    }
    // Each prompt once, each choice's tokens.
    assert_eq!(body["usage"]["prompt_tokens"], 2 + 3);
    assert_eq!(body["usage"]["completion_tokens"], 8);
    let prompts: Vec<_> = house.engine.seen().into_iter().map(|s| s.prompt).collect();
    assert_eq!(
        prompts,
        [ids(b"ab"), ids(b"ab"), vec![70, 71, 72], vec![70, 71, 72]]
    );
    assert_eq!(house.recorded().await.prompt, Tokens(5));
}

#[tokio::test]
async fn the_default_is_sixteen_tokens_or_what_fits() {
    let house = House::new().await;
    house.complete(json!("ab"), json!({})).await;
    house
        .complete(json!("a".repeat(CONTEXT as usize - 5)), json!({}))
        .await;
    let seen = house.engine.seen();
    assert_eq!((seen[0].max_tokens, seen[1].max_tokens), (16, 5));
}

#[tokio::test]
async fn text_can_be_scored_without_generating() {
    let house = House::new().await;
    let extra = json!({"echo": true, "logprobs": 2, "max_tokens": 0});
    let answer = house.complete(json!("héy"), extra).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let choice = answer.json()["choices"][0].clone();
    assert_eq!(choice["text"], "héy");
    assert_eq!(choice["finish_reason"], "length");
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["h", "bytes:\\xc3", "bytes:\\xa9", "y"])
    );
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][0], json!(null));
    assert_eq!(logprobs["top_logprobs"][3], json!({"y": -0.5, "z": -1.5}));
    assert_eq!(answer.json()["usage"]["completion_tokens"], 0);
    let seen = &house.engine.seen()[0];
    assert_eq!((seen.max_tokens, seen.prompt_logprobs), (0, Some(2)));
}

#[tokio::test]
async fn echo_goes_before_the_generated_text_and_shifts_its_offsets() {
    let house = House::new().await;
    house.engine.script(Script::says("xyz"));
    let extra = json!({"echo": true, "logprobs": 0, "return_tokens_as_token_ids": true});
    let answer = house.complete(json!(ids(b"ab")), extra).await;
    let choice = answer.json()["choices"][0].clone();
    assert_eq!(choice["text"], "abxyz");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4, 5]));
    assert_eq!(
        logprobs["tokens"][2],
        format!("token_id:{}", 3 + b'x' as u32)
    );
    // `logprobs: 0` still shows the token itself.
    assert_eq!(logprobs["top_logprobs"][2].as_object().unwrap().len(), 1);

    // In a stream too, and without logprobs.
    let extra = json!({"echo": true, "stream": true});
    let answer = house.complete(json!("ab"), extra).await;
    let text: String = answer
        .chunks()
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, "abHello!");
}

/// Who scores texts drops the last entry as the answer's: an end token must have one too.
#[tokio::test]
async fn every_counted_token_has_logprobs_the_end_token_too() {
    let house = House::new().await;
    house.engine.script(Script::says(""));
    let extra = json!({"echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = house.complete(json!("ab"), extra).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "ab");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(logprobs["tokens"], json!(["a", "b", "<|im_end|>"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));

    // A message's entries spell it and nothing more.
    house.engine.script(Script::says("é"));
    let answer = house.chat(json!({"logprobs": true})).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(content.as_array().unwrap().len(), 2, "{content}");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn tokens_outside_the_vocabulary_are_refused() {
    let house = House::new().await;
    for (prompt, extra, param) in [
        (json!([1, 999_999]), json!({}), "prompt"),
        (
            json!("a"),
            json!({"logit_bias": {"999999": 1}}),
            "logit_bias",
        ),
        (
            json!("a"),
            json!({"stop_token_ids": [999_999]}),
            "stop_token_ids",
        ),
        (json!(""), json!({}), "prompt"),
    ] {
        let answer = house.complete(prompt, extra).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    }
    assert!(house.engine.seen().is_empty());
}
