//! The cluster's CA is replaced while everybody goes on talking. Of two neighbouring stages all
//! nodes understand each other; of stages further apart those that must not, do not.

use super::*;
use crate::identity::{JoinToken, KeyRequest};
use crate::ids::TokenRecordId;
use crate::transport::join::{Admission, JoinError, join, serve_join};

/// How far a node has come: who signed its certificate, and whom it trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It knows only the old authority.
    Old,
    /// It trusts both.
    Trusts,
    /// Its certificate is the new authority's.
    Renewed,
    /// The old authority is forgotten.
    New,
}
use Stage::{New, Old, Renewed, Trusts};

const STAGES: [Stage; 4] = [Old, Trusts, Renewed, New];

/// Two authorities of the same name, as a rotation makes them.
struct Rotation {
    old: Arc<ClusterAuthority>,
    new: Arc<ClusterAuthority>,
}

impl Rotation {
    fn begin() -> Self {
        Self {
            old: Arc::new(cluster()),
            new: Arc::new(cluster()),
        }
    }

    fn identity(&self, node: NodeId, stage: Stage) -> NodeIdentity {
        let signer = if stage < Renewed {
            &self.old
        } else {
            &self.new
        };
        let both = [&self.old, &self.new].map(|one| one.certificate().clone());
        let bundle = match stage {
            Old => &both[..1],
            Trusts | Renewed => &both[..],
            New => &both[1..],
        };
        // As a renewal does it.
        let request = KeyRequest::generate().unwrap();
        let lifetime = limits::NODE_CERTIFICATE_LIFETIME;
        let certificate = signer.sign_csr(request.csr(), node, lifetime).unwrap();
        let identity = request.complete_for(node, certificate, bundle.to_vec());
        identity.unwrap()
    }
}

/// Whether two nodes must understand each other: each trusts the other's signer.
fn may_talk(one: Stage, other: Stage) -> bool {
    let trusts = |a: Stage, b: Stage| match a {
        Old => b < Renewed,
        Trusts | Renewed => true,
        New => b >= Renewed,
    };
    trusts(one, other) && trusts(other, one)
}

#[tokio::test]
async fn neighbouring_stages_talk_and_distant_ones_do_not() {
    for pair in STAGES.windows(2) {
        assert!(may_talk(pair[0], pair[1]), "a rotation has no gap");
    }
    let rotation = Rotation::begin();
    for at_server in STAGES {
        let identity = rotation.identity(COORDINATOR, at_server);
        let server = Endpoint::bind(loopback(), &identity, &[Protocol::Control]).unwrap();
        let seen = echo(&server);
        let address = server.local_addr().to_string();
        let mut through = 0;
        for at_dialler in STAGES {
            let identity = rotation.identity(WORKER, at_dialler);
            let dialler = Endpoint::bind(loopback(), &identity, &[]).unwrap();
            let dialled = dialler.connect(&address, COORDINATOR, Protocol::Control);
            let answer = match dialled.await {
                Ok(connection) => ask(&connection).await,
                Err(error) => Err(error.to_string()),
            };
            let expected = may_talk(at_dialler, at_server);
            assert_eq!(answer.is_ok(), expected, "{at_dialler:?} {at_server:?}");
            through += usize::from(expected);
        }
        server.close().await;
        assert_eq!(seen.await.unwrap().len(), through, "at {at_server:?}");
    }
}

