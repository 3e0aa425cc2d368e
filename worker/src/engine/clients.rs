//! The driver's clients: who gets which sequence's events.
//!
//! Kept true: delivering never waits; a client that does not read pauses its own sequence only, and
//! not for ever; one that is gone is noticed at the next step; whatever ends the driver, a panic
//! included, every client left gets a last event.

use super::batcher::{Batcher, Effect};
use super::mailbox::{Mailbox, Nudge};
use super::sequence::SequenceId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use trireme_shared::limits;
use trireme_shared::wire::generate::{FailureKind, GenerateEvent};

struct Client {
    events: mpsc::Sender<GenerateEvent>,
    /// Events that found the queue full; while there are any, the sequence is paused.
    backlog: VecDeque<GenerateEvent>,
}

pub struct Clients {
    clients: HashMap<SequenceId, Client>,
    mailbox: Arc<Mailbox>,
    runtime: tokio::runtime::Handle,
    /// How long a paused client is waited for.
    stall: Duration,
}

/// What became of an attempt to send.
enum Sent {
    Going,
    /// The last event is out, or nobody listens any more.
    Over,
    Behind,
}

impl Clients {
    /// `runtime` carries the watchers of paused clients, who knock at `mailbox`.
    pub fn new(mailbox: Arc<Mailbox>, runtime: tokio::runtime::Handle) -> Self {
        Self {
            clients: HashMap::new(),
            mailbox,
            runtime,
            stall: limits::CLIENT_STALL_MAX,
        }
    }

    pub fn add(&mut self, id: SequenceId, events: mpsc::Sender<GenerateEvent>) {
        let backlog = VecDeque::new();
        self.clients.insert(id, Client { events, backlog });
    }

    /// Cancels the sequences whose clients are gone.
    pub fn sweep(&mut self, batcher: &mut Batcher) {
        self.clients.retain(|&id, client| {
            let here = !client.events.is_closed();
            if !here {
                batcher.cancel(id);
            }
            here
        });
    }

    pub fn deliver(&mut self, batcher: &mut Batcher) {
        for Effect { sequence, event } in batcher.take_effects() {
            let Some(client) = self.clients.get_mut(&sequence) else {
                continue;
            };
            client.backlog.push_back(event);
            // A client already behind is being watched.
            if client.backlog.len() == 1 {
                self.flush(sequence, batcher);
            } else if client.backlog.len() > limits::STREAM_BACKLOG_MAX {
                self.drop_client(sequence, batcher);
            }
        }
    }

    /// Acts on what a paused client's watcher found.
    pub fn nudged(&mut self, nudge: Nudge, batcher: &mut Batcher) {
        match nudge {
            Nudge::Resume(id) => {
                batcher.pause(id, false);
                self.flush(id, batcher);
            }
            Nudge::Stalled(id) => {
                tracing::warn!(sequence = id.0, "cancelled: its client does not read");
                self.drop_client(id, batcher);
            }
        }
    }

    /// Tells every client that the replica is lost, and forgets them.
    pub fn fail_all(&mut self, reason: &str) {
        for (_, client) in self.clients.drain() {
            fail(&client.events, reason);
        }
    }

    fn flush(&mut self, id: SequenceId, batcher: &mut Batcher) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let mut sent = Sent::Going;
        while let Some(event) = client.backlog.pop_front() {
            sent = send(client, event);
            if !matches!(sent, Sent::Going) {
                break;
            }
        }
        match sent {
            Sent::Going => {}
            Sent::Over => self.drop_client(id, batcher),
            Sent::Behind => {
                batcher.pause(id, true);
                let (events, mailbox) = (client.events.clone(), self.mailbox.clone());
                self.runtime.spawn(watch(id, events, mailbox, self.stall));
            }
        }
    }

    fn drop_client(&mut self, id: SequenceId, batcher: &mut Batcher) {
        self.clients.remove(&id);
        // Nothing to do for a sequence that ended by itself.
        batcher.cancel(id);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.fail_all("the rank's thread ended");
    }
}

/// The last event of a stream whose replica is lost. A full queue means that the client is behind
/// as well; the end of the stream without a last event tells it the same.
pub fn fail(events: &mpsc::Sender<GenerateEvent>, reason: &str) {
    let _ = events.try_send(GenerateEvent::Failed {
        kind: FailureKind::ReplicaLost,
        reason: reason.to_owned(),
    });
}

/// The last event of a stream that was turned away before it began; its queue is empty.
pub fn overloaded(events: &mpsc::Sender<GenerateEvent>) {
    let _ = events.try_send(GenerateEvent::Failed {
        kind: FailureKind::Overloaded,
        reason: "the waiting room is full; try again later".to_owned(),
    });
}

fn send(client: &mut Client, event: GenerateEvent) -> Sent {
    let last = matches!(
        event,
        GenerateEvent::Finished { .. } | GenerateEvent::Failed { .. }
    );
    match client.events.try_send(event) {
        Ok(()) if last => Sent::Over,
        Ok(()) => Sent::Going,
        Err(TrySendError::Closed(_)) => Sent::Over,
        Err(TrySendError::Full(event)) => {
            client.backlog.push_front(event);
            Sent::Behind
        }
    }
}

