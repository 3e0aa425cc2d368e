//! What providers' machines did for a request is settled with it.

use super::engine::{End, LENDER, Script};
use super::house::{House, KEY, chat_body, post};
use crate::state::{Account, Work};
use futures_util::StreamExt;
use serde_json::json;

async fn lent(house: &House) -> (Vec<Work>, i64) {
    house.recorded().await;
    let earned = Account::Provider(LENDER.into());
    house.group.read(|state| {
        let last = state.requests().last().unwrap();
        (last.work.clone(), state.balance(&earned).0)
    })
}

fn units(units: u64) -> Vec<Work> {
    let provider = Some(LENDER.to_owned());
    vec![Work { provider, units }]
}

#[tokio::test]
async fn the_work_of_all_choices_is_settled_and_paid() {
    let house = House::new().await;
    for _ in 0..3 {
        house.engine.script(Script::says("abc"));
    }
    assert_eq!(house.chat(json!({"n": 3})).await.status, 200);
    let (work, earned) = lent(&house).await;
    assert_eq!(work, units(12));
    assert!(earned > 0);
}

#[tokio::test]
async fn work_for_a_client_that_left_is_settled_too() {
    let house = House::new().await;
    house.engine.script(Script::says("abc").then(End::Hang));
    let body = chat_body(json!({"stream": true})).to_string();
    let response = house.send(post("/v1/chat/completions", KEY, body)).await;
    let mut frames = response.into_body().into_data_stream();
    // The role and the first token.
    for _ in 0..2 {
        frames.next().await.unwrap().unwrap();
    }
    drop(frames);
    let (work, earned) = lent(&house).await;
    assert_eq!(work, units(3));
    assert!(earned > 0);
}
