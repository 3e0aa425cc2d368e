//! HTTP to coordinators (or any OpenAI-compatible server): JSON questions, and streams of events.
//!
//! Several addresses are tried in order. What it keeps true: a question that changes nothing is asked
//! at the next address where one does not answer; a write carries an idempotency key and is asked again,
//! under the same key, where its fate is unknown, so that it takes effect once; a stream is asked at the
//! next address only where the one before could not be connected to, so that no work is done twice.
//!
//! A stream is read on a thread of its own, so that its reader can stop waiting at any time; dropping a
//! [`EventStream`] closes the connection at the next event, which cancels the work on the server.

use crate::failure::Failure;
use crate::sse::SseParser;
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use trireme_shared::api::{IDEMPOTENCY_KEY_HEADER, IdempotencyKey};
use trireme_shared::limits;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

/// Servers of one cluster and the key to show them. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    urls: Vec<String>,
    key: Option<String>,
    /// The idempotency key of the one write that is asked.
    request_id: Option<String>,
    /// Place in `urls` of the one that answered last: it is asked first.
    answered: Arc<AtomicUsize>,
}

/// Why one try at one address gave no success.
enum Miss {
    /// The server never saw the question.
    NotConnected(ureq::Error),
    /// It may have seen it.
    Broken(Box<dyn std::error::Error + Send + Sync>),
    Refused {
        status: u16,
        code: String,
        said: String,
    },
}

