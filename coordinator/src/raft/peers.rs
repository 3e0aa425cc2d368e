//! Messages between members over QUIC: a task, a bounded queue and a connection for each peer.
//!
//! What it keeps true: sending never waits (a full queue or a broken connection loses messages, as
//! Raft expects, and says so); a peer that cannot be reached holds up no other; messages of one peer
//! arrive in order. A snapshot has a stream of its own beside the messages and is paced, so that it
//! does not push them aside.

use super::book::Book;
use super::codec::PeerMessage;
use super::group::Job;
use super::leisure;
use super::member::Input;
use super::snapshots;
use super::storage::{Folder, SnapshotReceiver, SnapshotRef, SnapshotSource};
use super::types::MemberId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol};
use trireme_shared::wire::codec::{FrameReader, frame, write_frame};
use wincode::{SchemaRead, SchemaWrite};

/// The first frame of a stream.
#[derive(SchemaRead, SchemaWrite)]
pub enum Opening {
    /// Frames of `PeerMessage` follow. `control` is where the sender listens.
    Messages { control: String },
    /// The bytes of the snapshot file that `message` announces follow; one frame of `Arrived` answers.
    Snapshot { message: Box<PeerMessage> },
}

#[derive(SchemaRead, SchemaWrite)]
struct Arrived {
    ok: bool,
}

/// The sending half of all peers.
pub(super) struct Peers {
    own: CoordinatorId,
    jobs: mpsc::Sender<Job>,
    book: Book,
    disk: Folder,
    runtime: Handle,
    endpoint: Arc<OnceLock<Endpoint>>,
    outboxes: Mutex<BTreeMap<MemberId, Outbox>>,
    /// One snapshot is received at a time: two leaders may send the same one, into the same file.
    receiving: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Outbox {
    messages: mpsc::Sender<PeerMessage>,
    /// Bytes of entries in the queue.
    bytes: Arc<AtomicUsize>,
}

impl Peers {
    pub(super) fn new(
        own: CoordinatorId,
        jobs: mpsc::Sender<Job>,
        book: Book,
        disk: Folder,
        runtime: Handle,
    ) -> Self {
        Self {
            own,
            jobs,
            book,
            disk,
            runtime,
            endpoint: Arc::default(),
            outboxes: Mutex::default(),
            receiving: Arc::default(),
        }
    }

    pub(super) fn attach(&self, endpoint: &Endpoint) {
        let _ = self.endpoint.set(endpoint.clone());
    }

    /// Queues a message; never waits.
    pub(super) fn send(&self, message: PeerMessage) {
        let to = message.to;
        let size = weight(&message);
        let outbox = self.outbox(to);
        let queued = outbox.bytes.fetch_add(size, Ordering::Relaxed) + size;
        let full = queued > limits::RAFT_OUTBOX_BYTES_MAX;
        if full || outbox.messages.try_send(message).is_err() {
            outbox.bytes.fetch_sub(size, Ordering::Relaxed);
            // raft-rs then probes instead of streaming. The thread that sends is the one that reads
            // jobs: it must not wait for room.
            let _ = self.jobs.try_send(Job::Input(Input::Unreachable(to)));
        }
    }

    fn outbox(&self, to: MemberId) -> Outbox {
        let mut all = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(to)
            .or_insert_with(|| {
                let (messages, queue) = mpsc::channel(limits::RAFT_OUTBOX_MESSAGES_MAX);
                let bytes = Arc::new(AtomicUsize::new(0));
                let line = Line {
                    to,
                    own: self.own,
                    queue,
                    bytes: Arc::clone(&bytes),
                    jobs: self.jobs.clone(),
                    book: self.book.clone(),
                    endpoint: Arc::clone(&self.endpoint),
                };
                self.runtime.spawn(line.keep());
                Outbox { messages, bytes }
            })
            .clone()
    }

    /// Streams a snapshot file in a task of its own, and reports how it went.
    pub(super) fn send_snapshot(&self, message: PeerMessage, file: SnapshotRef) {
        let (jobs, book, disk) = (self.jobs.clone(), self.book.clone(), self.disk.clone());
        let endpoint = self.endpoint.get().cloned();
        self.runtime.spawn(async move {
            let to = message.to;
            let sent = async {
                let endpoint = endpoint.ok_or("this member is not connected yet")?;
                let connection = dial(&endpoint, &book, to).await?;
                stream_snapshot(&connection, message, disk, &file).await
            };
            let arrived = match timeout(limits::SNAPSHOT_DEADLINE, sent).await {
                Ok(Ok(())) => true,
                Ok(Err(reason)) => {
                    tracing::warn!(to, reason, "a snapshot was not delivered");
                    false
                }
                Err(_) => {
                    tracing::warn!(to, "a snapshot was not delivered in time");
                    false
                }
            };
            let _ = jobs
                .send(Job::Input(Input::SnapshotSent { to, arrived }))
                .await;
        });
    }

