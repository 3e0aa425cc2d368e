//! Who is let in, what they are told of their limits, and what comes of a request whose gateway, money
//! or client goes away.

use super::engine::{End, Script};
use super::house::{Answer, House, KEY, chat_body, chat_prompt, post};
use crate::state::{Account, Command, Ended, Limits, Payment, RequestRow, State, TenantSettings};
use axum::body::Body;
use futures_util::StreamExt;
use serde_json::{Value, json};
use trireme_shared::ids::{CoordinatorId, NanoUsd, RequestNumber, TenantId, Tokens};

const ACME: TenantId = TenantId(1);

impl House {
    async fn tenant(&self, change: impl FnOnce(&mut TenantSettings)) {
        let mut settings = TenantSettings::default();
        change(&mut settings);
        self.does(Command::PutTenant {
            name: "acme".into(),
            settings,
        })
        .await;
    }

    async fn limits(&self, limits: Limits) {
        self.tenant(|tenant| tenant.limits = limits).await;
    }

    async fn does(&self, command: Command) {
        let outcome = self.group.propose(command).await.unwrap();
        assert!(
            !matches!(outcome, crate::state::Outcome::Refused(_)),
            "{outcome:?}"
        );
    }

    async fn credit(&self, nano: i64) {
        self.does(Command::Credit {
            tenant: ACME,
            amount: NanoUsd(nano),
            reason: "paid".into(),
        })
        .await;
    }

    /// A prepaid tenant.
    async fn prepaid(&self, nano: i64) {
        self.tenant(|tenant| tenant.payment = Payment::Prepaid)
            .await;
        self.credit(nano).await;
    }

    fn rows(&self) -> Vec<RequestRow> {
        let below = RequestNumber(u64::MAX);
        self.group
            .read(|state| state.requests_of(ACME, below).cloned().collect())
    }

    fn balance(&self) -> i64 {
        self.group
            .read(|state| state.balance(&Account::Tenant(ACME)).0)
    }

    /// Waits until the state is so.
    async fn until(&self, so: impl Fn(&State) -> bool) {
        let mut applied = self.group.applied();
        while !self.group.read(&so) {
            applied.changed().await.unwrap();
        }
    }

    async fn keyed(&self, key: &str, body: Value) -> Answer {
        let mut request = post("/v1/chat/completions", KEY, body.to_string());
        request
            .headers_mut()
            .insert("idempotency-key", key.parse().unwrap());
        self.ask(request).await
    }

    /// A stream that has sent its role and `tokens` pieces, and hangs.
    async fn hanging(&self, tokens: usize) -> axum::body::BodyDataStream {
        let text = "abcdefghij".repeat(tokens.div_ceil(10));
        self.engine
            .script(Script::says(&text[..tokens]).then(End::Hang));
        let body = chat_body(json!({"stream": true, "max_tokens": 50})).to_string();
        let response = self.send(post("/v1/chat/completions", KEY, body)).await;
        assert_eq!(response.status(), 200);
        let mut frames = response.into_body().into_data_stream();
        for _ in 0..=tokens {
            frames.next().await.unwrap().unwrap();
        }
        frames
    }
}

fn prompt() -> i64 {
    chat_prompt().len() as i64
}

/// What a chat costs by the default prices: 20 nano-dollars a token in, 60 a token out.
fn cost(completion: i64) -> i64 {
    20 * prompt() + 60 * completion
}

#[tokio::test]
async fn a_request_that_may_cost_too_much_is_refused_and_costs_nothing() {
    let house = House::new().await;
    house.prepaid(cost(10) - 1).await;
    let asked = json!({"max_tokens": 10});
    let answer = house.chat(asked.clone()).await;
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert_eq!(answer.error_code().as_deref(), Some("insufficient_quota"));
    assert!(house.engine.seen().is_empty());
    house.credit(1).await;
    // "Hello!" and the end of the turn: seven of ten.
    assert_eq!(house.chat(asked).await.status, 200);
    assert_eq!(house.balance(), cost(10) - cost(7));
}

