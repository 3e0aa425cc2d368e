//! HTTP to a coordinator (or any OpenAI-compatible server): JSON questions, and streams of events.
//!
//! Several addresses are tried in order; the next one only where the one before could not be
//! connected to, so nothing is ever asked twice. A stream is read on a thread of its own, so that
//! its reader can stop waiting at any time; dropping a [`EventStream`] closes the connection at the
//! next event, which cancels the work on the server.

use crate::failure::Failure;
use crate::sse::SseParser;
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use trireme_shared::limits;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

/// A server and the key to show it. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    urls: Vec<String>,
    key: Option<String>,
}

/// One event of a stream and when it was read.
pub struct Event {
    pub at: Instant,
    pub data: Value,
}

/// A running stream.
pub struct EventStream {
    items: Receiver<Result<Event>>,
}

/// What waiting for the next event gave.
pub enum Next {
    Event(Event),
    /// Nothing yet.
    Waiting,
    /// The server ended the stream well.
    End,
}

impl Client {
    /// `urls` are bases such as `http://127.0.0.1:8080`; a missing scheme is `http://`, a trailing
    /// `/v1` is taken off.
    pub fn new(urls: &[String], key: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // The server is often on this machine; a proxy from the environment would be wrong.
            .proxy(None)
            .timeout_connect(Some(limits::CONNECT_DEADLINE))
            .timeout_per_read(Some(limits::CLIENT_STREAM_SILENCE_MAX))
            .timeout_recv_response(Some(limits::CLIENT_DEPLOY_DEADLINE))
            .max_idle_connections_per_host(limits::BENCH_CONCURRENCY_MAX)
            .user_agent(concat!("cluster/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            urls: urls.iter().map(|url| base(url)).collect(),
            key,
        }
    }

    /// The first address.
    pub fn url(&self) -> &str {
        self.urls.first().map_or("", String::as_str)
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None, limits::CLIENT_ANSWER_DEADLINE)
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::DELETE, path, None, limits::CLIENT_ANSWER_DEADLINE)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.ask(
            Method::POST,
            path,
            Some(body),
            limits::CLIENT_ANSWER_DEADLINE,
        )
    }

    /// `PUT` may take as long as fetching a model.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.ask(
            Method::PUT,
            path,
            Some(body),
            limits::CLIENT_DEPLOY_DEADLINE,
        )
    }

    /// The bare status of a `GET`, e.g. of `/ready`.
    pub fn status_of(&self, path: &str) -> Result<u16> {
        let deadline = limits::CLIENT_ANSWER_DEADLINE;
        Ok(self
            .send(Method::GET, path, None, Some(deadline))?
            .status()
            .as_u16())
    }

    /// Posts `body` and reads the answer as a stream of JSON events up to `[DONE]`.
    pub fn stream(&self, path: &str, body: &impl Serialize) -> Result<EventStream> {
        let body = serde_json::to_vec(body)?;
        let (send, items) = sync_channel(limits::CLIENT_STREAM_EVENTS_MAX);
        let (client, path) = (self.clone(), path.to_owned());
        std::thread::Builder::new()
            .name("stream".into())
            .spawn(move || {
                if let Err(error) = client.pump(&path, body, &send) {
                    // Nobody listens any more: then nobody needs the error either.
                    let _ = send.send(Err(error));
                }
            })?;
        Ok(EventStream { items })
    }

    fn pump(&self, path: &str, body: Vec<u8>, send: &SyncSender<Result<Event>>) -> Result<()> {
        let response = self.send(Method::POST, path, Some(body), None)?;
        if !response.status().is_success() {
            return Err(self.refusal(path, response));
        }
        let mut reader = BufReader::new(response.into_body().into_reader());
        let mut parser = SseParser::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            let bound = limits::CLIENT_EVENT_BYTES_MAX as u64;
            let read = (&mut reader).take(bound).read_until(b'\n', &mut line);
            let read = read.map_err(|error| self.broken(path).because(error))?;
            if line.last() != Some(&b'\n') {
                let why = if read as u64 == bound {
                    "a line is too long"
                } else {
                    "it ended early"
                };
                return Err(self.broken(path).because(why));
            }
            line.pop();
            let Some(data) = parser.line(&String::from_utf8_lossy(&line)) else {
                continue;
            };
            let at = Instant::now();
            if data == "[DONE]" {
                // Reading to the body's end lets the connection be used again.
                let _ = reader.take(bound).read_to_end(&mut line);
                return Ok(());
            }
            let data: Value =
                serde_json::from_str(&data).map_err(|error| self.broken(path).because(error))?;
            if let Some(error) = data.get("error") {
                return Err(self.broken(path).because(message_of(error)));
            }
            if send.send(Ok(Event { at, data })).is_err() {
                return Ok(());
            }
        }
    }

    fn broken(&self, path: &str) -> Failure {
        Failure::new(
            format!("the stream from {}{path} broke", self.url()),
            "look at `cluster status` and the logs of the processes named there",
        )
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<T> {
        let mut response = self.send(method, path, body, Some(deadline))?;
        if !response.status().is_success() {
            return Err(self.refusal(path, response));
        }
        response
            .body_mut()
            .with_config()
            .limit(limits::CLIENT_ANSWER_BYTES_MAX)
            .read_json()
            .map_err(|error| {
                Failure::new(
                    format!(
                        "{}{path} gave an answer that this version cannot read",
                        self.url()
                    ),
                    "check that the address is a Trireme coordinator of the same version",
                )
                .because(error)
            })
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Option<Duration>,
    ) -> Result<Response<Body>> {
        let mut tried: Option<ureq::Error> = None;
        for url in &self.urls {
            match self.send_to(url, &method, path, body.as_deref(), deadline) {
                Ok(response) => return Ok(response),
                Err(error) if not_connected(&error) => tried = Some(error),
                Err(error) => {
                    return Err(Failure::new(
                        format!("{url} did not answer {method} {path}"),
                        "look at `cluster status` and at the coordinator's log",
                    )
                    .because(error));
                }
            }
        }
        let failure = Failure::new(
            format!("cannot reach {}", self.urls.join(" or ")),
            "start a cluster with `cluster up`, or name a running one with --coordinator URL",
        );
        Err(match tried {
            Some(error) => failure.because(error),
            None => failure.into(),
        })
    }

    fn send_to(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: Option<&[u8]>,
        deadline: Option<Duration>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{url}{path}"));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        match body {
            Some(body) => {
                let request = request
                    .header("content-type", "application/json")
                    .body(body)?;
                let request = self.agent.configure_request(request);
                self.agent.run(request.timeout_global(deadline).build())
            }
            None => {
                let request = self.agent.configure_request(request.body(())?);
                self.agent.run(request.timeout_global(deadline).build())
            }
        }
    }

    /// An answer that is not a success, as an error with the server's own words.
    fn refusal(&self, path: &str, mut response: Response<Body>) -> anyhow::Error {
        let status = response.status();
        let body: Option<Value> = response
            .body_mut()
            .with_config()
            .limit(limits::CLIENT_ANSWER_BYTES_MAX)
            .read_json()
            .ok();
        let said = body
            .as_ref()
            .and_then(|body| body.get("error"))
            .map_or_else(|| "no reason was given".to_owned(), message_of);
        let next = match status.as_u16() {
            401 | 403 => "pass the right key with --api-key or in TRIREME_API_KEY",
            404 if path.starts_with("/admin/v1/tokens") => "`cluster token list` shows the tokens",
            404 => "check the address, and the model's name with `cluster status`",
            429 | 503 => "try again in a moment; `cluster status` shows what is not ready",
            _ => "",
        };
        Failure::new(
            format!("{}{path} answered {}: {said}", self.url(), status.as_u16()),
            next,
        )
        .into()
    }
}

