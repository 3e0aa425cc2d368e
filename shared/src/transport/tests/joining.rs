//! Joins: what a token buys, and what it does not.

use super::*;
use crate::identity::JoinToken;
use crate::ids::TokenRecordId;
use crate::transport::join::{Admission, Denied, JoinAsked, JoinError, join, serve_join};
use crate::wire::control::CoordinatorAddress;

fn admission(authority: &Arc<ClusterAuthority>, node: NodeId) -> Admission {
    Admission {
        node,
        authority: authority.clone(),
        authorities: vec![authority.certificate().clone()],
        coordinators: Vec::new(),
    }
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
                    let _ = serve_join(&connection, async |asked| {
                        let good = asked.token == TokenRecordId(7) && asked.secret_hash == known;
                        let no = || Denied::Refused("this token is not known".into());
                        good.then(|| admission(&authority, WORKER)).ok_or_else(no)
                    })
                    .await;
                }
            }
        })
    };
    let identity = join(&[&address], &token).await.unwrap().identity;
    assert_eq!(identity.node(), WORKER);
    assert_eq!(identity.trusted(), [authority.fingerprint()]);
    match join(&[&address], &wrong).await {
        Err(JoinError::Refused(reason)) => assert_eq!(reason, "this token is not known"),
        other => panic!("{other:?}"),
    }
    let worker = Endpoint::bind(loopback(), &identity, &[]).unwrap();
    let control = worker.connect(&address, COORDINATOR, Protocol::Control);
    assert_eq!(control.await.unwrap().peer(), Some(COORDINATOR));
    coordinator.close().await;
    server.await.unwrap();
}

/// A coordinator that knows these tokens by their state alone.
fn register(
    coordinator: &Endpoint,
    authority: &Arc<ClusterAuthority>,
    tokens: Vec<(JoinToken, Result<NodeId, Denied>)>,
) -> tokio::task::JoinHandle<Vec<JoinAsked>> {
    let (coordinator, authority) = (coordinator.clone(), authority.clone());
    tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Some(connection) = coordinator.accept().await {
            let admit = async |one: JoinAsked| {
                asked.push(one);
                let of = |known: &&(JoinToken, _)| {
                    known.0.id() == one.token && known.0.secret_hash() == one.secret_hash
                };
                let unknown = || Denied::Refused("this token is not known".into());
                let (_, decided) = tokens.iter().find(of).ok_or_else(unknown)?;
                let mut admission = admission(&authority, decided.clone()?);
                admission.coordinators.push(CoordinatorAddress {
                    id: CoordinatorId(1),
                    control: coordinator.local_addr().to_string(),
                });
                Ok(admission)
            };
            let _ = serve_join(&connection, admit).await;
        }
        asked
    })
}

fn token(authority: &ClusterAuthority, id: u32) -> JoinToken {
    JoinToken::generate(authority.fingerprint(), TokenRecordId(id)).unwrap()
}

#[tokio::test]
async fn a_token_that_is_not_good_buys_nothing() {
    let authority = Arc::new(cluster());
    let coordinator = node(&authority, COORDINATOR, &[Protocol::Join]);
    let address = coordinator.local_addr().to_string();
    let reasons = ["has expired", "is used up", "was revoked"];
    let tokens: Vec<_> = (1..).map(|id| token(&authority, id)).take(3).collect();
    let known = tokens.iter().cloned().zip(reasons);
    let known = known.map(|(token, reason)| (token, Err(Denied::Refused(reason.into()))));
    let server = register(&coordinator, &authority, known.collect());
    for (token, reason) in tokens.iter().zip(reasons) {
        match join(&[&address], token).await {
            Err(JoinError::Refused(said)) => assert_eq!(said, reason),
            other => panic!("{other:?}"),
        }
    }
    // The right number with another's secret.
    let guessed = join(&[&address], &token(&authority, 1)).await;
    assert!(matches!(guessed, Err(JoinError::Refused(said)) if said.contains("not known")));
    coordinator.close().await;
    assert_eq!(server.await.unwrap().len(), 4);
}

/// One cannot be reached, one is of another cluster, one has lost its group, and the fourth answers:
/// to the third and the fourth it is visibly the same attempt.
#[tokio::test]
async fn a_joiner_asks_on_until_somebody_decides() {
    let authority = Arc::new(cluster());
    let token = token(&authority, 1);
    let stranger = node(&cluster(), COORDINATOR, &[Protocol::Join]);
    let strangers = echo(&stranger);
    let alone = node(&authority, OTHER, &[Protocol::Join]);
    let lost = Err(Denied::Unavailable("there is no leader".into()));
    let at_alone = register(&alone, &authority, vec![(token.clone(), lost)]);
    let whole = node(&authority, COORDINATOR, &[Protocol::Join]);
    let member = NodeId::Coordinator(CoordinatorId(3));
    let at_whole = register(&whole, &authority, vec![(token.clone(), Ok(member))]);

    let nowhere = "not an address".to_owned();
    let addresses = [&stranger, &alone, &whole].map(|one| one.local_addr().to_string());
    let [strange, lonely, good] = &addresses;
    let joined = join(&[&nowhere, strange, lonely, good], &token)
        .await
        .unwrap();
    assert_eq!(joined.identity.node(), member);
    assert_eq!(joined.coordinators.len(), 1);
    assert_eq!(joined.coordinators[0].control, *good);
    let failed = join(&[lonely, &nowhere], &token).await.unwrap_err();
    assert!(failed.may_try_again());
    let none: [&str; 0] = [];
    assert!(matches!(join(&none, &token).await, Err(JoinError::Nobody)));

    for endpoint in [&stranger, &alone, &whole] {
        endpoint.close().await;
    }
    assert_eq!(strangers.await.unwrap(), []);
    let (first, second) = (at_alone.await.unwrap(), at_whole.await.unwrap());
    assert_eq!(first[0], second[0], "one attempt");
    assert_ne!(first[1].attempt, first[0].attempt, "another attempt");
}

/// A joiner's certificate signing requests that nobody can sign: cut short, forged, and with keys of
/// another kind.
fn unsignable() -> Vec<Vec<u8>> {
    let request = |key: rcgen::KeyPair| {
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    let good = request(rcgen::KeyPair::generate().unwrap());
    crate::identity::check_csr(&good).unwrap();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let of = |kind| request(rcgen::KeyPair::generate_for(kind).unwrap());
    vec![
        Vec::new(),
        good[..good.len() / 2].to_vec(),
        forged,
        of(&rcgen::PKCS_ED25519),
        of(&rcgen::PKCS_ECDSA_P384_SHA384),
    ]
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_does_not_reach_the_token() {
    let authority = Arc::new(cluster());
    let coordinator = node(&authority, COORDINATOR, &[Protocol::Join]);
    let address = coordinator.local_addr().to_string();
    let token = token(&authority, 1);
    let server = register(&coordinator, &authority, vec![(token.clone(), Ok(WORKER))]);
    for csr in unsignable() {
        let connection = careless(&address, None, Protocol::Join).await;
        let (mut send, mut recv) = connection.quic().open_bi().await.unwrap();
        // As `JoinRequest` is laid out.
        let request = (token.id(), token.secret(), csr);
        write_frame(&mut send, &request, MAX).await.unwrap();
        let _ = send.finish();
        let answer = recv.read_to_end(MAX).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("certificate request"), "{answer}");
    }
    join(&[&address], &token).await.unwrap();
    coordinator.close().await;
    assert_eq!(server.await.unwrap().len(), 1, "only the good one asked");
}
