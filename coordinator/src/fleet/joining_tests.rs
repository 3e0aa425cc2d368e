//! What the group comes to know of a worker by its joining and its hello.

use super::*;
use crate::raft::group::Kind;
use crate::state::WorkerRecord;
use std::time::UNIX_EPOCH;
use trireme_shared::identity;
use trireme_shared::ids::WorkerId;

/// Joins one worker that does not connect yet.
async fn join_one(world: &World) -> NodeIdentity {
    let token = world.token().await;
    let joined = join::join(&[&world.control], &token).await;
    joined.unwrap().identity
}

fn worker(identity: &NodeIdentity) -> WorkerId {
    match identity.node() {
        NodeId::Worker(id) => id,
        node => panic!("{node}"),
    }
}

/// Waits until the state has of that worker what is looked for.
async fn record(world: &World, id: WorkerId, has: impl Fn(&WorkerRecord) -> bool) -> WorkerRecord {
    let group = &world.fleet.shared.group;
    let mut changes = group.changes(Kind::Workers);
    let found = async {
        loop {
            changes.mark_unchanged();
            let record = group.read(|s| s.worker(id).cloned());
            if let Some(record) = record.filter(|record| has(record)) {
                return record;
            }
            changes.changed().await.unwrap();
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    found.expect("the state learns of it")
}

#[test]
fn a_certificate_is_noted_with_its_own_end() {
    runtime().block_on(async {
        let mut world = World::new(0, 1, 1).await;
        let joined = join_one(&world).await;
        // Half of its life is over, as far as the group can know.
        let request = identity::KeyRequest::generate().unwrap();
        let left = limits::NODE_CERTIFICATE_LIFETIME / 2;
        let signed = world.authority.sign_csr(request.csr(), joined.node(), left);
        let older = request
            .complete(signed.unwrap(), joined.authorities().to_vec())
            .unwrap();
        let (plot, control) = (Arc::clone(&world.plot), world.control.clone());
        world.tasks.spawn(pretend(older.clone(), plot, control));

        let shown = older.fingerprint().to_string();
        let noted = |record: &WorkerRecord| {
            let certificate = record.certificate.as_ref();
            certificate.is_some_and(|c| c.fingerprint == shown)
        };
        let record = record(&world, worker(&older), noted).await;
        let ends = older.expires_at().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(record.certificate.unwrap().expires_at, ends.as_secs());
        world.end().await;
    });
}
