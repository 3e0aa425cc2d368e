//! The document against the router.

use super::house::House;
use axum::body::Body;
use axum::http::Request;
use serde_json::Value;

async fn document(house: &House) -> Value {
    house.get("/openapi.json", "").await.json()
}

/// Operations of the document: method, path, what is said of it.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods.map(move |(method, of)| (method.to_uppercase(), path.clone(), of.clone()))
    });
    all.collect()
}

/// What documents a route registers it (`routes!`), and nothing else registers one.
#[test]
fn every_route_is_registered_by_what_documents_it() {
    fn files(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true if path.ends_with("tests") => {}
                true => files(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gateway");
    files(std::path::Path::new(folder), &mut found);
    assert!(found.len() > 30);
    for file in found {
        let code = std::fs::read_to_string(&file).unwrap();
        for word in [".route(", ".nest(", ".route_service(", ".nest_service("] {
            assert!(!code.contains(word), "{} uses {word}", file.display());
        }
    }
}

#[tokio::test]
async fn every_operation_of_the_document_is_a_route() {
    let house = House::new().await;
    let document = document(&house).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let operations = operations(&document);
    assert!(operations.len() > 45, "{}", operations.len());
    for (method, path, of) in &operations {
        assert!(!path.contains('*'), "{path}");
        let named = |name: &str| path.contains(&format!("{{{name}}}"));
        let parameters = of["parameters"].as_array().cloned().unwrap_or_default();
        let in_path: Vec<_> = parameters.iter().filter(|p| p["in"] == "path").collect();
        assert_eq!(in_path.len(), path.matches('{').count(), "{path}");
        assert!(
            in_path.iter().all(|p| named(p["name"].as_str().unwrap())),
            "{path}"
        );
        let mut asked = path.clone();
        for name in ["id", "name", "model", "month"] {
            asked = asked.replace(&format!("{{{name}}}"), "x");
        }
        assert!(!asked.contains('{'), "{path}");
        let request = Request::builder().method(method.as_str()).uri(&asked);
        let answer = house.ask(request.body(Body::empty()).unwrap()).await;
        let keyed = of["security"].is_array();
        let open = path == "/ready" || answer.status.is_success();
        assert!(
            if keyed { answer.status == 401 } else { open },
            "{method} {path}: {}",
            answer.text
        );
        // A path that is there has no other method than those documented.
        let others = ["GET", "PUT", "POST", "DELETE", "PATCH"]
            .into_iter()
            .filter(|other| {
                let same = |(m, p, _): &&(String, String, Value)| m == other && p == path;
                !operations.iter().any(|operation| same(&operation))
            });
        for other in others {
            let request = Request::builder().method(other).uri(&asked);
            let answer = house.ask(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status, 405, "{other} {path}");
        }
    }
}

#[tokio::test]
async fn every_status_that_a_route_can_give_is_listed() {
    let house = House::new().await;
    let document = document(&house).await;
    for (method, path, of) in operations(&document) {
        let listed = |status: u16| of["responses"].get(status.to_string()).is_some();
        let mut wanted = vec![];
        if of["security"].is_array() {
            wanted.extend([401, 403, 500, 503]);
            wanted.push(400);
        }
        let body = of["requestBody"].is_object();
        if body {
            wanted.extend([408, 413, 415]);
        }
        if method != "GET" && path.starts_with("/admin") {
            wanted.push(409);
        }
        if path.contains('{') {
            wanted.push(404);
        }
        if method == "POST" && path.starts_with("/v1") {
            wanted.extend([404, 429]);
        }
        for status in wanted {
            assert!(listed(status), "{method} {path} does not list {status}");
        }
        let good = of["responses"].as_object().unwrap();
        assert!(
            good.keys().any(|status| status.starts_with('2')),
            "{method} {path}"
        );
    }
}

/// Whatever the document refers to is in it.
#[tokio::test]
async fn no_reference_leads_nowhere() {
    let house = House::new().await;
    let document = document(&house).await;
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    found.push(reference.to_owned());
                }
                fields.values().for_each(|v| references(v, found));
            }
            Value::Array(all) => all.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    for reference in found {
        let path = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(path).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_page_tells_all_of_it_and_stands_alone() {
    let house = House::new().await;
    let page = house.get("/docs", "").await;
    assert_eq!(page.status, 200);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"));
    for (method, path, _) in operations(&document(&house).await) {
        let told = format!("<span class=\"m\">{method}</span> {path}</h3>");
        assert!(page.text.contains(&told), "{method} {path}");
    }
    for banned in ["<script", "src=", "href=\"http", "url(", "@import"] {
        assert!(!page.text.contains(banned), "{banned}");
    }
}
