//! The control links: one stream to each coordinator, found again whenever it is lost.
//!
//! What it keeps true: at most one conversation with a coordinator at a time, whatever addresses lead
//! to it. Neighbours: `links` decides whom to dial; `drive` hears [`Heard`] and says `ToCoordinator`;
//! nothing else knows of connections.

use super::backoff::Backoff;
use super::links::{Change, LinkId, LinkTable, Target};
use crate::WorkerError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits::{
    CONTROL_DEADLINE, CONTROL_FRAME_BYTES_MAX, CONTROL_QUEUE_MAX, GOODBYE_DEADLINE,
};
use trireme_shared::transport::{Connection, Endpoint, Protocol, TransportError};
use trireme_shared::wire::codec::{FrameReader, Message, WireError, write_frame};
use trireme_shared::wire::control::{CoordinatorAddress, Inventory, ToCoordinator, ToWorker};

/// What the links tell the agent.
#[derive(Debug)]
pub enum Heard {
    /// A coordinator welcomed this worker: a heartbeat is due.
    Up,
    Message(ToWorker),
    /// There is no sense in trying on. The last thing heard.
    Fatal(WorkerError),
}

/// What one link's task tells.
enum Said {
    Up(CoordinatorId),
    Message(ToWorker),
    Down,
    /// Not let in; tried again.
    Refused(WorkerError),
}

/// Who this worker is, for greetings.
#[derive(Clone)]
struct Greeting {
    endpoint: Endpoint,
    node: NodeId,
    inventory: Inventory,
    /// Coordinators that a link converses with.
    taken: Arc<Mutex<BTreeSet<CoordinatorId>>>,
}

/// The agent's end of all links.
pub struct ControlLinks {
    table: LinkTable,
    greeting: Greeting,
    heard_in: mpsc::Sender<(LinkId, Said)>,
    heard: mpsc::Receiver<(LinkId, Said)>,
    handles: BTreeMap<LinkId, Handle>,
}

struct Handle {
    target: watch::Sender<Target>,
    /// Dropping it ends the link after what was said has been delivered.
    say: mpsc::Sender<ToCoordinator>,
    task: JoinHandle<()>,
}

impl ControlLinks {
    /// Starts looking for the coordinators at `seeds` and those that an earlier run was told of.
    pub fn open(
        endpoint: Endpoint,
        seeds: Vec<String>,
        known: &[CoordinatorAddress],
        node: NodeId,
        inventory: Inventory,
    ) -> Self {
        let (heard_in, heard) = mpsc::channel(CONTROL_QUEUE_MAX);
        let (table, changes) = LinkTable::new(seeds, known);
        let mut links = Self {
            table,
            greeting: Greeting {
                endpoint,
                node,
                inventory,
                taken: Arc::default(),
            },
            heard_in,
            heard,
            handles: BTreeMap::new(),
        };
        links.perform(changes);
        links
    }

    /// The next thing a coordinator said. Cancelling it loses nothing.
    pub async fn heard(&mut self) -> Heard {
        loop {
            let Some((link, said)) = self.heard.recv().await else {
                // `heard_in` lives in `self`.
                return std::future::pending().await;
            };
            if !self.handles.contains_key(&link) {
                continue; // Closed meanwhile.
            }
            match said {
                Said::Up(coordinator) => {
                    let changes = self.table.up(link, coordinator);
                    self.perform(changes);
                    return Heard::Up;
                }
                Said::Down => {
                    let changes = self.table.down(link);
                    self.perform(changes);
                }
                Said::Message(message) => {
                    if let ToWorker::Welcome { coordinators, .. }
                    | ToWorker::Coordinators { coordinators, .. } = &message
                    {
                        let changes = self.table.told(coordinators);
                        self.perform(changes);
                    }
                    return Heard::Message(message);
                }
                Said::Refused(error) if self.table.refused(link) => return Heard::Fatal(error),
                Said::Refused(error) => tracing::warn!(%error, "not let in"),
            }
        }
    }

    /// A coordinator hears us.
    pub fn is_up(&self) -> bool {
        self.table.is_up()
    }

