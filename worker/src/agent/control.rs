//! The control link: one stream to a coordinator, found again whenever it is lost.
//!
//! Neighbours: `drive` hears [`Heard`] and says `ToCoordinator`; nothing else knows of connections.

use super::backoff::Backoff;
use crate::WorkerError;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use trireme_shared::identity::NodeId;
use trireme_shared::limits::{
    CONTROL_DEADLINE, CONTROL_FRAME_BYTES_MAX, CONTROL_QUEUE_MAX, GOODBYE_DEADLINE,
};
use trireme_shared::transport::{Connection, Endpoint, Protocol, TransportError};
use trireme_shared::wire::codec::{FrameReader, Message, WireError, write_frame};
use trireme_shared::wire::control::{Inventory, ToCoordinator, ToWorker};

/// What the link tells the agent.
#[derive(Debug)]
pub enum Heard {
    /// A coordinator welcomed this worker: heartbeats may flow.
    Up,
    Message(ToWorker),
    /// The coordinator is lost; the link looks for it again.
    Down,
    /// There is no sense in trying on. The last thing heard.
    Fatal(WorkerError),
}

/// The agent's end.
pub struct ControlLink {
    pub heard: mpsc::Receiver<Heard>,
    /// Dropping it ends the link after what was said has been delivered.
    pub say: mpsc::Sender<ToCoordinator>,
    pub task: tokio::task::JoinHandle<()>,
}

/// How one connection ended.
enum End {
    /// The agent said all it had to say.
    Left,
    Lost(String),
    Fatal(WorkerError),
}

struct Link {
    endpoint: Endpoint,
    address: String,
    node: NodeId,
    inventory: Inventory,
    heard: mpsc::Sender<Heard>,
    say: mpsc::Receiver<ToCoordinator>,
    /// A coordinator has welcomed this process before.
    known: bool,
}

/// Starts looking for the coordinator at `address`.
pub fn open(
    endpoint: Endpoint,
    address: String,
    node: NodeId,
    inventory: Inventory,
) -> ControlLink {
    let (heard_in, heard) = mpsc::channel(CONTROL_QUEUE_MAX);
    let (say, say_out) = mpsc::channel(CONTROL_QUEUE_MAX);
    let link = Link {
        endpoint,
        address,
        node,
        inventory,
        heard: heard_in,
        say: say_out,
        known: false,
    };
    let task = tokio::spawn(link.keep());
    ControlLink { heard, say, task }
}

impl Link {
    async fn keep(mut self) {
        let mut backoff = Backoff::new(u64::from(std::process::id()));
        loop {
            let mut up = false;
            match self.converse(&mut up).await {
                End::Left => return,
                End::Fatal(error) => {
                    let _ = self.heard.send(Heard::Fatal(error)).await;
                    return;
                }
                End::Lost(reason) => {
                    tracing::warn!(coordinator = self.address, reason, "not connected");
                }
            }
            if up {
                backoff.reset();
                if self.heard.send(Heard::Down).await.is_err() {
                    return;
                }
            }
            let wait = backoff.next();
            tokio::select! {
                () = sleep(wait) => {}
                () = left(&mut self.say) => return,
            }
        }
    }

    /// One connection from dialling to its end.
    async fn converse(&mut self, up: &mut bool) -> End {
        let dialled = tokio::select! {
            dialled = self.endpoint.connect_coordinator(&self.address, Protocol::Control) => dialled,
            () = left(&mut self.say) => return End::Left,
        };
        let connection = match dialled {
            Ok(connection) => connection,
            // Someone else answers there. Before the first welcome that is a wrong address; later
            // it may pass, and a rank that runs is worth the wait.
            Err(error @ TransportError::WrongPeer { .. }) if !self.known => {
                return End::Fatal(error.into());
            }
            Err(error) => return End::Lost(error.to_string()),
        };
        let end = match timeout(CONTROL_DEADLINE, self.greet(&connection)).await {
            Ok(Ok(stream)) => {
                *up = true;
                self.known = true;
                tracing::info!(coordinator = self.address, worker = %self.node, "connected");
                match self.heard.send(Heard::Up).await {
                    Ok(()) => self.talk(stream).await,
                    Err(_) => return End::Left,
                }
            }
            Ok(Err(error)) => End::Lost(error.to_string()),
            Err(_) => End::Lost("the coordinator did not welcome this worker in time".into()),
        };
        match (end, connection.refusal()) {
            // A welcomed worker that is thrown out asks again: its rank may run, and whether it is
            // no member any more is what the next greeting tells.
            (End::Lost(_), Some(reason)) if !*up => End::Fatal(WorkerError::Refused {
                node: self.node,
                reason,
            }),
            (end, _) => end,
        }
    }

    async fn greet(
        &mut self,
        connection: &Connection,
    ) -> Result<(quinn::SendStream, FrameReader), WireError> {
        let (mut send, recv) = connection.quic().open_bi().await?;
        let hello = ToCoordinator::Hello {
            inventory: self.inventory.clone(),
        };
        write_frame(&mut send, &hello, CONTROL_FRAME_BYTES_MAX).await?;
        let mut reader = FrameReader::new(recv, CONTROL_FRAME_BYTES_MAX);
        match reader.next().await? {
            Some(ToWorker::Welcome { worker }) if NodeId::Worker(worker) == self.node => {}
            Some(_) => {
                let reason = "the coordinator did not begin with this worker's welcome";
                return Err(WireError::Invalid(reason.into()));
            }
            None => return Err(WireError::Truncated),
        }
        // Said to an earlier connection: old news.
        while self.say.try_recv().is_ok() {}
        Ok((send, reader))
    }

    async fn talk(&mut self, (mut send, mut reader): (quinn::SendStream, FrameReader)) -> End {
        loop {
            tokio::select! {
                frame = reader.next::<ToWorker>() => match frame {
                    Ok(Some(message)) => {
                        if self.heard.send(Heard::Message(message)).await.is_err() {
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