    /// The receiving half of one connection: streams until it ends.
    pub(super) async fn serve(&self, connection: &Connection) {
        let Some(NodeId::Coordinator(peer)) = connection.peer() else {
            return connection.refuse("only coordinators speak Raft");
        };
        let from = u64::from(peer.0);
        while let Ok((send, recv)) = connection.quic().accept_bi().await {
            let (jobs, book, disk) = (self.jobs.clone(), self.book.clone(), self.disk.clone());
            let receiving = Arc::clone(&self.receiving);
            self.runtime.spawn(async move {
                let streams = (send, recv);
                if let Err(reason) = receive(from, streams, jobs, book, disk, &receiving).await {
                    tracing::debug!(from, reason, "a stream of another member ended");
                }
            });
        }
    }
}

/// What a queued message counts for.
fn weight(message: &PeerMessage) -> usize {
    let entries = message.entries.iter().map(|e| e.data.len()).sum::<usize>();
    entries + std::mem::size_of::<PeerMessage>()
}

async fn dial(endpoint: &Endpoint, book: &Book, to: MemberId) -> Result<Connection, String> {
    let node = u32::try_from(to).map_err(|_| "no coordinator has this number")?;
    let node = NodeId::Coordinator(CoordinatorId(node));
    let mut why = "its address is not known yet".to_owned();
    for address in book.addresses(to) {
        let deadline = limits::RAFT_CONNECT_DEADLINE;
        match endpoint
            .connect_within(&address, node, Protocol::Raft, deadline)
            .await
        {
            Ok(connection) => return Ok(connection),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// The sending task of one peer.
struct Line {
    to: MemberId,
    own: CoordinatorId,
    queue: mpsc::Receiver<PeerMessage>,
    bytes: Arc<AtomicUsize>,
    jobs: mpsc::Sender<Job>,
    book: Book,
    endpoint: Arc<OnceLock<Endpoint>>,
}

impl Line {
    async fn keep(mut self) {
        let mut pause = limits::RAFT_RECONNECT_DELAY_MIN;
        let mut silent = false;
        // Kept while it lives; messages and snapshots have streams of their own on it.
        while let Some(first) = self.queue.recv().await {
            self.bytes.fetch_sub(weight(&first), Ordering::Relaxed);
            let began = Instant::now();
            let mut held = None;
            match self.run(first, &mut held).await {
                Ok(()) => return,
                Err(_) if held.is_some_and(|c: Connection| c.says_removed()) => {
                    // This member may have stopped before it got its own removal.
                    let _ = self.jobs.send(Job::Input(Input::Expelled)).await;
                    return;
                }
                Err(reason) => {
                    // Said once for each time a peer is lost.
                    if !std::mem::replace(&mut silent, true) {
                        tracing::info!(
                            peer = self.to,
                            reason,
                            "another coordinator is not reached"
                        );
                    }
                    if began.elapsed() > limits::RAFT_RECONNECT_DELAY_MAX {
                        (pause, silent) = (limits::RAFT_RECONNECT_DELAY_MIN, false);
                    }
                }
            }
            self.lose();
            let report = Job::Input(Input::Unreachable(self.to));
            if self.jobs.send(report).await.is_err() {
                return;
            }
            sleep(pause).await;
            self.lose();
            pause = (pause * 2).min(limits::RAFT_RECONNECT_DELAY_MAX);
        }
    }

    /// Drops what waits: it is old news by the time there is a connection.
    fn lose(&mut self) {
        while let Ok(message) = self.queue.try_recv() {
            self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
        }
    }

    /// One connection, until it fails; `Ok` where the member is gone.
    async fn run(
        &mut self,
        first: PeerMessage,
        held: &mut Option<Connection>,
    ) -> Result<(), String> {
        let endpoint = self
            .endpoint
            .get()
            .ok_or("this member is not connected yet")?;
        let connection = held.insert(dial(endpoint, &self.book, self.to).await?);
        let (mut send, _recv) = connection
            .quic()
            .open_bi()
            .await
            .map_err(|e| e.to_string())?;
        let own = self.book.addresses(u64::from(self.own.0));
        let control = own.into_iter().next().unwrap_or_default();
        let max = limits::RAFT_FRAME_BYTES_MAX;
        let mut buffer = frame(&Opening::Messages { control }, max).map_err(|e| e.to_string())?;
        buffer.extend(frame(&first, max).map_err(|e| e.to_string())?);
        loop {
            // All that waits goes out in one write.
            while buffer.len() < limits::RAFT_WRITE_BYTES {
                let Ok(message) = self.queue.try_recv() else {
                    break;
                };
                self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
                buffer.extend(frame(&message, max).map_err(|e| e.to_string())?);
            }
            let written = timeout(limits::RAFT_WRITE_DEADLINE, send.write_all(&buffer)).await;
            written
                .map_err(|_| "it does not read".to_owned())?
                .map_err(|e| e.to_string())?;
            buffer.clear();
            let message = tokio::select! {
                message = self.queue.recv() => message,
                closed = connection.quic().closed() => return Err(closed.to_string()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
            buffer.extend(frame(&message, max).map_err(|e| e.to_string())?);
        }
    }
}

async fn stream_snapshot(
    connection: &Connection,
    message: PeerMessage,
    disk: Folder,
    file: &SnapshotRef,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (mut send, mut recv) = connection.quic().open_bi().await.map_err(|e| text(&e))?;
    // Below the messages' stream: they go first wherever both have something to send.
    let _ = send.set_priority(-1);
    let opening = Opening::Snapshot {
        message: Box::new(message),
    };
    write_frame(&mut send, &opening, limits::RAFT_FRAME_BYTES_MAX)
        .await
        .map_err(|e| text(&e))?;
    let mut source = SnapshotSource::open(disk, file).map_err(|e| text(&e))?;
    let mut chunk = vec![0; limits::SNAPSHOT_PIECE_BYTES];
    loop {
        let began = Instant::now();
        let fill = move || {
            let read = source.read(&mut chunk);
            (read, source, chunk)
        };
        let read;
        (read, source, chunk) = tokio::task::spawn_blocking(fill)
            .await
            .map_err(|e| text(&e))?;
        let read = read.map_err(|e| text(&e))?;
        if read == 0 {
            break;
        }
        send.write_all(&chunk[..read]).await.map_err(|e| text(&e))?;
        // At most half of the time goes into a snapshot; commits have the rest.
        sleep(began.elapsed().max(limits::SNAPSHOT_PIECE_PAUSE)).await;
    }
    let _ = send.finish();
    let answer =
        trireme_shared::wire::codec::read_frame::<Arrived>(&mut recv, limits::RAFT_FRAME_BYTES_MAX);
    match answer.await.map_err(|e| text(&e))? {
        Some(Arrived { ok: true }) => Ok(()),
        _ => Err("the other member could not use it; its log says why".into()),
    }
}

async fn receive(
    from: MemberId,
    (mut send, recv): (quinn::SendStream, quinn::RecvStream),
    jobs: mpsc::Sender<Job>,
    book: Book,
    disk: Folder,
    receiving: &tokio::sync::Mutex<()>,
) -> Result<(), String> {
    let mut frames = FrameReader::new(recv, limits::RAFT_FRAME_BYTES_MAX);
    let opening = timeout(limits::CONTROL_DEADLINE, frames.next::<Opening>()).await;
    let opening = opening.map_err(|_| "it said nothing".to_owned())?;
    match opening.map_err(|e| e.to_string())? {
        None => Ok(()),
        Some(Opening::Messages { control }) => {
            if !control.is_empty() {
                book.said(from, &control);
            }
            while let Some(message) = frames
                .next::<PeerMessage>()
                .await
                .map_err(|e| e.to_string())?
            {
                if message.from != from {
                    return Err("it speaks in another member's name".into());
                }
                let stopped = jobs
                    .send(Job::Input(Input::Message(message)))
                    .await
                    .is_err();
                if stopped {
                    return Ok(());
                }
            }
            Ok(())
        }
        Some(Opening::Snapshot { message }) => {
            if message.from != from {
                return Err("it speaks in another member's name".into());
            }
            let _alone = receiving.lock().await;
            let taken = take_snapshot(*message, frames.into_inner(), disk, &jobs).await;
            let answer = Arrived { ok: taken.is_ok() };
            let _ = write_frame(&mut send, &answer, limits::RAFT_FRAME_BYTES_MAX).await;
            let _ = send.finish();
            taken
        }
    }
}

async fn take_snapshot(
    message: PeerMessage,
    (early, mut recv): (Vec<u8>, quinn::RecvStream),
    disk: Folder,
    jobs: &mpsc::Sender<Job>,
) -> Result<(), String> {
    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let meta = message.snapshot.clone().ok_or("it announced no snapshot")?;
    tracing::info!(index = meta.index, "receiving a snapshot");
    let (chunks, mut queue) = mpsc::channel::<Bytes>(limits::SNAPSHOT_PIECES_MAX);
    let write = move || {
        let mut receiver = SnapshotReceiver::create(disk.clone(), meta).map_err(text)?;
        receiver.write(&early).map_err(text)?;
        while let Some(bytes) = queue.blocking_recv() {
            receiver.write(&bytes).map_err(text)?;
        }
        let file = receiver.finish().map_err(text)?;
        let state = snapshots::read(&disk, &file).map_err(text)?;
        Ok::<_, String>((file, state))
    };
    let written = leisure::run("snapshot", write).map_err(text)?;
    loop {
        let chunk = timeout(
            limits::SNAPSHOT_SILENCE_MAX,
            recv.read_chunk(limits::SNAPSHOT_CHUNK_BYTES, true),
        );
        let chunk = chunk.await.map_err(|_| "its snapshot stalled".to_owned())?;
        let Some(chunk) = chunk.map_err(text)? else {
            break;
        };
        if chunks.send(chunk.bytes).await.is_err() {
            // The writer says why.
            break;
        }
    }
    drop(chunks);
    let (file, state) = written.await.map_err(text)??;
    let state = Box::new(state);
    let input = Input::SnapshotArrived {
        message,
        file,
        state,
    };
    jobs.send(Job::Input(input))
        .await
        .map_err(|_| "this member is stopping".to_owned())
}
