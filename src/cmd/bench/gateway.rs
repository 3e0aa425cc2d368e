//! `cluster bench gateway`: what the gateway adds to a request.
//!
//! An open loop: requests are sent at a fixed rate, whatever becomes of those before, so that a server
//! that falls behind shows. Their time in the gateway is from its own histogram. Where the folder of a
//! coordinator on this machine is named, the same prompt is also sent to the model's driver directly, by
//! the protocol that gateways speak and with that coordinator's certificate: a bare loop on the same
//! worker. What a request takes more than that, end to end, is HTTP, authentication, admission, templates,
//! limits and durable settlement.

use super::load::{ServerArgs, first_model};
use crate::client::Client;
use crate::failure::Failure;
use crate::last::Last;
use crate::stats::percentile;
use crate::term;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use trireme_shared::api::StatusReport;
use trireme_shared::identity::{NodeId, NodeIdentity};
use trireme_shared::ids::{RequestId, TenantId};
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol};
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest, Priority, Sampling};

/// The histogram of the gateway's own time.
const OVERHEAD: &str = "trireme_gateway_overhead_seconds";
/// Requests open at once; more are not sent, and make the run fail.
const OPEN_MAX: usize = 1_024;
/// At the beginning of a run: connections are made, and nothing is counted.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster model random tiny.gguf\n  cluster up --model tiny.gguf --workers 1 --no-demo --data-dir bench\n  \
                        cluster bench gateway --coordinator-dir bench/coordinator-1"
)]
pub struct GatewayArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Requests a second, whatever becomes of those before
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    max_tokens: u32,
    /// The data folder of a coordinator on this machine: its certificate opens the bare loop
    #[arg(long, value_name = "DIR")]
    coordinator_dir: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Times from when a request was sent until its answer had ended, in milliseconds.
#[derive(Debug, Serialize)]
struct Times {
    requests: usize,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Of the gateway's histogram: the bounds within which the percentiles lie, in milliseconds.
#[derive(Debug, Serialize)]
struct Within {
    requests: u64,
    p50_ms: (f64, f64),
    p99_ms: (f64, f64),
}

impl GatewayArgs {
    pub fn run(self) -> Result<()> {
        let (url, key) = self.server.find()?;
        let client = Client::new(std::slice::from_ref(&url), key.clone());
        let model = first_model(&client)?;
        let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
        let asker = Arc::new(Asker::new(&url, key.as_deref(), &model, self.max_tokens)?);
        let prompt_tokens = runtime.block_on(asker.prompt_tokens())?;
        let bare = match &self.coordinator_dir {
            Some(folder) => {
                let driver = runtime.block_on(self.driver(folder, prompt_tokens))?;
                let ask = move || driver.clone().ask();
                Some(runtime.block_on(self.pace(ask, async || Ok(())))?.0)
            }
            None => None,
        };
        let before = Mutex::new(None);
        let ask = {
            let asker = Arc::clone(&asker);
            move || Arc::clone(&asker).ask()
        };
        let begin = async || {
            *lock(&before) = Some(asker.histogram().await?);
            Ok(())
        };
        let (whole, ()) = runtime.block_on(self.pace(ask, begin))?;
        let after = runtime.block_on(asker.histogram())?;
        let before = lock(&before).take().unwrap_or_default();
        let own = Within::between(&before, &after)?;
        runtime.shutdown_timeout(Duration::from_secs(1));
        if self.json {
            return term::json(&json!({
                "url": client.url(), "model": model, "rate": self.rate, "max_tokens": self.max_tokens,
                "own": own, "whole": whole, "bare": bare,
            }));
        }
        self.show(&own, &whole, bare.as_ref());
        Ok(())
    }

    fn show(&self, own: &Within, whole: &Times, bare: Option<&Times>) {
        let ms = |value: f64| format!("{value:.2}");
        let between = |(low, high): (f64, f64)| format!("{low:.2}-{high:.2}");
        let mut rows = vec![
            vec![
                "in the gateway (its own histogram)".to_owned(),
                own.requests.to_string(),
                "-".to_owned(),
                between(own.p50_ms),
                between(own.p99_ms),
            ],
            vec![
                "whole requests over HTTP".to_owned(),
                whole.requests.to_string(),
                ms(whole.per_second),
                ms(whole.p50_ms),
                ms(whole.p99_ms),
            ],
        ];
        if let Some(bare) = bare {
            rows.push(vec![
                "the same by a bare loop on the driver".to_owned(),
                bare.requests.to_string(),
                ms(bare.per_second),
                ms(bare.p50_ms),
                ms(bare.p99_ms),
            ]);
        }
        let header = ["", ">requests", ">a second", ">p50 ms", ">p99 ms"];
        term::out(term::table(&header, rows));
        if let Some(bare) = bare {
            term::out(format!(
                "end to end the gateway adds {:.2} ms (p50), {:.2} ms (p99)",
                whole.p50_ms - bare.p50_ms,
                whole.p99_ms - bare.p99_ms
            ));
        }
    }