/// Waits until the client has read half its queue: less would pause it again at once.
async fn watch(
    id: SequenceId,
    events: mpsc::Sender<GenerateEvent>,
    mailbox: Arc<Mailbox>,
    stall: Duration,
) {
    let half = events.max_capacity().div_ceil(2);
    let room = tokio::time::timeout(stall, events.reserve_many(half)).await;
    let nudge = match room {
        // The reserved places are given back here, for the driver to use.
        Ok(room) => {
            drop(room);
            Nudge::Resume(id)
        }
        Err(_) => Nudge::Stalled(id),
    };
    mailbox.nudge(nudge);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::batcher::Capacity;
    use crate::engine::batcher::tests::request;
    use crate::engine::plan::{Drawn, EntryResult, Sampled, StepResults};
    use std::time::Instant;

    fn batcher() -> Batcher {
        Batcher::new(Capacity {
            kv_pages: 64,
            context: 256,
            vocab: 100,
            steps_in_flight: 1,
        })
    }

    /// One step in which every sequence that asks for a token gets token 7.
    fn step(batcher: &mut Batcher) -> bool {
        let Some(plan) = batcher.plan(Instant::now()) else {
            return false;
        };
        let sampling = plan.entries.iter().filter(|e| e.sample.is_some());
        let results = sampling.map(|entry| EntryResult {
            key: entry.key,
            prompt: vec![],
            sampled: Sampled::Tokens(vec![Drawn {
                token: 7,
                logprobs: None,
            }]),
        });
        let results = results.collect();
        let step = plan.step;
        let results = StepResults { step, results };
        batcher.complete(results, Instant::now()).unwrap();
        true
    }

    #[tokio::test]
    async fn a_slow_reader_pauses_itself_only_and_misses_nothing() {
        let mailbox = Arc::new(Mailbox::default());
        let mut clients = Clients::new(mailbox.clone(), tokio::runtime::Handle::current());
        let mut batcher = batcher();
        let (slow, mut slow_reads) = mpsc::channel(4);
        let (quick, mut quick_reads) = mpsc::channel(100);
        clients.add(batcher.submit(request(vec![1], 20)), slow);
        clients.add(batcher.submit(request(vec![2], 30)), quick);

        // All that can run before anybody reads: the quick one to its end.
        while step(&mut batcher) {
            clients.deliver(&mut batcher);
        }
        assert_eq!(quick_reads.len(), 32);
        assert_eq!(batcher.stats().running, 1);
        let mut indices = Vec::new();
        let finished = loop {
            match slow_reads.recv().await.unwrap() {
                GenerateEvent::Started { .. } => {}
                GenerateEvent::Token { index, .. } => indices.push(index),
                last => break last,
            }
            // The watcher runs when this task waits; what it found is acted on as a driver does.
            tokio::task::yield_now().await;
            for nudge in mailbox.take().nudges {
                clients.nudged(nudge, &mut batcher);
            }
            while step(&mut batcher) {
                clients.deliver(&mut batcher);
            }
        };
        assert!(matches!(finished, GenerateEvent::Finished { .. }));
        assert_eq!(indices, (0..20).collect::<Vec<_>>());
        assert_eq!(batcher.stats().kv_pages_used, 0);
        assert!(quick_reads.recv().await.is_some());
    }

    #[tokio::test]
    async fn a_client_that_never_reads_gives_its_pages_back() {
        let mailbox = Arc::new(Mailbox::default());
        let mut clients = Clients::new(mailbox.clone(), tokio::runtime::Handle::current());
        let mut batcher = batcher();
        clients.stall = Duration::from_millis(1);
        let (events, reads) = mpsc::channel(2);
        clients.add(batcher.submit(request(vec![1], 20)), events);
        while step(&mut batcher) {
            clients.deliver(&mut batcher);
        }
        assert_eq!(batcher.stats().kv_pages_used, 1);
        let inbox = tokio::task::spawn_blocking(move || mailbox.wait()).await;
        for nudge in inbox.unwrap().nudges {
            clients.nudged(nudge, &mut batcher);
        }
        assert_eq!(batcher.stats().kv_pages_used, 0);
        drop(reads);
    }

    #[tokio::test]
    async fn a_client_that_left_is_cancelled_and_the_rest_is_answered() {
        let mailbox = Arc::new(Mailbox::default());
        let mut clients = Clients::new(mailbox, tokio::runtime::Handle::current());
        let mut batcher = batcher();
        let (gone, gone_reads) = mpsc::channel(9);
        let (here, mut reads) = mpsc::channel(9);
        clients.add(batcher.submit(request(vec![1], 20)), gone);
        clients.add(batcher.submit(request(vec![1], 20)), here);
        drop(gone_reads);
        clients.sweep(&mut batcher);
        assert_eq!(batcher.stats().waiting, 1);
        drop(clients);
        assert!(matches!(
            reads.recv().await,
            Some(GenerateEvent::Failed {
                kind: FailureKind::ReplicaLost,
                ..
            })
        ));
    }
}
