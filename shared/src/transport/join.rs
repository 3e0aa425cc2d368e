//! The join protocol: a node without a certificate shows a token's secret and gets one, the trust
//! bundle and the coordinators' addresses.
//!
//! One stream, one frame each way. The order is the point: the joiner has verified the server's
//! chain against the fingerprint in its token before the connection exists, so the secret goes to
//! the cluster it was made for or nowhere. What role the node gets is the token's and hence the
//! server's to say. Neighbours: `cluster join` calls [`join`]; a coordinator hands each accepted
//! `Protocol::Join` connection to [`serve_join`].

use super::tls::Expect;
use super::{Connection, Endpoint, Protocol, TransportError, close_code};
use crate::identity::{
    ClusterAuthority, IdentityError, JoinToken, KeyRequest, NodeId, NodeIdentity, SecretHash,
    check_csr,
};
use crate::ids::TokenRecordId;
use crate::limits;
use crate::wire::codec::{WireError, read_frame, write_frame};
use crate::wire::control::CoordinatorAddress;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::time::timeout;
use wincode::{SchemaRead, SchemaWrite};

/// The joiner's frame. Never logged; it has no `Debug`.
#[derive(SchemaRead, SchemaWrite)]
pub struct JoinRequest {
    token: TokenRecordId,
    secret: [u8; 32],
    /// PKCS#10, DER.
    csr: Vec<u8>,
}

/// The coordinator's frame.
#[derive(Debug, SchemaRead, SchemaWrite)]
pub enum JoinAnswer {
    Granted {
        /// The node's certificate, DER.
        certificate: Vec<u8>,
        /// The trust bundle, DER each.
        authorities: Vec<Vec<u8>>,
        coordinators: Vec<CoordinatorAddress>,
    },
    /// No, whoever is asked.
    Refused { reason: String },
    /// Not here and now.
    Unavailable { reason: String },
}

/// What a join gave.
#[derive(Debug)]
pub struct Joined {
    pub identity: NodeIdentity,
    /// All coordinators that the asked one knew of, itself included.
    pub coordinators: Vec<CoordinatorAddress>,
}

/// What a joiner showed. The secret itself stays in this room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinAsked {
    pub token: TokenRecordId,
    pub secret_hash: SecretHash,
    /// Equal when one joiner asks again, here or at another coordinator, because it missed the answer:
    /// it can name the proposal, so that a join counts once. Nobody without the secret can make it.
    pub attempt: [u8; 16],
}

/// Everything to let a joiner in with.
pub struct Admission {
    pub node: NodeId,
    /// Signs the certificate.
    pub authority: Arc<ClusterAuthority>,
    /// The trust bundle, `authority`'s certificate among it.
    pub authorities: Vec<CertificateDer<'static>>,
    pub coordinators: Vec<CoordinatorAddress>,
}

/// Why a joiner is not let in, in words that it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The token is not good; asking elsewhere would not help.
    Refused(String),
    /// This coordinator cannot say (it reaches no majority): another may.
    Unavailable(String),
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the join conversation broke off: {0}")]
    Wire(#[from] WireError),
    #[error("the coordinator refused: {0}")]
    Refused(String),
    #[error("the coordinator cannot let anybody in now: {0}")]
    Unavailable(String),
    #[error("no coordinator to ask: name at least one `host:port`")]
    Nobody,
    #[error("the other side did not answer within {} s", limits::CONTROL_DEADLINE.as_secs())]
    Deadline,
}

impl JoinError {
    /// Whether the join could still succeed elsewhere or later with the same token.
    pub fn may_try_again(&self) -> bool {
        match self {
            Self::Transport(error) => matches!(error, TransportError::Connect { .. }),
            Self::Wire(_) | Self::Unavailable(_) | Self::Deadline => true,
            Self::Identity(_) | Self::Refused(_) | Self::Nobody => false,
        }
    }
}

/// Asks the coordinators at `addresses` (`host:port`), one after the other until one decides, for an
/// identity. The error is the last one's.
pub async fn join<A: AsRef<str>>(addresses: &[A], token: &JoinToken) -> Result<Joined, JoinError> {
    // An IPv6 socket reaches both families; some machines have no IPv6 at all.
    let endpoint = Endpoint::anonymous(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| Endpoint::anonymous(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))?;
    // One request for all: whoever is asked a second time knows that it is the same joiner.
    let key = KeyRequest::generate()?;
    let mut last = JoinError::Nobody;
    for address in addresses {
        match ask(&endpoint, address.as_ref(), token, key.csr()).await {
            Ok(granted) => return granted.accept(key),
            // Another address may still be a coordinator of the right cluster.
            Err(
                error @ JoinError::Transport(
                    TransportError::WrongCluster { .. } | TransportError::WrongPeer { .. },
                ),
            ) => last = error,
            Err(error) if error.may_try_again() => last = error,
            Err(decided) => return Err(decided),
        }
    }
    Err(last)
}

/// A coordinator's yes, not looked at yet.
struct Granted {
    certificate: Vec<u8>,
    authorities: Vec<Vec<u8>>,
    coordinators: Vec<CoordinatorAddress>,
}

impl Granted {
    /// Only one authority was pinned. The others are taken on the word of a coordinator that proved to
    /// be of the pinned one's cluster.
    fn accept(self, key: KeyRequest) -> Result<Joined, JoinError> {
        let bundle = self.authorities.into_iter().map(CertificateDer::from);
        let certificate = CertificateDer::from(self.certificate);
        Ok(Joined {
            identity: key.complete(certificate, bundle.collect())?,
            coordinators: self.coordinators,
        })
    }
}

