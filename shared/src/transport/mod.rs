//! QUIC endpoints with mutual TLS 1.3. One UDP socket per process serves and dials; the protocol is
//! chosen by ALPN and each protocol says which roles may speak it.
//!
//! What it keeps true: a [`Connection`] in anyone's hands has an authenticated peer of this cluster
//! whose role may speak the connection's protocol on that side (only `Protocol::Join` has an
//! anonymous dialler); a dialler's peer is exactly the node it asked for. Neighbours: `identity`
//! gives the certificates, `wire::codec` the frames, the agent and the fleet the conversations.

pub mod join;
mod tls;
mod tuning;

use crate::api::Role;
use crate::identity::{Fingerprint, NodeId, NodeIdentity};
use crate::limits;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use tls::Expect;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

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

impl Protocol {
    const ALL: [Self; 4] = [Self::Join, Self::Control, Self::Generate, Self::Link];

    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Join => b"trireme-join/1",
            Self::Control => b"trireme-control/1",
            Self::Generate => b"trireme-generate/1",
            Self::Link => b"trireme-link/1",
        }
    }

    /// Who may dial; `None` is anyone, without a certificate.
    fn dialler(self) -> Option<Role> {
        match self {
            Self::Join => None,
            Self::Control | Self::Link => Some(Role::Worker),
            Self::Generate => Some(Role::Coordinator),
        }
    }

    /// Who may be dialled.
    fn server(self) -> Role {
        match self {
            Self::Join | Self::Control => Role::Coordinator,
            Self::Generate | Self::Link => Role::Worker,
        }
    }

    /// Streams the peer may have open at once.
    fn streams_max(self) -> u32 {
        match self {
            Self::Join => 1,
            Self::Control => limits::CONTROL_STREAMS_MAX,
            Self::Generate => limits::GENERATE_STREAMS_MAX,
            Self::Link => limits::LINK_STREAMS_MAX,
        }
    }
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
    #[error(
        "{address} belongs to another cluster (its CA is {got}, the token is for {want}): check \
         the address, or ask that cluster for a token"
    )]
    WrongCluster {
        address: String,
        got: String,
        want: Fingerprint,
    },
    #[error("the TLS setup failed: {0}")]
    Tls(String),
}

/// Codes that close a connection, for the peer's logs.
pub mod close_code {
    /// The work is done, or the process is stopping.
    pub const DONE: u32 = 0;
    /// The peer is not wanted, now or later; the reason is in words.
    pub const REFUSED: u32 = 1;
    /// Not now, for want of room; the peer may try again.
    pub const BUSY: u32 = 2;
}

/// A process's QUIC endpoint. Cheap to clone; closes when the last clone and connection are gone.
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

struct Shared {
    quic: quinn::Endpoint,
    local: SocketAddr,
    /// `None` for a joiner, which has no name yet.
    identity: Option<NodeIdentity>,
    /// Handshakes of diallers in progress; each runs in a task of its own.
    handshakes: Mutex<JoinSet<Option<Connection>>>,
}

/// A connection whose peer is authenticated. Cheap to clone; closes when the last clone and stream
/// are gone.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    protocol: Protocol,
    peer: Option<NodeId>,
}

impl Endpoint {
    /// Binds `listen` and serves `accept` with this node's certificate. Needs a tokio runtime; the
    /// endpoint's I/O runs on it.
    pub fn bind(
        listen: SocketAddr,
        identity: &NodeIdentity,
        accept: &[Protocol],
    ) -> Result<Self, TransportError> {
        let server = match accept {
            [] => None,
            some => Some(tuning::server(tls::server(identity, some)?)),
        };
        Self::open(listen, Some(identity.clone()), server)
    }

    /// An endpoint that can only dial, and only to join.
    fn anonymous(listen: SocketAddr) -> Result<Self, TransportError> {
        Self::open(listen, None, None)
    }

