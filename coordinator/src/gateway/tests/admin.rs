//! Keys, routes, ids, health and metrics.

use super::house::{ADMIN, House, KEY, MODEL, post};
use axum::body::Body;
use axum::http::Request;
use serde_json::json;

#[tokio::test]
async fn keys_open_their_own_doors_only() {
    let house = House::new().await;
    for (path, key, status) in [
        ("/v1/models", KEY, 200),
        ("/v1/models", ADMIN, 403),
        ("/v1/models", "sk-wrong", 401),
        ("/v1/models", "", 401),
        ("/admin/v1/status", ADMIN, 200),
        ("/admin/v1/status", KEY, 403),
        ("/admin/v1/plan", KEY, 403),
        ("/admin/v1/tokens", "sk-wrong", 401),
    ] {
        let answer = house.get(path, key).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {key}");
        if status != 200 {
            let code = answer.error_code();
            assert_eq!(
                code.as_deref() == Some("invalid_api_key"),
                status == 401,
                "{path}"
            );
        }
    }
    let body = super::house::chat_body(json!({})).to_string();
    let answer = house
        .ask(post("/v1/chat/completions", "sk-wrong", body))
        .await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert!(house.engine.seen().is_empty());
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let house = House::new().await;
    let list = house.get("/v1/models", KEY).await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(
        list["data"],
        json!([{"id": MODEL, "object": "model", "created": 7, "owned_by": "trireme"}])
    );
    let one = house.get("/v1/models/tiny", KEY).await;
    assert_eq!(one.json()["id"], MODEL);
    for missing in ["org/none", "%ff", "%00"] {
        let none = house.get(&format!("/v1/models/{missing}"), KEY).await;
        assert_eq!(none.status, 404, "{missing}");
        assert_eq!(none.error_code().as_deref(), Some("model_not_found"));
    }
}

#[tokio::test]
async fn every_answer_carries_the_request_id() {
    let house = House::new().await;
    let get = |path: &str, id: &str| {
        Request::get(path)
            .header("x-request-id", id)
            .body(Body::empty())
            .unwrap()
    };
    for path in ["/health", "/nowhere", "/v1/models", "/v1/completions"] {
        let answer = house.ask(get(path, "my-id-1")).await;
        assert_eq!(answer.headers["x-request-id"], "my-id-1", "{path}");
        let answer = house.ask(get(path, "two words")).await;
        let made = answer.headers["x-request-id"].to_str().unwrap();
        assert!(made.starts_with("req_"), "{path}: {made}");
    }
    let mut request = post(
        "/v1/completions",
        KEY,
        json!({"model": MODEL, "prompt": "a"}).to_string(),
    );
    let id = "abc-123".parse().unwrap();
    request.headers_mut().insert("x-request-id", id);
    house.ask(request).await;
    assert_eq!(house.engine.seen()[0].request.as_str(), "abc-123");
}

#[tokio::test]
async fn unknown_urls_and_methods_have_the_shape_too() {
    let house = House::new().await;
    let answer = house.get("/v1/frobnicate", KEY).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.error_code().as_deref(), Some("unknown_url"));
    let answer = house.get("/v1/chat/completions", KEY).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.error_code().as_deref(), Some("method_not_allowed"));
    assert!(answer.headers.contains_key("allow"));
}

#[tokio::test]
async fn health_is_up_and_readiness_says_what_it_waits_for() {
    let house = House::new().await;
    assert_eq!(house.get("/health", "").await.status, 200);
    let answer = house.get("/ready", "").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["models"], json!([MODEL]));
}

#[tokio::test]
async fn metrics_count_what_was_served() {
    let house = House::new().await;
    house.chat(json!({})).await;
    let text = house.get("/metrics", "").await.text;
    for line in [
        "vllm:generation_tokens_total{model_name=\"tiny\"} 7",
        "vllm:request_success_total{finished_reason=\"stop\",model_name=\"tiny\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"tiny\"} 6",
        "vllm:e2e_request_latency_seconds_count{model_name=\"tiny\"} 1",
        "trireme_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "trireme_deployment_ready{model_name=\"tiny\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_admin_makes_keys_that_work() {
    let house = House::new().await;
    let body = json!({"tenant": "globex"}).to_string();
    let answer = house.ask(post("/admin/v1/keys", ADMIN, body)).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let key = answer.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(house.get("/v1/models", &key).await.status, 200);
    for bad in [
        json!({}),
        json!({"tenant": ""}),
        json!({"tenant": 3}),
        json!({"tenant": "a", "x": 1}),
        json!([]),
    ] {
        let answer = house
            .ask(post("/admin/v1/keys", ADMIN, bad.to_string()))
            .await;
        assert_eq!(answer.status, 400, "{bad}");
        answer.error_code();
    }
    for id in ["j99", "99", "x", "%ff"] {
        let gone = Request::delete(format!("/admin/v1/tokens/{id}"))
            .header("authorization", format!("Bearer {ADMIN}"));
        let answer = house.ask(gone.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 404, "{id}");
        answer.error_code();
    }
    let list = house.get("/admin/v1/tokens", ADMIN).await;
    assert_eq!(list.json(), json!([]));
}
