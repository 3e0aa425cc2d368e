//! Places that tenants share: one who floods leaves others some, and gets them back when it is done.

use super::engine::{End, Script};
use super::house::{Answer, House, KEY, chat_body, post};
use crate::state::{Command, KeySettings};
use axum::body::Body;
use axum::http::Response;
use serde_json::json;
use sha2::{Digest, Sha256};
use trireme_shared::ids::TenantId;
use trireme_shared::limits;

const OTHER_KEY: &str = "sk-tr-other";

/// A stream that says one word and then nothing more.
async fn hang(house: &House, key: &str) -> Response<Body> {
    house.engine.script(Script::says("a").then(End::Hang));
    let body = chat_body(json!({"stream": true})).to_string();
    house.send(post("/v1/chat/completions", key, body)).await
}

#[tokio::test]
async fn a_tenant_that_takes_all_it_can_leaves_others_places() {
    let house = House::new().await;
    let other = Command::CreateKey {
        tenant: "zeta".into(),
        key_hash: Sha256::digest(OTHER_KEY.as_bytes()).into(),
        settings: KeySettings::default(),
    };
    house.group.propose(other).await.unwrap();

    let mut held = Vec::new();
    let refused = loop {
        let answer = hang(&house, KEY).await;
        if answer.status() != 200 {
            break Answer::read(answer).await;
        }
        held.push(answer);
        assert!(held.len() < limits::HTTP_REQUESTS_MAX, "all are taken");
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.error_code().as_deref(), Some("overloaded"));
    assert_eq!(refused.headers["retry-after"], "1");
    let free = limits::HTTP_REQUESTS_MAX - held.len();
    assert!(held.len() <= limits::PLACES_PER_FREE * free + limits::PLACES_PER_FREE);
    assert!(
        held.len() > limits::HTTP_REQUESTS_MAX / 2,
        "alone, and refused early"
    );

    let theirs = hang(&house, OTHER_KEY).await;
    assert_eq!(theirs.status(), 200);
    let seen = house.engine.seen();
    assert_eq!(seen.last().unwrap().tenant, TenantId(2));
    assert_eq!(seen.len(), held.len() + 1, "who is refused costs no engine");

    drop((held, theirs));
    house.recorded().await;
    for _ in 0..seen.len() / 2 {
        let again = hang(&house, KEY).await;
        assert_eq!(again.status(), 200);
    }
}