    /// Asks at the rate; `begin` is called when the warm-up is over, and what is asked from then on counts.
    async fn pace<T, F>(
        &self,
        ask: impl Fn() -> F,
        begin: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<(Times, T)>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.send(&ask, WARM_UP).await?;
        let begun = begin().await?;
        let began = Instant::now();
        let mut taken = self.send(&ask, Duration::from_secs(self.seconds)).await?;
        let seconds = began.elapsed().as_secs_f64();
        let requests = taken.len();
        let mut at = |p| percentile(&mut taken, p).unwrap_or_default();
        let times = Times {
            requests,
            per_second: requests as f64 / seconds,
            p50_ms: at(50.0),
            p99_ms: at(99.0),
        };
        Ok((times, begun))
    }

    /// Milliseconds of each request of that time.
    async fn send<F>(&self, ask: &impl Fn() -> F, time: Duration) -> Result<Vec<f64>>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let began = Instant::now();
        let mut open = JoinSet::new();
        let mut taken = Vec::new();
        for number in 0.. {
            let due = began + Duration::from_secs(1) * number / self.rate;
            if due >= began + time {
                break;
            }
            sleep_until(due).await;
            if open.len() >= OPEN_MAX {
                bail!("{OPEN_MAX} requests are open: the server does not keep up with --rate");
            }
            let asked = ask();
            open.spawn(async move {
                let sent = Instant::now();
                asked.await?;
                anyhow::Ok(sent.elapsed().as_secs_f64() * 1e3)
            });
            while let Some(one) = open.try_join_next() {
                taken.push(one??);
            }
        }
        while let Some(one) = open.join_next().await {
            taken.push(one??);
        }
        Ok(taken)
    }

    async fn driver(&self, folder: &Path, prompt_tokens: u32) -> Result<Arc<Driver>> {
        let identity = NodeIdentity::load(folder).ok().flatten().ok_or_else(|| {
            Failure::usage(
                format!("{} holds no coordinator's certificate", folder.display()),
                "name the data folder of a coordinator, such as DATA/coordinator-1",
            )
        })?;
        let last = Last::load().context("no `cluster up` is known")?;
        let admin = Client::new(&last.coordinators, Some(last.admin_key));
        let status: StatusReport = admin.get("/admin/v1/status")?;
        let replica = status
            .deployments
            .iter()
            .flat_map(|d| d.replicas.iter().map(move |replica| (d, replica)))
            .find(|(_, replica)| replica.ready);
        let Some((deployment, replica)) = replica else {
            bail!("no replica is ready");
        };
        let plan = replica.plan.as_ref().context("the replica has no plan")?;
        let driver = plan.ranks.first().context("the plan has no rank")?;
        let at = status.workers.iter().find(|w| w.id == driver.worker);
        let at = &at.context("the driver is not among the workers")?.address;
        let listen = match at.parse::<SocketAddr>().is_ok_and(|a| a.is_ipv6()) {
            true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        };
        let endpoint = Endpoint::bind(listen, &identity, &[])?;
        let node = NodeId::Worker(driver.worker);
        let connection = endpoint.connect(at, node, Protocol::Generate).await?;
        Ok(Arc::new(Driver {
            connection,
            request: GenerateRequest {
                request: RequestId::random(),
                tenant: TenantId(0),
                weight: 1,
                priority: Priority::default(),
                deployment: deployment.id,
                replica: replica.replica,
                epoch: replica.epoch.context("the replica has no epoch")?,
                prompt: vec![1; prompt_tokens as usize],
                emitted: Vec::new(),
                max_tokens: self.max_tokens,
                sampling: Sampling::default(),
                stop_tokens: Vec::new(),
                logprobs: None,
                prompt_logprobs: None,
            },
            _endpoint: endpoint,
        }))
    }
}

/// A driver, asked as a gateway asks it.
struct Driver {
    connection: Connection,
    request: GenerateRequest,
    _endpoint: Endpoint,
}

impl Driver {
    async fn ask(self: Arc<Self>) -> Result<()> {
        let exchange = async {
            let (mut send, recv) = self.connection.quic().open_bi().await?;
            write_frame(&mut send, &self.request, limits::GENERATE_FRAME_BYTES_MAX).await?;
            let mut frames = FrameReader::new(recv, limits::GENERATE_FRAME_BYTES_MAX);
            loop {
                match frames.next::<GenerateEvent>().await? {
                    Some(GenerateEvent::Finished { .. }) => break,
                    Some(GenerateEvent::Failed { reason, .. }) => bail!(reason),
                    Some(_) => {}
                    None => bail!("the driver ended the stream early"),
                }
            }
            send.finish()?;
            Ok(())
        };
        timeout(limits::CLIENT_STREAM_SILENCE_MAX, exchange)
            .await
            .context("the driver fell silent")?
    }
}

