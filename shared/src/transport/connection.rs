//! A connection as the rest of the system holds it.

use super::{Protocol, close_code, tls};
use crate::identity::{CertificateMark, NodeId};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A connection whose peer is authenticated. Cheap to clone; closes when the last clone and stream
/// are gone. Keep a clone for as long as its streams: a connection that only streams hold open is not
/// reached by `Endpoint::remove_node`.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

pub(super) struct Inner {
    quic: quinn::Connection,
    protocol: Protocol,
    peer: Option<NodeId>,
}

/// What a removed node is told.
pub const REMOVED: &str = "this node was removed from the cluster";

impl Inner {
    pub(super) fn cut_off(&self) {
        let reason = REMOVED.as_bytes();
        self.quic.close(close_code::REFUSED.into(), reason);
    }
}

impl Connection {
    pub(super) fn new(quic: quinn::Connection, protocol: Protocol, peer: Option<NodeId>) -> Self {
        Self(Arc::new(Inner {
            quic,
            protocol,
            peer,
        }))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Who the peer proved to be; `None` only for the dialler of a `Protocol::Join` connection.
    pub fn peer(&self) -> Option<NodeId> {
        self.0.peer
    }

    /// Of the certificate that the peer showed; `None` where `peer` is.
    pub fn peer_certificate(&self) -> Option<CertificateMark> {
        self.0.peer?;
        let shown = tls::certificates(&self.0.quic);
        CertificateMark::of(shown.first()?).ok()
    }

    pub fn protocol(&self) -> Protocol {
        self.0.protocol
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.0.quic.remote_address()
    }

    /// The underlying connection, for opening and accepting streams.
    pub fn quic(&self) -> &quinn::Connection {
        &self.0.quic
    }

    /// Closes because the work is done or this process stops; `reason` is for the peer's log.
    pub fn leave(&self, reason: &str) {
        self.close(close_code::DONE, reason);
    }

    /// Tells the peer that it may try again later, and closes.
    pub fn turn_away(&self, reason: &str) {
        self.close(close_code::BUSY, reason);
    }

    /// Tells the peer why it is not served and never will be, and closes. A worker that is refused
    /// before its welcome ends itself.
    pub fn refuse(&self, reason: &str) {
        self.close(close_code::REFUSED, reason);
    }

    fn close(&self, code: u32, reason: &str) {
        self.0.quic.close(code.into(), reason.as_bytes());
    }

    /// Whether the peer closed because this node is no member any more, which is final.
    pub fn says_removed(&self) -> bool {
        self.refusal().is_some_and(|reason| reason == REMOVED)
    }

    /// Why the peer refused this node, if it did: at the TLS level or in words.
    pub fn refusal(&self) -> Option<String> {
        match self.0.quic.close_reason()? {
            quinn::ConnectionError::ApplicationClosed(close)
                if close.error_code == close_code::REFUSED.into() =>
            {
                Some(String::from_utf8_lossy(&close.reason).into_owned())
            }
            quinn::ConnectionError::ConnectionClosed(close) if tls::is_alert(close.error_code) => {
                Some(format!("its certificate was not accepted ({close})"))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { protocol, peer, .. } = &*self.0;
        write!(f, "Connection({protocol:?} with {peer:?})")
    }
}
