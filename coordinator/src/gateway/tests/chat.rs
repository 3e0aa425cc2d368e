//! `/v1/chat/completions`, answered at once.

use super::engine::{End, Script};
use super::house::{CONTEXT, House, MODEL, chat_prompt};
use crate::fleet::dispatch::DispatchError;
use serde_json::json;
use trireme_shared::ids::{NanoUsd, Tokens};
use trireme_shared::wire::generate::{FinishReason, Priority};

#[tokio::test]
async fn a_chat_is_answered_billed_and_recorded() {
    let house = House::new().await;
    house.engine.script(Script::says("Hé!").cached(10));
    let answer = house.chat(json!({"temperature": 0})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let metrics = house.get("/metrics", "").await.text;
    let prompt = chat_prompt().len() as u64;
    for line in [
        format!(
            "trireme_billable_tokens_total{{kind=\"input\",model_name=\"tiny\"}} {}\n",
            prompt - 10
        ),
        "trireme_billable_tokens_total{kind=\"cached_input\",model_name=\"tiny\"} 10\n".into(),
        format!(
            "gen_ai_client_token_usage_sum{{gen_ai_operation_name=\"chat\",gen_ai_request_model=\"tiny\",\
             gen_ai_token_type=\"input\"}} {prompt}\n"
        ),
        "trireme_gateway_overhead_seconds_count{model_name=\"tiny\"} 1\n".into(),
    ] {
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], MODEL);
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        body["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "Hé!", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    // "Hé!" is 4 bytes, so 4 tokens, and the end-of-turn token.
    let prompt = chat_prompt().len() as u64;
    let cost = (prompt - 10) * 20 + 10 * 5 + 5 * 60;
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5,
            "prompt_tokens_details": {"cached_tokens": 10}, "cost_nano_usd": cost,
        })
    );
    let recorded = house.recorded().await;
    assert_eq!(recorded.requests, 1);
    assert_eq!(
        (recorded.prompt, recorded.cached, recorded.completion),
        (Tokens(prompt), Tokens(10), Tokens(5))
    );
    assert_eq!(recorded.cost, NanoUsd(cost as i64));

    let seen = &house.engine.seen()[0];
    assert_eq!(seen.prompt, chat_prompt());
    assert_eq!(seen.max_tokens, CONTEXT - prompt as u32);
    assert!(seen.stop_tokens.contains(&2));
    assert_eq!(seen.sampling.temperature, 0.0);
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_choice_and_the_work() {
    let mut house = House::new().await;
    house
        .engine
        .script(Script::says("one two STOP three").then(End::Hang));
    let answer = house.chat(json!({"stop": [" STOP", "zzz"]})).await;
    let body = answer.json();
    assert_eq!(body["choices"][0]["message"]["content"], "one two");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    // Tokens up to the one that completed the stop string, and none after it.
    assert_eq!(body["usage"]["completion_tokens"], 12);
    house.cancels.recv().await.unwrap();
    assert_eq!(house.recorded().await.completion, Tokens(12));
}

#[tokio::test]
async fn a_service_tier_is_a_priority_and_is_told() {
    let house = House::new().await;
    let told = [
        (json!({}), json!(null), Priority::Normal),
        (json!({"service_tier": null}), json!(null), Priority::Normal),
        (
            json!({"service_tier": "auto"}),
            json!("default"),
            Priority::Normal,
        ),
        (
            json!({"service_tier": "flex"}),
            json!("flex"),
            Priority::Low,
        ),
        (
            json!({"service_tier": "priority"}),
            json!("priority"),
            Priority::High,
        ),
    ];
    for (extra, tier, priority) in told {
        let answer = house.chat(extra.clone()).await;
        assert_eq!(answer.json()["service_tier"], tier, "{extra}");
        assert_eq!(house.engine.seen().last().unwrap().priority, priority);
    }
    let answer = house.chat(json!({"service_tier": "scale"})).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "service_tier");
}

#[tokio::test]
async fn max_tokens_ends_with_length() {
    let house = House::new().await;
    let answer = house.chat(json!({"max_completion_tokens": 3})).await;
    let choice = &answer.json()["choices"][0];
    assert_eq!(choice["message"]["content"], "Hel");
    assert_eq!(choice["finish_reason"], "length");
}