async fn ask(
    endpoint: &Endpoint,
    address: &str,
    token: &JoinToken,
    csr: &[u8],
) -> Result<Granted, JoinError> {
    let expect = Expect::Pinned(token.authority());
    let wait = limits::CONNECT_DEADLINE;
    let connection = endpoint.dial(address, expect, Protocol::Join, wait).await?;
    let asked = timeout(limits::CONTROL_DEADLINE, converse(&connection, token, csr)).await;
    // The runtime sends the close and forgets the endpoint; nobody needs to wait for it.
    connection.leave("");
    asked.map_err(|_| JoinError::Deadline)?
}

async fn converse(
    connection: &Connection,
    token: &JoinToken,
    csr: &[u8],
) -> Result<Granted, JoinError> {
    let request = JoinRequest {
        token: token.id(),
        secret: token.secret(),
        csr: csr.to_vec(),
    };
    let opened = connection.quic().open_bi().await;
    let (mut send, mut recv) = opened.map_err(WireError::from)?;
    write_frame(&mut send, &request, limits::JOIN_FRAME_BYTES_MAX).await?;
    let _ = send.finish();
    match read_frame(&mut recv, limits::JOIN_FRAME_BYTES_MAX).await? {
        Some(JoinAnswer::Granted {
            certificate,
            authorities,
            coordinators,
        }) => Ok(Granted {
            certificate,
            authorities,
            coordinators,
        }),
        Some(JoinAnswer::Refused { reason }) => Err(JoinError::Refused(reason)),
        Some(JoinAnswer::Unavailable { reason }) => Err(JoinError::Unavailable(reason)),
        None => Err(WireError::Truncated.into()),
    }
}

/// Serves one accepted `Protocol::Join` connection. `admit` looks at the token, counts its use and
/// names the new node, or says why not.
pub async fn serve_join<F, Fut>(connection: &Connection, admit: F) -> Result<NodeId, JoinError>
where
    F: FnOnce(JoinAsked) -> Fut,
    Fut: Future<Output = Result<Admission, Denied>>,
{
    let served = timeout(limits::CONTROL_DEADLINE, answer(connection, admit)).await;
    connection.quic().close(close_code::DONE.into(), b"");
    served.map_err(|_| JoinError::Deadline)?
}

async fn answer<F, Fut>(connection: &Connection, admit: F) -> Result<NodeId, JoinError>
where
    F: FnOnce(JoinAsked) -> Fut,
    Fut: Future<Output = Result<Admission, Denied>>,
{
    let accepted = connection.quic().accept_bi().await;
    let (mut send, mut recv) = accepted.map_err(WireError::from)?;
    let request = read_frame::<JoinRequest>(&mut recv, limits::JOIN_FRAME_BYTES_MAX).await?;
    let request = request.ok_or(WireError::Truncated)?;
    let decided = match admitted(&request, admit).await {
        Ok(admission) => admission.sign(&request.csr),
        Err(Denied::Refused(reason)) => Err(JoinError::Refused(reason)),
        Err(Denied::Unavailable(reason)) => Err(JoinError::Unavailable(reason)),
    };
    let (decided, reply) = match decided {
        Ok((node, granted)) => (Ok(node), granted),
        Err(error) => {
            let reply = JoinAnswer::no(&error);
            (Err(error), reply)
        }
    };
    write_frame(&mut send, &reply, limits::JOIN_FRAME_BYTES_MAX).await?;
    let _ = send.finish();
    // Closing before the answer arrived would throw it away.
    let _ = send.stopped().await;
    decided
}

/// A request that cannot be signed is refused before its token is looked at, and so costs no use of it.
async fn admitted<F, Fut>(request: &JoinRequest, admit: F) -> Result<Admission, Denied>
where
    F: FnOnce(JoinAsked) -> Fut,
    Fut: Future<Output = Result<Admission, Denied>>,
{
    check_csr(&request.csr).map_err(|error| Denied::Refused(error.to_string()))?;
    admit(request.asked()).await
}

impl JoinRequest {
    fn asked(&self) -> JoinAsked {
        let attempt = Sha256::new()
            .chain_update(b"trireme join attempt")
            .chain_update(self.token.0.to_le_bytes())
            .chain_update(self.secret)
            .chain_update(&self.csr)
            .finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&attempt[..16]);
        JoinAsked {
            token: self.token,
            secret_hash: JoinToken::hash(&self.secret),
            attempt: short,
        }
    }
}

impl Admission {
    fn sign(self, csr: &[u8]) -> Result<(NodeId, JoinAnswer), JoinError> {
        let lifetime = limits::NODE_CERTIFICATE_LIFETIME;
        let certificate = self.authority.sign_csr(csr, self.node, lifetime)?;
        let granted = JoinAnswer::Granted {
            certificate: certificate.to_vec(),
            authorities: self.authorities.iter().map(|one| one.to_vec()).collect(),
            coordinators: self.coordinators,
        };
        Ok((self.node, granted))
    }
}

impl JoinAnswer {
    fn no(error: &JoinError) -> Self {
        match error {
            JoinError::Unavailable(reason) => Self::Unavailable {
                reason: reason.clone(),
            },
            JoinError::Refused(reason) => Self::Refused {
                reason: reason.clone(),
            },
            other => Self::Refused {
                reason: other.to_string(),
            },
        }
    }
}
