//! The admin API of accounts: tenants, keys, prices.

use super::house::{ADMIN, House, KEY, MODEL, chat_body, post};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

#[tokio::test]
async fn tenants_are_set_by_name_and_told_with_what_they_have() {
    let house = House::new().await;
    let settings = json!({
        "payment": {"type": "credit", "limit_nano_usd": 5_000},
        "monthly_budget_nano_usd": 9_000, "weight": 3,
        "limits": {"requests_per_minute": 60, "concurrency": 2},
    });
    // A name with a slash and a space is one part of the path.
    let path = "/admin/v1/tenants/big%2Fco%20";
    let made = house.done("PUT", path, settings.clone()).await;
    assert_eq!((&made["name"], &made["id"]), (&json!("big/co "), &json!(2)));
    assert_eq!(made["settings"]["status"], "active");
    assert_eq!(made["left"]["funds_nano_usd"], 5_000);
    assert_eq!(made["left"]["concurrency"], 2);
    let told = house.done("GET", path, Value::Null).await;
    assert_eq!(told, made);
    // A full object: what is left out is not bounded any more.
    let set = house
        .done(
            "PUT",
            path,
            json!({"status": "suspended", "payment": {"type": "prepaid"}}),
        )
        .await;
    assert_eq!(set["settings"]["monthly_budget_nano_usd"], Value::Null);
    assert_eq!(set["settings"]["weight"], 1);
    assert_eq!(
        (&set["id"], &set["left"]["concurrency"]),
        (&json!(2), &Value::Null)
    );
    let all = house.done("GET", "/admin/v1/tenants", Value::Null).await;
    let names: Vec<_> = all.as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert_eq!(names, ["acme", "big/co "]);
    for (path, body, status) in [
        ("/admin/v1/tenants/x", json!({}), 400),
        (
            "/admin/v1/tenants/x",
            json!({"payment": {"type": "gift"}}),
            400,
        ),
        (
            "/admin/v1/tenants/x",
            json!({"payment": {"type": "prepaid"}, "wieght": 1}),
            400,
        ),
        (
            "/admin/v1/tenants/x",
            json!({"payment": {"type": "prepaid"}, "weight": 0}),
            400,
        ),
        (
            "/admin/v1/tenants/x?dry=1",
            json!({"payment": {"type": "prepaid"}}),
            400,
        ),
        (
            "/admin/v1/tenants/%0a",
            json!({"payment": {"type": "prepaid"}}),
            400,
        ),
    ] {
        let answer = house.admin("PUT", path, body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        answer.error_code();
    }
    assert_eq!(
        house
            .admin("GET", "/admin/v1/tenants/x", Value::Null)
            .await
            .status,
        404
    );
    let stray = house
        .admin("GET", "/admin/v1/tenants?all=1", Value::Null)
        .await;
    assert_eq!(stray.json()["error"]["param"], "all");
}

#[tokio::test]
async fn a_key_opens_what_it_is_for_and_no_more() {
    let house = House::new().await;
    let plain = house.key("acme", json!({})).await;
    assert_eq!(house.get("/v1/models", &plain).await.status, 200);
    assert_eq!(house.get("/billing/v1/balance", &plain).await.status, 200);
    let billing = house.key("acme", json!({"scopes": ["billing"]})).await;
    assert_eq!(house.get("/billing/v1/balance", &billing).await.status, 200);
    for answer in [
        house.get("/v1/models", &billing).await,
        house.chat_as(&billing, None, json!({})).await,
    ] {
        assert_eq!(answer.status, 403);
        assert_eq!(
            answer.error_code().as_deref(),
            Some("insufficient_permissions")
        );
    }
    let inference = house.key("acme", json!({"scopes": ["inference"]})).await;
    assert_eq!(house.get("/v1/models", &inference).await.status, 200);
    let answer = house.get("/billing/v1/balance", &inference).await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.error_code().as_deref(),
        Some("insufficient_permissions")
    );
    assert_eq!(house.get("/billing/v1/balance", ADMIN).await.status, 403);
    // Of models only those that it names; another is as one that is not served.
    let other = house.key("acme", json!({"models": ["other"]})).await;
    assert_eq!(
        house.get("/v1/models", &other).await.json()["data"],
        json!([])
    );
    for answer in [
        house.get(&format!("/v1/models/{MODEL}"), &other).await,
        house.chat_as(&other, None, json!({})).await,
        house
            .ask(post(
                "/v1/completions",
                &other,
                json!({"model": MODEL, "prompt": "a"}).to_string(),
            ))
            .await,
    ] {
        assert_eq!(answer.status, 404, "{}", answer.text);
        assert_eq!(answer.error_code().as_deref(), Some("model_not_found"));
    }
    assert!(house.engine.seen().is_empty());
    let named = house.key("acme", json!({"models": [MODEL]})).await;
    assert_eq!(house.chat_as(&named, None, json!({})).await.status, 200);
    for wrong in [
        json!({"tenant": "a", "scopes": []}),
        json!({"tenant": "a", "scopes": ["admin"]}),
        json!({"tenant": "a", "secret": "x"}),
        json!({"tenant": "a", "limits": {"per_second": 1}}),
        json!({"tenant": "a", "models": vec!["m"; 65]}),
        json!({"tenant": "a", "name": "two\nlines"}),
    ] {
        let answer = house.admin("POST", "/admin/v1/keys", wrong.clone()).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn keys_are_set_rotated_and_revoked() {
    let house = House::new().await;
    let old = house
        .key("zeta", json!({"name": "laptop", "models": [MODEL]}))
        .await;
    let listed = house
        .done("GET", "/admin/v1/keys?tenant=zeta", Value::Null)
        .await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["id"], 2);
    assert_eq!(listed[0]["settings"]["name"], "laptop");
    assert_eq!(listed[0]["status"], "works");
    assert!(!listed.to_string().contains(&old), "never the key");
    let set = house
        .done(
            "PUT",
            "/admin/v1/keys/k2",
            json!({"name": "phone", "limits": {"tokens_per_day": 7}}),
        )
        .await;
    assert_eq!(set["settings"]["models"], Value::Null);
    assert_eq!(set["left"]["tokens_per_day"], 7);
    let rotated = house
        .done(
            "POST",
            "/admin/v1/keys/2/rotate",
            json!({"overlap_seconds": 3_600}),
        )
        .await;
    let new = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!(
        (&rotated["key_id"], &rotated["tenant"]),
        (&json!(3), &json!(2))
    );
    for key in [&old, &new] {
        assert_eq!(house.get("/v1/models", key).await.status, 200, "both work");
    }
    let told = house.done("GET", "/admin/v1/keys/k3", Value::Null).await;
    assert_eq!(
        (&told["replaces"], &told["settings"]["name"]),
        (&json!(2), &json!("phone"))
    );
    // Without an overlap the older one ends at once.
    let third = house
        .done("POST", "/admin/v1/keys/k3/rotate", json!({}))
        .await;
    assert_eq!(house.get("/v1/models", &new).await.status, 401);
    let third = third["key"].as_str().unwrap().to_owned();
    let revoked = house.done("DELETE", "/admin/v1/keys/k4", Value::Null).await;
    assert_eq!(revoked["status"], "revoked");
    assert_eq!(house.get("/v1/models", &third).await.status, 401);
    let ended = house
        .admin("POST", "/admin/v1/keys/k4/rotate", json!({}))
        .await;
    assert_eq!(ended.status, 400, "{}", ended.text);
    for (method, path, body) in [
        ("GET", "/admin/v1/keys/k99", Value::Null),
        ("GET", "/admin/v1/keys/%ff", Value::Null),
        ("PUT", "/admin/v1/keys/k99", json!({})),
        ("DELETE", "/admin/v1/keys/x", Value::Null),
        ("POST", "/admin/v1/keys/k99/rotate", json!({})),
        ("GET", "/admin/v1/keys?tenant=nobody", Value::Null),
    ] {
        let answer = house.admin(method, path, body).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
    }
    let long = json!({"overlap_seconds": 93 * 86_400});
    let answer = house.admin("POST", "/admin/v1/keys/k1/rotate", long).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_rotation_that_is_asked_again_makes_no_second_key() {
    let house = House::new().await;
    let ask = || {
        let mut request = post("/admin/v1/keys/k1/rotate", ADMIN, json!({}).to_string());
        let once = "rotate-once".parse().unwrap();
        request.headers_mut().insert("idempotency-key", once);
        house.ask(request)
    };
    assert_eq!(ask().await.status, 201);
    let again = ask().await;
    assert_eq!(again.status, 409, "{}", again.text);
    assert_eq!(again.error_code().as_deref(), Some("done_before"));
    assert_eq!(house.group.read(|s| s.keys().count()), 2);
}

#[tokio::test]
async fn prices_are_announced_and_the_fee_is_set() {
    let house = House::new().await;
    let now = trireme_shared::wall_clock::unix_seconds();
    let list = |from: u64| {
        json!({"effective_from": from, "input_nano_usd": 1, "cached_input_nano_usd": 2,
               "output_nano_usd": 3, "minimum_nano_usd": 4})
    };
    let set = house
        .done("PUT", "/admin/v1/prices/org/m", list(now + 500))
        .await;
    assert_eq!(set[0]["model"], "org/m");
    assert_eq!(set[0]["effective_from"], now + 500);
    assert_eq!(set[0]["prices"]["minimum_nano_usd"], 4);
    let all = house.done("GET", "/admin/v1/prices", Value::Null).await;
    assert_eq!(all["lists"], set);
    assert_eq!(all["default"]["output_nano_usd"], 60_000_000);
    for wrong in [
        list(now - 5),
        list(0),
        json!({"input_nano_usd": 1}),
        json!({
        "input_nano_usd": 0.5, "cached_input_nano_usd": 0, "output_nano_usd": 0}),
    ] {
        let answer = house
            .admin("PUT", "/admin/v1/prices/m", wrong.clone())
            .await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
    let told = house
        .done("PUT", "/admin/v1/fee", json!({"basis_points": 2_500}))
        .await;
    assert_eq!(told, house.done("GET", "/admin/v1/fee", Value::Null).await);
    assert_eq!(told["basis_points"], 2_500);
    let answer = house
        .admin("PUT", "/admin/v1/fee", json!({"basis_points": 10_001}))
        .await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn accounts_are_the_admins_only() {
    let house = House::new().await;
    for path in [
        "/admin/v1/tenants",
        "/admin/v1/tenants/acme",
        "/admin/v1/tenants/acme/usage",
        "/admin/v1/tenants/acme/requests",
        "/admin/v1/tenants/acme/statements",
        "/admin/v1/tenants/acme/statements/2026-01",
        "/admin/v1/keys",
        "/admin/v1/keys/k1",
        "/admin/v1/prices",
        "/admin/v1/fee",
        "/admin/v1/requests/x",
        "/admin/v1/ledger",
        "/admin/v1/providers",
    ] {
        assert_eq!(house.get(path, KEY).await.status, 403, "{path}");
        let nobody = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(house.ask(nobody).await.status, 401, "{path}");
    }
    for path in [
        "/admin/v1/tenants/acme/credits",
        "/admin/v1/keys/k1/rotate",
        "/admin/v1/keys",
    ] {
        let answer = house
            .ask(post(path, KEY, chat_body(json!({})).to_string()))
            .await;
        assert_eq!(answer.status, 403, "{path}");
    }
}
