//! Dialling: a name to addresses, an address to a connection whose peer is the wanted one.

use super::tls::{self, Expect};
use super::{Connection, Endpoint, Protocol, TransportError, tuning};
use crate::identity::NodeId;
use crate::limits;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

impl Endpoint {
    /// Dials `address` (`host:port`); the peer must prove that it is `peer`.
    pub async fn connect(
        &self,
        address: &str,
        peer: NodeId,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        let wait = limits::CONNECT_DEADLINE;
        self.dial(address, Expect::Node(peer), protocol, wait).await
    }

    /// As `connect`, but gives up after `deadline` in all.
    pub async fn connect_within(
        &self,
        address: &str,
        peer: NodeId,
        protocol: Protocol,
        deadline: Duration,
    ) -> Result<Connection, TransportError> {
        let dialled = self.dial(address, Expect::Node(peer), protocol, deadline);
        match timeout(deadline, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err(unreachable(address, silent(deadline))),
        }
    }

    /// Dials `address`; the peer must prove that it is a coordinator of this cluster.
    pub async fn connect_coordinator(
        &self,
        address: &str,
        protocol: Protocol,
    ) -> Result<Connection, TransportError> {
        let wait = limits::CONNECT_DEADLINE;
        self.dial(address, Expect::AnyCoordinator, protocol, wait)
            .await
    }

    /// `wait` is for the name, and again for each of its addresses.
    pub(super) async fn dial(
        &self,
        address: &str,
        expect: Expect,
        protocol: Protocol,
        wait: Duration,
    ) -> Result<Connection, TransportError> {
        let failed = |reason| unreachable(address, reason);
        if expect.role() != protocol.server() {
            return Err(failed(format!(
                "{expect} does not serve {protocol:?} connections"
            )));
        }
        if let Expect::Node(node) = expect
            && self.0.gate.refuses(node)
        {
            return Err(TransportError::Removed { node });
        }
        let resolved = timeout(wait, tokio::net::lookup_host(address)).await;
        let resolved = resolved
            .map_err(|_| failed("its name was not resolved in time".into()))?
            .map_err(|error| failed(error.to_string()))?;
        // A socket of IPv6 reaches both families, one of IPv4 only its own.
        let usable = resolved.filter(|to| to.is_ipv4() || self.0.local.is_ipv6());
        let mut last = failed("it has no address that this endpoint's socket can reach".into());
        for to in usable.take(limits::DIAL_ADDRESSES_MAX) {
            match self.dial_one(address, to, &expect, protocol, wait).await {
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
        wait: Duration,
    ) -> Result<Connection, TransportError> {
        let credentials = self.current().credentials.clone();
        let (config, verdict) = tls::client(credentials.as_deref(), expect.clone(), protocol)?;
        let config = tuning::client(config, to, protocol);
        let shaking = self.handshake(config, to, expect.server_name(), protocol);
        let quic = match timeout(wait, shaking).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => {
                return Err(verdict
                    .refusal(address)
                    .unwrap_or_else(|| unreachable(address, error)));
            }
            Err(_) => return Err(unreachable(address, silent(wait))),
        };
        let Ok(Some(node)) = tls::peer(&quic) else {
            let reason = "the server showed no certificate";
            return Err(TransportError::Tls(reason.into()));
        };
        let connection = Connection::new(quic, protocol, Some(node));
        if !self.0.gate.enter(node, connection.inner()) {
            connection.inner().cut_off();
            return Err(TransportError::Removed { node });
        }
        Ok(connection)
    }

    /// Begins a handshake, and between coordinators another one each `limits::DIAL_AGAIN` until the
    /// server has answered one: a member that starts just after the first packet is not kept waiting by
    /// QUIC's doubling pauses. Those without an answer end before the server could take them for
    /// connections.
    async fn handshake(
        &self,
        config: quinn::ClientConfig,
        to: SocketAddr,
        name: String,
        protocol: Protocol,
    ) -> Result<quinn::Connection, String> {
        let dials_max = match protocol {
            Protocol::Raft | Protocol::Group => limits::DIALS_AT_ONCE_MAX,
            _ => 1,
        };
        let mut begun = JoinSet::new();
        loop {
            let dialled = self.0.quic.connect_with(config.clone(), to, &name);
            let mut dialled = dialled.map_err(|error| error.to_string())?;
            begun.spawn(async move {
                let answer = dialled.handshake_data().await.map(drop);
                (answer, dialled)
            });
            let answered = if begun.len() < dials_max {
                let Ok(answered) = timeout(limits::DIAL_AGAIN, begun.join_next()).await else {
                    continue;
                };
                answered
            } else {
                begun.join_next().await
            };
            let Some(Ok((answer, dialled))) = answered else {
                return Err("the runtime is stopping".into());
            };
            begun.abort_all();
            answer.map_err(|error| error.to_string())?;
            return dialled.await.map_err(|error| error.to_string());
        }
    }
}

fn unreachable(address: &str, reason: String) -> TransportError {
    TransportError::Connect {
        address: address.to_owned(),
        reason,
    }
}

fn silent(waited: Duration) -> String {
    format!("no answer within {} s", waited.as_secs_f32())
}
