//! Ranks find each other and work together: real certificates, real QUIC on loopback, real shared
//! memory. Each "worker" here is an endpoint with its accept loop; each rank a thread.

mod workers;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::{DeploymentId, Epoch, Rank, Replica, Stage};
use trireme_shared::model::{Precision, RankShare, Span};
use trireme_shared::plan::{Assignment, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use trireme_shared::transport::{Endpoint, Protocol};
use trireme_worker::parallel::bench::round_trips;
use trireme_worker::parallel::mesh::{
    MeshError, MeshOptions, PlanLinks, RankLinks, SampledLinks, connect,
};
use trireme_worker::parallel::quic::QuicLink;
use trireme_worker::parallel::{Abort, LinkError, WaitPolicy, Waits};
use workers::{Worker, worker_id, workers};

fn plan(workers: &[Worker], tp: u16, pp: u16, link: LinkPolicy, hosts: &[&str]) -> ReplicaPlan {
    static NONCES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let unique = NONCES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&unique.to_le_bytes());
    nonce[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    let rank = |(index, worker): (usize, &Worker)| RankPlacement {
        share: RankShare {
            stage: Stage(index as u16 / tp),
            rank: Rank(index as u16 % tp),
            stages: pp,
            ranks: tp,
            layers: Span::new(0, 1),
            kv_heads: Span::new(0, 1),
            ffn: Span::new(0, 1),
            vocab: Span::new(0, 1),
        },
        worker: worker_id(index),
        address: worker.endpoint.local_addr().to_string(),
        host: hosts[index % hosts.len()].to_owned(),
        weight_bytes: 0,
    };
    ReplicaPlan {
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(3),
        model: ModelRef {
            name: "test".into(),
            source: "test".into(),
            sha256: None,
        },
        tensor_parallel: tp,
        pipeline_parallel: pp,
        link,
        precision: Precision::default(),
        ranks: workers.iter().enumerate().map(rank).collect(),
        kv_pages: 1,
        context: 1,
        nonce,
    }
}

fn assignment(plan: &ReplicaPlan, index: u16) -> Assignment {
    Assignment {
        plan: plan.clone(),
        index,
    }
}

fn options(deadline: Duration) -> MeshOptions {
    MeshOptions {
        wait: WaitPolicy::crowded(),
        deadline,
    }
}

const LONG: Duration = Duration::from_secs(30);

/// Every rank connects, each in a task of its own.
async fn connect_all(workers: &[Worker], plan: &ReplicaPlan) -> Vec<RankLinks> {
    let abort = Abort::default();
    let mut tasks = Vec::new();
    for (index, worker) in workers.iter().enumerate() {
        let assignment = assignment(plan, index as u16);
        let (endpoint, incoming) = (worker.endpoint.clone(), worker.incoming.clone());
        let abort = abort.clone();
        tasks.push(tokio::spawn(async move {
            connect(&assignment, &endpoint, &incoming, &options(LONG), &abort).await
        }));
    }
    let mut links = Vec::new();
    for task in tasks {
        links.push(task.await.unwrap().unwrap());
    }
    links
}

/// What a step does to the links, for `steps` steps: plan out, reduce, hand on, sample back. Returns
/// what the driver got back.
fn run_steps(ranks: Vec<RankLinks>, steps: u64, rows: usize) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| {
        let run = |mut rank: RankLinks| {
            let mut sampled = Vec::new();
            for step in 0..steps {
                match &mut rank.plans {
                    PlanLinks::Driver(senders) => {
                        for sender in senders {
                            sender.send(&step.to_le_bytes()).unwrap();
                        }
                    }
                    PlanLinks::Follower(plans) => {
                        assert_eq!(plans.recv().unwrap(), step.to_le_bytes());
                    }
                }
                let mut hidden = vec![1.0 + step as f32; rows];
                if let Some(previous) = &mut rank.from_previous {
                    previous.recv_hidden(step, &mut hidden).unwrap();
                }
                let mut wide: Vec<f64> = hidden.iter().map(|v| f64::from(*v)).collect();
                rank.collective.all_reduce(&mut wide).unwrap();
                hidden = wide.iter().map(|v| *v as f32).collect();
                if let Some(next) = &mut rank.to_next {
                    next.send_hidden(step, &hidden).unwrap();
                }
                match &mut rank.sampled {
                    SampledLinks::Sender(sender) => {
                        assert!(hidden.iter().all(|value| *value == hidden[0]));
                        sender.send(&hidden[0].to_le_bytes()).unwrap();
                    }
                    SampledLinks::Receiver(receiver) => sampled.push(receiver.recv().unwrap()),
                    SampledLinks::None => {}
                }
            }
            sampled
        };
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|rank| scope.spawn(move || run(rank)))
            .collect();
        let mut results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.next().unwrap()
    })
}

