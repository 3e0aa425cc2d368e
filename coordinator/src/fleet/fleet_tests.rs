//! The fleet over real QUIC on loopback, with workers that only pretend to have a model: their
//! token at each index is known, so whatever a client gets can be checked.

use super::dispatch::{DispatchError, Dispatcher, GenerationStream, SequenceRequest};
use super::work::WorkLog;
use super::*;
use crate::placement::tests::{manifest, spec};
use crate::raft::group::Terms;
use crate::scratch::{Scratch, group_of_one};
use crate::state::{KeySettings, TokenRole};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use trireme_shared::api::{self, TokenRequest};
use trireme_shared::identity::{ClusterAuthority, JoinToken, NodeId, NodeIdentity};
use trireme_shared::ids::{CoordinatorId, RequestId, TenantId, TokenRecordId};
use trireme_shared::transport::{Protocol, join};
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::control::{RankReport, RankState, ToCoordinator};
use trireme_shared::wire::generate::{
    FailureKind, FinishReason, GenerateEvent, GenerateRequest, Priority, Sampling,
};

mod joining_tests;
mod paid_tests;

/// How a pretended driver ends the stream that meets its trap.
#[derive(Clone, Copy, Debug)]
enum Trap {
    /// The whole process goes away.
    Die,
    Reset,
    EndEarly,
    Lost,
    WrongEpoch,
    /// Every request is refused.
    Overloaded,
    /// Nothing more is said.
    Silent,
}

/// Shared by all pretended workers of a test.
#[derive(Default)]
struct Plot {
    trap: Mutex<Option<Trap>>,
    /// The trap shuts behind this many tokens of one stream.
    after_tokens: AtomicUsize,
    sprung: AtomicBool,
    stays: AtomicBool,
    /// (epoch, emitted) of each real request, in order of arrival.
    requests: Mutex<Vec<(u64, usize)>>,
    cancelled: tokio::sync::Notify,
    /// A worker is to report its rank failed.
    rank_failed: AtomicBool,
}

impl Plot {
    fn set(&self, trap: Trap, after_tokens: usize) {
        *self.trap.lock().unwrap() = Some(trap);
        self.after_tokens.store(after_tokens, Ordering::SeqCst);
        self.sprung.store(false, Ordering::SeqCst);
    }

    /// The trap shuts for every stream.
    fn keep(&self) {
        self.stays.store(true, Ordering::SeqCst);
    }

    /// The trap, once per `set` (but `Overloaded`, and any that is kept).
    fn spring(&self, tokens: usize) -> Option<Trap> {
        let trap = (*self.trap.lock().unwrap())?;
        if tokens < self.after_tokens.load(Ordering::SeqCst) {
            return None;
        }
        let first = !self.sprung.swap(true, Ordering::SeqCst);
        (first || self.stays.load(Ordering::SeqCst) || matches!(trap, Trap::Overloaded))
            .then_some(trap)
    }
}

fn token_at(index: u32) -> u32 {
    (index * 7 + 3) % 101
}

struct World {
    _dir: Scratch,
    fleet: Fleet,
    dispatcher: Dispatcher,
    plot: Arc<Plot>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    control: String,
    authority: ClusterAuthority,
    deployment: DeploymentId,
}

