//! From a gateway's request to a driver's stream of events.
//!
//! The gateway holds a [`Dispatcher`]; the fleet (or a test) serves the other end.

use super::work::WorkLog;
use tokio::sync::mpsc;
use trireme_shared::ids::{DeploymentId, RequestId, TenantId};
use trireme_shared::limits;
use trireme_shared::wire::generate::{GenerateEvent, Priority, Sampling};

/// A sequence to generate, before a replica is chosen. Fields as in `GenerateRequest`.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    pub request: RequestId,
    pub tenant: TenantId,
    /// The tenant's, in fair queuing.
    pub weight: u32,
    /// Among the tenant's own.
    pub priority: Priority,
    pub deployment: DeploymentId,
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub sampling: Sampling,
    pub stop_tokens: Vec<u32>,
    pub logprobs: Option<u8>,
    pub prompt_logprobs: Option<u8>,
    /// Takes in what is done for it; one for all sequences of a request.
    pub work: WorkLog,
}

/// Why a sequence could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DispatchError {
    #[error("no replica of this model is ready")]
    NotReady,
    #[error("every replica's waiting room is full")]
    Overloaded,
    #[error("the replica failed and none took over in time: {0}")]
    Lost(String),
    #[error("the engine refused the request: {0}")]
    Invalid(String),
}

/// One sequence handed to the fleet. Dropping the stream's end of `events` cancels it.
pub struct Dispatch {
    pub sequence: SequenceRequest,
    pub events: mpsc::Sender<Result<GenerateEvent, DispatchError>>,
}

/// The gateway's end. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    queue: mpsc::Sender<Dispatch>,
}

/// A sequence's events, in order. `Failed` never appears here: failures that could be mended were
/// (the sequence went on elsewhere), the others are an `Err` and the last item.
pub struct GenerationStream {
    events: mpsc::Receiver<Result<GenerateEvent, DispatchError>>,
}

impl Dispatcher {
    /// A dispatcher and the queue that its server reads.
    pub fn new() -> (Self, mpsc::Receiver<Dispatch>) {
        let (queue, served) = mpsc::channel(limits::WAITING_SEQUENCES_MAX);
        (Self { queue }, served)
    }

    /// Hands a sequence over. A full queue is `Overloaded` at once.
    pub fn generate(&self, sequence: SequenceRequest) -> Result<GenerationStream, DispatchError> {
        let (events, stream) = mpsc::channel(limits::STREAM_EVENTS_MAX);
        match self.queue.try_send(Dispatch { sequence, events }) {
            Ok(()) => Ok(GenerationStream { events: stream }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(DispatchError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(DispatchError::NotReady),
        }
    }
}

impl GenerationStream {
    pub async fn next(&mut self) -> Option<Result<GenerateEvent, DispatchError>> {
        self.events.recv().await
    }
}
