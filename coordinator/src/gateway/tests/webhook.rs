//! A tenant's webhook: set by its own key, its secret shown once, another tenant's as if it were not there.

use super::house::{ADMIN, Answer, House, KEY};
use crate::state::webhooks::Event;
use crate::webhooks::letter;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use trireme_shared::ids::TenantId;
use trireme_shared::limits;

const PATH: &str = "/billing/v1/webhook";
const TEST: &str = "/billing/v1/webhook/test";

async fn ask(house: &House, method: &str, path: &str, key: &str, body: Value) -> Answer {
    house.ask_as(key, method, path, body).await
}

/// Under an idempotency key.
async fn ask_once(house: &House, method: &str, path: &str, body: Value, once: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("authorization", format!("Bearer {KEY}"));
    request = request.header("content-type", "application/json");
    request = request.header("idempotency-key", once);
    house
        .ask(request.body(Body::from(body.to_string())).unwrap())
        .await
}

fn at(url: &str) -> Value {
    json!({"url": url, "events": ["budget.threshold", "statement.ready"]})
}

#[tokio::test]
async fn a_webhook_is_set_shown_tested_and_removed() {
    let house = House::new().await;
    for (method, path) in [("GET", PATH), ("DELETE", PATH), ("POST", TEST)] {
        let answer = ask(&house, method, path, KEY, Value::Null).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
    }
    let set = ask(&house, "PUT", PATH, KEY, at("https://example.com/a")).await;
    assert_eq!(set.status, 200, "{}", set.text);
    let secret = set.json()["secret"].as_str().unwrap().to_owned();
    let kept = house.group.read(|s| s.webhook(TenantId(1)).unwrap().secret);
    assert_eq!(secret, letter::shown(&kept));
    assert!(secret.starts_with("whsec_"));
    // Shown once: not by what is asked, nor by what is set again, unless another is wanted.
    let shown = ask(&house, "GET", PATH, KEY, Value::Null).await.json();
    let mut expected = at("https://example.com/a");
    expected["events"] = json!(["budget.threshold", "statement.ready"]);
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(shown[field], *value);
    }
    assert_eq!(shown.get("secret"), None);
    let body = json!({"url": "https://example.com/b", "events": ["statement.ready"]});
    let again = ask(&house, "PUT", PATH, KEY, body).await.json();
    assert_eq!(again["secret"], Value::Null);
    assert_eq!(again["url"], "https://example.com/b");
    assert_eq!(again["events"], json!(["statement.ready"]));
    let mut rotated = at("https://example.com/b");
    rotated["rotate"] = json!(true);
    let rotated = ask(&house, "PUT", PATH, KEY, rotated).await.json();
    assert_ne!(rotated["secret"], json!(secret));
    assert!(rotated["secret"].is_string());

    let tested = ask(&house, "POST", TEST, KEY, Value::Null).await;
    assert_eq!(tested.status, 202, "{}", tested.text);
    let waiting = |house: &House| {
        let ids = |s: &crate::state::State| s.webhook_events().map(Event::id).collect::<Vec<_>>();
        house.group.read(ids)
    };
    assert_eq!(json!(waiting(&house)), json!([tested.json()["id"]]));
    let shown = ask(&house, "GET", PATH, KEY, Value::Null).await.json();
    assert_eq!(shown["waiting"], 1);
    let gone = ask(&house, "DELETE", PATH, KEY, Value::Null).await;
    assert_eq!(
        (gone.status.as_u16(), &gone.json()["waiting"]),
        (200, &json!(1))
    );
    assert_eq!(waiting(&house).len(), 0);
    let missing = ask(&house, "GET", PATH, KEY, Value::Null).await;
    assert_eq!(missing.status, 404);
    // Who did what is written down, without the secret and the path.
    let log = house.group.read(|s| {
        s.audit_records()
            .map(|r| r.what.clone())
            .collect::<Vec<_>>()
    });
    let acts: Vec<_> = log.iter().filter(|what| what.contains("webhook")).collect();
    assert_eq!(
        acts,
        [
            "set the webhook of t1 at example.com",
            "set the webhook of t1 at example.com",
            "set the webhook of t1 at example.com, with a new secret",
            "test the webhook of t1",
            "remove the webhook of t1",
        ]
    );
}

