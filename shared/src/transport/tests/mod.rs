//! Scenarios on loopback with real sockets: who gets through (here), and who does not.

mod joining;
mod middle;
mod refused;
mod restart;
mod rotation;

use super::*;
use crate::identity::ClusterAuthority;
use crate::ids::{CoordinatorId, WorkerId};
use crate::wire::codec::{read_frame, write_frame};
use std::net::Ipv4Addr;

const COORDINATOR: NodeId = NodeId::Coordinator(CoordinatorId(1));
const OTHER: NodeId = NodeId::Coordinator(CoordinatorId(2));
const WORKER: NodeId = NodeId::Worker(WorkerId(3));
const OTHER_WORKER: NodeId = NodeId::Worker(WorkerId(4));
const MAX: usize = 1_024;

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn node(authority: &ClusterAuthority, node: NodeId, accept: &[Protocol]) -> Endpoint {
    let identity = NodeIdentity::issue(authority, node).unwrap();
    Endpoint::bind(loopback(), &identity, accept).unwrap()
}

fn cluster() -> ClusterAuthority {
    ClusterAuthority::new("test").unwrap()
}

/// Accepts until the endpoint closes and sends every number back, one more.
fn echo(endpoint: &Endpoint) -> tokio::task::JoinHandle<Vec<(Protocol, Option<NodeId>)>> {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(connection) = endpoint.accept().await {
            seen.push((connection.protocol(), connection.peer()));
            tokio::spawn(async move {
                while let Ok((mut send, mut recv)) = connection.quic().accept_bi().await {
                    while let Ok(Some(number)) = read_frame::<u64>(&mut recv, MAX).await {
                        write_frame(&mut send, &(number + 1), MAX).await.unwrap();
                    }
                    let _ = send.finish();
                }
            });
        }
        seen
    })
}

/// Asks the echo for one number; the error is that of the connection.
async fn ask(connection: &Connection) -> Result<u64, String> {
    let asked = async {
        let opened = connection.quic().open_bi().await;
        let (mut send, mut recv) = opened.map_err(crate::wire::codec::WireError::from)?;
        write_frame(&mut send, &41u64, MAX).await?;
        let _ = send.finish();
        let answer = read_frame(&mut recv, MAX).await?;
        let end = read_frame::<u64>(&mut recv, MAX).await?;
        assert!(end.is_none(), "the stream ends cleanly");
        answer.ok_or(crate::wire::codec::WireError::Truncated)
    };
    asked.await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn nodes_of_one_cluster_talk_and_know_each_other() {
    let authority = cluster();
    let coordinator = node(
        &authority,
        COORDINATOR,
        &[Protocol::Join, Protocol::Control],
    );
    let worker = node(&authority, WORKER, &[Protocol::Generate, Protocol::Link]);
    let peer = node(&authority, OTHER_WORKER, &[Protocol::Link]);
    let at_coordinator = echo(&coordinator);
    let at_worker = echo(&worker);
    let to_coordinator = coordinator.local_addr().to_string();
    let to_worker = worker.local_addr().to_string();

    let control = worker.connect(&to_coordinator, COORDINATOR, Protocol::Control);
    let control = control.await.unwrap();
    assert_eq!(control.peer(), Some(COORDINATOR));
    assert_eq!(ask(&control).await, Ok(42));
    let any = worker.connect_coordinator(&to_coordinator, Protocol::Control);
    assert_eq!(any.await.unwrap().peer(), Some(COORDINATOR));
    let generate = coordinator.connect(&to_worker, WORKER, Protocol::Generate);
    assert_eq!(ask(&generate.await.unwrap()).await, Ok(42));
    let link = peer.connect(&to_worker, WORKER, Protocol::Link);
    assert_eq!(ask(&link.await.unwrap()).await, Ok(42));

    coordinator.close().await;
    worker.close().await;
    assert_eq!(
        at_coordinator.await.unwrap(),
        [(Protocol::Control, Some(WORKER)); 2]
    );
    let seen = at_worker.await.unwrap();
    assert!(seen.contains(&(Protocol::Generate, Some(COORDINATOR))));
    assert!(seen.contains(&(Protocol::Link, Some(OTHER_WORKER))));
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let authority = cluster();
    let worker = node(&authority, WORKER, &[Protocol::Generate]);
    echo(&worker);
    let gateway = node(&authority, COORDINATOR, &[]);
    let address = worker.local_addr().to_string();
    let connection = gateway.connect(&address, WORKER, Protocol::Generate);
    let connection = connection.await.unwrap();
    let mut asking = JoinSet::new();
    for _ in 0..200 {
        let connection = connection.clone();
        asking.spawn(async move { ask(&connection).await });
    }
    assert!(asking.join_all().await.iter().all(|got| *got == Ok(42)));
}

/// A connection by a client that trusts any server: it shows the certificate of `identity`, or none.
async fn careless(
    address: &str,
    identity: Option<&NodeIdentity>,
    protocol: Protocol,
) -> Connection {
    #[derive(Debug)]
    struct Trusting;
    impl rustls::client::danger::ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    let tls: quinn::crypto::rustls::QuicClientConfig = config.try_into().unwrap();
    let to: SocketAddr = address.parse().unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let connecting = endpoint.connect_with(tuning::client(tls, to, protocol), to, "any.trireme");
    Connection::new(connecting.unwrap().await.unwrap(), protocol, None)
}
