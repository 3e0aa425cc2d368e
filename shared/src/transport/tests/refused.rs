//! Who must not get a connection, on either side, and that none is handed out to serve it.

use super::*;
use crate::identity::KeyRequest;
use rcgen::{CertificateParams, Issuer, KeyPair};
use time::OffsetDateTime;

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
    let theirs = NodeIdentity::issue(&theirs, WORKER).unwrap();
    let stranger = Endpoint::bind(loopback(), &theirs, &[]).unwrap();
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
            nobody.quic().close_reason()
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

/// `node`'s identity whose certificate ended a minute ago.
fn expired(authority: &ClusterAuthority, node: NodeId) -> NodeIdentity {
    let key = KeyPair::from_pem(&authority.to_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.certificate(), key).unwrap();
    let request = KeyRequest::generate().unwrap();
    let csr = request.csr().to_vec().into();
    let csr = rcgen::CertificateSigningRequestParams::from_der(&csr).unwrap();
    let mut params = CertificateParams::new(vec![node.dns_name()]).unwrap();
    params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(24);
    params.not_after = OffsetDateTime::now_utc() - time::Duration::minutes(1);
    let signed = params.signed_by(&csr.public_key, &issuer).unwrap();
    let bundle = vec![authority.certificate().clone()];
    request.complete(signed.der().clone(), bundle).unwrap()
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let authority = cluster();
    let coordinator = node(&authority, COORDINATOR, &[Protocol::Control]);
    let seen = echo(&coordinator);
    let address = coordinator.local_addr().to_string();
    let late = expired(&authority, WORKER);
    let dialler = Endpoint::bind(loopback(), &late, &[Protocol::Generate]).unwrap();
    // A client's handshake ends before the server has looked at its certificate.
    let dialled = dialler.connect(&address, COORDINATOR, Protocol::Control);
    let dialled = dialled.await.unwrap();
    assert!(ask(&dialled).await.is_err());
    assert!(dialled.refusal().unwrap().contains("certificate"));

    let late_seen = echo(&dialler);
    let gateway = node(&authority, COORDINATOR, &[]);
    let address = dialler.local_addr().to_string();
    let refused = gateway.connect(&address, WORKER, Protocol::Generate).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("expired"), "{refused}");

    // A new certificate on the same endpoint mends it.
    let fresh = NodeIdentity::issue(&authority, WORKER).unwrap();
    dialler.replace_identity(&fresh).unwrap();
    let served = gateway.connect(&address, WORKER, Protocol::Generate);
    assert_eq!(ask(&served.await.unwrap()).await, Ok(42));
    gateway.close().await;
    coordinator.close().await;
    dialler.close().await;
    assert_eq!(seen.await.unwrap(), []);
    let served = [(Protocol::Generate, Some(COORDINATOR))];
    assert_eq!(late_seen.await.unwrap(), served);
}

#[tokio::test]
async fn members_protocols_are_closed_to_workers_and_strangers() {
    let authority = cluster();
    let members = [Protocol::Join, Protocol::Raft, Protocol::Group];
    let coordinator = node(&authority, COORDINATOR, &members);
    let seen = echo(&coordinator);
    let address = coordinator.local_addr().to_string();
    let worker = node(&authority, WORKER, &[Protocol::Link]);
    let foreign = NodeIdentity::issue(&cluster(), OTHER).unwrap();
    for protocol in [Protocol::Raft, Protocol::Group] {
        let dialled = worker.connect(&address, COORDINATOR, protocol).await;
        let dialled = dialled.unwrap();
        assert!(ask(&dialled).await.is_err());
        let said = dialled.refusal().unwrap();
        assert_eq!(
            said,
            format!("worker w3 may not open {protocol:?} connections")
        );
        for shown in [None, Some(&foreign)] {
            let stranger = careless(&address, shown, protocol).await;
            assert!(ask(&stranger).await.is_err());
            assert!(stranger.refusal().is_some());
        }
        let to_worker = worker.local_addr().to_string();
        let dialled = coordinator.connect(&to_worker, WORKER, protocol).await;
        assert!(matches!(dialled, Err(TransportError::Connect { .. })));
    }
    let member = node(&authority, OTHER, &[]);
    for protocol in [Protocol::Raft, Protocol::Group] {
        let dialled = member.connect(&address, COORDINATOR, protocol).await;
        assert_eq!(ask(&dialled.unwrap()).await, Ok(42));
    }
    coordinator.close().await;
    let mut seen = seen.await.unwrap();
    seen.sort_by_key(|one| one.0.alpn());
    let other = Some(OTHER);
    assert_eq!(seen, [(Protocol::Group, other), (Protocol::Raft, other)]);
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_not_let_in_again() {
    let authority = cluster();
    let coordinator = node(&authority, COORDINATOR, &[Protocol::Control]);
    let seen = echo(&coordinator);
    let address = coordinator.local_addr().to_string();
    let worker = node(&authority, WORKER, &[Protocol::Generate]);
    let other = node(&authority, OTHER_WORKER, &[]);
    let at_worker = echo(&worker);
    let to_worker = worker.local_addr().to_string();
    let control = worker.connect(&address, COORDINATOR, Protocol::Control);
    let control = control.await.unwrap();
    let stays = other.connect(&address, COORDINATOR, Protocol::Control);
    let stays = stays.await.unwrap();
    let generate = coordinator.connect(&to_worker, WORKER, Protocol::Generate);
    let generate = generate.await.unwrap();
    // In the middle of a conversation, both as server and as dialler.
    let (mut send, mut recv) = control.quic().open_bi().await.unwrap();
    write_frame(&mut send, &1u64, MAX).await.unwrap();
    assert_eq!(read_frame(&mut recv, MAX).await.unwrap(), Some(2u64));
    assert_eq!(ask(&stays).await, Ok(42));
    assert_eq!(ask(&generate).await, Ok(42));

    coordinator.remove_node(WORKER);
    let words = "this node was removed from the cluster";
    assert!(read_frame::<u64>(&mut recv, MAX).await.is_err());
    assert_eq!(control.refusal().as_deref(), Some(words));
    assert!(ask(&generate).await.is_err(), "closed on this side too");
    assert_eq!(ask(&stays).await, Ok(42), "the others do not notice");

    let again = worker.connect(&address, COORDINATOR, Protocol::Control);
    let again = again.await.unwrap();
    assert!(ask(&again).await.is_err());
    assert_eq!(again.refusal().as_deref(), Some(words));
    let dialled = coordinator.connect(&to_worker, WORKER, Protocol::Generate);
    match dialled.await {
        Err(TransportError::Removed { node }) => assert_eq!(node, WORKER),
        other => panic!("{other:?}"),
    }
    // A worker that was told of a removed coordinator does not take it for any coordinator.
    other.remove_node(COORDINATOR);
    assert!(ask(&stays).await.is_err());
    let any = other.connect_coordinator(&address, Protocol::Control).await;
    assert!(matches!(any, Err(TransportError::Removed { .. })));
    coordinator.close().await;
    worker.close().await;
    let seen = seen.await.unwrap();
    let of_removed = seen.iter().filter(|one| one.1 == Some(WORKER));
    assert_eq!(of_removed.count(), 1, "the second never came through");
    assert_eq!(at_worker.await.unwrap().len(), 1);
}