#[tokio::test]
async fn live_endpoints_rotate_without_losing_a_connection() {
    let rotation = Rotation::begin();
    let bind = |node, accept: &[Protocol]| {
        Endpoint::bind(loopback(), &rotation.identity(node, Old), accept).unwrap()
    };
    let coordinator = bind(COORDINATOR, &[Protocol::Control]);
    let worker = bind(WORKER, &[]);
    let left_behind = bind(OTHER_WORKER, &[]);
    let seen = echo(&coordinator);
    let address = coordinator.local_addr().to_string();
    let dial = |from: &Endpoint| {
        let (from, address) = (from.clone(), address.clone());
        async move {
            let dialled = from.connect(&address, COORDINATOR, Protocol::Control);
            dialled.await.map_err(|error| error.to_string())
        }
    };
    let first = dial(&worker).await.unwrap();
    for stage in [Trusts, Renewed, New] {
        // The worker follows one step behind.
        let identity = rotation.identity(COORDINATOR, stage);
        coordinator.replace_identity(&identity).unwrap();
        assert_eq!(ask(&dial(&worker).await.unwrap()).await, Ok(42));
        let identity = rotation.identity(WORKER, stage);
        worker.replace_identity(&identity).unwrap();
        let now = dial(&worker).await.unwrap();
        assert_eq!(ask(&now).await, Ok(42), "{stage:?}");
        assert_eq!(ask(&first).await, Ok(42), "the first goes on at {stage:?}");
        let shown = rotation.identity(COORDINATOR, stage).trusted();
        let shown_now: Vec<_> = tls::certificates(now.quic())[1..]
            .iter()
            .map(Fingerprint::of)
            .collect();
        assert_eq!(shown_now, shown, "at {stage:?}");
    }
    // Who missed the rotation is out, and so is whoever holds the old authority's key.
    assert!(dial(&left_behind).await.is_err());
    let stolen = rotation.identity(OTHER_WORKER, Old);
    let stolen = careless(&address, Some(&stolen), Protocol::Control).await;
    assert!(ask(&stolen).await.is_err());
    assert!(stolen.refusal().unwrap().contains("certificate"));
    coordinator.close().await;
    assert_eq!(seen.await.unwrap(), [(Protocol::Control, Some(WORKER)); 7]);
}

#[tokio::test]
async fn an_endpoint_stays_the_node_it_is() {
    let authority = cluster();
    let worker = node(&authority, WORKER, &[Protocol::Link]);
    let other = NodeIdentity::issue(&authority, OTHER_WORKER).unwrap();
    assert!(worker.replace_identity(&other).is_err());
    let seen = echo(&worker);
    let dialler = node(&authority, OTHER_WORKER, &[]);
    let address = worker.local_addr().to_string();
    let link = dialler.connect(&address, WORKER, Protocol::Link);
    assert_eq!(ask(&link.await.unwrap()).await, Ok(42));
    worker.close().await;
    assert_eq!(seen.await.unwrap().len(), 1);
}

/// A token pins the authority that it was made under. It works for as long as the coordinators'
/// certificates are that one's, and is refused, secret unsaid, after that.
#[tokio::test]
async fn a_join_in_mid_rotation_gets_the_whole_bundle() {
    let rotation = Rotation::begin();
    for (stage, pinned, stranger) in [
        (Trusts, &rotation.old, &rotation.new),
        (Renewed, &rotation.new, &rotation.old),
    ] {
        let identity = rotation.identity(COORDINATOR, stage);
        let coordinator = Endpoint::bind(loopback(), &identity, &[Protocol::Join]).unwrap();
        let address = coordinator.local_addr().to_string();
        let serving = tokio::spawn({
            let (coordinator, signer) = (coordinator.clone(), pinned.clone());
            async move {
                let mut served = 0;
                while let Some(connection) = coordinator.accept().await {
                    let admit = async |_| {
                        Ok(Admission {
                            node: WORKER,
                            authority: signer.clone(),
                            authorities: identity.authorities().to_vec(),
                            coordinators: Vec::new(),
                        })
                    };
                    serve_join(&connection, admit).await.unwrap();
                    served += 1;
                }
                served
            }
        });
        let token = |authority: &ClusterAuthority| {
            JoinToken::generate(authority.fingerprint(), TokenRecordId(1)).unwrap()
        };
        let joined = join(&[&address], &token(pinned)).await.unwrap();
        assert_eq!(
            joined.identity.trusted(),
            [&rotation.old, &rotation.new].map(|one| one.fingerprint())
        );
        match join(&[&address], &token(stranger)).await {
            Err(JoinError::Transport(TransportError::WrongCluster { .. })) => {}
            other => panic!("{other:?}"),
        }
        coordinator.close().await;
        assert_eq!(serving.await.unwrap(), 1);
    }
}
