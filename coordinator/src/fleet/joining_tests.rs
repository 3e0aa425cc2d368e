//! What the group comes to know of a worker by its joining and its hello.

use super::*;
use crate::raft::bench;
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
        world.tasks.spawn(pretend(older.clone(), 1, plot, control));

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

fn offer(threads: u32) -> Inventory {
    Inventory {
        host: "h".into(),
        hostname: "h".into(),
        pid: 1,
        threads,
        memory_bytes: 1 << 30,
        isa: "portable".into(),
        data_port: 1,
        advertise: None,
        version: "0".into(),
    }
}

/// Connects and says hello; the stream keeps the worker connected.
async fn say_hello(
    world: &World,
    identity: &NodeIdentity,
    inventory: Inventory,
) -> (trireme_shared::transport::Connection, quinn::SendStream) {
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity, &[]).unwrap();
    let dialled = endpoint.connect_coordinator(&world.control, Protocol::Control);
    let connection = dialled.await.unwrap();
    let (mut send, recv) = connection.quic().open_bi().await.unwrap();
    let max = limits::CONTROL_FRAME_BYTES_MAX;
    let hello = ToCoordinator::Hello { inventory };
    write_frame(&mut send, &hello, max).await.unwrap();
    let welcome = FrameReader::new(recv, max).next().await.unwrap();
    assert!(matches!(welcome, Some(ToWorker::Welcome { .. })));
    (connection, send)
}

#[test]
fn an_offer_is_written_down_once_each_time_it_is_new() {
    runtime().block_on(async {
        let world = World::new(0, 1, 1).await;
        let group = world.fleet.shared.group.clone();
        // Nothing to plan: only what workers say is proposed.
        let id = world.deployment;
        group
            .propose(Command::RemoveDeployment { id })
            .await
            .unwrap();
        let (one, two) = (join_one(&world).await, join_one(&world).await);
        let offers = |threads| {
            move |r: &WorkerRecord| {
                r.certificate.is_some() && r.inventory.as_ref() == Some(&offer(threads))
            }
        };
        let before = group.read(crate::state::State::commands);
        let first = say_hello(&world, &one, offer(1)).await;
        record(&world, worker(&one), offers(1)).await;
        assert_eq!(
            group.read(crate::state::State::commands),
            before + 2,
            "with its certificate"
        );
        // The same again, and another worker's.
        drop(first);
        let again = say_hello(&world, &one, offer(1)).await;
        let other = say_hello(&world, &two, offer(2)).await;
        record(&world, worker(&two), offers(2)).await;
        assert_eq!(group.read(crate::state::State::commands), before + 4);
        drop(again);
        let more = say_hello(&world, &one, offer(3)).await;
        record(&world, worker(&one), offers(3)).await;
        assert_eq!(group.read(crate::state::State::commands), before + 5);
        drop((other, more));
        world.end().await;
    });
}

/// All coordinators hear a hello.
#[test]
fn only_the_leader_writes_an_offer_down() {
    runtime().block_on(async {
        let dir = Scratch::new();
        let groups = bench::start(dir.path(), 3).await.unwrap();
        let leader = bench::leader(&groups).await.unwrap();
        let (secret_hash, role) = ([7; 32], TokenRole::Worker);
        let token = Command::CreateToken {
            secret_hash,
            role,
            provider: None,
            uses: 1,
            expires_at: u64::MAX,
        };
        let Ok(Outcome::Token(token)) = groups[leader].propose(token).await else {
            panic!("no token");
        };
        let joining = Command::JoinWorker { token, secret_hash };
        let Ok(Outcome::Worker(worker)) = groups[leader].propose(joining).await else {
            panic!("not joined");
        };
        let fleet = |group: &crate::raft::group::Group| {
            let fleet = Fleet::new(FleetSetup {
                group: group.clone(),
                this: CoordinatorReport {
                    id: group.own(),
                    pid: 1,
                    http: String::new(),
                    control: String::new(),
                },
                cache_dir: None,
            });
            let (orders, _) = tokio::sync::mpsc::channel(1);
            let line = Line {
                connection: ConnectionId(1),
                orders,
                cut: CancellationToken::new(),
                trusts: Vec::new(),
            };
            let said = (String::new(), offer(1));
            let mut driven = fleet.lock();
            driven.inventories.insert(worker, said);
            driven.lines.insert(worker, line);
            drop(driven);
            fleet
        };
        let stored = || groups[leader].read(|s| s.worker(worker).unwrap().inventory.clone());
        for (at, group) in groups.iter().enumerate() {
            if at != leader {
                // What it proposes is in the log before this.
                let act = || Command::RecordAct {
                    what: "looked".into(),
                    detail: String::new(),
                };
                let follows = fleet(group);
                tokio::select! {
                    biased;
                    () = follows.keep_inventories() => {}
                    done = async {
                        group.propose(act()).await?;
                        group.propose(act()).await
                    } => drop(done.unwrap()),
                }
            }
        }
        assert_eq!(stored(), None);
        let mut changes = groups[leader].changes(Kind::Workers);
        let written = async {
            while stored().is_none() {
                changes.changed().await.unwrap();
            }
        };
        let leads = fleet(&groups[leader]);
        let written = tokio::time::timeout(Duration::from_secs(20), written);
        tokio::select! {
            () = leads.keep_inventories() => {}
            in_time = written => in_time.expect("the leader writes it down"),
        }
        assert_eq!(stored(), Some(offer(1)));
        for group in &groups {
            group.close().await;
        }
    });
}