    /// Says it to every coordinator that hears us. A full queue leaves it out: what is said often is
    /// said again.
    pub fn say(&self, message: &ToCoordinator) {
        for link in self.table.up_links() {
            if let Some(handle) = self.handles.get(&link) {
                let _ = handle.say.try_send(message.clone());
            }
        }
    }

    /// Says it to one coordinator; false if none takes it.
    pub fn say_to_one(&self, message: &ToCoordinator) -> bool {
        self.table.up_links().any(|link| {
            let handle = self.handles.get(&link);
            handle.is_some_and(|h| h.say.try_send(message.clone()).is_ok())
        })
    }

    /// Ends all links once they have delivered what was said, or after a deadline.
    pub async fn close(self) {
        drop(self.heard);
        let mut tasks = Vec::new();
        for (_, handle) in self.handles {
            drop(handle.say);
            tasks.push(handle.task);
        }
        let deadline = Instant::now() + GOODBYE_DEADLINE * 2;
        for mut task in tasks {
            if timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }

    fn perform(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Open(id, target) => {
                    let (target, target_out) = watch::channel(target);
                    let (say, say_out) = mpsc::channel(CONTROL_QUEUE_MAX);
                    let link = Link {
                        id,
                        target: target_out,
                        greeting: self.greeting.clone(),
                        heard: self.heard_in.clone(),
                        say: say_out,
                    };
                    let task = tokio::spawn(link.keep());
                    self.handles.insert(id, Handle { target, say, task });
                }
                Change::Redirect(id, target) => {
                    if let Some(handle) = self.handles.get(&id) {
                        handle.target.send_replace(target);
                    }
                }
                // Its task ends by itself once `say` is dropped.
                Change::Close(id) => drop(self.handles.remove(&id)),
            }
        }
    }
}

impl Greeting {
    async fn dial(&self, target: &Target) -> Result<Connection, TransportError> {
        let (endpoint, address) = (&self.endpoint, &target.address);
        match target.coordinator {
            Some(id) => {
                let node = NodeId::Coordinator(id);
                endpoint.connect(address, node, Protocol::Control).await
            }
            None => {
                endpoint
                    .connect_coordinator(address, Protocol::Control)
                    .await
            }
        }
    }
}

/// How one connection ended.
enum End {
    /// The agent said all it had to say.
    Left,
    Lost(String),
    Refused(WorkerError),
}

/// One link's task.
struct Link {
    id: LinkId,
    target: watch::Receiver<Target>,
    greeting: Greeting,
    heard: mpsc::Sender<(LinkId, Said)>,
    say: mpsc::Receiver<ToCoordinator>,
}

impl Link {
    async fn keep(mut self) {
        let mut backoff = Backoff::new(u64::from(std::process::id()) ^ (self.id.0 << 32));
        loop {
            let mut up = false;
            let target = self.target.borrow_and_update().clone();
            let end = self.converse(&target, &mut up).await;
            if up {
                backoff.reset();
            }
            let told = match end {
                End::Left => return,
                End::Refused(error) => self.tell(Said::Refused(error)).await,
                End::Lost(reason) => {
                    tracing::warn!(coordinator = target.address, reason, "not connected");
                    !up || self.tell(Said::Down).await
                }
            };
            if !told {
                return;
            }
            let wait = backoff.next();
            tokio::select! {
                () = sleep(wait) => {}
                () = left(&mut self.say) => return,
            }
        }
    }

    /// False if nobody listens any more.
    async fn tell(&self, said: Said) -> bool {
        self.heard.send((self.id, said)).await.is_ok()
    }

