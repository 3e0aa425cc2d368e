//! Talks with nodes: lets joiners in, and holds one conversation with each connected worker.
//!
//! What it keeps true: a worker counts as connected from its `Hello` to the end of its connection,
//! and only while the state knows it; a newer connection of a worker ends the older one.

use super::reconcile::{ConnectionId, Event};
use super::{Fleet, Line};
use crate::placement::{Candidate, thread_speed};
use crate::raft::group::Terms;
use crate::state::{Command, Origin, Outcome, ProposalId, TokenRole};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::{CertificateMark, NodeId};
use trireme_shared::ids::WorkerId;
use trireme_shared::limits;
use trireme_shared::transport::join::{Admission, Denied, JoinAsked, serve_join};
use trireme_shared::transport::{Connection, Protocol};
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::control::{CoordinatorAddress, Inventory, ToCoordinator, ToWorker};

impl Fleet {
    /// Serves one accepted *join* or *control* connection to its end.
    pub async fn converse(&self, connection: &Connection) {
        match (connection.protocol(), connection.peer()) {
            (Protocol::Join, _) => {
                let from = connection.remote_address();
                let admit = |asked| admit(self, asked, from);
                match serve_join(connection, admit).await {
                    Ok(node) => tracing::info!(%node, %from, "joined"),
                    Err(error) => tracing::warn!(%from, %error, "a join was refused"),
                }
            }
            (Protocol::Control, Some(NodeId::Worker(worker))) => {
                // A coordinator that has just started takes its state in first.
                let live = self.shared.live.cancelled();
                if timeout(limits::CONTROL_DEADLINE, live).await.is_err() {
                    connection.turn_away("this coordinator is still starting");
                    return;
                }
                if !is_member(self, worker).await {
                    connection.refuse("this worker is not a member: join with a new token");
                    return;
                }
                note_certificate(self, worker, connection);
                if let Err(reason) = converse(self, worker, connection).await {
                    tracing::warn!(%worker, reason, "a worker's conversation failed");
                    connection.refuse(&reason);
                }
            }
            _ => connection.refuse("a coordinator does not serve this protocol"),
        }
    }
}

/// Whether the state knows the worker; a copy of it that lags behind is given time.
async fn is_member(fleet: &Fleet, worker: WorkerId) -> bool {
    let mut applied = fleet.shared.group.applied();
    let known = async {
        loop {
            applied.borrow_and_update();
            if fleet.shared.group.read(|s| s.worker(worker).is_some()) {
                return true;
            }
            if applied.changed().await.is_err() {
                return false;
            }
        }
    };
    timeout(limits::MEMBER_WAIT, known).await.unwrap_or(false)
}

/// Uses the token once, and names the new node by the token's role.
async fn admit(fleet: &Fleet, asked: JoinAsked, from: SocketAddr) -> Result<Admission, Denied> {
    let JoinAsked {
        token, secret_hash, ..
    } = asked;
    let group = &fleet.shared.group;
    let role = group.read(|s| s.token(token).map(|t| t.role));
    let command = match role {
        Some(TokenRole::Coordinator | TokenRole::Learner) => {
            Command::JoinCoordinator { token, secret_hash }
        }
        // A token that this copy of the state does not know (yet) is for the group to judge.
        Some(TokenRole::Worker) | None => Command::JoinWorker { token, secret_hash },
    };
    let terms = Terms {
        id: Some(ProposalId(asked.attempt)),
        origin: Some(Origin {
            who: format!("token {token}"),
            from: from.to_string(),
        }),
        ..Terms::default()
    };
    let node = match group.propose_as(terms, command).await {
        Ok(Outcome::Worker(worker)) => NodeId::Worker(worker),
        Ok(Outcome::Coordinator(id)) => NodeId::Coordinator(id),
        Ok(Outcome::Refused(why)) => return Err(Denied::Refused(why.to_string())),
        Ok(_) => return Err(Denied::Refused("the state gave no number".into())),
        Err(error) => return Err(Denied::Unavailable(error.to_string())),
    };
    let signer = fleet.signer();
    let (authority, authorities) = signer.map_err(|e| Denied::Unavailable(e.to_string()))?;
    Ok(Admission {
        node,
        authority,
        authorities,
        coordinators: fleet.coordinators(),
    })
}

/// Keeps what the group must know of the certificate a worker shows: a CA that is being replaced goes
/// only when no certificate of its own is left.
fn note_certificate(fleet: &Fleet, worker: WorkerId, connection: &Connection) {
    if let Some(certificate) = connection.peer_certificate() {
        let fleet = fleet.clone();
        // Not awaited: a group without a leader must not hold up its workers.
        tokio::spawn(async move { note(&fleet, worker, certificate).await });
    }
}