impl World {
    async fn new(workers: u32, tp: u16, replicas: u16) -> Self {
        let dir = Scratch::new();
        let group = group_of_one(dir.path()).await;
        let authority = ClusterAuthority::new("test").unwrap();
        let bootstrap = Command::Bootstrap {
            name: "test".into(),
            cluster: crate::state::ClusterId([1; 16]),
            authority_pem: authority.to_pem(),
            admin_key_hash: [0; 32],
        };
        group.propose(bootstrap).await.unwrap();
        let node = NodeId::Coordinator(CoordinatorId(1));
        let identity = NodeIdentity::issue(&authority, node).unwrap();
        let endpoint = Endpoint::bind(
            "127.0.0.1:0".parse().unwrap(),
            &identity,
            &[Protocol::Join, Protocol::Control],
        )
        .unwrap();
        let control = endpoint.local_addr().to_string();
        let fleet = Fleet::new(FleetSetup {
            group: group.clone(),
            this: CoordinatorReport {
                id: CoordinatorId(1),
                pid: 1,
                http: String::new(),
                control: control.clone(),
            },
            cache_dir: None,
        });
        let (dispatcher, queue) = Dispatcher::new();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let accepting = (endpoint.clone(), group.clone(), fleet.clone(), stop.clone());
        let (of, with, to, until) = accepting;
        tasks.spawn(async move { crate::accept_all(of, with, to, until).await });
        let serving = {
            let (fleet, stop) = (fleet.clone(), stop.clone());
            async move { fleet.serve(endpoint, queue, stop).await }
        };
        tasks.spawn(serving);
        let spec = spec(tp, 1, replicas);
        let put = Command::PutDeployment { spec: spec.clone() };
        let at_hand = fleet.keep_at_hand(spec.model, manifest());
        let Outcome::Deployment(deployment) = group.propose(put).await.unwrap() else {
            panic!("not deployed");
        };
        fleet.catch_up();
        drop(at_hand);
        let mut world = Self {
            _dir: dir,
            fleet,
            dispatcher,
            plot: Arc::default(),
            stop,
            tasks,
            control,
            authority,
            deployment,
        };
        for _ in 0..workers {
            world.add_worker(None, 1).await;
        }
        world
    }

    /// Joins and connects one more worker, as a remote one would.
    async fn add_worker(&mut self, provider: Option<&str>, threads: u32) {
        let token = self.token_of(provider).await;
        let joined = join::join(&[&self.control], &token).await.unwrap();
        let identity = joined.identity;
        assert!(identity.trusts(self.authority.fingerprint()));
        let (plot, control) = (Arc::clone(&self.plot), self.control.clone());
        self.tasks.spawn(pretend(identity, threads, plot, control));
    }

    /// For one worker.
    async fn token(&self) -> JoinToken {
        self.token_of(None).await
    }

    async fn token_of(&self, provider: Option<&str>) -> JoinToken {
        let request = TokenRequest {
            role: api::TokenRole::Worker,
            provider: provider.map(str::to_owned),
            uses: 1,
            ttl_seconds: 60,
        };
        let made = self.fleet.create_token(Terms::default(), request).await;
        made.unwrap().token.parse().unwrap()
    }

    async fn ready(&self, replicas: usize) {
        let mut routes = self.fleet.shared.routes.subscribe();
        let all = |r: &Vec<Route>| r.iter().filter(|r| r.ready).count() == replicas;
        let wait = routes.wait_for(all);
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        let ok = waited.is_ok_and(|w| w.is_ok());
        assert!(ok, "not ready: {:#?}", self.fleet.deployments());
    }

    fn generate(&self, max_tokens: u32) -> GenerationStream {
        self.generate_into(&WorkLog::default(), max_tokens)
    }

    fn generate_into(&self, work: &WorkLog, max_tokens: u32) -> GenerationStream {
        self.generate_as(TenantId(1), work, max_tokens)
    }

    fn generate_as(&self, tenant: TenantId, work: &WorkLog, max_tokens: u32) -> GenerationStream {
        let sequence = SequenceRequest {
            request: RequestId::random(),
            tenant,
            weight: 1,
            priority: Priority::default(),
            deployment: self.deployment,
            prompt: vec![1, 2, 3],
            max_tokens,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            work: work.clone(),
        };
        self.dispatcher.generate(sequence).unwrap()
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.tasks.shutdown().await;
        self.fleet.shared.group.close().await;
    }
}

/// All tokens of a stream; panics if any is missing, repeated or wrong.
async fn collect(stream: &mut GenerationStream) -> Result<Vec<u32>, DispatchError> {
    collect_telling(stream, |_| {}).await
}

