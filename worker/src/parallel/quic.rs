//! A [`Link`] over one QUIC stream, between hosts.
//!
//! Kept true: a rank's compute thread polls the stream itself, with a waker that unparks it. There
//! is no queue and no task between the thread and the stream, so the only bounds are QUIC's own
//! windows and the only waits are [`Waits`]'. The runtime's part is the connection's driver, which
//! moves packets; compute never runs there.
//!
//! Like a ring, it still delivers what was written before an orderly close: QUIC itself forgets
//! unsent bytes when a connection's last handle goes, so a dropped link lingers until they arrived.
//!
//! What limits its latency is waking that driver: once to send and once to receive, on each side.

use super::wait::{Patience, Waits};
use super::{Link, LinkError};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use tokio::runtime::Handle;
use tokio::time::timeout;
use trireme_shared::limits::{LINK_LINGER_DEADLINE, LINK_RING_BYTES};
use trireme_shared::transport::Connection;

/// One side of a QUIC stream between two ranks.
pub struct QuicLink {
    /// `None` only while dropping.
    send: Option<quinn::SendStream>,
    recv: quinn::RecvStream,
    waits: Waits,
    /// Keeps the dialled connection open; the accepting side's is kept by its acceptor.
    connection: Option<Connection>,
    /// Where a dropped link lingers.
    runtime: Handle,
}

impl QuicLink {
    /// Takes over a stream whose greeting is done. `runtime` carries its connection.
    pub fn new(
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        connection: Option<Connection>,
        waits: Waits,
        runtime: Handle,
    ) -> Self {
        Self {
            send: Some(send),
            recv,
            waits: Waits {
                policy: waits.policy.beside_a_driver(),
                ..waits
            },
            connection,
            runtime,
        }
    }

    fn read(&mut self, bytes: &mut [u8], mut patience: Patience) -> Result<(), LinkError> {
        self.waits.check_abort()?;
        let mut done = 0;
        while done < bytes.len() {
            let read = self.recv.read(&mut bytes[done..]);
            match wait_for(&self.waits, patience, read)? {
                Ok(Some(n)) => done += n,
                Ok(None) => return Err(self.closed(&"the peer finished its stream")),
                Err(error) => return Err(self.closed(&error)),
            }
            patience = Patience::Step;
        }
        Ok(())
    }

    fn closed(&self, reason: &dyn std::fmt::Display) -> LinkError {
        tracing::debug!(peer = self.waits.peer, %reason, "a link between ranks ended");
        LinkError::Closed {
            peer: self.waits.peer,
        }
    }
}

impl Link for QuicLink {
    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), LinkError> {
        self.waits.check_abort()?;
        while !bytes.is_empty() {
            let Some(send) = &mut self.send else {
                return Err(self.closed(&"it is being dropped"));
            };
            let write = send.write(bytes);
            match wait_for(&self.waits, Patience::Step, write)? {
                Ok(n) => bytes = &bytes[n..],
                Err(error) => return Err(self.closed(&error)),
            }
        }
        Ok(())
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.read(bytes, Patience::Step)
    }

    fn read_exact_idle(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.read(bytes, Patience::Idle)
    }

    fn peer(&self) -> usize {
        self.waits.peer
    }

    fn window_bytes(&self) -> usize {
        // Less than any stream window, and equal to a ring so that mixed stages cut alike.
        LINK_RING_BYTES
    }
}

impl Drop for QuicLink {
    fn drop(&mut self) {
        let (send, connection) = (self.send.take(), self.connection.take());
        let Some(mut send) = send else { return };
        // Refused if the stream is already over; then there is nothing to wait for.
        if send.finish().is_ok() {
            self.runtime.spawn(async move {
                let _ = timeout(LINK_LINGER_DEADLINE, send.stopped()).await;
                drop(connection);
            });
        }
    }
}

/// Tells a polling or parked thread that its future can go on.
struct ThreadWaker {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Runs `future` on this thread, waiting as `waits` says.
fn wait_for<F: Future>(
    waits: &Waits,
    patience: Patience,
    future: F,
) -> Result<F::Output, LinkError> {
    let signal = Arc::new(ThreadWaker {
        thread: std::thread::current(),
        woken: AtomicBool::new(true),
    });
    let waker = Waker::from(signal.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let mut output = None;
    waits.until(
        patience,
        || {
            if !signal.woken.swap(false, Ordering::Acquire) {
                return Ok(false);
            }
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                output = Some(value);
            }
            Ok(output.is_some())
        },
        |slice| {
            // Returns at once if the waker ran since the last poll.
            std::thread::park_timeout(slice);
            true
        },
    )?;
    Ok(output.expect("until() returned because poll() said ready"))
}
