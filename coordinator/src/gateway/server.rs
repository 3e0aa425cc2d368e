//! Accepts connections and serves the router on them, until told to stop.
//!
//! Keeps true: connections and requests are bounded, a tenant that floods leaves others places, a client
//! that is slow to send its headers is cut off, as is one that stops reading its answer, and a drain lets
//! running requests end within `limits::DRAIN_DEADLINE` and their usage become durable before `serve`
//! returns.

use super::desk::Desk;
use super::error::ApiError;
use super::metrics::Metrics;
use super::stall::StallGuard;
use super::texts::Texts;
use super::traces::Traces;
use super::{envelope, openapi};
use crate::fleet::Fleet;
use crate::fleet::dispatch::Dispatcher;
use crate::places::{Place, SharedPlaces};
use crate::raft::group::Group;
use crate::state::State;
use crate::webhooks::reach::Reach;
use axum::Router;
use axum::middleware::from_fn_with_state;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::TenantId;
use trireme_shared::limits;

/// What one request holds; free when the last clone is dropped.
#[derive(Clone)]
pub struct Permit(Arc<Holding>);

struct Holding {
    _running: OwnedSemaphorePermit,
    /// Once its tenant is known.
    place: OnceLock<Place>,
}

/// Where a request came from, among its extensions: what the audit log calls its origin.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// What the gateway is made of.
pub struct GatewayParts {
    pub dispatcher: Dispatcher,
    pub fleet: Fleet,
    pub group: Group,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    pub traces: Traces,
    /// Where tenants' webhooks may be.
    pub reach: Reach,
}

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub struct GatewayState {
    pub(super) dispatcher: Dispatcher,
    pub(super) fleet: Fleet,
    pub(super) group: Group,
    pub(super) desk: Desk,
    pub(super) texts: Texts,
    pub(super) metrics: Metrics,
    pub(super) traces: Traces,
    pub(super) reach: Reach,
    /// Long prompts being tokenised.
    pub(super) long_prompts: Arc<Semaphore>,
    /// Requests running, whoever sends them.
    requests: Arc<Semaphore>,
    /// Those of tenants.
    places: SharedPlaces,
}

impl GatewayState {
    /// Must be called within a tokio runtime.
    pub fn new(parts: GatewayParts) -> Result<Self, prometheus::Error> {
        Ok(Self {
            dispatcher: parts.dispatcher,
            fleet: parts.fleet,
            desk: Desk::start(parts.group.clone()),
            group: parts.group,
            texts: Texts::new(parts.cache_dir),
            metrics: Metrics::new()?,
            traces: parts.traces,
            reach: parts.reach,
            long_prompts: Arc::new(Semaphore::new(limits::LONG_PROMPTS_AT_ONCE)),
            requests: Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS_MAX)),
            places: SharedPlaces::new(limits::HTTP_REQUESTS_MAX),
        })
    }

    /// Lets one more request run, if that is possible. Each connection has one at a time: this bound
    /// is met by nobody who came over one, and so locks nobody out.
    pub(super) fn permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        Some(Permit(Arc::new(Holding {
            _running: permit,
            place: OnceLock::new(),
        })))
    }

    /// A tenant's weight in fair queuing.
    pub(super) fn weight(&self, tenant: TenantId) -> u32 {
        let weight = |state: &State| state.tenant(tenant).map(|t| t.settings.weight);
        self.group.read(weight).unwrap_or(1)
    }

    /// Gives a tenant's request one of the places that tenants share, for as long as it runs.
    pub(super) fn seat(&self, permit: &Permit, tenant: TenantId) -> Result<(), ApiError> {
        let busy = "Too many requests are running here: send this one again later.";
        let place = self.places.try_take(tenant, self.weight(tenant));
        let place = place.ok_or_else(|| ApiError::unavailable("overloaded", busy, 1))?;
        // A second one would be free again at once.
        let _ = permit.0.place.set(place);
        Ok(())
    }

    /// Waits until no request runs and every usage record is durable: each of them holds a permit.
    /// False where that took longer than `wait`.
    pub(super) async fn idle(&self, wait: Duration) -> bool {
        let all = self
            .requests
            .acquire_many(limits::HTTP_CONNECTIONS_MAX as u32);
        tokio::time::timeout(wait, all).await.is_ok()
    }

    /// Begins to load the tokenisers of all deployments.
    pub(super) fn warm(&self) {
        let models: Vec<_> = self
            .group
            .read(|state| state.deployments().map(|d| d.spec.model.clone()).collect());
        for model in models {
            self.texts.warm(&model);
        }
    }
}

/// Every route.
pub fn router(state: GatewayState) -> Router {
    let (routes, _) = openapi::documented();
    routes
        .fallback(envelope::unknown_url)
        .method_not_allowed_fallback(envelope::method_not_allowed)
        .layer(from_fn_with_state(state.clone(), envelope::envelope))
        .with_state(state)
}

/// Serves HTTP on `listener` until `shutdown`, then drains.
pub async fn serve(listener: TcpListener, state: GatewayState, shutdown: CancellationToken) {
    state.warm();
    let router = router(state.clone());
    let places = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Reap ended connections, so that the set holds only live ones.
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            (accepted, place) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    connections.spawn(connection(stream, peer, router, shutdown, place.ok()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must close first.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(limits::ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    state.texts.close();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits::DRAIN_DEADLINE, all_ended)
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "requests still ran at the end of the drain and were cut off"
        );
        connections.shutdown().await;
    }
    if !state.idle(limits::USAGE_COMMIT_DEADLINE).await {
        tracing::error!("usage of some requests was not recorded before the gateway ended");
    }
    state.desk.close().await;
    let traces = state.traces.clone();
    // What it says of a failure it logs.
    let _ = tokio::task::spawn_blocking(move || traces.close()).await;
}

/// One client's connection, from accept to close.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    _place: Option<OwnedSemaphorePermit>,
) {
    // Tokens are small writes that must not wait for each other.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEADER_DEADLINE);
    let stream = StallGuard::new(stream, limits::CLIENT_STALL_MAX);
    let named = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        TowerToHyperService::new(router.clone()).call(request)
    });
    let served = builder.serve_connection(TokioIo::new(stream), named);
    let mut served = std::pin::pin!(served);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}