/// The same, and `tell` is told at each token how many there are.
async fn collect_telling(
    stream: &mut GenerationStream,
    tell: impl Fn(usize),
) -> Result<Vec<u32>, DispatchError> {
    let mut tokens = Vec::new();
    let mut starts = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), stream.next());
        match next.await.unwrap().expect("a stream ends with an event")? {
            GenerateEvent::Started { .. } => starts += 1,
            GenerateEvent::Token { index, token, .. } => {
                assert_eq!(index as usize, tokens.len());
                assert_eq!(token, token_at(index));
                tokens.push(token);
                tell(tokens.len());
            }
            GenerateEvent::Finished { reason } => {
                assert_eq!(reason, FinishReason::Length);
                assert_eq!(starts, 1);
                assert!(stream.next().await.is_none());
                return Ok(tokens);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// A worker without a model.
async fn pretend(identity: NodeIdentity, threads: u32, plot: Arc<Plot>, control: String) {
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::bind(listen, &identity, &[Protocol::Generate]).unwrap();
    let connection = endpoint
        .connect_coordinator(&control, Protocol::Control)
        .await
        .unwrap();
    let (mut send, recv) = connection.quic().open_bi().await.unwrap();
    let inventory = Inventory {
        host: "h".into(),
        hostname: "h".into(),
        pid: 1,
        threads,
        memory_bytes: 1 << 30,
        isa: "portable".into(),
        data_port: endpoint.local_addr().port(),
        advertise: None,
        version: "0".into(),
    };
    let max = limits::CONTROL_FRAME_BYTES_MAX;
    let hello = ToCoordinator::Hello { inventory };
    write_frame(&mut send, &hello, max).await.unwrap();
    let mut frames = FrameReader::new(recv, max);
    let mut beat = tokio::time::interval(Duration::from_millis(20));
    let mut rank: Option<RankReport> = None;
    let serving = serve_generate(endpoint.clone(), Arc::clone(&plot));
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return,
            _ = beat.tick() => {
                if plot.rank_failed.swap(false, Ordering::SeqCst)
                    && let Some(rank) = &mut rank {
                        let reason = "planned failure".into();
                        rank.state = RankState::Failed { reason };
                    }
                let ranks = rank.iter().cloned().collect();
                if write_frame(&mut send, &ToCoordinator::Heartbeat { ranks }, max).await.is_err() {
                    return;
                }
            }
            order = frames.next() => match order {
                Ok(Some(ToWorker::Assign { assignment: a, .. })) => rank = Some(RankReport {
                    deployment: a.plan.deployment,
                    replica: a.plan.replica,
                    epoch: a.plan.epoch,
                    state: RankState::Ready,
                    stats: None,
                }),
                Ok(Some(_)) => {}
                _ => return,
            },
        }
    }
}

/// Ends when the trap is `Die`.
async fn serve_generate(endpoint: Endpoint, plot: Arc<Plot>) {
    let mut tasks = JoinSet::new();
    let died = CancellationToken::new();
    loop {
        tokio::select! {
            () = died.cancelled() => break,
            connection = endpoint.accept() => {
                let Some(connection) = connection else { break };
                let (plot, died) = (Arc::clone(&plot), died.clone());
                tasks.spawn(async move {
                    let mut streams = JoinSet::new();
                    while let Ok((send, recv)) = connection.quic().accept_bi().await {
                        let (plot, died) = (Arc::clone(&plot), died.clone());
                        streams.spawn(drive(send, recv, plot, died));
                    }
                });
            }
        }
    }
    endpoint.close().await;
}