    /// One connection from dialling to its end.
    async fn converse(&mut self, target: &Target, up: &mut bool) -> End {
        let dialled = tokio::select! {
            dialled = self.greeting.dial(target) => dialled,
            () = left(&mut self.say) => return End::Left,
        };
        let connection = match dialled {
            Ok(connection) => connection,
            // A stranger at an address that the user gave. At one that the group told, it may be a
            // coordinator that has moved in, and the list will follow.
            Err(error @ TransportError::WrongPeer { .. }) if target.coordinator.is_none() => {
                return End::Refused(error.into());
            }
            Err(error) => return End::Lost(error.to_string()),
        };
        let Some(NodeId::Coordinator(coordinator)) = connection.peer() else {
            return End::Lost("it is no coordinator".into());
        };
        let Some(_taken) = Taken::new(&self.greeting.taken, coordinator) else {
            connection.leave("this worker is connected already");
            return End::Lost(format!("{coordinator} is connected at another address"));
        };
        let end = match timeout(CONTROL_DEADLINE, self.greet(&connection)).await {
            Ok(Ok((stream, welcome))) => {
                *up = true;
                let worker = self.greeting.node;
                tracing::info!(%coordinator, address = target.address, %worker, "connected");
                let told = self.tell(Said::Up(coordinator)).await
                    && self.tell(Said::Message(welcome)).await;
                match told {
                    true => self.talk(stream).await,
                    false => return End::Left,
                }
            }
            Ok(Err(error)) => End::Lost(error.to_string()),
            Err(_) => End::Lost("the coordinator did not welcome this worker in time".into()),
        };
        match (end, connection.refusal()) {
            // A welcomed worker that is thrown out asks again: its rank may run, and whether it is
            // no member any more is what the next greeting tells.
            (End::Lost(_), Some(reason)) if !*up => End::Refused(WorkerError::Refused {
                node: self.greeting.node,
                reason,
            }),
            (end, _) => end,
        }
    }

    /// Says hello and gives the stream and the welcome.
    async fn greet(
        &mut self,
        connection: &Connection,
    ) -> Result<((quinn::SendStream, FrameReader), ToWorker), WireError> {
        let (mut send, recv) = connection.quic().open_bi().await?;
        let hello = ToCoordinator::Hello {
            inventory: self.greeting.inventory.clone(),
        };
        write_frame(&mut send, &hello, CONTROL_FRAME_BYTES_MAX).await?;
        let mut reader = FrameReader::new(recv, CONTROL_FRAME_BYTES_MAX);
        let node = self.greeting.node;
        let welcome = match reader.next().await? {
            Some(message @ ToWorker::Welcome { worker, .. }) if NodeId::Worker(worker) == node => {
                message
            }
            Some(_) => {
                let reason = "the coordinator did not begin with this worker's welcome";
                return Err(WireError::Invalid(reason.into()));
            }
            None => return Err(WireError::Truncated),
        };
        // Said to an earlier connection: old news.
        while self.say.try_recv().is_ok() {}
        Ok(((send, reader), welcome))
    }

    async fn talk(&mut self, (mut send, mut reader): (quinn::SendStream, FrameReader)) -> End {
        loop {
            tokio::select! {
                frame = reader.next::<ToWorker>() => match frame {
                    Ok(Some(message)) => {
                        if !self.tell(Said::Message(message)).await {
                            return End::Left;
                        }
                    }
                    Ok(None) => return End::Lost("the coordinator ended the conversation".into()),
                    Err(error) => return End::Lost(error.to_string()),
                },
                said = self.say.recv() => match said {
                    Some(message) => {
                        if let Err(reason) = deliver(&mut send, &message).await {
                            return End::Lost(reason);
                        }
                    }
                    None => {
                        let _ = send.finish();
                        // Until the coordinator has it all; closing earlier would discard it.
                        let _ = timeout(GOODBYE_DEADLINE, send.stopped()).await;
                        return End::Left;
                    }
                },
            }
        }
    }
}

/// A coordinator's place among those that a link converses with.
struct Taken {
    all: Arc<Mutex<BTreeSet<CoordinatorId>>>,
    coordinator: CoordinatorId,
}

impl Taken {
    fn new(all: &Arc<Mutex<BTreeSet<CoordinatorId>>>, coordinator: CoordinatorId) -> Option<Self> {
        let mut held = all.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(coordinator).then(|| Self {
            all: Arc::clone(all),
            coordinator,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut held = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.coordinator);
    }
}

async fn deliver<T: Message>(send: &mut quinn::SendStream, message: &T) -> Result<(), String> {
    let written = write_frame(send, message, CONTROL_FRAME_BYTES_MAX);
    match timeout(CONTROL_DEADLINE, written).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the coordinator does not read".into()),
    }
}

/// Returns once the agent has dropped its end; what it says meanwhile is for nobody.
async fn left(say: &mut mpsc::Receiver<ToCoordinator>) {
    while say.recv().await.is_some() {}
}