#[tokio::test]
async fn what_is_no_webhook_is_refused_in_words() {
    let house = House::new().await;
    for (body, param) in [
        (at("http://example.com"), Some("url")),
        (at("https://10.1.2.3/x"), Some("url")),
        (at("https://[::1]/x"), Some("url")),
        (at("https://me@example.com/x"), Some("url")),
        (
            json!({"url": "https://example.com", "events": []}),
            Some("events"),
        ),
        (json!({"url": "https://example.com", "events": ["x"]}), None),
        (json!({"url": "https://example.com"}), None),
        (
            json!({"url": "https://example.com", "events": [], "secret": "x"}),
            None,
        ),
    ] {
        let answer = ask(&house, "PUT", PATH, KEY, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(
            answer.json()["error"]["param"],
            json!(param),
            "{}",
            answer.text
        );
    }
    let odd = format!("{PATH}?tenant=zeta");
    let good = at("https://example.com");
    for (path, key, status) in [
        (odd.as_str(), KEY, 400),
        (PATH, ADMIN, 403),
        (PATH, "sk-x", 401),
    ] {
        let answer = ask(&house, "PUT", path, key, good.clone()).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    let narrow = house.key("acme", json!({"scopes": ["inference"]})).await;
    for (method, path) in [
        ("GET", PATH),
        ("PUT", PATH),
        ("DELETE", PATH),
        ("POST", TEST),
    ] {
        let answer = ask(&house, method, path, &narrow, good.clone()).await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text);
    }
    assert!(house.group.read(|s| s.webhook(TenantId(1)).is_none()));
}

#[tokio::test]
async fn a_webhook_is_its_tenants_own() {
    let house = House::new().await;
    let other = house.key("zeta", json!({})).await;
    let set = ask(&house, "PUT", PATH, KEY, at("https://example.com/acme")).await;
    assert_eq!(set.status, 200);
    for (method, path) in [("GET", PATH), ("DELETE", PATH), ("POST", TEST)] {
        let answer = ask(&house, method, path, &other, Value::Null).await;
        assert_eq!(answer.status, 404, "{method}: {}", answer.text);
        assert!(!answer.text.contains("acme"), "{}", answer.text);
    }
    let set = ask(&house, "PUT", PATH, &other, at("https://example.com/zeta")).await;
    assert!(set.json()["secret"].is_string());
    let own = ask(&house, "GET", PATH, KEY, Value::Null).await.json();
    assert_eq!(own["url"], "https://example.com/acme");
}

#[tokio::test]
async fn a_write_under_one_key_is_one_and_its_secret_is_given_once() {
    let house = House::new().await;
    let put = || ask_once(&house, "PUT", PATH, at("https://example.com"), "mine");
    let first = put().await;
    assert!(first.json()["secret"].is_string(), "{}", first.text);
    let again = put().await;
    assert_eq!(again.status, 409, "{}", again.text);
    assert_eq!(again.error_code().as_deref(), Some("done_before"));
    let test = || ask_once(&house, "POST", TEST, Value::Null, "mine");
    let (one, two) = (test().await, test().await);
    assert_eq!(one.json(), two.json());
    assert_eq!(house.group.read(|s| s.webhook_events().count()), 1);
}

#[tokio::test]
async fn a_tenant_that_asks_too_often_is_told_when_to_come_back() {
    let house = House::new().await;
    ask(&house, "PUT", PATH, KEY, at("https://example.com")).await;
    let mut refused = None;
    // The bucket fills while it is emptied, but not as fast as that.
    for _ in 0..10 * limits::WEBHOOK_ACTS_PER_MINUTE {
        let answer = ask(&house, "POST", TEST, KEY, Value::Null).await;
        if answer.status != 202 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("there is a bound");
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.error_code().as_deref(), Some("rate_limit_exceeded"));
    let wait: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60 / limits::WEBHOOK_ACTS_PER_MINUTE).contains(&wait));
    // What is refused costs the group nothing.
    let before = house.group.read(|s| s.audit_head());
    ask(&house, "PUT", PATH, KEY, at("https://example.com/other")).await;
    assert_eq!(house.group.read(|s| s.audit_head()), before);
}
