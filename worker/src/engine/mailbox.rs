//! What other threads tell the driver's thread: new requests, clients that read again, the end.
//!
//! Kept true: taking never waits and waiting takes no CPU; after `close` nothing gets in, and what
//! was in is given back to be answered. The agent's side is `RankHandle`, the driver takes.

use super::sequence::SequenceId;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use trireme_shared::limits;
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest};

/// A request and the way to its client.
#[derive(Debug)]
pub struct Submission {
    pub request: GenerateRequest,
    pub events: mpsc::Sender<GenerateEvent>,
}

/// What a paused client's watcher found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// Its queue has room again, or it is gone.
    Resume(SequenceId),
    /// It did not read for `limits::CLIENT_STALL_MAX`.
    Stalled(SequenceId),
}

/// Everything that arrived since the last look.
#[derive(Debug, Default)]
pub struct Inbox {
    pub submissions: Vec<Submission>,
    pub nudges: Vec<Nudge>,
    /// The rank is to stop.
    pub closed: bool,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Full,
    Closed,
}

#[derive(Debug, Default)]
pub struct Mailbox {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

impl Mailbox {
    pub fn submit(&self, submission: Submission) -> Result<(), Refused> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err(Refused::Closed);
        }
        if inbox.submissions.len() >= limits::ENGINE_INBOX_MAX {
            return Err(Refused::Full);
        }
        inbox.submissions.push(submission);
        self.arrived.notify_one();
        Ok(())
    }

    /// At most one per paused sequence is under way, which bounds them.
    pub fn nudge(&self, nudge: Nudge) {
        self.lock().nudges.push(nudge);
        self.arrived.notify_one();
    }

    /// Lets nothing more in and wakes the driver.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// What has arrived, without waiting.
    pub fn take(&self) -> Inbox {
        Self::empty(&mut self.lock())
    }

    /// Waits, parked and without a deadline, until something arrives: an idle driver has nothing
    /// else to do, and `close` ends the wait.
    pub fn wait(&self) -> Inbox {
        let quiet = |i: &mut Inbox| i.submissions.is_empty() && i.nudges.is_empty() && !i.closed;
        let mut inbox = self
            .arrived
            .wait_while(self.lock(), quiet)
            .unwrap_or_else(PoisonError::into_inner);
        Self::empty(&mut inbox)
    }

    fn empty(inbox: &mut Inbox) -> Inbox {
        Inbox {
            submissions: std::mem::take(&mut inbox.submissions),
            nudges: std::mem::take(&mut inbox.nudges),
            closed: inbox.closed,
        }
    }

    /// A panic elsewhere leaves the lists whole: they are only pushed to and taken.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