    fn open(
        listen: SocketAddr,
        identity: Option<NodeIdentity>,
        server: Option<quinn::ServerConfig>,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Bind {
            address: listen,
            source,
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(failed(std::io::Error::other("no tokio runtime is running")));
        }
        let socket = UdpSocket::bind(listen).map_err(failed)?;
        tuning::socket(&socket);
        let runtime = Arc::new(quinn::TokioRuntime);
        let quic = quinn::Endpoint::new(tuning::endpoint(), server, socket, runtime);
        let quic = quic.map_err(failed)?;
        let local = quic.local_addr().map_err(failed)?;
        Ok(Self(Arc::new(Shared {
            quic,
            local,
            identity,
            handshakes: Mutex::default(),
        })))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// The next authenticated connection; `None` once the endpoint is closed. Handshakes that fail
    /// are logged and skipped, and never hold up others. Cancelling it loses nothing.
    pub async fn accept(&self) -> Option<Connection> {
        let mut handshakes = self.0.handshakes.lock().await;
        loop {
            tokio::select! {
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return Some(connection);
                    }
                }
                incoming = self.0.quic.accept() => {
                    let incoming = incoming?;
                    if handshakes.len() >= limits::HANDSHAKES_MAX {
                        tracing::warn!("too many handshakes at once: one was refused");
                        incoming.refuse();
                    } else {
                        handshakes.spawn(admit(incoming));
                    }
                }
            }
        }
    }

    /// Dials `address` (`host:port`); the peer must prove that it is `peer`.
    pub async fn connect(
        &self,
        address: &str,
        peer: NodeId,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        self.dial(address, Expect::Node(peer), protocol).await
    }

    /// Dials `address`; the peer must prove that it is a coordinator of this cluster.
    pub async fn connect_coordinator(
        &self,
        address: &str,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        self.dial(address, Expect::AnyCoordinator, protocol).await
    }

    async fn dial(
        &self,
        address: &str,
        expect: Expect,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        let unreachable = |reason: String| TransportError::Connect {
            address: address.to_owned(),
            reason,
        };
        if expect.role() != protocol.server() {
            return Err(unreachable(format!(
                "{expect} does not serve {protocol:?} connections"
            )));
        }
        let resolved = timeout(limits::CONNECT_DEADLINE, tokio::net::lookup_host(address)).await;
        let resolved = resolved
            .map_err(|_| unreachable("its name was not resolved in time".into()))?
            .map_err(|error| unreachable(error.to_string()))?;
        // A socket of IPv6 reaches both families, one of IPv4 only its own.
        let usable = resolved.filter(|to| to.is_ipv4() || self.0.local.is_ipv6());
        let mut last =
            unreachable("it has no address that this endpoint's socket can reach".into());
        for to in usable.take(limits::DIAL_ADDRESSES_MAX) {
            match self.dial_one(address, to, &expect, protocol).await {
                Err(error @ TransportError::Connect { .. }) => last = error,
                decided => return decided,
            }
        }
        Err(last)
    }

    async fn dial_one(
        &self,
        address: &str,
        to: SocketAddr,
        expect: &Expect,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        let unreachable = |reason: String| TransportError::Connect {
            address: address.to_owned(),
            reason,
        };
        let (config, verdict) = tls::client(self.0.identity.as_ref(), expect.clone(), protocol)?;
        let config = tuning::client(config, to, protocol);
        let connecting = self
            .0
            .quic
            .connect_with(config, to, &expect.server_name())
            .map_err(|error| unreachable(error.to_string()))?;
        let quic = match timeout(limits::CONNECT_DEADLINE, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => {
                return Err(verdict
                    .refusal(address)
                    .unwrap_or_else(|| unreachable(error.to_string())));
            }
            Err(_) => {
                let waited = limits::CONNECT_DEADLINE.as_secs();
                return Err(unreachable(format!("no answer within {waited} s")));
            }
        };
        match tls::peer(&quic) {
            Ok(Some(node)) => Ok(Connection {
                quic,
                protocol,
                peer: Some(node),
            }),
            _ => Err(TransportError::Tls(
                "the server showed no certificate".into(),
            )),
        }
    }

    /// Closes every connection and waits, with a deadline, for the closes to be sent.
    pub async fn close(&self) {
        self.0.quic.close(close_code::DONE.into(), b"closing");
        // Past the deadline the peers notice by silence.
        let _ = timeout(limits::CLOSE_DEADLINE, self.0.quic.wait_idle()).await;
    }
}

/// The server's half of a handshake; `None` if it failed or the dialler may not speak here.
async fn admit(incoming: quinn::Incoming) -> Option<Connection> {
    let from = incoming.remote_address();
    let handshake = async {
        let quic = incoming.accept()?.await?;
        Ok::<_, quinn::ConnectionError>(quic)
    };
    let quic = match timeout(limits::CONNECT_DEADLINE, handshake).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "a connection was refused");
            return None;
        }
        Err(_) => {
            tracing::warn!(%from, "a handshake took too long");
            return None;
        }
    };
    match dialler(&quic) {
        Ok((protocol, peer)) => {
            tuning::admitted(&quic, protocol);
            Some(Connection {
                quic,
                protocol,
                peer,
            })
        }
        Err(reason) => {
            tracing::warn!(%from, reason, "a connection was refused");
            quic.close(close_code::REFUSED.into(), reason.as_bytes());
            None
        }
    }
}

/// Protocol and peer of an accepted connection, if that peer may dial that protocol.
fn dialler(quic: &quinn::Connection) -> Result<(Protocol, Option<NodeId>), String> {
    let alpn = tls::alpn(quic).unwrap_or_default();
    let protocol = Protocol::ALL.into_iter().find(|p| p.alpn() == alpn);
    let protocol = protocol.ok_or("the protocol is not known here")?;
    let peer = tls::peer(quic)?;
    match (protocol.dialler(), peer) {
        (None, _) => Ok((protocol, None)),
        (Some(role), Some(node)) if node.role() == role => Ok((protocol, peer)),
        (Some(_), Some(node)) => Err(format!("{node} may not open {protocol:?} connections")),
        (Some(_), None) => Err(format!("{protocol:?} connections need a certificate")),
    }
}

impl Connection {
    /// Who the peer proved to be; `None` only for the dialler of a `Protocol::Join` connection.
    pub fn peer(&self) -> Option<NodeId> {
        self.peer
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// The underlying connection, for opening and accepting streams.
    pub fn quic(&self) -> &quinn::Connection {
        &self.quic
    }

    /// Closes because the work is done or this process stops; `reason` is for the peer's log.
    pub fn leave(&self, reason: &str) {
        self.quic.close(close_code::DONE.into(), reason.as_bytes());
    }

    /// Tells the peer that it may try again later, and closes.
    pub fn turn_away(&self, reason: &str) {
        self.quic.close(close_code::BUSY.into(), reason.as_bytes());
    }

    /// Tells the peer why it is not served and never will be, and closes. A worker that is refused
    /// before its welcome ends itself.
    pub fn refuse(&self, reason: &str) {
        self.quic
            .close(close_code::REFUSED.into(), reason.as_bytes());
    }

    /// Why the peer refused this node, if it did: at the TLS level or in words.
    pub fn refusal(&self) -> Option<String> {
        match self.quic.close_reason()? {
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

#[cfg(test)]
mod tests;