/// One sequence of a pretended driver.
async fn drive(
    mut send: quinn::SendStream,
    recv: quinn::RecvStream,
    plot: Arc<Plot>,
    died: CancellationToken,
) {
    let max = limits::GENERATE_FRAME_BYTES_MAX;
    let mut frames = FrameReader::new(recv, max);
    let Ok(Some(request)) = frames.next::<GenerateRequest>().await else {
        return;
    };
    let is_probe = request.prompt == [0];
    if !is_probe {
        let seen = (request.epoch.0, request.emitted.len());
        plot.requests.lock().unwrap().push(seen);
    }
    let started = GenerateEvent::Started { cached_tokens: 0 };
    let mut refused = None;
    let first = request.emitted.len() as u32;
    if !is_probe && matches!(*plot.trap.lock().unwrap(), Some(Trap::Overloaded)) {
        refused = plot.spring(0);
    } else if write_frame(&mut send, &started, max).await.is_err() {
        return;
    }
    for index in first..=request.max_tokens {
        let trap = refused.or_else(|| match is_probe {
            true => None,
            false => plot.spring(index as usize),
        });
        let fail = |kind| GenerateEvent::Failed {
            kind,
            reason: "planned".into(),
        };
        let last = match trap {
            Some(Trap::Die) => return died.cancel(),
            Some(Trap::Reset) => {
                let _ = send.reset(9u32.into());
                return;
            }
            Some(Trap::EndEarly) => return,
            Some(Trap::Lost) => Some(fail(FailureKind::ReplicaLost)),
            Some(Trap::WrongEpoch) => Some(fail(FailureKind::WrongEpoch)),
            Some(Trap::Overloaded) => Some(fail(FailureKind::Overloaded)),
            Some(Trap::Silent) => {
                // The stream ends only by the other side.
                let _ = frames.next::<GenerateRequest>().await;
                plot.cancelled.notify_one();
                return;
            }
            None if index == request.max_tokens => Some(GenerateEvent::Finished {
                reason: FinishReason::Length,
            }),
            None => None,
        };
        let event = last.clone().unwrap_or(GenerateEvent::Token {
            index,
            token: token_at(index),
            logprobs: None,
        });
        if write_frame(&mut send, &event, max).await.is_err() {
            return;
        }
        if last.is_some() {
            let _ = send.finish();
            return;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn a_stream_survives_every_way_a_driver_can_fail() {
    runtime().block_on(async {
        for trap in [
            Trap::Reset,
            Trap::EndEarly,
            Trap::Lost,
            Trap::WrongEpoch,
            Trap::Die,
        ] {
            // 0: before the first token; 40: after the last, before `Finished`.
            for after in [0, 1, 17, 40] {
                let world = World::new(2, 1, 2).await;
                world.ready(2).await;
                world.plot.set(trap, after);
                let tokens = collect(&mut world.generate(40)).await;
                assert_eq!(tokens.unwrap().len(), 40, "{trap:?} after {after}");
                assert!(world.plot.sprung.load(Ordering::SeqCst));
                let requests = world.plot.requests.lock().unwrap().clone();
                assert_eq!(requests[0].1, 0);
                if after < 40 {
                    let resumed = requests.last().unwrap();
                    assert_eq!(requests.len(), 2, "{trap:?}: {requests:?}");
                    // Tokens that were in flight when the driver broke may be made again.
                    assert!(resumed.1 <= after, "{trap:?}: {requests:?}");
                }
                world.end().await;
            }
        }
    });
}

#[test]
fn the_only_replica_is_planned_again_and_its_stream_goes_on() {
    runtime().block_on(async {
        let world = World::new(2, 2, 1).await;
        world.ready(1).await;
        world.plot.set(Trap::Silent, 10);
        // The rank fails once all ten tokens have come: its report and they are on streams of their own.
        let mut stream = world.generate(30);
        let tokens = collect_telling(&mut stream, |seen| {
            if seen == 10 {
                world.plot.rank_failed.store(true, Ordering::SeqCst);
            }
        });
        let tokens = tokens.await.unwrap();
        assert_eq!(tokens.len(), 30);
        let requests = world.plot.requests.lock().unwrap().clone();
        let [(1, 0), (epoch, 10)] = requests[..] else {
            panic!("{requests:?}");
        };
        assert!(epoch >= 2, "a new epoch");
        assert!(world.fleet.deployments()[0].replicas[0].ready);
        assert_eq!(world.fleet.workers().len(), 2);
        assert_eq!(world.fleet.plans()[0].nonce, [0; 16]);
        world.end().await;
    });
}

#[test]
fn a_client_that_goes_away_cancels_at_the_driver() {
    runtime().block_on(async {
        let world = World::new(1, 1, 1).await;
        world.ready(1).await;
        world.plot.set(Trap::Silent, 3);
        let mut stream = world.generate(10);
        let mut seen = 0;
        while seen < 3 {
            if let GenerateEvent::Token { .. } = stream.next().await.unwrap().unwrap() {
                seen += 1;
            }
        }
        assert_eq!(
            world.fleet.shared.carrying.available_permits(),
            limits::DISPATCH_TASKS_MAX - 1
        );
        drop(stream);
        let cancelled = world.plot.cancelled.notified();
        tokio::time::timeout(Duration::from_secs(10), cancelled)
            .await
            .unwrap();
        assert_eq!(world.fleet.drain().await, 0);
        world.end().await;
    });
}

#[test]
fn full_waiting_rooms_everywhere_are_answered_at_once() {
    runtime().block_on(async {
        let world = World::new(2, 1, 2).await;
        world.ready(2).await;
        world.plot.set(Trap::Overloaded, 0);
        let refused = collect(&mut world.generate(4)).await;
        assert_eq!(refused, Err(DispatchError::Overloaded));
        assert_eq!(
            world.plot.requests.lock().unwrap().len(),
            2,
            "both were asked"
        );
        world.end().await;
    });
}

#[test]
fn tokens_and_keys_are_made_shown_once_and_revoked() {
    runtime().block_on(async {
        let world = World::new(0, 1, 1).await;
        let request = |uses| TokenRequest {
            role: api::TokenRole::Worker,
            provider: None,
            uses,
            ttl_seconds: 60,
        };
        let made = world
            .fleet
            .create_token(Terms::default(), request(2))
            .await
            .unwrap();
        let token: JoinToken = made.token.parse().unwrap();
        assert_eq!(token.id(), made.id);
        let stored = |s: &crate::state::State| s.token(made.id).unwrap().secret_hash;
        assert_eq!(token.secret_hash(), world.fleet.shared.group.read(stored));
        join::join(&[&world.control], &token).await.unwrap();
        assert_eq!(world.fleet.tokens()[0].uses_left, 1);
        assert!(
            world
                .fleet
                .revoke_token(Terms::default(), made.id)
                .await
                .unwrap()
                .revoked
        );
        let refused = join::join(&[&world.control], &token).await.err().unwrap();
        assert!(refused.to_string().contains("revoked"), "{refused}");
        assert_eq!(world.fleet.tokens()[0].uses_left, 1);
        let unknown = world
            .fleet
            .revoke_token(Terms::default(), TokenRecordId(99))
            .await;
        assert!(matches!(unknown, Err(FleetError::Unknown(_))));
        for uses in [0, limits::TOKEN_USES_MAX + 1] {
            let refused = world
                .fleet
                .create_token(Terms::default(), request(uses))
                .await;
            assert!(matches!(refused, Err(FleetError::Refused(_))));
        }
        let tenant = "acme".to_owned();
        let key = world
            .fleet
            .create_key(Terms::default(), tenant, KeySettings::default())
            .await
            .unwrap();
        assert_eq!(key.key.len(), "sk-tr-".len() + 40);
        let hash: [u8; 32] = Sha256::digest(key.key.as_bytes()).into();
        let known = world.fleet.shared.group.read(|s| s.authenticate(&hash, 0));
        assert!(matches!(known, Ok(crate::state::Principal::Tenant { .. })));
        let tenant = String::new();
        let nameless = world
            .fleet
            .create_key(Terms::default(), tenant, KeySettings::default())
            .await;
        assert!(matches!(nameless, Err(FleetError::Refused(_))));
        let roles = world
            .fleet
            .shared
            .group
            .read(|s| s.tokens().map(|t| t.role).collect::<Vec<_>>());
        assert_eq!(roles, [TokenRole::Worker]);
        world.end().await;
    });
}
