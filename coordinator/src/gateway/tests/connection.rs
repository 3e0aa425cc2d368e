//! Over real TCP: clients that leave, bodies that are too large, draining.

use super::engine::{End, Script};
use super::house::{House, KEY, chat_body};
use crate::gateway::serve;
use serde_json::json;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::Tokens;
use trireme_shared::limits;

async fn listen(house: &House) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, house.gateway.clone(), shutdown.clone()));
    (address, shutdown, serving)
}

async fn send(address: SocketAddr, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    loop {
        let seen = String::from_utf8_lossy(&text).into_owned();
        if seen.contains(end) {
            return seen;
        }
        let read = stream.read_buf(&mut text).await.unwrap();
        assert!(read > 0, "the connection ended after {seen}");
    }
}

#[tokio::test]
async fn a_closed_connection_cancels_an_answer_that_is_being_collected() {
    let mut house = House::new().await;
    let (address, ..) = listen(&house).await;
    house.engine.script(Script::says("abc").then(End::Hang));
    let stream = send(address, &chat_body(json!({})).to_string()).await;
    while house.engine.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    // The prompt was worked on, but nothing was delivered.
    loop {
        let metrics = house.get("/metrics", "").await.text;
        if metrics.contains("vllm:generation_tokens_total{model_name=\"tiny\"} 3") {
            break;
        }
    }
    drop(stream);
    house.cancels.recv().await.unwrap();
    let recorded = house.recorded().await;
    assert_eq!(
        (recorded.requests, recorded.prompt, recorded.completion),
        (1, Tokens(0), Tokens(0))
    );
}

#[tokio::test]
async fn a_closed_connection_cancels_a_stream() {
    let mut house = House::new().await;
    let (address, ..) = listen(&house).await;
    house.engine.script(Script::says("abc").then(End::Hang));
    let body = chat_body(json!({"stream": true})).to_string();
    let mut stream = send(address, &body).await;
    read_until(&mut stream, "\"content\":\"c\"").await;
    drop(stream);
    house.cancels.recv().await.unwrap();
    assert_eq!(house.recorded().await.completion, Tokens(3));
}

#[tokio::test]
async fn a_body_too_large_is_answered_and_not_reset() {
    let house = House::new().await;
    let (address, ..) = listen(&house).await;
    let body = " ".repeat(limits::HTTP_BODY_BYTES_MAX + 1);
    let mut stream = send(address, &body).await;
    let answer = read_until(&mut stream, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_drain_lets_running_answers_end_and_takes_no_new_ones() {
    let house = House::new().await;
    let (address, shutdown, serving) = listen(&house).await;
    house.engine.script(Script::says("abc"));
    let body = chat_body(json!({"stream": true})).to_string();
    let mut stream = send(address, &body).await;
    read_until(&mut stream, "\"content\":\"a\"").await;
    shutdown.cancel();
    read_until(&mut stream, "[DONE]").await;
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(house.recorded().await.completion, Tokens(4));
}