#[tokio::test]
async fn choices_have_seeds_of_their_own_and_share_the_prompt() {
    let house = House::new().await;
    let answer = house.chat(json!({"n": 3, "seed": -1})).await;
    let body = answer.json();
    let indexes: Vec<_> = body["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!(body["usage"]["prompt_tokens"], chat_prompt().len());
    assert_eq!(body["usage"]["completion_tokens"], 3 * 7);
    let mut seeds: Vec<_> = house
        .engine
        .seen()
        .iter()
        .map(|s| s.sampling.seed)
        .collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [0, 1, u64::MAX]);
}

#[tokio::test]
async fn logprobs_name_tokens_and_bytes() {
    let house = House::new().await;
    house.engine.script(Script::says("aé"));
    let answer = house
        .chat(json!({"logprobs": true, "top_logprobs": 3}))
        .await;
    let content = answer.json()["choices"][0]["logprobs"]["content"].clone();
    // The end-of-turn token has no text, so it is not listed.
    assert_eq!(content.as_array().unwrap().len(), 3);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["bytes"], json!([97]));
    assert_eq!(content[0]["logprob"], -0.5);
    assert_eq!(content[0]["top_logprobs"][1]["token"], "b");
    assert_eq!(content[0]["top_logprobs"][2]["logprob"], -9999.0);
    assert_eq!(content[1]["token"], "bytes:\\xc3");
    assert_eq!(content[1]["bytes"], json!([0xc3]));
}

#[tokio::test]
async fn logprobs_of_a_stop_string_are_left_out() {
    let house = House::new().await;
    house.engine.script(Script::says("ab##c"));
    let answer = house.chat(json!({"logprobs": true, "stop": "##"})).await;
    let choice = answer.json()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "ab");
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn failures_have_their_status_and_bill_nothing() {
    for (error, status, code, retry) in [
        (DispatchError::NotReady, 503, "model_not_ready", true),
        (DispatchError::Overloaded, 503, "overloaded", true),
        (DispatchError::Lost("x".into()), 503, "replica_lost", true),
        (
            DispatchError::Invalid("x".into()),
            400,
            "refused_by_engine",
            false,
        ),
    ] {
        for stream in [false, true] {
            let house = House::new().await;
            house.engine.script(Script {
                cached_tokens: 0,
                tokens: Vec::new(),
                end: End::Fail(error.clone()),
            });
            let answer = house.chat(json!({"stream": stream})).await;
            // A stream that has not begun has a status too.
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
            assert_eq!(answer.error_code().as_deref(), Some(code));
            assert_eq!(answer.headers.contains_key("retry-after"), retry);
            assert_eq!(house.recorded().await.requests, 0);
        }
    }
}

#[tokio::test]
async fn a_failure_after_tokens_bills_nothing_where_nothing_was_delivered() {
    let house = House::new().await;
    house
        .engine
        .script(Script::says("abc").then(End::Fail(DispatchError::Lost("gone".into()))));
    assert_eq!(house.chat(json!({})).await.status, 503);
    let recorded = house.recorded().await;
    assert_eq!(
        (recorded.prompt, recorded.completion, recorded.cost),
        (Tokens(0), Tokens(0), NanoUsd(0))
    );
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused() {
    let house = House::new().await;
    let long = "x".repeat(CONTEXT as usize);
    let answer = house
        .chat(json!({"messages": [{"role": "user", "content": long}]}))
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.error_code().as_deref(),
        Some("context_length_exceeded")
    );
    let answer = house.chat(json!({"max_tokens": CONTEXT})).await;
    assert_eq!(
        answer.error_code().as_deref(),
        Some("context_length_exceeded")
    );
    assert_eq!(answer.json()["error"]["param"], "max_tokens");
    assert!(house.engine.seen().is_empty());
}

#[tokio::test]
async fn benchmarks_can_go_past_the_end_of_turn() {
    let house = House::new().await;
    house.engine.script(Script {
        cached_tokens: 0,
        tokens: vec![100, 2, 100],
        end: End::Finish(FinishReason::Length),
    });
    let answer = house
        .chat(json!({"ignore_eos": true, "stop_token_ids": [7], "max_tokens": 3}))
        .await;
    assert_eq!(house.engine.seen()[0].stop_tokens, [7]);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    // Special tokens have no text.
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "aa");
}
