//! The join protocol: a node without a certificate shows a token's secret and gets one.
//!
//! One stream, one frame each way. The order is the point: the joiner has verified the server's
//! chain against the fingerprint in its token before the connection exists, so the secret goes to
//! the cluster it was made for or nowhere. Neighbours: `cluster join` calls [`join`]; a coordinator
//! hands each accepted `Protocol::Join` connection to [`serve_join`].

use super::tls::{self, Expect};
use super::{Connection, Endpoint, Protocol, TransportError, close_code};
use crate::identity::{
    ClusterAuthority, Fingerprint, IdentityError, JoinToken, KeyRequest, NodeId, NodeIdentity,
    SecretHash,
};
use crate::ids::TokenRecordId;
use crate::limits;
use crate::wire::codec::{WireError, read_frame, write_frame};
use rustls_pki_types::CertificateDer;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::time::timeout;
use wincode::{SchemaRead, SchemaWrite};

/// The joiner's frame. Never logged; it has no `Debug`.
#[derive(SchemaRead, SchemaWrite)]
struct JoinRequest {
    token: TokenRecordId,
    secret: [u8; 32],
    /// PKCS#10, DER.
    csr: Vec<u8>,
}

#[derive(Debug, SchemaRead, SchemaWrite)]
enum JoinAnswer {
    /// The node's certificate, DER.
    Granted {
        certificate: Vec<u8>,
    },
    Refused {
        reason: String,
    },
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
    #[error("the other side did not answer within {} s", limits::CONTROL_DEADLINE.as_secs())]
    Deadline,
}

/// Asks the coordinator at `address` (`host:port`) for an identity.
pub async fn join(address: &str, token: &JoinToken) -> Result<NodeIdentity, JoinError> {
    // An IPv6 socket reaches both families; some machines have no IPv6 at all.
    let endpoint = Endpoint::anonymous(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| Endpoint::anonymous(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))?;
    let expect = Expect::Pinned(token.authority());
    let connection = endpoint.dial(address, expect, Protocol::Join).await?;
    let asked = timeout(limits::CONTROL_DEADLINE, ask(&connection, token)).await;
    // The runtime sends the close and forgets the endpoint; nobody needs to wait for it.
    connection.quic.close(close_code::DONE.into(), b"");
    asked.map_err(|_| JoinError::Deadline)?
}

async fn ask(connection: &Connection, token: &JoinToken) -> Result<NodeIdentity, JoinError> {
    let shown = tls::certificates(&connection.quic);
    let authority = shown
        .into_iter()
        .find(|one| Fingerprint::of(one) == token.authority())
        .ok_or_else(|| IdentityError::Certificate("the server hid its authority".into()))?;
    let key = KeyRequest::generate()?;
    let request = JoinRequest {
        token: token.id(),
        secret: token.secret(),
        csr: key.csr().to_vec(),
    };
    let opened = connection.quic.open_bi().await;
    let (mut send, mut recv) = opened.map_err(WireError::from)?;
    write_frame(&mut send, &request, limits::JOIN_FRAME_BYTES_MAX).await?;
    let _ = send.finish();
    match read_frame(&mut recv, limits::JOIN_FRAME_BYTES_MAX).await? {
        Some(JoinAnswer::Granted { certificate }) => {
            Ok(key.complete(CertificateDer::from(certificate), authority)?)
        }
        Some(JoinAnswer::Refused { reason }) => Err(JoinError::Refused(reason)),
        None => Err(WireError::Truncated.into()),
    }
}

/// Serves one accepted `Protocol::Join` connection. `admit` gets the token's id and the hash of the
/// secret that was shown; it names the new node (and counts the token's use), or refuses in words
/// that the joiner is shown.
pub async fn serve_join<F, Fut>(
    connection: &Connection,
    authority: &ClusterAuthority,
    admit: F,
) -> Result<NodeId, JoinError>
where
    F: FnOnce(TokenRecordId, SecretHash) -> Fut,
    Fut: Future<Output = Result<NodeId, String>>,
{
    let served = timeout(
        limits::CONTROL_DEADLINE,
        answer(connection, authority, admit),
    )
    .await;
    connection.quic.close(close_code::DONE.into(), b"");
    served.map_err(|_| JoinError::Deadline)?
}

async fn answer<F, Fut>(
    connection: &Connection,
    authority: &ClusterAuthority,
    admit: F,
) -> Result<NodeId, JoinError>
where
    F: FnOnce(TokenRecordId, SecretHash) -> Fut,
    Fut: Future<Output = Result<NodeId, String>>,
{
    let accepted = connection.quic.accept_bi().await;
    let (mut send, mut recv) = accepted.map_err(WireError::from)?;
    let request = read_frame::<JoinRequest>(&mut recv, limits::JOIN_FRAME_BYTES_MAX).await?;
    let request = request.ok_or(WireError::Truncated)?;
    let decided = match admit(request.token, JoinToken::hash(&request.secret)).await {
        Err(reason) => Err(JoinError::Refused(reason)),
        Ok(node) => authority
            .sign_csr(&request.csr, node, limits::NODE_CERTIFICATE_LIFETIME)
            .map(|certificate| (node, certificate))
            .map_err(JoinError::from),
    };
    let reply = match &decided {
        Ok((_, certificate)) => JoinAnswer::Granted {
            certificate: certificate.to_vec(),
        },
        Err(JoinError::Refused(reason)) => JoinAnswer::Refused {
            reason: reason.clone(),
        },
        Err(error) => JoinAnswer::Refused {
            reason: error.to_string(),
        },
    };
    write_frame(&mut send, &reply, limits::JOIN_FRAME_BYTES_MAX).await?;
    let _ = send.finish();
    // Closing before the answer arrived would throw it away.
    let _ = send.stopped().await;
    Ok(decided?.0)
}
