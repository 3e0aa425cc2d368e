//! A whole worker process (without an engine) against a pretend coordinator over real QUIC.

use super::*;
use crate::backend::Isa;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinHandle;
use trireme_shared::identity::{ClusterAuthority, JoinToken, NodeIdentity};
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, Rank, Replica, Stage, TokenRecordId,
};
use trireme_shared::limits::CONTROL_FRAME_BYTES_MAX;
use trireme_shared::model::{Precision, RankShare, Span};
use trireme_shared::plan::{Assignment, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use trireme_shared::transport::join::{Admission, serve_join};
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::control::{
    CoordinatorAddress, RankReport, RankState, ToCoordinator, ToWorker,
};

const WORKER: WorkerId = WorkerId(5);
const HEARTBEATS_MAX: usize = 100;

struct Coordinator {
    authority: Arc<ClusterAuthority>,
    endpoint: Endpoint,
}

/// The coordinator's end of a worker's control stream.
struct Control {
    authority: Arc<ClusterAuthority>,
    connection: Connection,
    send: quinn::SendStream,
    reader: FrameReader,
    /// Whether the worker said that it trusts the authority.
    trusted: bool,
}

impl Coordinator {
    async fn start(authority: &Arc<ClusterAuthority>, listen: SocketAddr) -> Self {
        Self::start_as(1, authority, listen).await
    }

    async fn start_as(id: u32, authority: &Arc<ClusterAuthority>, listen: SocketAddr) -> Self {
        let node = NodeId::Coordinator(CoordinatorId(id));
        let identity = NodeIdentity::issue(authority, node).unwrap();
        let accept = [Protocol::Join, Protocol::Control];
        // A predecessor's socket closes when its task is next run.
        const ATTEMPTS: usize = 10_000;
        for _ in 0..ATTEMPTS {
            if let Ok(endpoint) = Endpoint::bind(listen, &identity, &accept) {
                let authority = authority.clone();
                return Self {
                    authority,
                    endpoint,
                };
            }
            tokio::task::yield_now().await;
        }
        panic!("{listen} stays in use");
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// Serves joins until a worker opens its control stream and has said hello.
    async fn next_worker(&self) -> Control {
        loop {
            let connection = self.endpoint.accept().await.unwrap();
            if connection.protocol() == Protocol::Join {
                let admit = async |_| {
                    Ok(Admission {
                        node: NodeId::Worker(WORKER),
                        authority: self.authority.clone(),
                        authorities: vec![self.authority.certificate().clone()],
                        coordinators: Vec::new(),
                    })
                };
                serve_join(&connection, admit).await.unwrap();
                continue;
            }
            assert_eq!(connection.peer(), Some(NodeId::Worker(WORKER)));
            let (send, recv) = connection.quic().accept_bi().await.unwrap();
            let mut control = Control {
                authority: self.authority.clone(),
                connection,
                send,
                reader: FrameReader::new(recv, CONTROL_FRAME_BYTES_MAX),
                trusted: false,
            };
            match control.heard().await {
                Some(ToCoordinator::Hello { inventory }) => {
                    assert_eq!(inventory.threads, 2);
                    assert_ne!(inventory.data_port, 0);
                }
                other => panic!("{other:?}"),
            }
            return control;
        }
    }
}

impl Control {
    async fn say(&mut self, message: &ToWorker) {
        write_frame(&mut self.send, message, CONTROL_FRAME_BYTES_MAX)
            .await
            .unwrap();
    }
    /// The next message but `Trusting`, which follows every coordinator's welcome, and is the same
    /// for all.
    async fn heard(&mut self) -> Option<ToCoordinator> {
        loop {
            match self.reader.next().await.unwrap() {
                Some(ToCoordinator::Trusting { fingerprints }) => {
                    assert_eq!(fingerprints, [self.authority.fingerprint().0]);
                    self.trusted = true;
                }
                other => return other,
            }
        }
    }
    async fn welcome(&mut self) {
        self.welcome_to(1, &[]).await;
    }
    /// Welcomes the worker to a group in this term.
    async fn welcome_to(&mut self, term: u64, group: &[CoordinatorAddress]) {
        let welcome = ToWorker::Welcome {
            worker: WORKER,
            term,
            coordinators: group.to_vec(),
            authorities: vec![self.authority.certificate().to_vec()],
            removed: Vec::new(),
        };
        self.say(&welcome).await;
        let heartbeat = ToCoordinator::Heartbeat { ranks: Vec::new() };
        assert_eq!(self.heard().await, Some(heartbeat));
    }

    /// Reads heartbeats until the worker has said whom it trusts.
    async fn until_trusted(&mut self) {
        for _ in 0..HEARTBEATS_MAX {
            if self.trusted {
                return;
            }
            self.heard().await.unwrap();
        }
        panic!("the worker never said whom it trusts");
    }
}

fn assign(term: u64, epoch: u64) -> ToWorker {
    let assignment = assignment(epoch);
    ToWorker::Assign { term, assignment }
}

/// A plan for one rank on `WORKER`, of a model that is not there.
fn assignment(epoch: u64) -> Box<Assignment> {
    let whole = Span::new(0, 1);
    let share = RankShare {
        stage: Stage(0),
        rank: Rank(0),
        stages: 1,
        ranks: 1,
        layers: whole,
        kv_heads: whole,
        ffn: whole,
        vocab: whole,
    };
    Box::new(Assignment {
        plan: ReplicaPlan {
            deployment: DeploymentId(1),
            replica: Replica(0),
            epoch: Epoch(epoch),
            model: ModelRef {
                name: "missing".into(),
                source: "/nonexistent/missing.gguf".into(),
                sha256: None,
            },
            tensor_parallel: 1,
            pipeline_parallel: 1,
            link: LinkPolicy::Auto,
            precision: Precision::default(),
            ranks: vec![RankPlacement {
                share,
                worker: WORKER,
                address: "127.0.0.1:1".into(),
                host: "here".into(),
                weight_bytes: 1,
            }],
            kv_pages: 8,
            context: 128,
            nonce: [7; 16],
        },
        index: 0,
    })
}

impl Control {
    /// Reads heartbeats until one satisfies `wanted`; the worker sends them for ever, so a wait
    /// that is not met ends by the read's own end.
    async fn until(&mut self, wanted: impl Fn(&[RankReport]) -> bool) {
        for _ in 0..HEARTBEATS_MAX {
            match self.heard().await {
                Some(ToCoordinator::Heartbeat { ranks }) if wanted(&ranks) => return,
                Some(ToCoordinator::Heartbeat { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("the worker never reported it");
    }
}

/// The real engine, given a model that is not there: it reports failure, and each plan replaces the
/// one before.
#[tokio::test]
async fn plans_start_fail_give_way_and_are_released() {
    let authority = cluster();
    let coordinator = Coordinator::start(&authority, loopback()).await;
    let worker = Worker::start("plans", coordinator.address(), token(&authority));
    let mut control = coordinator.next_worker().await;
    control.welcome().await;
    for epoch in [1, 2] {
        control.say(&assign(1, epoch)).await;
        control
            .until(|ranks| match ranks {
                [rank] => {
                    rank.epoch == Epoch(epoch) && matches!(rank.state, RankState::Failed { .. })
                }
                _ => false,
            })
            .await;
    }
    // An old epoch's plan and release change nothing; the present one's release does.
    control.say(&assign(1, 1)).await;
    let release = |epoch| ToWorker::Release {
        term: 1,
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(epoch),
    };
    control.say(&release(1)).await;
    control
        .until(|ranks| ranks.len() == 1 && ranks[0].epoch == Epoch(2))
        .await;
    control.say(&release(2)).await;
    control.until(<[RankReport]>::is_empty).await;
    worker.shutdown.cancel();
    worker.task.await.unwrap().unwrap();
    std::fs::remove_dir_all(&worker.folder).unwrap();
}

/// A running worker with a data folder of its own.
struct Worker {
    folder: PathBuf,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Worker {
    fn start(name: &str, coordinator: SocketAddr, token: Option<String>) -> Self {
        let name = format!("trireme-agent-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let shutdown = CancellationToken::new();
        let config = WorkerConfig {
            coordinators: vec![coordinator.to_string()],
            token,
            threads: 2,
            host_threads: 0,
            memory_bytes: 1 << 30,
            data_dir: folder.clone(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            isa: Isa::detect(),
            cache_dir: None,
        };
        let task = tokio::spawn(crate::run(config, shutdown.clone()));
        Self {
            folder,
            shutdown,
            task,
        }
    }
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn cluster() -> Arc<ClusterAuthority> {
    Arc::new(ClusterAuthority::new("test").unwrap())
}

fn token(authority: &ClusterAuthority) -> Option<String> {
    let token = JoinToken::generate(authority.fingerprint(), TokenRecordId(1)).unwrap();
    Some(token.reveal())
}

#[tokio::test]
async fn a_worker_joins_reconnects_with_what_it_saved_and_drains() {
    let authority = cluster();
    let coordinator = Coordinator::start(&authority, loopback()).await;
    let address = coordinator.address();
    let worker = Worker::start("life", address, token(&authority));
    let mut control = coordinator.next_worker().await;
    control.welcome().await;
    // The second heartbeat comes by the clock; by then the file is there.
    control.heard().await.unwrap();
    control.until_trusted().await;
    let json = std::fs::read(worker.folder.join("worker.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["id"], 5);
    assert_eq!(json["pid"], std::process::id());

    // The coordinator dies and another takes its place: the same process comes back.
    drop(control);
    coordinator.endpoint.close().await;
    drop(coordinator);
    let coordinator = Coordinator::start(&authority, address).await;
    let mut control = coordinator.next_worker().await;
    control.welcome().await;

    control.say(&ToWorker::Drain { term: 1 }).await;
    loop {
        match control.heard().await {
            Some(ToCoordinator::Heartbeat { .. }) => {}
            Some(ToCoordinator::Goodbye) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(control.heard().await, None, "nothing follows a goodbye");
    worker.task.await.unwrap().unwrap();

    // A second process in the same folder needs no token and leaves when asked.
    let again = Worker::start("life", address, None);
    let mut control = coordinator.next_worker().await;
    control.welcome().await;
    again.shutdown.cancel();
    loop {
        match control.heard().await {
            Some(ToCoordinator::Heartbeat { .. }) => {}
            Some(ToCoordinator::Goodbye) => break,
            other => panic!("{other:?}"),
        }
    }
    again.task.await.unwrap().unwrap();
    std::fs::remove_dir_all(&again.folder).unwrap();
}

#[tokio::test]
async fn a_refused_worker_says_why_and_ends() {
    let authority = cluster();
    let coordinator = Coordinator::start(&authority, loopback()).await;
    let worker = Worker::start("refused", coordinator.address(), token(&authority));
    let control = coordinator.next_worker().await;
    control.connection.refuse("worker w5 was removed");
    match worker.task.await.unwrap() {
        Err(error @ WorkerError::Refused { .. }) => {
            let text = error.to_string();
            assert!(text.contains("worker w5 was removed"), "{text}");
            assert!(text.contains("join again"), "{text}");
        }
        other => panic!("{other:?}"),
    }

    // Its identity is of no use to another cluster, and it says so at once.
    let theirs = cluster();
    let stranger = Coordinator::start(&theirs, loopback()).await;
    let misled = Worker::start("refused", stranger.address(), None);
    let accepting = stranger.endpoint.accept();
    tokio::select! {
        ended = misled.task => {
            let error = ended.unwrap().unwrap_err();
            assert!(matches!(error, WorkerError::Transport(_)), "{error}");
        }
        _ = accepting => panic!("a stranger was let in"),
    }
    let other_token = Worker::start("refused", stranger.address(), token(&theirs));
    let accepting = stranger.endpoint.accept();
    tokio::select! {
        ended = other_token.task => {
            let error = ended.unwrap().unwrap_err().to_string();
            assert!(error.contains("another cluster"), "{error}");
            assert!(error.contains("--data-dir"), "{error}");
        }
        _ = accepting => panic!("a stranger was let in"),
    }
    std::fs::remove_dir_all(&worker.folder).unwrap();
}

/// A script that starts the worker still has the token of its first start.
#[tokio::test]
async fn a_token_of_a_ca_that_was_replaced_does_not_keep_a_worker_of_the_cluster_out() {
    let authority = cluster();
    let first = token(&authority);
    let coordinator = Coordinator::start(&authority, loopback()).await;
    let worker = Worker::start("replaced", coordinator.address(), first.clone());
    let mut control = coordinator.next_worker().await;
    control.welcome().await;
    worker.shutdown.cancel();
    goodbye(&mut control).await;
    worker.task.await.unwrap().unwrap();

    // What a rotation leaves behind, here and there.
    let newer = Arc::new(authority.successor().unwrap());
    let renewed = NodeIdentity::issue(&newer, NodeId::Worker(WORKER)).unwrap();
    renewed.save(&worker.folder).unwrap();
    coordinator.endpoint.close().await;
    let coordinator = Coordinator::start(&newer, loopback()).await;
    let again = Worker::start("replaced", coordinator.address(), first);
    let asked = coordinator.endpoint.accept().await.unwrap();
    assert_eq!(asked.protocol(), Protocol::Control);
    let mut control = coordinator.next_worker().await;
    control.welcome().await;
    again.shutdown.cancel();
    goodbye(&mut control).await;
    again.task.await.unwrap().unwrap();
    std::fs::remove_dir_all(&again.folder).unwrap();
}

#[tokio::test]
async fn a_coordinators_certificate_is_no_workers() {
    let authority = cluster();
    let coordinator = Coordinator::start(&authority, loopback()).await;
    let worker = Worker::start("role", coordinator.address(), token(&authority));
    let connection = coordinator.endpoint.accept().await.unwrap();
    let node = NodeId::Coordinator(CoordinatorId(2));
    let admit = async |_| {
        Ok(Admission {
            node,
            authority: authority.clone(),
            authorities: vec![authority.certificate().clone()],
            coordinators: Vec::new(),
        })
    };
    serve_join(&connection, admit).await.unwrap();
    let error = worker.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ask for a worker token"), "{error}");
    assert!(
        NodeIdentity::load(&worker.folder).unwrap().is_none(),
        "kept"
    );

    // Nor is one that is there already, whatever the token.
    let theirs = NodeIdentity::issue(&authority, node).unwrap();
    theirs.save(&worker.folder).unwrap();
    let again = Worker::start("role", coordinator.address(), token(&authority));
    let error = again.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("no worker"), "{error}");
    std::fs::remove_dir_all(&again.folder).unwrap();
}

#[tokio::test]
async fn without_token_or_identity_the_way_in_is_explained() {
    let worker = Worker::start("tokenless", loopback(), None);
    let error = worker.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("--token"), "{error}");
    let worker = Worker::start("tokenless", loopback(), Some("not a token".into()));
    let error = worker.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("cluster token create"), "{error}");
}

/// Reads until the goodbye.
async fn goodbye(control: &mut Control) {
    loop {
        match control.heard().await {
            Some(ToCoordinator::Heartbeat { .. }) => {}
            Some(ToCoordinator::Goodbye) => return,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn one_address_leads_to_the_whole_group_and_all_of_it_hears_the_same() {
    let authority = cluster();
    let one = Coordinator::start_as(1, &authority, loopback()).await;
    let two = Coordinator::start_as(2, &authority, loopback()).await;
    let group: Vec<_> = [(1, &one), (2, &two)]
        .map(|(id, c)| CoordinatorAddress {
            id: CoordinatorId(id),
            control: c.address().to_string(),
        })
        .into();
    let worker = Worker::start("group", one.address(), token(&authority));
    let mut first = one.next_worker().await;
    first.welcome_to(1, &group).await;
    let mut second = two.next_worker().await;
    second.welcome_to(2, &group).await;

    // The leader is the second, of term 2; the first's order is of a term that is over.
    second.say(&assign(2, 7)).await;
    let has = |epoch| move |r: &[RankReport]| r.first().is_some_and(|r| r.epoch == Epoch(epoch));
    first.until(has(7)).await;
    second.until(has(7)).await;
    first.say(&assign(1, 8)).await;
    // The leader is lost: the rank stays, the other hears on and leads on.
    drop(second);
    two.endpoint.close().await;
    first
        .say(&ToWorker::Coordinators {
            term: 3,
            coordinators: group.clone(),
        })
        .await;
    first.say(&assign(3, 7)).await;
    first.say(&assign(3, 9)).await;
    let of = |r: &[RankReport]| r.first().map(|r| r.epoch.0);
    first
        .until(|ranks| {
            assert_ne!(of(ranks), Some(8), "a stale leader was obeyed");
            of(ranks) == Some(9)
        })
        .await;
    // The lost one comes back where it was, and is found.
    let address = two.address();
    drop(two);
    let two = Coordinator::start_as(2, &authority, address).await;
    let mut second = two.next_worker().await;
    second
        .say(&ToWorker::Welcome {
            worker: WORKER,
            term: 3,
            coordinators: group.clone(),
            authorities: vec![authority.certificate().to_vec()],
            removed: Vec::new(),
        })
        .await;
    second.until(has(9)).await;
    second.until_trusted().await;
    worker.shutdown.cancel();
    goodbye(&mut first).await;
    goodbye(&mut second).await;
    worker.task.await.unwrap().unwrap();

    // A second process finds the rest of the group without the one it was told to join.
    one.endpoint.close().await;
    let again = Worker::start("group", one.address(), None);
    let mut second = two.next_worker().await;
    second.welcome_to(3, &group).await;
    again.shutdown.cancel();
    goodbye(&mut second).await;
    again.task.await.unwrap().unwrap();
    std::fs::remove_dir_all(&again.folder).unwrap();
}
