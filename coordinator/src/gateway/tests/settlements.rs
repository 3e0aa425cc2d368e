//! The log of settlements by the admin API.

use super::house::{House, KEY};
use super::money::settle;
use serde_json::{Value, json};

async fn page(house: &House, query: &str) -> Value {
    let path = format!("/admin/v1/settlements{query}");
    house.done("GET", &path, Value::Null).await
}

#[tokio::test]
async fn settlements_are_told_once_each_and_in_order() {
    let house = House::new().await;
    let none = page(&house, "").await;
    assert_eq!(none["settlements"], json!([]));
    assert_eq!((&none["oldest"], &none["newest"]), (&json!(1), &json!(0)));
    settle(&house, &["req_a", "req_b", "req_c"]).await;
    let all = page(&house, "").await;
    assert_eq!(all["cluster"], "01".repeat(16));
    assert_eq!((&all["oldest"], &all["newest"]), (&json!(1), &json!(3)));
    let rows = all["settlements"].as_array().unwrap();
    let told = rows.iter().map(|row| (&row["sequence"], &row["request"]));
    let names = [json!("req_a"), json!("req_b"), json!("req_c")];
    let numbers = [json!(1), json!(2), json!(3)];
    assert!(told.eq(numbers.iter().zip(&names)));
    let mut first = rows[0].clone();
    assert!(first["settled_at_ms"].as_u64().is_some());
    first["settled_at_ms"] = json!(0);
    assert_eq!(
        first,
        json!({
            "sequence": 1, "settled_at_ms": 0, "tenant": 1, "tenant_name": "acme", "key": 1,
            "model": "tiny", "request": "req_a", "caller_id": null, "status": "finished",
            "prompt_tokens": 1_000, "cached_tokens": 400, "completion_tokens": 100,
            "charged_nano_usd": 600 * 20 + 400 * 5 + 100 * 60,
        })
    );
    // By pages.
    let mut paged = Vec::new();
    while let Some(row) =
        page(&house, &format!("?limit=1&after={}", paged.len())).await["settlements"].get(0)
    {
        paged.push(row.clone());
    }
    assert_eq!(&paged, rows);
}

#[tokio::test]
async fn only_the_admin_reads_them_and_what_is_not_known_is_refused() {
    let house = House::new().await;
    let path = "/admin/v1/settlements";
    assert_eq!(house.get(path, KEY).await.status, 403);
    assert_eq!(house.get(path, "nobody").await.status, 401);
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("after=-1", "after"),
        ("from=1", "from"),
    ] {
        let answer = house
            .admin("GET", &format!("{path}?{query}"), Value::Null)
            .await;
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.json()["error"]["param"], param);
    }
}