#[tokio::test]
async fn what_was_held_and_not_used_can_be_spent_at_once() {
    let house = House::new().await;
    house.prepaid(cost(10) + 2 * cost(7)).await;
    for _ in 0..3 {
        let answer = house.chat(json!({"max_tokens": 10})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert_eq!(house.balance(), cost(10) - cost(7));
    assert_eq!(house.chat(json!({"max_tokens": 10})).await.status, 429);
}

#[tokio::test]
async fn a_stream_that_uses_up_its_hold_ends_with_length_and_a_note() {
    let house = House::new().await;
    house.prepaid(cost(20)).await;
    house.engine.script(Script::says(&"x".repeat(40)));
    let chunks = house.chat(json!({"stream": true})).await.chunks();
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(last["billing_note"].as_str().unwrap().contains("20 tokens"));
    assert_eq!(house.recorded().await.completion, Tokens(20));
    assert_eq!(house.balance(), 0);
    assert_eq!(house.rows()[0].ended, Ended::Exhausted);
    // A length that the caller set itself is no news.
    house.credit(cost(20)).await;
    house.engine.script(Script::says(&"x".repeat(40)));
    let answer = house.chat(json!({"max_tokens": 20})).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer.get("billing_note"), None);
}

#[tokio::test]
async fn limits_are_told_and_kept() {
    let house = House::new().await;
    house
        .limits(Limits {
            requests_per_minute: Some(2),
            tokens_per_minute: Some(Tokens(10_000)),
            ..Limits::default()
        })
        .await;
    let asked = json!({"max_tokens": 10});
    for left in ["1", "0"] {
        let answer = house.chat(asked.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(answer.headers["x-ratelimit-remaining-requests"], left);
        assert_eq!(answer.headers["x-ratelimit-limit-tokens"], "10000");
        assert!(answer.headers.contains_key("x-ratelimit-reset-tokens"));
    }
    let answer = house.chat(asked).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.error_code().as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(answer.json()["error"]["type"], "requests");
    let wait: u64 = answer.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(answer.headers["x-ratelimit-remaining-requests"], "0");
    assert!(answer.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn as_many_run_at_once_as_may() {
    let mut house = House::new().await;
    house
        .limits(Limits {
            concurrency: Some(1),
            ..Limits::default()
        })
        .await;
    let frames = house.hanging(1).await;
    let answer = house.chat(json!({})).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.error_code().as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(answer.headers["retry-after"], "1");
    drop(frames);
    house.cancels.recv().await.unwrap();
    house.recorded().await;
    assert_eq!(house.chat(json!({})).await.status, 200);
}

#[tokio::test]
async fn one_key_and_body_is_charged_once_however_often_it_is_sent() {
    let house = House::new().await;
    house.prepaid(1_000_000).await;
    let body = chat_body(json!({"max_tokens": 10}));
    for _ in 0..3 {
        assert_eq!(house.keyed("k", body.clone()).await.status, 200);
    }
    house.recorded().await;
    let rows = house.rows();
    assert_eq!((rows.len(), rows[0].attempts.len()), (1, 2));
    assert_eq!(house.balance(), 1_000_000 - cost(7));
    let other = chat_body(json!({"max_tokens": 11}));
    assert_eq!(house.keyed("k", other).await.status, 200);
    house.recorded().await;
    assert_eq!(house.rows().len(), 2);
    let bad = house.keyed(&"k".repeat(129), body).await;
    assert_eq!(bad.status, 400);
}

#[tokio::test]
async fn the_cost_is_told_to_who_asks() {
    let house = House::new().await;
    let mut request = post(
        "/v1/chat/completions",
        KEY,
        chat_body(json!({})).to_string(),
    );
    let headers = request.headers_mut();
    headers.insert("x-trireme-cost", "true".parse().unwrap());
    let answer = house.ask(request).await;
    let told = answer.headers["x-trireme-cost-nano-usd"].to_str().unwrap();
    let cost = answer.json()["usage"]["cost_nano_usd"].as_i64().unwrap();
    assert_eq!(told, cost.to_string());
    assert!(cost > 0);
    let answer = house.chat(json!({})).await;
    assert!(!answer.headers.contains_key("x-trireme-cost-nano-usd"));
}

#[tokio::test]
async fn a_stream_is_told_of_while_it_runs_and_billed_if_its_gateway_dies() {
    let mut house = House::new().await;
    let frames = house.hanging(5).await;
    let told = |state: &State| {
        let counts = state.open_requests().map(|open| open.progress.counts);
        counts.map(|c| c.completion.0).max() == Some(5)
    };
    house.until(told).await;
    // What a new gateway of this coordinator does first, or the leader for one that is gone.
    let coordinator = CoordinatorId(1);
    house.does(Command::OpenGateway { coordinator }).await;
    let row = house.rows().remove(0);
    assert_eq!(
        (row.ended, row.counts.completion),
        (Ended::GatewayLost, Tokens(5))
    );
    assert_eq!(row.counts.prompt, Tokens(prompt() as u64));
    // The gateway finds out, and goes on under another life; what it says later adds nothing.
    assert_eq!(house.chat(json!({})).await.status, 200);
    drop(frames);
    house.cancels.recv().await.unwrap();
    let recorded = house.recorded().await;
    assert_eq!(recorded.completion, Tokens(5 + 7));
    assert_eq!(house.rows().len(), 2);
}

#[tokio::test]
async fn what_an_idle_gateway_was_lent_goes_back() {
    let house = House::new().await;
    house.prepaid(1_000_000_000).await;
    for _ in 0..3 {
        assert_eq!(house.chat(json!({"max_tokens": 9})).await.status, 200);
    }
    let subject = crate::state::Subject::Tenant(ACME);
    let lent = move |state: &State| state.lent(subject).money.0;
    house.until(|state| lent(state) == 0).await;
    let request = post("/v1/chat/completions", KEY, Body::from("{}"));
    assert_eq!(house.ask(request).await.status, 400);
}