/// tp 2 x pp 2: each stage doubles what it gets.
fn expected(steps: u64) -> Vec<Vec<u8>> {
    (0..steps)
        .map(|step| (4.0 * (1.0 + step as f32)).to_le_bytes().to_vec())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_ranks_work_together_over_every_kind_of_link() {
    let workers = workers(4);
    for (name, link, hosts) in [
        ("shared memory", LinkPolicy::Auto, &["here"][..]),
        ("quic", LinkPolicy::Quic, &["here"][..]),
        (
            "a host for each stage",
            LinkPolicy::Auto,
            &["a", "a", "b", "b"][..],
        ),
        ("no two ranks together", LinkPolicy::Auto, &["a", "b"][..]),
    ] {
        let plan = plan(&workers, 2, 2, link, hosts);
        // A decode row, and a prefill chunk that is far larger than any ring.
        for (steps, rows) in [(20, 576), (2, 512 * 576)] {
            let ranks = connect_all(&workers, &plan).await;
            let got = tokio::task::spawn_blocking(move || run_steps(ranks, steps, rows));
            assert_eq!(got.await.unwrap(), expected(steps), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_over_two_hosts_sums_alike() {
    let workers = workers(3);
    let plan = plan(&workers, 3, 1, LinkPolicy::Auto, &["a", "a", "b"]);
    let ranks = connect_all(&workers, &plan).await;
    let sums = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            let sum = |mut rank: RankLinks| {
                let me = rank.collective.rank();
                let mut out: Vec<Vec<f64>> = Vec::new();
                for len in [576, 100_000] {
                    let mut values: Vec<f64> =
                        (0..len).map(|at| (at * (me + 1)) as f64 * 0.1).collect();
                    rank.collective.all_reduce(&mut values).unwrap();
                    out.push(values);
                }
                out
            };
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|rank| scope.spawn(move || sum(rank)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        })
    });
    let sums = sums.await.unwrap();
    assert!(sums[0] == sums[1] && sums[1] == sums[2]);
    assert!((sums[0][0][10] - 6.0).abs() < 1e-4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_rank_is_named() {
    let workers = workers(3);
    for link in [LinkPolicy::Auto, LinkPolicy::Quic] {
        let plan = plan(&workers, 3, 1, link, &["here"]);
        let soon = options(Duration::from_millis(300));
        let (abort_0, abort_1) = (Abort::default(), Abort::default());
        let (first, second) = (assignment(&plan, 0), assignment(&plan, 1));
        let (zero, one) = tokio::join!(
            connect(
                &first,
                &workers[0].endpoint,
                &workers[0].incoming,
                &soon,
                &abort_0
            ),
            connect(
                &second,
                &workers[1].endpoint,
                &workers[1].incoming,
                &soon,
                &abort_1
            ),
        );
        for got in [zero, one] {
            let Err(MeshError::Missing { ranks, .. }) = got else {
                panic!("rank 2 never came");
            };
            let named: Vec<_> = ranks.iter().map(|rank| (rank.index, rank.worker)).collect();
            assert_eq!(named, [(2, worker_id(2))], "{link:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_worker_is_not_believed() {
    let workers = workers(3);
    let mut plan = plan(&workers[..2], 2, 1, LinkPolicy::Quic, &["here"]);
    plan.ranks[1].address = workers[2].endpoint.local_addr().to_string();
    let (soon, abort) = (options(Duration::from_millis(300)), Abort::default());
    let first = assignment(&plan, 0);
    let got = connect(
        &first,
        &workers[0].endpoint,
        &workers[0].incoming,
        &soon,
        &abort,
    )
    .await;
    let Err(MeshError::Missing { ranks, .. }) = got else {
        panic!("another worker was taken for rank 1");
    };
    assert!(ranks[0].detail.contains("w3"), "{}", ranks[0].detail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abort_ends_the_search_and_leaves_no_shared_memory() {
    let workers = workers(2);
    let plan = plan(&workers, 2, 1, LinkPolicy::Auto, &["here"]);
    let nonce: String = plan
        .nonce
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let files = || {
        let entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap_or_default());
        names.filter(|name| name.contains(&nonce)).count()
    };
    let abort = Abort::default();
    let searching = {
        let (first, abort) = (assignment(&plan, 0), abort.clone());
        let (endpoint, incoming) = (workers[0].endpoint.clone(), workers[0].incoming.clone());
        tokio::spawn(async move {
            connect(&first, &endpoint, &incoming, &options(LONG), &abort)
                .await
                .map(|_| ())
        })
    };
    while files() < 2 {
        tokio::task::yield_now().await;
    }
    abort.raise();
    assert!(matches!(searching.await.unwrap(), Err(MeshError::Aborted)));
    while files() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_dies_ends_the_others_over_quic() {
    let workers = workers(2);
    let plan = plan(&workers, 2, 1, LinkPolicy::Quic, &["here"]);
    let mut ranks = connect_all(&workers, &plan).await;
    let mut second = ranks.pop().unwrap();
    let mut first = ranks.pop().unwrap();
    let waiting = tokio::task::spawn_blocking(move || {
        let PlanLinks::Follower(plans) = &mut second.plans else {
            panic!("rank 1 follows");
        };
        (plans.recv(), second.collective.all_reduce(&mut [1.0]))
    });
    drop(first.collective);
    first.plans = PlanLinks::Driver(Vec::new());
    let (plan, sum) = waiting.await.unwrap();
    assert!(
        matches!(plan, Err(LinkError::Closed { peer: 0 })),
        "{plan:?}"
    );
    assert!(matches!(sum, Err(LinkError::Closed { peer: 0 })), "{sum:?}");
}

/// `cargo test --release -p trireme-worker --test mesh quic_times -- --ignored --nocapture`
#[test]
#[ignore = "prints times; wants an idle machine"]
fn quic_times() {
    for (name, policy) in [
        ("roomy", WaitPolicy::roomy()),
        ("crowded", WaitPolicy::crowded()),
    ] {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let (one, two) = (runtime(), runtime());
        let authority = ClusterAuthority::new("test").unwrap();
        let bind = |index| {
            let identity = NodeIdentity::issue(&authority, NodeId::Worker(worker_id(index)));
            let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Endpoint::bind(listen, &identity.unwrap(), &[Protocol::Link]).unwrap()
        };
        let near = one.block_on(async { bind(0) });
        let far = two.block_on(async { bind(1) });
        let waits = |peer| Waits {
            peer,
            abort: Abort::default(),
            policy,
        };
        for (bytes, rounds) in [(4, 3_000), (2_304, 3_000), (65_536, 300), (1_179_648, 50)] {
            let address = far.local_addr().to_string();
            let accepting = two.spawn({
                let far = far.clone();
                async move {
                    let connection = far.accept().await.unwrap();
                    let (send, mut recv) = connection.quic().accept_bi().await.unwrap();
                    recv.read_exact(&mut [0]).await.unwrap();
                    (connection, send, recv)
                }
            });
            let dialled = one.block_on(async {
                let peer = NodeId::Worker(worker_id(1));
                let connection = near.connect(&address, peer, Protocol::Link).await.unwrap();
                let (mut send, recv) = connection.quic().open_bi().await.unwrap();
                send.write_all(&[0]).await.unwrap();
                let runtime = tokio::runtime::Handle::current();
                QuicLink::new(send, recv, Some(connection), waits(1), runtime)
            });
            let (connection, send, recv) = two.block_on(accepting).unwrap();
            let runtime = two.handle().clone();
            let accepted = QuicLink::new(send, recv, Some(connection), waits(0), runtime);
            let times = round_trips(dialled, accepted, bytes, rounds).unwrap();
            eprintln!("{name:8} {bytes:8} B: {times:?}");
        }
    }
}
