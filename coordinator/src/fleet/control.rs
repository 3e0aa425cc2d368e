//! Talks with nodes: lets joiners in, and holds one conversation with each connected worker.
//!
//! What it keeps true: a worker counts as connected from its `Hello` to the end of its connection,
//! and only while the state knows it; a newer connection of a worker ends the older one.

use super::reconcile::{ConnectionId, Event};
use super::{Fleet, Line, unix_now};
use crate::placement::{Candidate, thread_speed};
use crate::state::{Command, Outcome};
use quinn::rustls::pki_types::CertificateDer;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::{ClusterAuthority, Fingerprint, NodeId, SecretHash};
use trireme_shared::ids::{TokenRecordId, WorkerId};
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol, join};
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::control::{Inventory, ToCoordinator, ToWorker};

/// Accepts connections until the endpoint closes.
pub(super) async fn accept(
    fleet: Fleet,
    endpoint: Endpoint,
    authority: Arc<ClusterAuthority>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS_MAX));
    while let Some(connection) = endpoint.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            connection.turn_away("this coordinator serves as many connections as it can");
            continue;
        };
        let (fleet, authority, shutdown) = (fleet.clone(), authority.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = shutdown.cancelled() => connection.leave("the coordinator is stopping"),
                () = serve(&fleet, &authority, &connection) => {}
            }
        });
    }
}

async fn serve(fleet: &Fleet, authority: &ClusterAuthority, connection: &Connection) {
    match (connection.protocol(), connection.peer()) {
        (Protocol::Join, _) => {
            let from = connection.remote_address();
            let admit = |token, hash| admit(fleet, token, hash);
            match join::serve_join(connection, authority, admit).await {
                Ok(node) => tracing::info!(%node, %from, "joined"),
                Err(error) => tracing::warn!(%from, %error, "a join was refused"),
            }
        }
        (Protocol::Control, Some(NodeId::Worker(worker))) => {
            if fleet.shared.journal.read(|s| s.worker(worker).is_none()) {
                connection.refuse("this worker is not a member: join with a new token");
                return;
            }
            note_certificate(fleet, worker, connection).await;
            if let Err(reason) = converse(fleet, worker, connection).await {
                tracing::warn!(%worker, reason, "a worker's conversation failed");
                connection.refuse(&reason);
            }
        }
        _ => connection.refuse("a coordinator does not serve this protocol"),
    }
}