/// Asks a server over connections that are kept and used again.
struct Asker {
    /// `host:port`.
    to: String,
    key: Option<String>,
    body: Bytes,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Asker {
    fn new(url: &str, key: Option<&str>, model: &str, max_tokens: u32) -> Result<Self> {
        let to = url
            .strip_prefix("http://")
            .map(|to| to.trim_end_matches('/'));
        let Some(to) = to.filter(|to| !to.contains('/')) else {
            return Err(Failure::usage(
                format!("{url} is not the address of a gateway"),
                "name it as http://HOST:PORT",
            )
            .into());
        };
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": max_tokens,
            "temperature": 0,
        });
        Ok(Self {
            to: to.to_owned(),
            key: key.map(str::to_owned),
            body: body.to_string().into(),
            idle: Mutex::default(),
        })
    }

    async fn ask(self: Arc<Self>) -> Result<()> {
        self.completion().await.map(drop)
    }

    /// Of each request, as the server counts them.
    async fn prompt_tokens(&self) -> Result<u32> {
        let answer: Value = serde_json::from_slice(&self.completion().await?)?;
        let tokens = answer["usage"]["prompt_tokens"].as_u64();
        let tokens = tokens.and_then(|n| u32::try_from(n).ok());
        tokens.context("the server counts no prompt tokens")
    }

    async fn completion(&self) -> Result<Bytes> {
        let body = self.body.clone();
        self.exchange(Method::POST, "/v1/chat/completions", body)
            .await
    }

    /// Cumulative counts by upper bound in nanoseconds, summed over labels.
    async fn histogram(&self) -> Result<BTreeMap<u64, u64>> {
        let page = self.exchange(Method::GET, "/metrics", Bytes::new()).await?;
        Ok(buckets(&String::from_utf8_lossy(&page)))
    }

    /// One that was kept and is still open, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut kept) = lock(&self.idle).pop() else {
                break;
            };
            // The server closes those that were idle for long.
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let stream = TcpStream::connect(&self.to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with its sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let mut connection = self.connection().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.to)
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let exchange = async {
            let answer = connection
                .send_request(request.body(Full::new(body))?)
                .await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            if !status.is_success() {
                bail!("{status}: {}", String::from_utf8_lossy(&body));
            }
            Ok(body)
        };
        let body = timeout(limits::CLIENT_STREAM_SILENCE_MAX, exchange)
            .await
            .context("the server fell silent")??;
        lock(&self.idle).push(connection);
        Ok(body)
    }
}

/// The histogram's buckets in a page of metrics.
fn buckets(page: &str) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for line in page.lines() {
        let Some(labels) = line
            .strip_prefix(OVERHEAD)
            .and_then(|l| l.strip_prefix("_bucket{"))
        else {
            continue;
        };
        let bound = labels
            .split("le=\"")
            .nth(1)
            .and_then(|l| l.split('"').next());
        let bound = match bound {
            Some("+Inf") => Some(u64::MAX),
            Some(seconds) => seconds
                .parse::<f64>()
                .ok()
                .map(|s| (s * 1e9).round() as u64),
            None => None,
        };
        let count = line.rsplit(' ').next().and_then(|c| c.parse::<f64>().ok());
        if let Some((bound, count)) = bound.zip(count) {
            *counts.entry(bound).or_default() += count as u64;
        }
    }
    counts
}

impl Within {
    /// Of what came between two pages.
    fn between(before: &BTreeMap<u64, u64>, after: &BTreeMap<u64, u64>) -> Result<Self> {
        let counts: Vec<(u64, u64)> = after
            .iter()
            .map(|(bound, count)| (*bound, count - before.get(bound).copied().unwrap_or(0)))
            .collect();
        let requests = counts.last().map_or(0, |(_, count)| *count);
        if requests == 0 {
            bail!("the server's {OVERHEAD} counted nothing: is it one of this cluster's gateways?");
        }
        let percentile = |share: u64| {
            let wanted = (requests * share).div_ceil(100);
            let place = counts.partition_point(|(_, count)| *count < wanted);
            let bound = |at: usize| counts[at].0 as f64 / 1e6;
            let low = place.checked_sub(1).map_or(0.0, bound);
            (
                low,
                if counts[place].0 == u64::MAX {
                    f64::INFINITY
                } else {
                    bound(place)
                },
            )
        };
        Ok(Self {
            requests,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_what_was_counted_between_two_pages() {
        let page = |fast: u64, slow: u64| {
            format!(
                "# HELP\n{OVERHEAD}_bucket{{model_name=\"m\",le=\"0.0005\"}} {fast}\n\
                 {OVERHEAD}_bucket{{model_name=\"m\",le=\"0.001\"}} {}\n\
                 {OVERHEAD}_bucket{{model_name=\"m\",le=\"+Inf\"}} {}\n{OVERHEAD}_sum 3\n",
                fast + slow,
                fast + slow + 1
            )
        };
        let (before, after) = (buckets(&page(10, 10)), buckets(&page(110, 12)));
        let own = Within::between(&before, &after).unwrap();
        assert_eq!(own.requests, 102);
        assert_eq!(own.p50_ms, (0.0, 0.5));
        assert_eq!(own.p99_ms, (0.5, 1.0));
        assert!(Within::between(&after, &after).is_err());
    }
}
