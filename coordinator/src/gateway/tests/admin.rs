//! Keys, routes, ids, health and metrics.

use super::house::{ADMIN, House, KEY, MODEL, post};
use crate::gateway::server::PeerAddress;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
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
    let created = |s: &crate::state::State| s.deployment_named(MODEL).unwrap().created_at;
    let created = house.group.read(created);
    assert_eq!(
        list["data"],
        json!([{"id": MODEL, "object": "model", "created": created, "owned_by": "trireme"}])
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

/// A request of the admin's, with an idempotency key or without.
fn admin(method: &str, path: &str, key: Option<&str>, body: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {ADMIN}"))
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let from = PeerAddress(([10, 0, 0, 7], 4_000).into());
    request
        .extension(from)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

#[tokio::test]
async fn a_write_asked_again_under_its_key_takes_effect_once_and_gives_no_false_secret() {
    let house = House::new().await;
    let given = house.get("/admin/v1/idempotency-key", ADMIN).await.json();
    let given = given["key"].as_str().unwrap().to_owned();
    let token = r#"{"role":"worker","uses":1,"ttl_seconds":60}"#;
    let tenant = r#"{"tenant":"globex"}"#;
    for key in [given.as_str(), "of the client's own"] {
        let ask = |path: &'static str, body: &'static str| {
            house.ask(admin("POST", path, Some(key), body))
        };
        assert_eq!(ask("/admin/v1/tokens", token).await.status, 201);
        let again = ask("/admin/v1/tokens", token).await;
        assert_eq!(again.status, 409, "{}", again.text);
        assert_eq!(again.error_code().as_deref(), Some("done_before"));
        // The same key elsewhere is another write.
        assert_eq!(ask("/admin/v1/keys", tenant).await.status, 201);
        assert_eq!(ask("/admin/v1/keys", tenant).await.status, 409);
    }
    let tokens = house.get("/admin/v1/tokens", ADMIN).await.json();
    assert_eq!(tokens.as_array().unwrap().len(), 2);
    // What has no secret is simply answered again.
    for _ in 0..2 {
        let revoke = admin("DELETE", "/admin/v1/tokens/j1", Some("r"), "");
        assert_eq!(house.ask(revoke).await.json()["revoked"], json!(true));
    }
    let acts = house.group.read(|s| s.audit_head().seq);
    assert_eq!(acts, 5, "two tokens, two keys, one revocation");
}

#[tokio::test]
async fn keys_that_cannot_keep_their_promise_are_refused() {
    let house = House::new().await;
    // Its count of commands is of another history.
    let ahead = format!("k{}.{}", u64::MAX, "0".repeat(32));
    let body = r#"{"tenant":"globex"}"#;
    let answer = house
        .ask(admin("POST", "/admin/v1/keys", Some(&ahead), body))
        .await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    for bad in ["", &"x".repeat(129), "na\u{ef}ve"] {
        let mut request = admin("POST", "/admin/v1/keys", None, body);
        let value = axum::http::HeaderValue::from_bytes(bad.as_bytes()).unwrap();
        request.headers_mut().insert("idempotency-key", value);
        assert_eq!(house.ask(request).await.status, 400, "{bad:?}");
    }
    assert_eq!(house.group.read(|s| s.tenants().count()), 1);
}

#[tokio::test]
async fn acts_are_written_down_with_who_and_from_where() {
    let house = House::new().await;
    house
        .ask(admin("POST", "/admin/v1/keys", None, r#"{"tenant":"a"}"#))
        .await;
    house
        .ask(admin("DELETE", "/admin/v1/nodes/w9", None, ""))
        .await;
    let answer = house.get("/admin/v1/audit?after=0&limit=10", ADMIN).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let verified = crate::state::audit::verify(answer.text.lines(), None).unwrap();
    let head = answer.headers["x-trireme-audit-head"].to_str().unwrap();
    let hash = hex::encode(verified.head);
    assert_eq!(head, format!("2:{hash}"));
    let last: serde_json::Value =
        serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["who"], &last["from"]),
        (&json!("admin"), &json!("10.0.0.7:4000"))
    );
    assert!(
        last["outcome"].as_str().unwrap().starts_with("refused"),
        "{last}"
    );
    let rest = house.get("/admin/v1/audit?after=1", ADMIN).await;
    assert_eq!(rest.text.lines().count(), 1);
    for bad in ["limit=0", "limit=1000000", "after=x", "since=1"] {
        let answer = house.get(&format!("/admin/v1/audit?{bad}"), ADMIN).await;
        assert_eq!(answer.status, 400, "{bad}");
        answer.error_code();
    }
}

#[tokio::test]
async fn a_backup_is_recorded_and_whole() {
    let house = House::new().await;
    let request = admin("GET", "/admin/v1/backup", None, "");
    let response = house.send(request).await;
    assert_eq!(response.status(), 200);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let state = crate::backup::read(&bytes[..], None).unwrap();
    let newest = state.audit_records().next_back().unwrap();
    assert_eq!(newest.what, "back up the cluster");
    // An act that cannot be recorded is refused.
    house.group.close().await;
    let request = admin("GET", "/admin/v1/backup", None, "");
    let answer = house.ask(request).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn the_group_is_shown_with_its_leader_and_old_news_is_called_so() {
    let house = House::new().await;
    let status = house.get("/admin/v1/status", ADMIN).await.json();
    assert_eq!(status["leader"], json!(1));
    assert_eq!(status["stale"], json!(false));
    let one = &status["coordinators"][0];
    assert_eq!(
        (&one["role"], &one["pid"], &one["lag"]),
        (&json!("leader"), &json!(1), &json!(0))
    );
    assert_eq!(status["commit"], status["log"]["applied"]);
    let nodes = house.get("/admin/v1/nodes", ADMIN).await.json();
    assert_eq!(nodes[0]["id"], json!("c1"));
    house.group.close().await;
    let status = house.get("/admin/v1/status", ADMIN).await;
    assert_eq!(status.json()["stale"], json!(true), "{}", status.text);
}

#[tokio::test]
async fn members_nodes_and_deployments_that_are_not_there_are_404() {
    let house = House::new().await;
    for (method, path) in [
        ("DELETE", "/admin/v1/members/9"),
        ("DELETE", "/admin/v1/members/w1"),
        ("POST", "/admin/v1/members/c9/promote"),
        ("DELETE", "/admin/v1/nodes/w9"),
        ("DELETE", "/admin/v1/nodes/9"),
        ("DELETE", "/admin/v1/nodes/%ff"),
        ("DELETE", "/admin/v1/deployments/none"),
    ] {
        let answer = house.ask(admin(method, path, None, "")).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
        answer.error_code();
    }
    // The last voter stays.
    let answer = house
        .ask(admin("DELETE", "/admin/v1/members/c1", None, ""))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    let gone = admin(
        "DELETE",
        &format!("/admin/v1/deployments/{MODEL}"),
        None,
        "",
    );
    assert_eq!(house.ask(gone).await.json()["removed"], json!(MODEL));
    assert_eq!(house.group.read(|s| s.deployments().count()), 0);
}

#[tokio::test]
async fn a_precision_that_there_is_not_is_refused_by_its_name() {
    let house = House::new().await;
    for (precision, named) in [
        (json!({"quantize": "q5"}), "`q5`, expected `q8` or `q4`"),
        (json!({"quantise": "q8"}), "unknown field `quantise`"),
    ] {
        let body = json!({
            "model": {"name": "m", "source": "m.gguf"}, "tensor_parallel": 1,
            "pipeline_parallel": 1, "replicas": 1, "link": "auto", "precision": precision,
        });
        let put = admin("PUT", "/admin/v1/deployments", None, &body.to_string());
        let answer = house.ask(put).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text.contains(named), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_rotation_begins_once() {
    let house = House::new().await;
    let ca = house.get("/admin/v1/ca", ADMIN).await.json();
    assert_eq!(
        (ca["authorities"].as_array().unwrap().len(), &ca["rotation"]),
        (1, &json!(null))
    );
    let begun = house
        .ask(admin("POST", "/admin/v1/ca/rotate", None, ""))
        .await
        .json();
    assert_eq!(begun["authorities"].as_array().unwrap().len(), 2);
    assert!(begun["rotation"].as_str().unwrap().contains("trust"));
    let signing = |ca: &serde_json::Value| {
        let all = ca["authorities"].as_array().unwrap().clone();
        all.into_iter().find(|a| a["signs"] == json!(true)).unwrap()["fingerprint"].clone()
    };
    assert_eq!(
        signing(&begun),
        signing(&ca),
        "the new one does not sign yet"
    );
    let again = house
        .ask(admin("POST", "/admin/v1/ca/rotate", None, ""))
        .await;
    assert_eq!(again.status, 400, "{}", again.text);
}