/// Uses the token once, and names the new worker.
async fn admit(fleet: &Fleet, token: TokenRecordId, hash: SecretHash) -> Result<NodeId, String> {
    let command = Command::JoinWorker {
        token,
        secret_hash: hash,
        now: unix_now(),
    };
    match fleet.shared.journal.propose(command).await {
        Ok(Outcome::Worker(worker)) => Ok(NodeId::Worker(worker)),
        Ok(Outcome::Refused(why)) => Err(why.to_string()),
        Ok(_) => Err("the state gave no worker number".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Keeps the fingerprint of the certificate a worker shows, for audits and later revocation.
async fn note_certificate(fleet: &Fleet, worker: WorkerId, connection: &Connection) {
    let shown = connection.quic().peer_identity();
    let shown = shown.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(fingerprint) = shown.and_then(|chain| chain.first().map(Fingerprint::of)) else {
        return;
    };
    let fingerprint = fingerprint.to_string();
    let known = fleet.shared.journal.read(|s| {
        let record = s.worker(worker);
        record.is_some_and(|w| w.certificate.as_ref() == Some(&fingerprint))
    });
    if !known {
        let command = Command::PutCertificate {
            worker,
            fingerprint,
        };
        if let Err(error) = fleet.shared.journal.propose(command).await {
            tracing::warn!(%worker, %error, "its certificate was not noted");
        }
    }
}

/// From `Hello` to the end. An error is the worker's fault, in words.
async fn converse(fleet: &Fleet, worker: WorkerId, connection: &Connection) -> Result<(), String> {
    let accepted = timeout(limits::CONTROL_DEADLINE, connection.quic().accept_bi()).await;
    let (mut send, recv) = accepted
        .map_err(|_| "it opened no stream".to_owned())?
        .map_err(|e| e.to_string())?;
    let mut frames = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES_MAX);
    let hello = timeout(limits::CONTROL_DEADLINE, frames.next())
        .await
        .map_err(|_| "it did not say hello".to_owned())?;
    let Ok(Some(ToCoordinator::Hello { inventory })) = hello else {
        return Err("its first frame was not a hello: is it of this Trireme version?".into());
    };
    let (orders, mut queue) = mpsc::channel(limits::WORKER_ORDERS_MAX);
    // The first order, queued before anything can be assigned.
    let _ = orders.try_send(ToWorker::Welcome { worker });
    let registration = Registration::new(fleet, worker, connection, inventory, orders);
    let write = async {
        while let Some(order) = queue.recv().await {
            let written = write_frame(&mut send, &order, limits::CONTROL_FRAME_BYTES_MAX);
            match timeout(limits::CONTROL_DEADLINE, written).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "it does not read its orders".into(),
            }
        }
        "its orders ended".to_owned()
    };
    let reason = tokio::select! {
        reason = write => reason,
        reason = listen(fleet, worker, &mut frames) => reason,
        () = registration.cut.cancelled() => "a newer connection, or orders it did not take".into(),
    };
    connection.leave(&reason);
    registration.end(reason);
    Ok(())
}

/// Reads reports; gives why there will be no more.
async fn listen(fleet: &Fleet, worker: WorkerId, frames: &mut FrameReader) -> String {
    loop {
        match timeout(limits::CONTROL_DEADLINE, frames.next()).await {
            Ok(Ok(Some(ToCoordinator::Heartbeat { ranks }))) => {
                let reports = ranks;
                fleet.feed(Event::Ranks { worker, reports });
            }
            Ok(Ok(Some(ToCoordinator::Goodbye))) => return "it left".into(),
            Ok(Ok(Some(ToCoordinator::Hello { .. }))) => return "it said hello twice".into(),
            Ok(Ok(None)) => return "it ended its stream".into(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "it fell silent".into(),
        }
    }
}

/// A worker's place among the connected; leaving it reports the worker lost, unless it is left
/// because the whole coordinator stops.
struct Registration<'a> {
    fleet: &'a Fleet,
    worker: WorkerId,
    connection: ConnectionId,
    cut: CancellationToken,
    /// Why the conversation ended; `None` where it was cancelled by the shutdown.
    reason: Option<String>,
}

impl<'a> Registration<'a> {
    fn new(
        fleet: &'a Fleet,
        worker: WorkerId,
        connection: &Connection,
        inventory: Inventory,
        orders: mpsc::Sender<ToWorker>,
    ) -> Self {
        let candidate = candidate(worker, connection, &inventory);
        let cut = CancellationToken::new();
        let mut driven = fleet.lock();
        driven.last_connection += 1;
        let id = ConnectionId(driven.last_connection);
        tracing::info!(%worker, address = candidate.address, hostname = inventory.hostname,
            threads = inventory.threads, isa = inventory.isa, "a worker connected");
        driven
            .inventories
            .insert(worker, (candidate.address.clone(), inventory));
        let line = Line {
            connection: id,
            orders,
            cut: cut.clone(),
        };
        if let Some(older) = driven.lines.insert(worker, line) {
            older.cut.cancel();
        }
        let event = Event::WorkerConnected {
            candidate,
            connection: id,
        };
        fleet.feed_locked(&mut driven, event);
        Self {
            fleet,
            worker,
            connection: id,
            cut,
            reason: None,
        }
    }

    fn end(mut self, reason: String) {
        self.reason = Some(reason);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let (worker, connection) = (self.worker, self.connection);
        let reason = match self.reason.take() {
            Some(reason) => reason,
            None if std::thread::panicking() => "its conversation panicked".into(),
            None => return,
        };
        let mut driven = self.fleet.lock();
        let mine = |line: &Line| line.connection == connection;
        if driven.lines.get(&worker).is_some_and(mine) {
            driven.lines.remove(&worker);
            tracing::info!(%worker, reason, "a worker is gone");
        }
        let event = Event::WorkerLost {
            worker,
            connection,
            reason,
        };
        self.fleet.feed_locked(&mut driven, event);
    }
}

fn candidate(worker: WorkerId, connection: &Connection, inventory: &Inventory) -> Candidate {
    let seen = connection.remote_address().ip().to_canonical();
    let address = inventory
        .advertise
        .clone()
        .unwrap_or_else(|| std::net::SocketAddr::new(seen, inventory.data_port).to_string());
    Candidate {
        worker,
        address,
        host: inventory.host.clone(),
        threads: inventory.threads,
        thread_speed: thread_speed(&inventory.isa),
        memory_bytes: inventory.memory_bytes,
    }
}