impl Miss {
    /// Whether another address may answer better.
    fn is_elsewhere(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::Broken(_) => true,
            Self::Refused { status, code, .. } => {
                *status == 503 && matches!(code.as_str(), "no_leader" | "in_doubt" | "stopping")
            }
        }
    }

    /// Whether a write may have taken effect.
    fn is_in_doubt(&self) -> bool {
        match self {
            Self::NotConnected(_) => false,
            Self::Broken(_) => true,
            Self::Refused { code, .. } => code == "in_doubt",
        }
    }
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
        Self::with_kept_connections(urls, key, limits::BENCH_CONCURRENCY_MAX)
    }

    /// The same, but each request opens a connection: servers differ in when they close one that is
    /// kept, and a request that meets the closing fails.
    pub fn without_kept_connections(urls: &[String], key: Option<String>) -> Self {
        Self::with_kept_connections(urls, key, 0)
    }

    fn with_kept_connections(urls: &[String], key: Option<String>, kept: usize) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // The server is often on this machine; a proxy from the environment would be wrong.
            .proxy(None)
            .timeout_connect(Some(limits::CONNECT_DEADLINE))
            .timeout_per_read(Some(limits::CLIENT_STREAM_SILENCE_MAX))
            .timeout_recv_response(Some(limits::CLIENT_DEPLOY_DEADLINE))
            .max_idle_connections_per_host(kept)
            .user_agent(concat!("cluster/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            urls: urls.iter().map(|url| base(url)).collect(),
            key,
            request_id: None,
            answered: Arc::default(),
        }
    }

    /// For one write: asks it under this key, as an earlier try did. `None` draws a key.
    pub fn with_request_id(mut self, request_id: Option<String>) -> Self {
        self.request_id = request_id;
        self
    }

    /// The first address.
    pub fn url(&self) -> &str {
        self.urls.first().map_or("", String::as_str)
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let deadline = self.patience();
        self.look(path, |url| {
            let response = self.send_to(url, &Method::GET, path, None, None, Some(deadline))?;
            self.json(url, path, response)
        })
    }

    /// The answer's headers and text, of at most `CLIENT_ANSWER_BYTES_MAX`.
    pub fn text(&self, path: &str) -> Result<(ureq::http::HeaderMap, String)> {
        let deadline = self.patience();
        self.look(path, |url| {
            let mut response = self.send_to(url, &Method::GET, path, None, None, Some(deadline))?;
            let body = response.body_mut().with_config();
            let text = body.limit(limits::CLIENT_ANSWER_BYTES_MAX).read_to_string();
            let text = text.map_err(|e| Miss::Broken(e.into()))?;
            Ok(Ok((response.headers().clone(), text)))
        })
    }

    /// An answer of any length, to be read as it comes.
    pub fn download(&self, path: &str) -> Result<impl Read + use<>> {
        self.look(path, |url| {
            let response = self.send_to(url, &Method::GET, path, None, None, None)?;
            Ok(Ok(response.into_body().into_reader()))
        })
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.write(Method::DELETE, path, None, limits::CLIENT_TRY_DEADLINE)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.write(Method::POST, path, Some(body), limits::CLIENT_TRY_DEADLINE)
    }

    /// `PUT` may take as long as fetching a model.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.write(
            Method::PUT,
            path,
            Some(body),
            limits::CLIENT_DEPLOY_DEADLINE,
        )
    }

    /// How long one address may take over a question: less where there is another to ask.
    fn patience(&self) -> Duration {
        match self.urls.len() {
            0 | 1 => limits::CLIENT_ANSWER_DEADLINE,
            _ => limits::CLIENT_LOOK_DEADLINE,
        }
    }

    /// All addresses, the one that answered last first.
    fn addresses(&self) -> impl Iterator<Item = &String> {
        let (tried, first) = self.urls.split_at(self.answered.load(Ordering::Relaxed));
        first.iter().chain(tried)
    }

    fn note_answer(&self, url: &str) {
        if let Some(place) = self.urls.iter().position(|known| known == url) {
            self.answered.store(place, Ordering::Relaxed);
        }
    }

    /// Asks one address after the other what changes nothing.
    fn look<T>(
        &self,
        path: &str,
        ask: impl Fn(&str) -> std::result::Result<Result<T>, Miss>,
    ) -> Result<T> {
        let mut last = None;
        for url in self.addresses() {
            match ask(url) {
                Ok(answer) => return answer,
                Err(miss) if miss.is_elsewhere() => last = Some((url, miss)),
                Err(miss) => return Err(self.failure(url, &Method::GET, path, miss)),
            }
        }
        Err(match last {
            Some((url, miss)) => self.failure(url, &Method::GET, path, miss),
            None => self.unreachable(None),
        })
    }

    /// Asks for a change until one address has carried it out, under one key.
    fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<T> {
        let key = match &self.request_id {
            Some(key) => key.clone(),
            // Of a coordinator's making: it is refused, and not taken for a new one, once it is old.
            None => self.get::<IdempotencyKey>("/admin/v1/idempotency-key")?.key,
        };
        let started = Instant::now();
        let (mut doubt, mut last) = (false, None);
        for round in 0..limits::CLIENT_WRITE_ROUNDS {
            if round > 0 {
                std::thread::sleep(limits::CLIENT_RETRY_PAUSE);
            }
            for url in self.addresses() {
                let tried = self
                    .send_to(
                        url,
                        &method,
                        path,
                        body.as_deref(),
                        Some(&key),
                        Some(deadline),
                    )
                    .and_then(|response| self.json(url, path, response));
                match tried {
                    Ok(answer) => return answer,
                    Err(miss) if miss.is_elsewhere() => {
                        doubt |= miss.is_in_doubt();
                        last = Some((url, miss));
                    }
                    Err(miss) => return Err(self.failure(url, &method, path, miss)),
                }
            }
            if started.elapsed() > 2 * deadline {
                break;
            }
        }
        let why = match last {
            Some((url, miss)) => self.failure(url, &method, path, miss),
            None => self.unreachable(None),
        };
        if !doubt {
            return Err(why);
        }
        let unknown = Failure::new(
            format!("whether {method} {path} took effect is unknown (request id {key})"),
            format!("say the same again with --request-id {key}: it then takes effect once"),
        );
        Err(unknown.because(why))
    }

    /// The bare status of a `GET`, e.g. of `/ready`.
    pub fn status_of(&self, path: &str) -> Result<u16> {
        let deadline = limits::CLIENT_ANSWER_DEADLINE;
        self.look(path, |url| {
            match self.send_to(url, &Method::GET, path, None, None, Some(deadline)) {
                Ok(response) => Ok(Ok(response.status().as_u16())),
                Err(Miss::Refused { status, .. }) => Ok(Ok(status)),
                Err(miss) => Err(miss),
            }
        })
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
        let response = self.begin(path, &body)?;
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

    /// Begins a stream at the first address that can be connected to.
    fn begin(&self, path: &str, body: &[u8]) -> Result<Response<Body>> {
        let mut tried = None;
        for url in self.addresses() {
            match self.send_to(url, &Method::POST, path, Some(body), None, None) {
                Ok(response) => return Ok(response),
                Err(Miss::NotConnected(error)) => tried = Some(error),
                Err(miss) => return Err(self.failure(url, &Method::POST, path, miss)),
            }
        }
        Err(self.unreachable(tried))
    }

    fn json<T: DeserializeOwned>(
        &self,
        url: &str,
        path: &str,
        mut response: Response<Body>,
    ) -> std::result::Result<Result<T>, Miss> {
        let body = response.body_mut().with_config();
        let read = body.limit(limits::CLIENT_ANSWER_BYTES_MAX).read_to_vec();
        let bytes = read.map_err(|error| Miss::Broken(error.into()))?;
        Ok(serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(
                format!("{url}{path} gave an answer that this version cannot read"),
                "check that the address is a Trireme coordinator of the same version",
            )
            .because(error)
        }))
    }

    fn unreachable(&self, tried: Option<ureq::Error>) -> anyhow::Error {
        let failure = Failure::new(
            format!("cannot reach {}", self.urls.join(" or ")),
            "start a cluster with `cluster up`, or name a running one with --coordinator URL",
        );
        match tried {
            Some(error) => failure.because(error),
            None => failure.into(),
        }
    }

    /// One question at one address; an answer that is not a success is a miss.
    fn send_to(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: Option<&[u8]>,
        idempotency: Option<&str>,
        deadline: Option<Duration>,
    ) -> std::result::Result<Response<Body>, Miss> {
        let missed = |error: ureq::Error| match not_connected(&error) {
            true => Miss::NotConnected(error),
            false => Miss::Broken(error.into()),
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{url}{path}"));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if let Some(key) = idempotency {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        let response = match body {
            Some(body) => {
                let request = request
                    .header("content-type", "application/json")
                    .body(body);
                let request = request.map_err(|e| missed(e.into()))?;
                let request = self.agent.configure_request(request);
                self.agent.run(request.timeout_global(deadline).build())
            }
            None => {
                let request = request.body(()).map_err(|e| missed(e.into()))?;
                let request = self.agent.configure_request(request);
                self.agent.run(request.timeout_global(deadline).build())
            }
        };
        let mut response = response.map_err(missed)?;
        if response.status().is_success() {
            self.note_answer(url);
            return Ok(response);
        }
        let body = response.body_mut().with_config();
        let body: Option<Value> = body.limit(limits::CLIENT_ANSWER_BYTES_MAX).read_json().ok();
        let error = body.as_ref().and_then(|body| body.get("error"));
        let code = error.and_then(|e| e.get("code")).and_then(Value::as_str);
        Err(Miss::Refused {
            status: response.status().as_u16(),
            code: code.unwrap_or_default().to_owned(),
            said: error.map_or_else(|| "no reason was given".to_owned(), message_of),
        })
    }

    /// A miss in words, with what to do.
    fn failure(&self, url: &str, method: &Method, path: &str, miss: Miss) -> anyhow::Error {
        let (status, said) = match miss {
            Miss::NotConnected(error) => return self.unreachable(Some(error)),
            Miss::Broken(error) => {
                return Failure::new(
                    format!("{url} did not answer {method} {path}"),
                    "look at `cluster status` and at the coordinator's log",
                )
                .because(error);
            }
            Miss::Refused { status, said, .. } => (status, said),
        };
        let next = match status {
            401 | 403 => "pass the right key with --api-key or in TRIREME_API_KEY",
            404 if path.starts_with("/admin/v1/tokens") => "`cluster token list` shows the tokens",
            404 if path.starts_with("/admin/v1/members") => {
                "`cluster member list` shows the coordinators"
            }
            404 if path.starts_with("/admin/v1/nodes") => "`cluster node list` shows the nodes",
            404 if path.starts_with("/admin/v1/tenants") => {
                "`cluster tenant list` shows the tenants"
            }
            404 if path.starts_with("/admin/v1/keys") => "`cluster key list` shows the keys",
            404 if path.starts_with("/admin/v1/providers") => {
                "`cluster provider list` shows the providers"
            }
            404 if path.starts_with("/admin/v1/requests") => {
                "take the id that the request's answer had as `x-request-id`"
            }
            404 if path.contains("/statements") => "`cluster statement --list` shows the months",
            404 => "check the address, and the model's name with `cluster status`",
            429 | 503 => "try again in a moment; `cluster status` shows what is not ready",
            _ => "",
        };
        Failure::new(format!("{url}{path} answered {status}: {said}"), next).into()
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
#[path = "client_tests.rs"]
pub mod tests;
