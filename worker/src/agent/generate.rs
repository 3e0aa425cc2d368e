//! Generate streams: a gateway's request in, the driver's events out.
//!
//! What it keeps true: every request gets a last frame (`Finished` or `Failed`) unless its gateway
//! went away; when the gateway does, the engine's receiver is dropped at once, which cancels the
//! sequence; during a drain no new stream begins.

use super::rank::CurrentRank;
use crate::engine::SubmitError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use trireme_shared::limits::{
    CONTROL_DEADLINE, GENERATE_FRAME_BYTES_MAX, STREAM_STALL_MAX, STREAM_WRITE_EVENTS_MAX,
};
use trireme_shared::transport::Connection;
use trireme_shared::wire::codec::{read_frame, write_frame};
use trireme_shared::wire::generate::{FailureKind, GenerateEvent, GenerateRequest};

/// Counts running streams and refuses new ones during a drain. Cheap to clone.
#[derive(Clone, Default)]
pub struct Admission(Arc<Door>);

#[derive(Default)]
struct Door {
    running: watch::Sender<usize>,
    closed: AtomicBool,
}

/// A running stream's place.
struct Place(Admission);

impl Admission {
    /// From now on every new stream is refused.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Returns once no stream runs.
    pub async fn empty(&self) {
        let mut running = self.0.running.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Counted first and checked then: a stream that is let in is seen by whoever closed the door.
    fn enter(&self) -> Option<Place> {
        self.0.running.send_modify(|running| *running += 1);
        let place = Place(self.clone());
        (!self.0.closed.load(Ordering::SeqCst)).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.running.send_modify(|running| *running -= 1);
    }
}

/// Serves a gateway's connection until it ends. Streams at once are bounded by the transport
/// (`GENERATE_STREAMS_MAX`), sequences by the engine's waiting room.
pub async fn serve(connection: Connection, rank: CurrentRank, admission: Admission) {
    while let Ok((send, recv)) = connection.quic().accept_bi().await {
        tokio::spawn(stream(send, recv, rank.clone(), admission.clone()));
    }
}

async fn stream(
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    rank: CurrentRank,
    admission: Admission,
) {
    let request = read_frame::<GenerateRequest>(&mut recv, GENERATE_FRAME_BYTES_MAX);
    let request = match timeout(CONTROL_DEADLINE, request).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a generate request was not readable");
            refuse(&mut send, FailureKind::Invalid, error.to_string()).await;
            return;
        }
    };
    let id = request.request.clone();
    let Some(_place) = admission.enter() else {
        let reason = "the worker is leaving".to_owned();
        refuse(&mut send, FailureKind::WrongEpoch, reason).await;
        return;
    };
    match rank.submit(request) {
        Ok(events) => {
            let end = pump(events, &mut send, &mut recv).await;
            tracing::debug!(request = %id, ?end, "stream ended");
        }
        Err(error) => {
            tracing::debug!(request = %id, %error, "request refused");
            refuse(&mut send, kind_of(&error), error.to_string()).await;
        }
    }
}

fn kind_of(error: &SubmitError) -> FailureKind {
    match error {
        SubmitError::NotDriver | SubmitError::WrongEpoch => FailureKind::WrongEpoch,
        SubmitError::Overloaded => FailureKind::Overloaded,
        SubmitError::Invalid(_) => FailureKind::Invalid,
    }
}

async fn refuse(send: &mut quinn::SendStream, kind: FailureKind, reason: String) {
    let failed = GenerateEvent::Failed { kind, reason };
    if write(send, &failed).await {
        let _ = send.finish();
    }
}

/// How a stream ended.
#[derive(Debug, PartialEq)]
enum End {
    /// The last frame was handed over.
    Complete,
    /// The gateway reset the stream, went away or stopped reading.
    Cancelled,
}

/// Carries events to the gateway. Returning drops `events`, which cancels the sequence.
async fn pump(
    mut events: mpsc::Receiver<GenerateEvent>,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> End {
    let stopped = send.stopped();
    let hung_up = async {
        tokio::select! {
            _ = stopped => {}
            () = reset(recv) => {}
        }
    };
    tokio::pin!(hung_up);
    let mut ready = Vec::new();
    loop {
        let count = tokio::select! {
            count = events.recv_many(&mut ready, STREAM_WRITE_EVENTS_MAX) => count,
            () = &mut hung_up => return End::Cancelled,
        };
        if count == 0 {
            // The engine went away without a last word: the gateway can go on elsewhere.
            let reason = "the rank stopped".to_owned();
            refuse(send, FailureKind::ReplicaLost, reason).await;
            return End::Complete;
        }
        for event in ready.drain(..) {
            let last = matches!(
                event,
                GenerateEvent::Finished { .. } | GenerateEvent::Failed { .. }
            );
            let written = tokio::select! {
                written = write(send, &event) => written,
                () = &mut hung_up => false,
            };
            if !written {
                return End::Cancelled;
            }
            if last {
                let _ = send.finish();
                return End::Complete;
            }
        }
    }
}

/// Hands one event over; false if the gateway does not take it (any more).
async fn write(send: &mut quinn::SendStream, event: &GenerateEvent) -> bool {
    let written = write_frame(send, event, GENERATE_FRAME_BYTES_MAX);
    matches!(timeout(STREAM_STALL_MAX, written).await, Ok(Ok(())))
}

/// Returns once the gateway resets its side (or sends what it should not); a gateway that merely
/// finishes its side goes on listening.
async fn reset(recv: &mut quinn::RecvStream) {
    if let Ok(None) = recv.read_chunk(1, true).await {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
