//! Scenarios on loopback with real sockets: who gets through, and who does not.

use super::join::{JoinError, join, serve_join};
use super::*;
use crate::identity::{ClusterAuthority, JoinToken};
use crate::ids::{CoordinatorId, TokenRecordId, WorkerId};
use crate::wire::codec::{read_frame, write_frame};
use std::net::Ipv4Addr;

const COORDINATOR: NodeId = NodeId::Coordinator(CoordinatorId(1));
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

#[tokio::test]
async fn the_wrong_node_is_named_and_refused() {
    let authority = cluster();
    let worker = node(&authority, WORKER, &[Protocol::Link]);
    echo(&worker);
    let dialler = node(&authority, OTHER_WORKER, &[]);
    let address = worker.local_addr().to_string();
    let missing = NodeId::Worker(WorkerId(9));
    let refused = dialler.connect(&address, missing, Protocol::Link).await;
    match refused.unwrap_err() {
        TransportError::WrongPeer { got, want, .. } => {
            assert_eq!((got.as_str(), want.as_str()), ("worker w3", "worker w9"));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn another_clusters_nodes_are_refused_on_both_sides() {
    let ours = cluster();
    let theirs = cluster();
    let coordinator = node(&ours, COORDINATOR, &[Protocol::Join, Protocol::Control]);
    let seen = echo(&coordinator);
    let address = coordinator.local_addr().to_string();
    let stranger = node(&theirs, WORKER, &[]);
    let refused = stranger
        .connect(&address, COORDINATOR, Protocol::Control)
        .await;
    assert!(matches!(refused, Err(TransportError::WrongPeer { .. })));

    // A dialler that does not check whom it reached is refused by the server.
    let careless = careless(&address, Some(&theirs), Protocol::Control).await;
    assert!(ask(&careless).await.is_err());
    assert!(careless.refusal().unwrap().contains("certificate"));
    coordinator.close().await;
    assert_eq!(seen.await.unwrap(), []);
}

/// A connection by a client that trusts any server: it shows a certificate of `authority`, or none.
async fn careless(
    address: &str,
    authority: Option<&ClusterAuthority>,
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
    let mut config = match authority {
        Some(authority) => {
            let identity = NodeIdentity::issue(authority, WORKER).unwrap();
            let chain = identity.chain();
            builder
                .with_client_auth_cert(chain, identity.key())
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    let tls: quinn::crypto::rustls::QuicClientConfig = config.try_into().unwrap();
    let to: SocketAddr = address.parse().unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let connecting = endpoint.connect_with(tuning::client(tls, to, protocol), to, "any.trireme");
    Connection {
        quic: connecting.unwrap().await.unwrap(),
        protocol,
        peer: None,
    }
}

#[tokio::test]
async fn without_a_certificate_there_is_only_join() {
    let authority = cluster();
    let coordinator = node(
        &authority,
        COORDINATOR,
        &[Protocol::Join, Protocol::Control],
    );
    let worker = node(&authority, WORKER, &[Protocol::Generate]);
    let at_coordinator = echo(&coordinator);
    let at_worker = echo(&worker);
    for (endpoint, protocol) in [
        (&coordinator, Protocol::Control),
        (&worker, Protocol::Generate),
    ] {
        let address = endpoint.local_addr().to_string();
        let nobody = careless(&address, None, protocol).await;
        assert!(ask(&nobody).await.is_err());
        assert!(
            nobody.refusal().is_some(),
            "{:?}",
            nobody.quic.close_reason()
        );
    }
    coordinator.close().await;
    worker.close().await;
    assert_eq!(at_coordinator.await.unwrap(), []);
    assert_eq!(at_worker.await.unwrap(), []);
}

#[tokio::test]
async fn a_role_speaks_only_its_own_protocols() {
    let authority = cluster();
    let worker = node(&authority, WORKER, &[Protocol::Generate, Protocol::Link]);
    let seen = echo(&worker);
    let address = worker.local_addr().to_string();
    // Workers may not play the gateway: neither by the dialler's own check nor by the server's.
    let peer = node(&authority, OTHER_WORKER, &[]);
    let generate = peer.connect(&address, WORKER, Protocol::Generate).await;
    let generate = generate.unwrap();
    assert!(ask(&generate).await.is_err());
    let said = generate.refusal().unwrap();
    assert_eq!(said, "worker w4 may not open Generate connections");
    // And nobody serves control connections but coordinators.
    let control = peer.connect(&address, WORKER, Protocol::Control).await;
    assert!(matches!(control, Err(TransportError::Connect { .. })));
    worker.close().await;
    assert_eq!(seen.await.unwrap(), []);
}

#[tokio::test]
async fn nobody_at_the_address_is_a_clear_error() {
    let authority = cluster();
    let dialler = node(&authority, WORKER, &[]);
    let nonsense = dialler.connect_coordinator("not an address", Protocol::Control);
    let error = nonsense.await.unwrap_err().to_string();
    assert!(error.starts_with("cannot reach not an address"), "{error}");
}

#[tokio::test]
async fn a_token_buys_an_identity_that_works() {
    let authority = Arc::new(cluster());
    let coordinator = node(
        &authority,
        COORDINATOR,
        &[Protocol::Join, Protocol::Control],
    );
    let address = coordinator.local_addr().to_string();
    let token = JoinToken::generate(authority.fingerprint(), TokenRecordId(7)).unwrap();
    let wrong = JoinToken::generate(authority.fingerprint(), TokenRecordId(7)).unwrap();
    let known = token.secret_hash();
    let server = {
        let (coordinator, authority) = (coordinator.clone(), authority.clone());
        tokio::spawn(async move {
            while let Some(connection) = coordinator.accept().await {
                if connection.protocol() == Protocol::Join {
                    assert_eq!(connection.peer(), None);
                    let _ = serve_join(&connection, &authority, async |id, hash| {
                        let good = id == TokenRecordId(7) && hash == known;
                        good.then_some(WORKER)
                            .ok_or_else(|| "this token is not known".to_owned())
                    })
                    .await;
                }
            }
        })
    };
    let identity = join(&address, &token).await.unwrap();
    assert_eq!(identity.node(), WORKER);
    assert_eq!(identity.cluster(), authority.fingerprint());
    match join(&address, &wrong).await {
        Err(JoinError::Refused(reason)) => assert_eq!(reason, "this token is not known"),
        other => panic!("{other:?}"),
    }
    let worker = Endpoint::bind(loopback(), &identity, &[]).unwrap();
    let control = worker.connect(&address, COORDINATOR, Protocol::Control);
    assert_eq!(control.await.unwrap().peer(), Some(COORDINATOR));
    coordinator.close().await;
    server.await.unwrap();
}

/// The impostor has a good coordinator certificate, but of another cluster: it never gets as far as
/// a connection, so it is sent no byte of the secret.
#[tokio::test]
async fn the_secret_never_leaves_for_another_cluster() {
    let impostor = node(&cluster(), COORDINATOR, &[Protocol::Join]);
    let address = impostor.local_addr().to_string();
    let seen = echo(&impostor);
    let ours = cluster();
    let token = JoinToken::generate(ours.fingerprint(), TokenRecordId(1)).unwrap();
    match join(&address, &token).await {
        Err(JoinError::Transport(TransportError::WrongCluster { want, .. })) => {
            assert_eq!(want, ours.fingerprint());
        }
        other => panic!("{other:?}"),
    }
    impostor.close().await;
    assert_eq!(seen.await.unwrap(), [], "a connection was made");

    // Showing the right CA beside a chain that it did not sign helps no more.
    let forged = forged_coordinator(&ours);
    let address = forged.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move { forged.accept().await.unwrap().await.is_ok() });
    assert!(join(&address, &token).await.is_err());
    assert!(!serving.await.unwrap(), "a connection was made");
}

/// A server with another authority's certificate that shows the victim's CA (public, after all) as
/// its own.
fn forged_coordinator(victim: &ClusterAuthority) -> quinn::Endpoint {
    let identity = NodeIdentity::issue(&cluster(), COORDINATOR).unwrap();
    let mut chain = identity.chain();
    chain[1] = victim.certificate().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, identity.key())
        .unwrap();
    config.alpn_protocols = vec![Protocol::Join.alpn().to_vec()];
    let tls: quinn::crypto::rustls::QuicServerConfig = config.try_into().unwrap();
    quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(tls)), loopback()).unwrap()
}
