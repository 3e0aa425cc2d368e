//! Links that peers open to this worker, until the rank they are for takes them.
//!
//! Kept true: a rank gets only a stream from the worker that its plan names for the other end, and
//! only with the plan's nonce in its greeting; what nobody takes is dropped after a while, and how
//! much may wait is bounded in all and per worker.
//!
//! The greeting, 33 bytes, little-endian: magic `TLH1`, the plan's nonce (16), epoch (8), lower and
//! higher index (2 + 2), channel (1). The answer, once the rank took the stream: `TLA1`.

use super::topology::{Channel, LinkSpec};
use quinn::{RecvStream, SendStream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Semaphore, oneshot};
use trireme_shared::ids::{Epoch, WorkerId};
use trireme_shared::limits::{
    INCOMING_LINK_HOLD, INCOMING_LINKS_MAX, INCOMING_LINKS_PER_WORKER_MAX, LINK_HELLO_DEADLINE,
    LINK_HELLOS_MAX,
};

const HELLO_MAGIC: [u8; 4] = *b"TLH1";
/// Of a greeting.
pub const HELLO_BYTES: usize = 33;
/// What the accepting rank answers.
pub(super) const ANSWER: [u8; 4] = *b"TLA1";

/// What a stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hello {
    pub nonce: [u8; 16],
    pub epoch: Epoch,
    pub link: LinkSpec,
}

impl Hello {
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0..4].copy_from_slice(&HELLO_MAGIC);
        out[4..20].copy_from_slice(&self.nonce);
        out[20..28].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[28..30].copy_from_slice(&self.link.lower.to_le_bytes());
        out[30..32].copy_from_slice(&self.link.higher.to_le_bytes());
        out[32] = self.link.channel as u8;
        out
    }

    /// `None` where it is no greeting.
    pub fn decode(raw: &[u8; HELLO_BYTES]) -> Option<Self> {
        if raw[0..4] != HELLO_MAGIC {
            return None;
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&raw[4..20]);
        let mut epoch = [0; 8];
        epoch.copy_from_slice(&raw[20..28]);
        Some(Self {
            nonce,
            epoch: Epoch(u64::from_le_bytes(epoch)),
            link: LinkSpec {
                lower: u16::from_le_bytes([raw[28], raw[29]]),
                higher: u16::from_le_bytes([raw[30], raw[31]]),
                channel: Channel::from_byte(raw[32])?,
            },
        })
    }
}

/// Links opened by peers, waiting to be claimed by the rank they are for. Cheap to clone.
#[derive(Clone)]
pub struct IncomingLinks(Arc<Inner>);

struct Inner {
    shelf: Mutex<Shelf<(SendStream, RecvStream)>>,
    greeting: Semaphore,
}

impl Default for IncomingLinks {
    fn default() -> Self {
        Self(Arc::new(Inner {
            shelf: Mutex::default(),
            greeting: Semaphore::new(LINK_HELLOS_MAX),
        }))
    }
}