impl EventStream {
    /// The next event, waiting at most `wait`.
    pub fn next(&self, wait: Duration) -> Result<Next> {
        match self.items.recv_timeout(wait) {
            Ok(item) => item.map(Next::Event),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Waiting),
            Err(RecvTimeoutError::Disconnected) => Ok(Next::End),
        }
    }
}

fn base(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    let url = url.strip_suffix("/v1").unwrap_or(url);
    if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    }
}

fn message_of(error: &Value) -> String {
    match error.get("message").unwrap_or(error) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The server never saw the question, so that another may be asked.
fn not_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Timeout(t) => matches!(t, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::Io(io) => io.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers one connection after another with the given bytes; the address is returned.
    pub fn serve(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut socket, _) = listener.accept().unwrap();
                let mut seen = BufReader::new(socket.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    seen.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                seen.read_exact(&mut body).unwrap();
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        format!("http://{address}")
    }

    pub fn answer(status: &str, kind: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn dead_address() -> String {
        // Bound and dropped: nothing listens there now.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    }

    #[test]
    fn the_next_address_is_tried_only_where_one_cannot_be_reached() {
        let live = serve(vec![answer("200 OK", "application/json", "[1,2]")]);
        let client = Client::new(&[dead_address(), live], None);
        assert_eq!(client.get::<Vec<u32>>("/x").unwrap(), [1, 2]);

        let refusing = serve(vec![answer(
            "401 Unauthorized",
            "application/json",
            r#"{"error":{"message":"wrong key"}}"#,
        )]);
        // The second would hang the test's server if it were asked: it answers nothing.
        let client = Client::new(&[refusing, dead_address()], Some("k".into()));
        let error = client.get::<Vec<u32>>("/x").unwrap_err().to_string();
        assert!(
            error.contains("401") && error.contains("wrong key"),
            "{error}"
        );
    }

    #[test]
    fn a_stream_gives_its_events_then_ends() {
        let body = "data: {\"a\":1}\n\n: ping\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n";
        let url = serve(vec![answer("200 OK", "text/event-stream", body)]);
        let stream = Client::new(&[url], None)
            .stream("/v1/x", &Value::Null)
            .unwrap();
        let mut seen = Vec::new();
        while let Next::Event(event) = stream.next(Duration::from_secs(10)).unwrap() {
            seen.push(event.data["a"].as_i64().unwrap());
        }
        assert_eq!(seen, [1, 2]);
    }

    #[test]
    fn a_stream_that_breaks_or_fails_is_an_error() {
        let cut = "data: {\"a\":1}\n\n";
        let failed = "data: {\"error\":{\"message\":\"replica lost\"}}\n\ndata: [DONE]\n\n";
        for (body, why, good) in [(cut, "ended early", 1), (failed, "replica lost", 0)] {
            let url = serve(vec![answer("200 OK", "text/event-stream", body)]);
            let stream = Client::new(&[url], None)
                .stream("/v1/x", &Value::Null)
                .unwrap();
            for _ in 0..good {
                assert!(matches!(
                    stream.next(Duration::from_secs(10)),
                    Ok(Next::Event(_))
                ));
            }
            let Err(error) = stream.next(Duration::from_secs(10)) else {
                panic!("no error for {why}");
            };
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        assert_eq!(base("127.0.0.1:80/"), "http://127.0.0.1:80");
        assert_eq!(base("https://a.example/v1"), "https://a.example");
    }
}
