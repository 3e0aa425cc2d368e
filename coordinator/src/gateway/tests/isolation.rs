//! One tenant asks for what is another's, at every route of the billing API and by every kind of name.

use super::house::{House, KEY};
use serde_json::{Value, json};

/// Every path of the document below `/billing/v1`, of `GET`.
fn routes() -> Vec<String> {
    let (_, document) = crate::gateway::openapi::documented();
    let document = serde_json::to_value(&document).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let own = paths.iter().filter(|(p, _)| p.starts_with("/billing/v1"));
    own.map(|(path, item)| {
        assert_eq!(
            item.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["get"],
            "{path}"
        );
        path.clone()
    })
    .collect()
}

#[tokio::test]
async fn nothing_of_another_tenant_is_told() {
    let house = House::new().await;
    let zeta = house.key("zeta", json!({"name": "zeta-laptop"})).await;
    for n in 0..3 {
        let id = format!("zeta-secret-{n}");
        assert_eq!(house.chat_as(&zeta, Some(&id), json!({})).await.status, 200);
    }
    house.chat_as(KEY, Some("acme-1"), json!({})).await;
    let credit = json!({"amount_nano_usd": 777_777_777, "reason": "zeta-reason"});
    house
        .done("POST", "/admin/v1/tenants/zeta/credits", credit)
        .await;
    let get = async |path: String, key: &str| house.get(&path, key).await;
    let own = get("/billing/v1/requests".into(), &zeta).await.json();
    let ids: Vec<String> = own["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 3);
    let page = get("/billing/v1/requests?limit=1".into(), &zeta)
        .await
        .json();
    let requests_cursor = page["next_cursor"].as_str().unwrap().to_owned();
    // A second key makes a second row to page over.
    let more = house.key("zeta", json!({})).await;
    house.chat_as(&more, Some("zeta-secret-9"), json!({})).await;
    let page = get("/billing/v1/usage?group_by=key&limit=1".into(), &zeta)
        .await
        .json();
    let usage_cursor = page["next_cursor"].as_str().unwrap().to_owned();
    let month = get("/billing/v1/statements".into(), &zeta).await.json()[0]["month"]
        .as_str()
        .unwrap()
        .to_owned();

    let mut asked = 0;
    for route in routes() {
        let mut paths = vec![];
        if route.ends_with("{id}") {
            let theirs = ids
                .iter()
                .cloned()
                .chain(["zeta-secret-0".into(), "req_none".into()]);
            paths.extend(theirs.map(|id| (route.replace("{id}", &id), Some(404))));
            let with_tenant = route.replace("{id}", "acme-1?tenant=zeta");
            paths.push((with_tenant, Some(400)));
        } else if route.ends_with("{month}") {
            for form in ["", ".json", ".csv", ".html"] {
                paths.push((route.replace("{month}", &format!("{month}{form}")), None));
            }
            paths.push((
                route.replace("{month}", &format!("{month}?tenant=t2")),
                Some(400),
            ));
        } else {
            paths.push((route.clone(), None));
            for name in ["tenant", "tenant_id", "account", "customer", "org", "user"] {
                for value in ["zeta", "t2", "2"] {
                    paths.push((format!("{route}?{name}={value}"), Some(400)));
                }
            }
            for cursor in [&requests_cursor, &usage_cursor] {
                let grouped = if route.ends_with("usage") {
                    "&group_by=key"
                } else {
                    ""
                };
                paths.push((format!("{route}?cursor={cursor}{grouped}"), Some(400)));
                paths.push((
                    format!("{route}?cursor={cursor}&limit=1{grouped}"),
                    Some(400),
                ));
            }
            for key in ["k2", "2", "k3", "k999"] {
                let status = if route.ends_with("requests") {
                    404
                } else {
                    400
                };
                paths.push((format!("{route}?key={key}"), Some(status)));
            }
        }
        for (path, status) in paths {
            let answer = house.get(&path, KEY).await;
            match status {
                Some(status) => {
                    assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text)
                }
                None => assert_eq!(answer.status, 200, "{path}: {}", answer.text),
            }
            // Whatever it says, it is none of the other's data. (A refusal may repeat what was asked.)
            if answer.status.is_success() {
                for secret in ["zeta", "777777777", "0.777"] {
                    assert!(!answer.text.contains(secret), "{path}: {}", answer.text);
                }
            }
            asked += 1;
        }
    }
    assert!(asked > 100, "{asked}");
    // The other's ids are answered as ids of nothing are, word for word.
    let theirs = house
        .get(&format!("/billing/v1/requests/{}", ids[0]), KEY)
        .await;
    let nobodys = house.get("/billing/v1/requests/req_none", KEY).await;
    assert_eq!(theirs.text, nobodys.text);
    let theirs = house.get("/billing/v1/requests?key=k2", KEY).await;
    let nobodys = house.get("/billing/v1/requests?key=k999", KEY).await;
    assert_eq!(theirs.text, nobodys.text);
    // And what the owner asks for is there.
    let own = house
        .get(&format!("/billing/v1/requests/{}", ids[0]), &zeta)
        .await;
    assert_eq!(own.status, 200);
    let balance = house.get("/billing/v1/balance", KEY).await.json();
    assert!(
        balance["balance_nano_usd"].as_i64().unwrap() < 0,
        "{balance}"
    );
    let usage = house.get("/billing/v1/usage", KEY).await.json();
    assert_eq!(usage["total"]["requests"], 1);
    assert_eq!(usage["rows"].as_array().map(Vec::len), Some(1));
    let keys = house
        .get("/billing/v1/usage?group_by=key", KEY)
        .await
        .json();
    assert_eq!(keys["rows"][0]["key"], Value::from(1));
}

/// Two tenants may use the same `x-request-id`: each finds its own.
#[tokio::test]
async fn an_id_of_the_callers_is_its_own() {
    let house = House::new().await;
    let zeta = house.key("zeta", json!({})).await;
    house.chat_as(&zeta, Some("zetas"), json!({})).await;
    house.chat_as(KEY, Some("acmes"), json!({})).await;
    for (key, own, other) in [(KEY, "acmes", "zetas"), (zeta.as_str(), "zetas", "acmes")] {
        let found = house.get(&format!("/billing/v1/requests/{own}"), key).await;
        assert_eq!(found.status, 200);
        let hidden = house
            .get(&format!("/billing/v1/requests/{other}"), key)
            .await;
        assert_eq!(hidden.status, 404);
    }
}
