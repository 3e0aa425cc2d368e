//! The TLS half: TLS 1.3 only, by rustls and ring, every chain checked against the trust bundle on
//! every connection (no resumption, so no check is ever skipped).

use super::{Protocol, TransportError};
use crate::api::Role;
use crate::identity::{Fingerprint, NodeId, NodeIdentity};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// An identity, prepared once for all the handshakes that use it.
pub(super) struct Credentials {
    pub(super) identity: NodeIdentity,
    key: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
    /// Verifies the servers that are dialled.
    servers: Arc<WebPkiServerVerifier>,
}

impl Credentials {
    pub(super) fn new(identity: &NodeIdentity) -> Result<Self, TransportError> {
        let key = CertifiedKey::from_der(identity.chain(), identity.key(), &PROVIDER);
        let mut roots = RootCertStore::empty();
        for authority in identity.authorities() {
            roots.add(authority.clone()).map_err(failed)?;
        }
        let roots = Arc::new(roots);
        Ok(Self {
            identity: identity.clone(),
            key: Arc::new(key.map_err(failed)?.into()),
            servers: verifier(roots.clone()).map_err(failed)?,
            roots,
        })
    }
}

fn verifier(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    WebPkiServerVerifier::builder_with_provider(roots, PROVIDER.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Whom a dialler wants to find.
#[derive(Clone, Debug)]
pub(super) enum Expect {
    Node(NodeId),
    AnyCoordinator,
    /// A coordinator of the cluster whose CA certificate has this hash.
    Pinned(Fingerprint),
}

impl Expect {
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Node(node) => node.role(),
            Self::AnyCoordinator | Self::Pinned(_) => Role::Coordinator,
        }
    }

    /// Sent as SNI, for logs of the wire only: what counts is [`PeerCheck`].
    pub(super) fn server_name(&self) -> String {
        match self {
            Self::Node(node) => node.dns_name(),
            Self::AnyCoordinator | Self::Pinned(_) => "any.coordinator.trireme".into(),
        }
    }

    fn is_met_by(&self, found: NodeId) -> bool {
        match self {
            Self::Node(node) => *node == found,
            Self::AnyCoordinator | Self::Pinned(_) => found.role() == Role::Coordinator,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::AnyCoordinator | Self::Pinned(_) => f.write_str("a coordinator"),
        }
    }
}

/// Why a server's certificate was not the wanted one.
#[derive(Debug)]
enum Mismatch {
    Peer(String),
    Cluster(String),
}

/// Decides whether a server is the one that was dialled, and remembers why not (rustls passes only
/// an alert on).
#[derive(Debug)]
pub(super) struct PeerCheck {
    expect: Expect,
    /// Of the own bundle; `None` where only a CA's fingerprint is known.
    servers: Option<Arc<WebPkiServerVerifier>>,
    mismatch: OnceLock<Mismatch>,
}

impl PeerCheck {
    /// The error to report if it was this check that ended the handshake.
    pub(super) fn refusal(&self, address: &str) -> Option<TransportError> {
        let address = address.to_owned();
        Some(match (self.mismatch.get()?, &self.expect) {
            (Mismatch::Cluster(got), Expect::Pinned(want)) => TransportError::WrongCluster {
                address,
                got: got.clone(),
                want: *want,
            },
            (Mismatch::Cluster(got) | Mismatch::Peer(got), expect) => TransportError::WrongPeer {
                address,
                got: got.clone(),
                want: expect.to_string(),
            },
        })
    }

    fn refuse(&self, mismatch: Mismatch) -> rustls::Error {
        let _ = self.mismatch.set(mismatch);
        rustls::CertificateError::ApplicationVerificationFailure.into()
    }

