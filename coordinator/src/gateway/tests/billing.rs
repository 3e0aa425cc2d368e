//! The billing API of a tenant: balance, limits, prices, usage, requests, statements.

use super::house::{Answer, House, KEY, MODEL, chat_prompt};
use crate::state::{Command, Counts, Progress, Report, Subject};
use axum::body::Body;
use axum::http::{Request, header};
use serde_json::{Value, json};
use trireme_shared::ids::{KeyId, RequestId, TenantId};
use trireme_shared::wall_clock::unix_ms;

async fn told(house: &House, path: &str) -> Value {
    let answer = house.get(path, KEY).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.json()
}

async fn refused(house: &House, path: &str) -> Answer {
    let answer = house.get(path, KEY).await;
    assert!(answer.status.is_client_error(), "{path}: {}", answer.text);
    answer.error_code();
    answer
}

/// What one chat of the house costs by the default prices.
fn chat_cost() -> i64 {
    chat_prompt().len() as i64 * 20 + 7 * 60
}

#[tokio::test]
async fn the_balance_says_what_is_there_owed_and_lent() {
    let house = House::new().await;
    let settings = json!({"payment": {"type": "credit", "limit_nano_usd": 1_000_000}});
    house.done("PUT", "/admin/v1/tenants/acme", settings).await;
    let credit = json!({"amount_nano_usd": 50_000, "reason": "r"});
    house
        .done("POST", "/admin/v1/tenants/acme/credits", credit)
        .await;
    house.chat(json!({})).await;
    let balance = told(&house, "/billing/v1/balance").await;
    let is = 50_000 - chat_cost();
    let lent = house
        .group
        .read(|s| s.lent(Subject::Tenant(TenantId(1))).money.0);
    assert_eq!(
        balance,
        json!({
            "balance_nano_usd": is, "credit_limit_nano_usd": 1_000_000, "lent_nano_usd": lent,
            "available_nano_usd": is + 1_000_000 - lent,
        })
    );
}

#[tokio::test]
async fn limits_say_what_is_left_and_until_when() {
    let house = House::new().await;
    let limits = json!({
        "payment": {"type": "prepaid"}, "monthly_budget_nano_usd": 10_000_000,
        "limits": {"tokens_per_day": 100_000, "requests_per_minute": 1_000},
    });
    house.done("PUT", "/admin/v1/tenants/acme", limits).await;
    let credit = json!({"amount_nano_usd": 9_000_000, "reason": "r"});
    house
        .done("POST", "/admin/v1/tenants/acme/credits", credit)
        .await;
    house
        .done(
            "PUT",
            "/admin/v1/keys/k1",
            json!({"limits": {"concurrency": 8}}),
        )
        .await;
    house.chat(json!({})).await;
    let all = told(&house, "/billing/v1/limits").await;
    let state = house.group.snapshot();
    let now = unix_ms();
    let left = state.left(Subject::Tenant(TenantId(1)), now).unwrap();
    let day = &all["tenant"]["tokens_per_day"];
    assert_eq!(day["limit"], 100_000);
    assert_eq!(day["left"], left.tokens_per_day.unwrap().0);
    assert_eq!(day["resets_at"].as_u64().unwrap() % 86_400, 0);
    let budget = &all["tenant"]["monthly_budget"];
    assert_eq!(budget["spent_nano_usd"], chat_cost());
    assert_eq!(budget["resets_at"].as_u64().unwrap() % 86_400, 0);
    assert_eq!(all["tenant"]["requests_per_minute"]["limit"], 1_000);
    assert_eq!(all["tenant"]["concurrency"], Value::Null);
    assert_eq!(all["key"]["concurrency"]["limit"], 8);
    assert_eq!(all["key"]["tokens_per_day"], Value::Null);
}

#[tokio::test]
async fn prices_are_told_of_models_that_the_key_may_use() {
    let house = House::new().await;
    let soon = unix_ms() / 1_000 + 1_000;
    for (model, from) in [("secret", soon), (MODEL, soon)] {
        let list = json!({"effective_from": from, "input_nano_usd": 1, "cached_input_nano_usd": 1,
                          "output_nano_usd": 1});
        house
            .done("PUT", &format!("/admin/v1/prices/{model}"), list)
            .await;
    }
    let all = told(&house, "/billing/v1/prices").await;
    assert_eq!(all.as_array().unwrap().len(), 2);
    let key = house.key("acme", json!({"models": [MODEL]})).await;
    let own = house.get("/billing/v1/prices", &key).await.json();
    assert_eq!(own.as_array().unwrap().len(), 1);
    assert_eq!(
        (&own[0]["model"], &own[0]["served"]),
        (&json!(MODEL), &json!(true))
    );
    assert_eq!(own[0]["in_force"]["input_nano_usd"], 20_000_000);
    assert_eq!(own[0]["announced"][0]["effective_from"], soon);
}