impl IncomingLinks {
    /// The agent calls this for every accepted stream of `Protocol::Link`; `peer` is the worker id
    /// from the peer's certificate. Reads the stream's hello and keeps it until the rank claims it.
    /// Takes up to `LINK_HELLO_DEADLINE`, so give each stream a task of its own.
    pub async fn accept(&self, peer: WorkerId, send: SendStream, mut recv: RecvStream) {
        let Ok(_greeting) = self.0.greeting.try_acquire() else {
            tracing::warn!(%peer, "refused a link: too many are being greeted");
            return;
        };
        let mut raw = [0; HELLO_BYTES];
        match tokio::time::timeout(LINK_HELLO_DEADLINE, recv.read_exact(&mut raw)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "a link ended in its hello"),
            Err(_) => return tracing::warn!(%peer, "refused a link: no hello in time"),
        }
        let Some(hello) = Hello::decode(&raw) else {
            return tracing::warn!(%peer, "refused a link: its hello is not valid");
        };
        let offered = self
            .shelf()
            .offer(hello, peer, (send, recv), Instant::now());
        match offered {
            Ok(Offered::Taken) => {}
            Ok(Offered::Held) => {
                let incoming = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(INCOMING_LINK_HOLD).await;
                    incoming.shelf().expire(Instant::now());
                });
            }
            Err(reason) => tracing::warn!(%peer, "refused a link: {reason}"),
        }
    }

    /// The stream that `peer` opened for `hello`, whenever it comes.
    pub(super) async fn claim(&self, hello: Hello, peer: WorkerId) -> (SendStream, RecvStream) {
        let claimed = self.shelf().claim(hello, peer, Instant::now());
        match claimed {
            Claimed::Now(streams) => streams,
            Claimed::Later(arrival) => match arrival.await {
                Ok(streams) => streams,
                // A later claim took this one's place: wait for our own deadline or abort.
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<(SendStream, RecvStream)>> {
        // Every change leaves the shelf whole, so a panic elsewhere does not spoil it.
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Held<T> {
    streams: T,
    since: Instant,
}

struct Waiting<T> {
    peer: WorkerId,
    deliver: oneshot::Sender<T>,
}

/// The pure part: who holds what for whom. `T` is the pair of streams.
struct Shelf<T> {
    /// By worker too: another worker's stream cannot take the place of the right one's.
    held: HashMap<(Hello, WorkerId), Held<T>>,
    waiting: HashMap<Hello, Waiting<T>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Offered {
    Taken,
    Held,
}

enum Claimed<T> {
    Now(T),
    Later(oneshot::Receiver<T>),
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            held: HashMap::new(),
            waiting: HashMap::new(),
        }
    }
}

impl<T> Shelf<T> {
    fn offer(
        &mut self,
        hello: Hello,
        peer: WorkerId,
        mut streams: T,
        now: Instant,
    ) -> Result<Offered, &'static str> {
        self.expire(now);
        if let Some(waiting) = self.waiting.get(&hello) {
            if waiting.peer != peer {
                return Err("the plan names another worker for that rank");
            }
            if let Some(waiting) = self.waiting.remove(&hello) {
                match waiting.deliver.send(streams) {
                    Ok(()) => return Ok(Offered::Taken),
                    Err(back) => streams = back,
                }
            }
        }
        let replaces = self.held.contains_key(&(hello, peer));
        let of_peer = self.held.keys().filter(|key| key.1 == peer).count();
        if !replaces && self.held.len() >= INCOMING_LINKS_MAX {
            return Err("too many links wait for their ranks");
        }
        if !replaces && of_peer >= INCOMING_LINKS_PER_WORKER_MAX {
            return Err("too many links of this worker wait for their ranks");
        }
        // A second stream for one link means that the dialler gave the first up.
        let since = now;
        self.held.insert((hello, peer), Held { streams, since });
        Ok(Offered::Held)
    }

    fn claim(&mut self, hello: Hello, peer: WorkerId, now: Instant) -> Claimed<T> {
        self.expire(now);
        if let Some(held) = self.held.remove(&(hello, peer)) {
            return Claimed::Now(held.streams);
        }
        let (deliver, arrival) = oneshot::channel();
        self.waiting.insert(hello, Waiting { peer, deliver });
        Claimed::Later(arrival)
    }

    fn expire(&mut self, now: Instant) {
        self.held
            .retain(|_, held| now.duration_since(held.since) < INCOMING_LINK_HOLD);
        self.waiting
            .retain(|_, waiting| !waiting.deliver.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(nonce: u8) -> Hello {
        Hello {
            nonce: [nonce; 16],
            epoch: Epoch(7),
            link: LinkSpec {
                lower: 0,
                higher: 258,
                channel: Channel::Plan,
            },
        }
    }

    #[test]
    fn a_hello_survives_the_wire_and_noise_does_not_pass() {
        assert!(Hello::decode(&hello(9).encode()) == Some(hello(9)));
        let mut raw = hello(9).encode();
        raw[32] = 77;
        assert!(Hello::decode(&raw).is_none());
        raw = hello(9).encode();
        raw[0] = b'X';
        assert!(Hello::decode(&raw).is_none());
    }

    #[test]
    fn only_the_named_worker_reaches_the_rank() {
        let now = Instant::now();
        let (right, wrong) = (WorkerId(1), WorkerId(2));
        // Held first: the wrong worker's stream stays where it is.
        let mut shelf = Shelf::default();
        assert_eq!(
            shelf.offer(hello(1), wrong, "wrong", now),
            Ok(Offered::Held)
        );
        assert_eq!(
            shelf.offer(hello(1), right, "right", now),
            Ok(Offered::Held)
        );
        assert!(matches!(
            shelf.claim(hello(1), right, now),
            Claimed::Now("right")
        ));
        // Asked for first: the wrong worker is refused and the right one delivered.
        let Claimed::Later(mut arrival) = shelf.claim(hello(2), right, now) else {
            panic!("nothing was offered yet");
        };
        assert!(shelf.offer(hello(2), wrong, "wrong", now).is_err());
        assert_eq!(
            shelf.offer(hello(2), right, "right", now),
            Ok(Offered::Taken)
        );
        assert_eq!(arrival.try_recv(), Ok("right"));
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_the_shelf_is_bounded() {
        let now = Instant::now();
        let mut shelf = Shelf::default();
        for nonce in 0..INCOMING_LINKS_PER_WORKER_MAX {
            let offered = shelf.offer(hello(nonce as u8), WorkerId(1), (), now);
            assert_eq!(offered, Ok(Offered::Held));
        }
        assert!(shelf.offer(hello(255), WorkerId(1), (), now).is_err());
        assert_eq!(
            shelf.offer(hello(255), WorkerId(2), (), now),
            Ok(Offered::Held)
        );
        // A redial replaces its own stream even when full.
        assert_eq!(
            shelf.offer(hello(0), WorkerId(1), (), now),
            Ok(Offered::Held)
        );
        shelf.expire(now + INCOMING_LINK_HOLD);
        assert!(shelf.held.is_empty());
    }

    #[test]
    fn a_claim_that_was_given_up_does_not_swallow_the_stream() {
        let now = Instant::now();
        let mut shelf = Shelf::default();
        let first = shelf.claim(hello(1), WorkerId(1), now);
        drop(first);
        assert_eq!(
            shelf.offer(hello(1), WorkerId(1), 5, now),
            Ok(Offered::Held)
        );
        assert!(matches!(
            shelf.claim(hello(1), WorkerId(1), now),
            Claimed::Now(5)
        ));
    }
}
