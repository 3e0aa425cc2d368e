//! QUIC endpoints with mutual TLS 1.3. One UDP socket per process serves and dials; the protocol is
//! chosen by ALPN and each protocol says which roles may speak it.

use crate::identity::{NodeId, NodeIdentity};
use std::net::SocketAddr;

/// What a connection is for; the ALPN name carries the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A joiner without a certificate asks for one: `trireme-join/1`.
    Join,
    /// Worker to coordinator: `trireme-control/1`.
    Control,
    /// Gateway to driver: `trireme-generate/1`.
    Generate,
    /// Rank to rank: `trireme-link/1`.
    Link,
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot reach {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("{address} is {got}, not {want}")]
    WrongPeer {
        address: String,
        got: String,
        want: String,
    },
    #[error("the TLS setup failed: {0}")]
    Tls(String),
}

/// A process's QUIC endpoint. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {}

/// A connection whose peer is authenticated. Cheap to clone.
#[derive(Clone)]
pub struct Connection {}

impl Endpoint {
    /// Binds `listen` and serves `accept` with this node's certificate.
    pub fn bind(
        _listen: SocketAddr,
        _identity: &NodeIdentity,
        _accept: &[Protocol],
    ) -> Result<Self, TransportError> {
        Err(TransportError::Tls("not built yet".into()))
    }

    pub fn local_addr(&self) -> SocketAddr {
        unreachable!()
    }

    /// The next authenticated connection; `None` once the endpoint is closed. Handshakes that fail
    /// are logged and skipped, and never hold up others.
    pub async fn accept(&self) -> Option<Connection> {
        None
    }

    /// Dials `address`; the peer must prove that it is `peer`.
    pub async fn connect(
        &self,
        _address: &str,
        _peer: NodeId,
        _protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        Err(TransportError::Tls("not built yet".into()))
    }

    /// Closes every connection and waits, with a deadline, for the closes to be sent.
    pub async fn close(&self) {}
}

impl Connection {
    /// Who the peer proved to be.
    pub fn peer(&self) -> NodeId {
        unreachable!()
    }

    pub fn protocol(&self) -> Protocol {
        unreachable!()
    }

    pub fn remote_address(&self) -> SocketAddr {
        unreachable!()
    }

    /// The underlying connection, for opening and accepting streams.
    pub fn quic(&self) -> &quinn::Connection {
        unreachable!()
    }
}
