//! What other threads tell the driver's thread: new requests, clients that read again, the end.
//!
//! Kept true: taking never waits and waiting takes no CPU; after `close` nothing gets in, and what
//! was in is given back to be answered. The agent's side is `RankHandle`, the driver takes, before each
//! step and all of it: what is fair between tenants is decided behind it, in the batcher. Only a flood
//! within one step fills it, and then turns itself away by the batcher's own rule.

use super::clients;
use super::sequence::SequenceId;
use super::waiting::most_for_its_weight;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use trireme_shared::ids::TenantId;
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

impl Inbox {
    /// Whose newest request must go for a new one.
    fn flooding(&self, new: &GenerateRequest) -> TenantId {
        let mut waiting = BTreeMap::new();
        for request in self.submissions.iter().map(|s| &s.request).chain([new]) {
            let (weight, count) = waiting.entry(request.tenant).or_insert((0, 0));
            *weight = request.weight;
            *count += 1;
        }
        let waiting = waiting
            .into_iter()
            .map(|(of, (weight, count))| (of, weight, count));
        most_for_its_weight(waiting, new.tenant)
    }
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
            let flooding = inbox.flooding(&submission.request);
            // The newest of the lowest priority.
            let theirs = inbox.submissions.iter().enumerate();
            let theirs = theirs.filter(|(_, s)| s.request.tenant == flooding);
            let last = theirs.min_by_key(|(at, s)| (s.request.priority, Reverse(*at)));
            let new = &submission.request;
            match last.filter(|(_, s)| new.tenant != flooding || s.request.priority < new.priority)
            {
                Some((last, _)) => clients::overloaded(&inbox.submissions.remove(last).events),
                None => return Err(Refused::Full),
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::batcher::tests::request;
    use trireme_shared::wire::generate::{FailureKind, Priority};

    fn of(tenant: u32) -> (Submission, mpsc::Receiver<GenerateEvent>) {
        let (events, stream) = mpsc::channel(1);
        let mut request = request(vec![1], 1);
        request.tenant = TenantId(tenant);
        (Submission { request, events }, stream)
    }

    #[test]
    fn a_flood_between_two_steps_turns_itself_away() {
        let mailbox = Mailbox::default();
        let mut flood: Vec<_> = (0..limits::ENGINE_INBOX_MAX)
            .map(|_| {
                let (submission, stream) = of(1);
                mailbox.submit(submission).unwrap();
                stream
            })
            .collect();
        assert_eq!(mailbox.submit(of(1).0), Err(Refused::Full));
        assert_eq!(mailbox.submit(of(2).0), Ok(()));
        let told = flood.pop().unwrap().try_recv();
        assert!(matches!(
            told,
            Ok(GenerateEvent::Failed {
                kind: FailureKind::Overloaded,
                ..
            })
        ));
        let taken = mailbox.take().submissions;
        assert_eq!(taken.len(), limits::ENGINE_INBOX_MAX);
        assert_eq!(taken.last().unwrap().request.tenant, TenantId(2));
        assert!(flood.iter_mut().all(|stream| stream.try_recv().is_err()));
    }

    #[test]
    fn of_a_flood_the_lowest_priority_goes_first() {
        let mailbox = Mailbox::default();
        let (mut high, mut kept) = of(1);
        high.request.priority = Priority::High;
        let mut flood: Vec<_> = (0..limits::ENGINE_INBOX_MAX)
            .map(|_| {
                let (submission, stream) = of(1);
                mailbox.submit(submission).unwrap();
                stream
            })
            .collect();
        assert_eq!(mailbox.submit(high), Ok(()));
        assert!(flood.pop().unwrap().try_recv().is_ok(), "the newest");
        assert_eq!(mailbox.submit(of(2).0), Ok(()));
        assert!(flood.pop().unwrap().try_recv().is_ok(), "the next");
        assert!(kept.try_recv().is_err());
        assert!(flood.iter_mut().all(|stream| stream.try_recv().is_err()));
    }
}