#[tokio::test]
async fn usage_is_summed_as_asked_and_paged() {
    let house = House::new().await;
    let second = house.key("acme", json!({"name": "b"})).await;
    for key in [KEY, KEY, second.as_str()] {
        assert_eq!(house.chat_as(key, None, json!({})).await.status, 200);
    }
    let day = told(&house, "/billing/v1/usage").await;
    assert_eq!(day["group_by"], json!(["day"]));
    assert_eq!(day["total"]["requests"], 3);
    assert_eq!(day["total"]["cost_nano_usd"], 3 * chat_cost());
    assert_eq!(day["rows"][0]["begins_at"].as_u64().unwrap() % 86_400, 0);
    assert_eq!(day["next_cursor"], Value::Null);
    let hours = told(&house, "/billing/v1/usage?group_by=hour,model,key").await;
    let of_hours: u64 = hours["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["requests"].as_u64().unwrap())
        .sum();
    assert_eq!(of_hours, 3);
    assert_eq!(hours["rows"][0]["model"], MODEL);
    // Two keys, a row each, one by one.
    let first = told(&house, "/billing/v1/usage?group_by=key&limit=1").await;
    assert_eq!(first["rows"][0]["key"], 1);
    assert_eq!(first["rows"][0]["requests"], 2);
    assert_eq!(first["total"]["requests"], 3, "of all pages");
    let cursor = first["next_cursor"].as_str().unwrap();
    let next = told(
        &house,
        &format!("/billing/v1/usage?group_by=key&limit=9&cursor={cursor}"),
    )
    .await;
    assert_eq!(next["rows"].as_array().unwrap().len(), 1);
    assert_eq!(next["rows"][0]["key"], 2);
    assert_eq!(next["next_cursor"], Value::Null);
    for (query, param) in [
        (format!("group_by=model&cursor={cursor}"), "cursor"),
        (
            format!("group_by=key&from=2026-01-01&to=2026-01-02&cursor={cursor}"),
            "cursor",
        ),
        ("group_by=key&cursor=x".to_owned(), "cursor"),
        ("tenant=zeta".to_owned(), "tenant"),
        ("limit=100000".to_owned(), "limit"),
        ("from=yesterday".to_owned(), "from"),
    ] {
        let answer = refused(&house, &format!("/billing/v1/usage?{query}")).await;
        assert_eq!(answer.json()["error"]["param"], param, "{query}");
    }
    // What the admin is told of the tenant is the same.
    let admin = house
        .done(
            "GET",
            "/admin/v1/tenants/acme/usage?group_by=key&limit=1",
            Value::Null,
        )
        .await;
    assert_eq!(admin, first);
}

#[tokio::test]
async fn a_request_says_how_its_price_came_about() {
    let house = House::new().await;
    assert_eq!(
        house
            .chat_as(KEY, Some("my-own-id"), json!({}))
            .await
            .status,
        200
    );
    let one = told(&house, "/billing/v1/requests/my-own-id").await;
    let prompt = chat_prompt().len() as i64;
    let priced = &one["how_priced"];
    assert_eq!(
        priced["parts"],
        json!([
            {"part": "input", "tokens": prompt, "price_nano_usd": 20_000_000,
             "amount_femto_usd": prompt * 20_000_000},
            {"part": "cached_input", "tokens": 0, "price_nano_usd": 5_000_000, "amount_femto_usd": 0},
            {"part": "output", "tokens": 7, "price_nano_usd": 60_000_000,
             "amount_femto_usd": 420_000_000},
        ])
    );
    assert_eq!(priced["sum_femto_usd"], prompt * 20_000_000 + 420_000_000);
    assert_eq!(priced["cost_nano_usd"], chat_cost());
    assert_eq!(one["request"]["status"], "finished");
    assert_eq!(one["request"]["charged_nano_usd"], chat_cost());
    assert_eq!(one["postings"][0]["amount_nano_usd"], -chat_cost());
    assert_eq!(one["postings"].as_array().unwrap().len(), 1);
    let id = one["request"]["id"].as_str().unwrap();
    let refund = json!({"amount_nano_usd": 11, "reason": "slow"});
    house
        .done("POST", &format!("/admin/v1/requests/{id}/refunds"), refund)
        .await;
    let one = told(&house, &format!("/billing/v1/requests/{id}")).await;
    assert_eq!(one["request"]["refunded_nano_usd"], 11);
    assert_eq!(one["postings"][1]["reason"], "slow");
    for missing in ["none", "%ff", "two%20words"] {
        assert_eq!(
            refused(&house, &format!("/billing/v1/requests/{missing}"))
                .await
                .status,
            404
        );
    }
}

/// A request of which a gateway told, and that has not ended.
async fn tell_of(house: &House, name: &str, caller: &str) {
    let life = house.life_elsewhere().await;
    let mut report = Report::new(life);
    report.progress.push(Progress {
        request: RequestId::parse(name).unwrap(),
        caller_id: RequestId::parse(caller),
        tenant: TenantId(1),
        key: KeyId(1),
        model: MODEL.into(),
        began_at_ms: unix_ms(),
        idempotency: None,
        counts: Counts::new(10, 4, 5),
        work: Vec::new(),
    });
    house
        .group
        .propose(Command::Report { report })
        .await
        .unwrap();
}

#[tokio::test]
async fn requests_are_listed_newest_first_and_running_ones_before_them() {
    let house = House::new().await;
    let second = house.key("acme", json!({})).await;
    for n in 0..5 {
        let key = if n == 3 { second.as_str() } else { KEY };
        house
            .chat_as(key, Some(&format!("id-{n}")), json!({}))
            .await;
    }
    tell_of(&house, "req_running", "mine").await;
    let ids = |page: &Value| -> Vec<String> {
        let all = page["requests"].as_array().unwrap().iter();
        all.map(|r| match r["caller_id"].as_str() {
            Some(id) => id.to_owned(),
            None => r["id"].as_str().unwrap().to_owned(),
        })
        .collect()
    };
    let first = told(&house, "/billing/v1/requests?limit=3").await;
    assert_eq!(ids(&first), ["mine", "id-4", "id-3"]);
    assert_eq!(first["requests"][0]["status"], "running");
    assert_eq!(first["requests"][0]["cost_nano_usd"], 440);
    assert_eq!(first["requests"][0]["ended_at"], Value::Null);
    let cursor = first["next_cursor"].as_str().unwrap();
    let next = told(
        &house,
        &format!("/billing/v1/requests?limit=9&cursor={cursor}"),
    )
    .await;
    assert_eq!(ids(&next), ["id-2", "id-1", "id-0"]);
    assert_eq!(next["next_cursor"], Value::Null);
    let of_key = told(&house, "/billing/v1/requests?key=k2").await;
    assert_eq!(ids(&of_key), ["id-3"]);
    let none = told(&house, "/billing/v1/requests?to=2020-01-01").await;
    assert_eq!(ids(&none).len(), 0);
    let of_model = told(&house, "/billing/v1/requests?model=other").await;
    assert_eq!(ids(&of_model).len(), 0);
    // By our id and by the caller's.
    for id in ["req_running", "mine"] {
        let one = told(&house, &format!("/billing/v1/requests/{id}")).await;
        assert_eq!(one["request"]["status"], "running");
        assert_eq!(one["how_priced"]["cost_nano_usd"], 440);
    }
    // A page of nothing but running ones leads to all others.
    let only = told(&house, "/billing/v1/requests?limit=1").await;
    assert_eq!(ids(&only), ["mine"]);
    let cursor = only["next_cursor"].as_str().unwrap();
    let next = told(
        &house,
        &format!("/billing/v1/requests?limit=1&cursor={cursor}"),
    )
    .await;
    assert_eq!(ids(&next), ["id-4"]);
    let answer = refused(&house, "/billing/v1/requests?sort=old").await;
    assert_eq!(answer.json()["error"]["param"], "sort");
}

#[tokio::test]
async fn statements_come_in_three_forms() {
    let house = House::new().await;
    house.chat(json!({})).await;
    let credit = json!({"amount_nano_usd": 1_000, "reason": "r"});
    house
        .done("POST", "/admin/v1/tenants/acme/credits", credit)
        .await;
    let months = told(&house, "/billing/v1/statements").await;
    assert_eq!(months.as_array().unwrap().len(), 1);
    assert_eq!(months[0]["provisional"], true);
    let closing = 1_000 - chat_cost();
    assert_eq!(months[0]["closing_nano_usd"], closing);
    let month = months[0]["month"].as_str().unwrap();
    let path = format!("/billing/v1/statements/{month}");
    let statement = told(&house, &path).await;
    assert_eq!(statement["charges_nano_usd"], chat_cost());
    assert_eq!(statement["closing_nano_usd"], closing);
    assert_eq!(statement["models"][0]["model"], MODEL);
    assert_eq!(statement["models"][0]["cost_nano_usd"], chat_cost());
    assert_eq!(statement["keys"][0]["key"], 1);
    assert_eq!(told(&house, &format!("{path}.json")).await, statement);
    let csv = house.get(&format!("{path}.csv"), KEY).await;
    assert!(
        csv.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/csv")
    );
    assert!(csv.text.contains(&format!("acme,{month},true,closing")));
    let html = house.get(&format!("{path}.html"), KEY).await;
    assert!(html.text.starts_with("<!doctype html>"));
    let policy = html.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let request = Request::get(&path)
        .header("authorization", format!("Bearer {KEY}"))
        .header(header::ACCEPT, "text/csv")
        .body(Body::empty());
    assert_eq!(house.ask(request.unwrap()).await.text, csv.text);
    let admin = format!("/admin/v1/tenants/acme/statements/{month}");
    assert_eq!(house.done("GET", &admin, Value::Null).await, statement);
    let admin = house
        .done("GET", "/admin/v1/tenants/acme/statements", Value::Null)
        .await;
    assert_eq!(admin, months);
    for missing in ["2020-01", "2999-12", "2026", "x.csv", "2026-01.pdf", "%ff"] {
        let answer = refused(&house, &format!("/billing/v1/statements/{missing}")).await;
        assert_eq!(answer.status, 404, "{missing}");
    }
}
