//! Money by the admin API: credits, refunds, the ledger, providers.

use super::house::{ADMIN, House, MODEL, post};
use crate::state::{Account, Command, Counts, Ended, Final, Outcome, Progress, Report, Work};
use serde_json::{Value, json};
use trireme_shared::ids::{KeyId, NanoUsd, RequestId, TenantId};
use trireme_shared::wall_clock::unix_ms;

/// Settles requests as another coordinator's gateway does, with the work of a provider's machines.
pub async fn settle(house: &House, names: &[&str]) {
    let life = house.life_elsewhere().await;
    for name in names {
        let report = Report {
            finals: vec![Final {
                progress: Progress {
                    request: RequestId::parse(name).unwrap(),
                    caller_id: None,
                    tenant: TenantId(1),
                    key: KeyId(1),
                    model: MODEL.into(),
                    began_at_ms: unix_ms(),
                    idempotency: None,
                    counts: Counts::new(1_000, 400, 100),
                    work: vec![Work {
                        provider: Some("hosts".into()),
                        units: 1,
                    }],
                },
                ended: Ended::Finished,
            }],
            ..Report::new(life)
        };
        let outcome = house.group.propose(Command::Report { report }).await;
        assert!(
            matches!(outcome, Ok(Outcome::Reported { .. })),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn money_is_moved_by_postings_with_a_reason() {
    let house = House::new().await;
    settle(&house, &["req_a"]).await;
    let charged = 600 * 20 + 400 * 5 + 100 * 60;
    let credit = json!({"amount_nano_usd": 100_000, "reason": "invoice 7"});
    let posted = house
        .done("POST", "/admin/v1/tenants/acme/credits", credit)
        .await;
    assert_eq!(
        (&posted["type"], &posted["by"]),
        (&json!("credit"), &json!("admin"))
    );
    assert_eq!(posted["reason"], "invoice 7");
    assert_eq!(
        posted["lines"][0],
        json!({"account": "tenant:acme", "amount_nano_usd": 100_000})
    );
    let refund = json!({"amount_nano_usd": 500, "reason": "slow"});
    let posted = house
        .done("POST", "/admin/v1/requests/req_a/refunds", refund)
        .await;
    assert_eq!(
        (&posted["type"], &posted["request"]),
        (&json!("refund"), &json!("req_a"))
    );
    let told = house
        .done("GET", "/admin/v1/requests/req_a", Value::Null)
        .await;
    assert_eq!(
        (&told["tenant_name"], &told["work"][0]["provider"]),
        (&json!("acme"), &json!("hosts"))
    );
    assert_eq!(told["request"]["charged_nano_usd"], charged);
    assert_eq!(told["request"]["refunded_nano_usd"], 500);
    assert_eq!(told["postings"].as_array().unwrap().len(), 2);
    let sum: i64 = told["postings"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|p| p["lines"].as_array().unwrap())
        .map(|line| line["amount_nano_usd"].as_i64().unwrap())
        .sum();
    assert_eq!(sum, 0);
    // Taking back what is there, and not more; never without a reason.
    let back = json!({"amount_nano_usd": -1_000, "reason": "typo"});
    house
        .done("POST", "/admin/v1/tenants/acme/credits", back)
        .await;
    let balance = house
        .group
        .read(|s| s.balance(&Account::Tenant(TenantId(1))));
    assert_eq!(balance, NanoUsd(100_000 - 1_000 - charged + 500));
    for (path, body, status) in [
        (
            "/admin/v1/tenants/acme/credits",
            json!({"amount_nano_usd": 1, "reason": ""}),
            400,
        ),
        (
            "/admin/v1/tenants/acme/credits",
            json!({"amount_nano_usd": 0, "reason": "r"}),
            400,
        ),
        (
            "/admin/v1/tenants/acme/credits",
            json!({"amount_nano_usd": 1.5, "reason": "r"}),
            400,
        ),
        (
            "/admin/v1/tenants/acme/credits",
            json!({"amount_nano_usd": i64::MIN, "reason": "r"}),
            400,
        ),
        (
            "/admin/v1/tenants/none/credits",
            json!({"amount_nano_usd": 1, "reason": "r"}),
            404,
        ),
        (
            "/admin/v1/requests/none/refunds",
            json!({"amount_nano_usd": 1, "reason": "r"}),
            404,
        ),
        (
            "/admin/v1/requests/req_a/refunds",
            json!({"amount_nano_usd": charged, "reason": "r"}),
            400,
        ),
        (
            "/admin/v1/requests/req_a/refunds",
            json!({"amount_nano_usd": -1, "reason": "r"}),
            400,
        ),
    ] {
        let answer = house.admin("POST", path, body.clone()).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
    }
    // The ledger, page by page and by account.
    let page = house
        .done("GET", "/admin/v1/ledger?limit=2", Value::Null)
        .await;
    assert_eq!(
        (
            page["postings"].as_array().unwrap().len(),
            &page["next_after"]
        ),
        (2, &json!(2))
    );
    let rest = house
        .done("GET", "/admin/v1/ledger?after=2", Value::Null)
        .await;
    assert_eq!(rest["postings"].as_array().unwrap().len(), 2);
    assert_eq!(rest["next_after"], Value::Null);
    let hosts = house
        .done(
            "GET",
            "/admin/v1/ledger?account=provider:hosts",
            Value::Null,
        )
        .await;
    assert_eq!(hosts["postings"].as_array().unwrap().len(), 1);
    for (query, status) in [
        ("account=tenant:none", 404),
        ("account=x", 404),
        ("limit=0", 400),
    ] {
        let answer = house
            .admin("GET", &format!("/admin/v1/ledger?{query}"), Value::Null)
            .await;
        assert_eq!(answer.status, status, "{query}");
    }
}

#[tokio::test]
async fn a_credit_that_is_asked_again_is_posted_once() {
    let house = House::new().await;
    let body = json!({"amount_nano_usd": 5, "reason": "r"}).to_string();
    for _ in 0..3 {
        let mut request = post("/admin/v1/tenants/acme/credits", ADMIN, body.clone());
        let once = "credit-once".parse().unwrap();
        request.headers_mut().insert("idempotency-key", once);
        let answer = house.ask(request).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        assert_eq!(answer.json()["id"], 1);
    }
    let balance = house
        .group
        .read(|s| s.balance(&Account::Tenant(TenantId(1))));
    assert_eq!(balance, NanoUsd(5));
    let acts = house.group.read(|s| {
        let acts = s
            .audit_records()
            .filter(|r| r.what.contains("credit tenant"));
        acts.count()
    });
    assert_eq!(acts, 1, "the audit log tells of it once");
}

#[tokio::test]
async fn providers_are_told_of_earnings_and_paid() {
    let house = House::new().await;
    settle(&house, &["req_a", "req_b"]).await;
    let earned = 2 * (20_000 * 9 / 10);
    let all = house.done("GET", "/admin/v1/providers", Value::Null).await;
    assert_eq!(all[0]["name"], "hosts");
    assert_eq!(all[0]["balance_nano_usd"], earned);
    assert_eq!(all[0]["month_earned_nano_usd"], earned);
    let days = house
        .done("GET", "/admin/v1/providers/hosts/earnings", Value::Null)
        .await;
    assert_eq!(days["total_nano_usd"], earned);
    let payout = json!({"amount_nano_usd": 1_000, "reason": "November"});
    house
        .done("POST", "/admin/v1/providers/hosts/payouts", payout)
        .await;
    let month = days["days"][0]["day"].as_str().unwrap()[..7].to_owned();
    let path = format!("/admin/v1/providers/hosts/statements/{month}");
    let statement = house.done("GET", &path, Value::Null).await;
    let of = |name: &str| statement[name].as_i64().unwrap();
    assert_eq!(of("paid_out_nano_usd"), 1_000);
    assert_eq!(
        of("opening_nano_usd") + of("earned_nano_usd") - of("paid_out_nano_usd"),
        of("closing_nano_usd")
    );
    assert_eq!(statement["provisional"], true);
    for (method, path, body, status) in [
        ("GET", "/admin/v1/providers/none/earnings", Value::Null, 404),
        (
            "GET",
            "/admin/v1/providers/hosts/statements/2999-01",
            Value::Null,
            404,
        ),
        (
            "GET",
            "/admin/v1/providers/hosts/earnings?from=2026-01-01T03:00:00Z",
            Value::Null,
            400,
        ),
        (
            "POST",
            "/admin/v1/providers/none/payouts",
            json!({"amount_nano_usd": 1, "reason": "r"}),
            404,
        ),
        (
            "POST",
            "/admin/v1/providers/hosts/payouts",
            json!({"amount_nano_usd": earned, "reason": "r"}),
            400,
        ),
    ] {
        let answer = house.admin(method, path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
}
