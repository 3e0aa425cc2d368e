//! A whole worker process (without an engine) against a pretend coordinator over real QUIC.

use super::*;
use crate::backend::Isa;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinHandle;
use trireme_shared::identity::{ClusterAuthority, JoinToken, NodeIdentity};
use trireme_shared::ids::{CoordinatorId, TokenRecordId};
use trireme_shared::limits::CONTROL_FRAME_BYTES_MAX;
use trireme_shared::transport::join::serve_join;
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::control::{ToCoordinator, ToWorker};

const WORKER: WorkerId = WorkerId(5);

struct Coordinator {
    authority: Arc<ClusterAuthority>,
    endpoint: Endpoint,
}

/// The coordinator's end of a worker's control stream.
struct Control {
    connection: Connection,
    send: quinn::SendStream,
    reader: FrameReader,
}

impl Coordinator {
    async fn start(authority: &Arc<ClusterAuthority>, listen: SocketAddr) -> Self {
        let node = NodeId::Coordinator(CoordinatorId(1));
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
                let admit = async |_, _| Ok(NodeId::Worker(WORKER));
                serve_join(&connection, &self.authority, admit)
                    .await
                    .unwrap();
                continue;
            }
            assert_eq!(connection.peer(), Some(NodeId::Worker(WORKER)));
            let (send, recv) = connection.quic().accept_bi().await.unwrap();
            let mut control = Control {
                connection,
                send,
                reader: FrameReader::new(recv, CONTROL_FRAME_BYTES_MAX),
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
    async fn heard(&mut self) -> Option<ToCoordinator> {
        self.reader.next().await.unwrap()
    }
    async fn welcome(&mut self) {
        self.say(&ToWorker::Welcome { worker: WORKER }).await;
        let heartbeat = ToCoordinator::Heartbeat { ranks: Vec::new() };
        assert_eq!(self.heard().await, Some(heartbeat));
    }
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
            coordinator: coordinator.to_string(),
            token,
            threads: 2,
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

    control.say(&ToWorker::Drain).await;
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
    let error = other_token.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("--data-dir"), "{error}");
    std::fs::remove_dir_all(&worker.folder).unwrap();
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
