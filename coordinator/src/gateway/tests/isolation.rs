//! One tenant asks for what is another's, at every route of the billing API and by every kind of name.

use super::house::{House, KEY};
use serde_json::{Value, json};

/// Every path of the document below `/billing/v1` that can be asked. What else can be done there is looked at in
/// `webhook`.
fn routes() -> Vec<String> {
    let (_, document) = crate::gateway::openapi::documented();
    let document = serde_json::to_value(&document).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let own = paths.iter().filter(|(p, _)| p.starts_with("/billing/v1"));
    let methods = |item: &Value| {
        item.as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    own.filter_map(|(path, item)| match path.as_str() {
        "/billing/v1/webhook/test" => {
            assert_eq!(methods(item), ["post"]);
            None
        }
        "/billing/v1/webhook" => {
            assert_eq!(methods(item), ["delete", "get", "put"]);
            Some(path.clone())
        }
        _ => {
            assert_eq!(methods(item), ["get"], "{path}");
            Some(path.clone())
        }
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
    for (key, tenant) in [(KEY, "acme"), (&zeta, "zeta")] {
        let url = format!("https://{tenant}.example.com/hook");
        let wanted = json!({"url": url, "events": ["statement.ready"]});
        let set = house
            .ask_as(key, "PUT", "/billing/v1/webhook", wanted)
            .await;
        assert_eq!(set.status, 200, "{}", set.text);
    }
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

/// A generator whose numbers do not depend on what is answered: SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn of<'a>(&mut self, all: &'a [String]) -> &'a str {
        &all[self.below(all.len())]
    }
}

/// A name as it is, or bent a little.
fn bent(name: &str, chance: &mut Chance) -> String {
    match chance.below(8) {
        0 => name.to_uppercase(),
        1 => format!("{name}%00"),
        2 => format!("..%2F{name}"),
        3 => format!("%20{name}"),
        4 => name.replacen('_', "%5F", 1),
        5 => format!("{name}%2F..%2F{name}"),
        _ => name.to_owned(),
    }
}

/// Usage, requests, keys, statements, limits and the admin's own routes, with the other's ids, names and
/// cursors in paths, parameters and headers.
#[tokio::test]
async fn ten_thousand_attempts_find_nothing_of_another_tenant() {
    const ATTEMPTS: usize = 10_000;
    let house = House::new().await;
    let zeta = house.key("zeta", json!({"name": "zeta-laptop"})).await;
    let mut names = Vec::new();
    for n in 0..4 {
        let caller = format!("zeta-secret-{n}");
        house.chat_as(&zeta, Some(&caller), json!({})).await;
        names.push(caller);
    }
    let credit = json!({"amount_nano_usd": 777_777_777, "reason": "zeta-reason"});
    house
        .done("POST", "/admin/v1/tenants/zeta/credits", credit)
        .await;
    let own = house
        .get("/billing/v1/requests?limit=2", &zeta)
        .await
        .json();
    let cursor = own["next_cursor"].as_str().unwrap();
    for request in own["requests"].as_array().unwrap() {
        names.push(request["id"].as_str().unwrap().to_owned());
    }
    names.extend(["zeta", "t2", "2", "k2", "zeta-laptop", cursor].map(str::to_owned));
    let (_, document) = crate::gateway::openapi::documented();
    let document = serde_json::to_value(&document).unwrap();
    let paths = document["paths"].as_object().unwrap().keys();
    let paths: Vec<String> = paths
        .filter(|path| path.starts_with("/billing/v1") || path.starts_with("/admin/v1"))
        .cloned()
        .collect();
    let parameters: Vec<String> = [
        "tenant", "key", "cursor", "model", "account", "from", "after", "id", "group_by", "limit",
    ]
    .map(str::to_owned)
    .into();
    let headers = [
        "x-tenant-id",
        "openai-organization",
        "x-forwarded-user",
        "x-request-id",
    ];
    let mut chance = Chance(20_261_127);
    let (mut answered, mut of_admin) = (0, 0);
    for _ in 0..ATTEMPTS {
        let mut path = chance.of(&paths).to_owned();
        while let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
            let name = bent(chance.of(&names), &mut chance);
            path.replace_range(from..=to, &name);
        }
        for n in 0..chance.below(3) {
            let name = chance.of(&parameters).to_owned();
            let value = bent(chance.of(&names), &mut chance);
            path.push_str(&format!("{}{name}={value}", if n == 0 { "?" } else { "&" }));
        }
        let mut request = axum::http::Request::get(&path);
        request = request.header("authorization", format!("Bearer {KEY}"));
        let header = headers[chance.below(headers.len())];
        request = request.header(header, chance.of(&names));
        let answer = house
            .ask(request.body(axum::body::Body::empty()).unwrap())
            .await;
        assert!(!answer.status.is_server_error(), "{path}: {}", answer.text);
        if path.starts_with("/admin/") {
            of_admin += 1;
            assert!(!answer.status.is_success(), "{path}: {}", answer.text);
        }
        if answer.status.is_success() {
            answered += 1;
            for secret in ["zeta", "777777777", "0.777"] {
                assert!(!answer.text.contains(secret), "{path}: {}", answer.text);
            }
        }
    }
    // Neither was everything refused, nor was only one API asked.
    assert!(answered > 100 && of_admin > 1_000, "{answered} {of_admin}");
}