async fn note(fleet: &Fleet, worker: WorkerId, certificate: CertificateMark) {
    let fingerprint = certificate.fingerprint.to_string();
    let known = fleet.shared.group.read(|s| {
        let record = s.worker(worker);
        let shown = record.and_then(|w| w.certificate.as_ref());
        shown.is_some_and(|c| c.fingerprint == fingerprint)
    });
    if !known {
        let command = Command::PutCertificate {
            node: NodeId::Worker(worker),
            fingerprint,
            expires_at: certificate.expires_at,
        };
        if let Err(error) = fleet.shared.group.propose(command).await {
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
    let welcome = |term, coordinators| ToWorker::Welcome {
        worker,
        term,
        coordinators,
        authorities: fleet.authorities(),
        removed: fleet.removed_workers(),
    };
    let registration = Registration::new(
        fleet,
        worker,
        connection,
        inventory,
        welcome,
        orders.clone(),
    );
    let listener = Listener {
        fleet,
        worker,
        connection: registration.connection,
        orders,
        renewed_at: None,
    };
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
        reason = listener.listen(&mut frames) => reason,
        () = registration.cut.cancelled() => "a newer connection, or orders it did not take".into(),
    };
    connection.leave(&reason);
    registration.end(reason);
    Ok(())
}

/// Hears one worker.
struct Listener<'a> {
    fleet: &'a Fleet,
    worker: WorkerId,
    connection: ConnectionId,
    /// For answers.
    orders: mpsc::Sender<ToWorker>,
    renewed_at: Option<Instant>,
}

impl Listener<'_> {
    /// Reads reports; gives why there will be no more.
    async fn listen(mut self, frames: &mut FrameReader) -> String {
        let worker = self.worker;
        loop {
            match timeout(limits::CONTROL_DEADLINE, frames.next()).await {
                Ok(Ok(Some(ToCoordinator::Heartbeat { ranks }))) => {
                    let reports = ranks;
                    self.fleet.feed(Event::Ranks { worker, reports });
                }
                Ok(Ok(Some(ToCoordinator::Renew { csr }))) => {
                    if let Err(reason) = self.renew(&csr).await {
                        return reason;
                    }
                }
                Ok(Ok(Some(ToCoordinator::Trusting { fingerprints }))) => {
                    let mut driven = self.fleet.lock();
                    let mine = |line: &&mut Line| line.connection == self.connection;
                    if let Some(line) = driven.lines.get_mut(&worker).filter(mine) {
                        line.trusts = fingerprints;
                    }
                }
                Ok(Ok(Some(ToCoordinator::Goodbye))) => return "it left".into(),
                Ok(Ok(Some(ToCoordinator::Hello { .. }))) => return "it said hello twice".into(),
                Ok(Ok(None)) => return "it ended its stream".into(),
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "it fell silent".into(),
            }
        }
    }

    /// Signs a new certificate for this worker, whatever name its request gives.
    async fn renew(&mut self, csr: &[u8]) -> Result<(), String> {
        // A request whose answer was lost comes again after the whole interval.
        let often = |at: Instant| at.elapsed() < limits::RENEW_RETRY_INTERVAL / 2;
        if self.renewed_at.is_some_and(often) {
            return Err("it asks for certificates all the time".into());
        }
        self.renewed_at = Some(Instant::now());
        let validity = limits::NODE_CERTIFICATE_LIFETIME;
        let node = NodeId::Worker(self.worker);
        let (authority, _) = self.fleet.signer().map_err(|e| e.to_string())?;
        let certificate = authority.sign_csr(csr, node, validity);
        let certificate = certificate.map_err(|e| e.to_string())?;
        let mark = CertificateMark::of(&certificate).map_err(|e| e.to_string())?;
        note(self.fleet, self.worker, mark).await;
        tracing::info!(worker = %self.worker, "a new certificate");
        let answer = ToWorker::Certificate {
            certificate: certificate.to_vec(),
            authorities: self.fleet.authorities(),
        };
        let sent = self.orders.try_send(answer);
        sent.map_err(|_| "it does not read its orders".into())
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
        welcome: impl FnOnce(u64, Vec<CoordinatorAddress>) -> ToWorker,
        orders: mpsc::Sender<ToWorker>,
    ) -> Self {
        let candidate = candidate(worker, connection, &inventory);
        let cut = CancellationToken::new();
        let mut driven = fleet.lock();
        // The first order, queued before any change of the group or assignment can be.
        let group = &driven.followed;
        let _ = orders.try_send(welcome(group.term, group.coordinators.clone()));
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
            trusts: Vec::new(),
        };
        if let Some(older) = driven.lines.insert(worker, line) {
            older.cut.cancel();
        }
        let event = Event::WorkerConnected {
            candidate,
            connection: id,
        };
        fleet.feed_locked(&mut driven, event);
        fleet.shared.hello.notify_one();
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