    /// What to verify the chain with: our own bundle, or the one shown CA that the fingerprint
    /// matches, whatever else is shown beside it.
    fn trusted(
        &self,
        shown: &[CertificateDer<'_>],
    ) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        if let Some(own) = &self.servers {
            return Ok(own.clone());
        }
        let Expect::Pinned(pin) = &self.expect else {
            return Err(rustls::Error::General("no authority to trust".into()));
        };
        let matching = shown.iter().find(|one| Fingerprint::of(one) == *pin);
        let matching = matching.ok_or_else(|| {
            let got = shown.first().map(|one| Fingerprint::of(one).to_string());
            self.refuse(Mismatch::Cluster(got.unwrap_or_else(|| "not shown".into())))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(matching.clone().into_owned())?;
        verifier(roots.into())
    }
}

impl ServerCertVerifier for PeerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = self.trusted(intermediates)?;
        let found = NodeId::of_certificate(end_entity)
            .map_err(|_| self.refuse(Mismatch::Peer("not a Trireme node".into())))?;
        let name = ServerName::try_from(found.dns_name())
            .map_err(|_| rustls::Error::General("the node's name is no DNS name".into()))?;
        let verified =
            chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now);
        let verified = verified.inspect_err(|error| {
            // Two clusters of one name have issuers of one name: then it is the signature that is bad.
            use rustls::CertificateError::{BadSignature, UnknownIssuer};
            if matches!(
                error,
                rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)
            ) {
                let got = format!("{found} of another cluster");
                let _ = self.mismatch.set(Mismatch::Cluster(got));
            }
        })?;
        if self.expect.is_met_by(found) {
            return Ok(verified);
        }
        Err(self.refuse(Mismatch::Peer(found.to_string())))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn failed(error: impl fmt::Display) -> TransportError {
    TransportError::Tls(error.to_string())
}

/// What a server shows and demands. Only where `Join` is served may a dialler come without a
/// certificate; `transport::dialler` then refuses it for every other protocol.
pub(super) fn server(
    own: &Credentials,
    accept: &[Protocol],
) -> Result<quinn::crypto::rustls::QuicServerConfig, TransportError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(own.roots.clone(), PROVIDER.clone());
    let verifier = if accept.contains(&Protocol::Join) {
        verifier.allow_unauthenticated()
    } else {
        verifier
    };
    let mut config = rustls::ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier.build().map_err(failed)?)
        .with_cert_resolver(own.key.clone());
    config.alpn_protocols = accept.iter().map(|p| p.alpn().to_vec()).collect();
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.try_into().map_err(failed)
}

/// What a dialler shows and demands, and the check to ask why a handshake failed.
pub(super) fn client(
    own: Option<&Credentials>,
    expect: Expect,
    protocol: Protocol,
) -> Result<(quinn::crypto::rustls::QuicClientConfig, Arc<PeerCheck>), TransportError> {
    let check = Arc::new(PeerCheck {
        expect,
        servers: own.map(|own| own.servers.clone()),
        mismatch: OnceLock::new(),
    });
    let builder = rustls::ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(check.clone());
    let mut config = match own.filter(|_| protocol.dialler().is_some()) {
        Some(own) => builder.with_client_cert_resolver(own.key.clone()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config.try_into().map_err(failed)?, check))
}

/// The node that the peer's (already verified) certificate names; `None` without a certificate.
pub(super) fn peer(quic: &quinn::Connection) -> Result<Option<NodeId>, String> {
    match certificates(quic).first() {
        None => Ok(None),
        Some(own) => NodeId::of_certificate(own)
            .map(Some)
            .map_err(|error| error.to_string()),
    }
}

/// The chain that the peer showed, its own certificate first.
pub(super) fn certificates(quic: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    quic.peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map_or_else(Vec::new, |chain| *chain)
}

pub(super) fn alpn(quic: &quinn::Connection) -> Option<Vec<u8>> {
    let data = quic.handshake_data()?;
    let data = data.downcast::<quinn::crypto::rustls::HandshakeData>();
    data.ok()?.protocol
}

/// RFC 9001: CRYPTO_ERROR codes are 0x0100 plus the TLS alert.
pub(super) fn is_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
