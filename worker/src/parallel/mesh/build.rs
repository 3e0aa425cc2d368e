//! Makes the links of one rank, all at once, under one deadline.

use super::super::channel::{PlanReceiver, PlanSender, SampledReceiver, SampledSender};
use super::super::collective::Mesh;
use super::super::frame::FramedLink;
use super::super::incoming::{ANSWER, Hello, IncomingLinks};
use super::super::quic::QuicLink;
use super::super::ring;
use super::super::shm;
use super::super::stage::{StageReceiver, StageSender};
use super::super::topology::{Channel, LinkSpec, Shape};
use super::super::{Abort, Collective, Link, Solo, WaitPolicy, Waits};
use super::{MeshError, MeshOptions, MissingRank, PlanLinks, RankLinks, SampledLinks};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::Epoch;
use trireme_shared::limits::{
    LINK_PARK_SLICE, MESH_POLL, MESH_REDIAL, PIPELINE_PARALLEL_MAX, TENSOR_PARALLEL_MAX,
};
use trireme_shared::plan::{Assignment, LinkPolicy, RankPlacement};
use trireme_shared::transport::{Endpoint, Protocol};

type Links = BTreeMap<LinkSpec, Box<dyn Link>>;
type Made = Result<(LinkSpec, Box<dyn Link>), Failure>;

/// One link to be made, with all that needs.
struct Job {
    link: LinkSpec,
    /// Whether this rank is the link's lower end, which creates or dials.
    dials: bool,
    peer: RankPlacement,
    waits: Waits,
    deadline: Instant,
    hello: Hello,
}

/// Why one link was not made.
enum Failure {
    Missing(MissingRank),
    SharedMemory { peer: usize, source: std::io::Error },
}

pub(super) async fn connect(
    assignment: &Assignment,
    endpoint: &Endpoint,
    incoming: &IncomingLinks,
    options: &MeshOptions,
    abort: &Abort,
) -> Result<RankLinks, MeshError> {
    let plan = &assignment.plan;
    let shape = check(assignment)?;
    let own = &plan.ranks[usize::from(assignment.index)];
    let deadline = Instant::now() + options.deadline;
    let mut jobs = JoinSet::new();
    for link in shape.links_of(assignment.index) {
        let dials = link.lower == assignment.index;
        let index = if dials { link.higher } else { link.lower };
        let peer = plan.ranks[usize::from(index)].clone();
        let shares_memory = plan.link == LinkPolicy::Auto && peer.host == own.host;
        let job = Job {
            link,
            dials,
            waits: Waits {
                peer: usize::from(index),
                abort: abort.clone(),
                policy: options.wait,
            },
            peer,
            deadline,
            hello: Hello {
                nonce: plan.nonce,
                epoch: plan.epoch,
                link,
            },
        };
        if shares_memory {
            jobs.spawn(job.share_memory(shm::directory().to_owned()));
        } else if dials {
            jobs.spawn(job.dial(endpoint.clone()));
        } else {
            jobs.spawn(job.accept(incoming.clone()));
        }
    }
    let links = gather(jobs, options, abort).await?;
    Ok(assemble(shape, assignment.index, plan.epoch, links))
}

/// Checks what the rest relies on.
fn check(assignment: &Assignment) -> Result<Shape, MeshError> {
    let plan = &assignment.plan;
    let (tp, pp) = (plan.tensor_parallel, plan.pipeline_parallel);
    let fits = (1..=TENSOR_PARALLEL_MAX).contains(&usize::from(tp))
        && (1..=PIPELINE_PARALLEL_MAX).contains(&usize::from(pp));
    let (ranks, index) = (plan.ranks.len(), assignment.index);
    if !fits || ranks != usize::from(tp) * usize::from(pp) || usize::from(index) >= ranks {
        return Err(MeshError::Plan(format!(
            "{pp} stages of {tp} ranks, {ranks} ranks named, this one is {index}"
        )));
    }
    Ok(Shape {
        tensor_parallel: tp,
        pipeline_parallel: pp,
    })
}

/// Waits for every job; dropping the set on the way out ends those that still run.
async fn gather(
    mut jobs: JoinSet<Made>,
    options: &MeshOptions,
    abort: &Abort,
) -> Result<Links, MeshError> {
    let mut links = Links::new();
    let mut missing: BTreeMap<usize, MissingRank> = BTreeMap::new();
    loop {
        let done = tokio::select! {
            done = jobs.join_next() => done,
            () = sleep(LINK_PARK_SLICE) => {
                if abort.is_raised() {
                    return Err(MeshError::Aborted);
                }
                continue;
            }
        };
        match done {
            None => break,
            Some(Ok(Ok((link, made)))) => {
                links.insert(link, made);
            }
            Some(Ok(Err(Failure::Missing(rank)))) => {
                missing.insert(rank.index, rank);
            }
            Some(Ok(Err(Failure::SharedMemory { peer, source }))) => {
                return Err(MeshError::SharedMemory { peer, source });
            }
            // Nobody cancels these tasks while we wait, so one that is gone has panicked.
            Some(Err(lost)) => std::panic::resume_unwind(lost.into_panic()),
        }
    }
    if missing.is_empty() {
        return Ok(links);
    }
    Err(MeshError::Missing {
        ranks: missing.into_values().collect(),
        waited: options.deadline,
    })
}

impl Job {
    fn missing(&self, detail: impl Into<String>) -> Failure {
        Failure::Missing(MissingRank {
            index: self.waits.peer,
            worker: self.peer.worker,
            address: self.peer.address.clone(),
            detail: detail.into(),
        })
    }

    async fn share_memory(self, dir: PathBuf) -> Made {
        let name = shm::file_name(&self.hello.nonce, self.link);
        let bytes = self.link.channel.ring_bytes();
        let failed = |source| Failure::SharedMemory {
            peer: self.waits.peer,
            source,
        };
        if self.dials {
            let created = shm::Created::new(&dir, &name, bytes).map_err(failed)?;
            while !created.is_joined() {
                if Instant::now() >= self.deadline {
                    return Err(self.missing("it did not open the shared memory"));
                }
                sleep(MESH_POLL).await;
            }
            return Ok((self.link, Box::new(created.into_link(self.waits))));
        }
        loop {
            let joined = shm::join(&dir, &name, bytes, self.waits.clone()).map_err(failed)?;
            if let Some(link) = joined {
                return Ok((self.link, Box::new(link)));
            }
            if Instant::now() >= self.deadline {
                return Err(self.missing("it did not create the shared memory"));
            }
            sleep(MESH_POLL).await;
        }
    }

    async fn dial(self, endpoint: Endpoint) -> Made {
        let mut detail = "no answer".to_owned();
        loop {
            match timeout_at(self.deadline, self.dial_once(&endpoint)).await {
                Ok(Ok(link)) => return Ok((self.link, Box::new(link))),
                Ok(Err(reason)) => detail = reason,
                Err(_) => return Err(self.missing(detail)),
            }
            // The peer may still be starting, or gave the stream up because its rank was not there.
            sleep(MESH_REDIAL).await;
        }
    }

    async fn dial_once(&self, endpoint: &Endpoint) -> Result<QuicLink, String> {
        let peer = NodeId::Worker(self.peer.worker);
        let connection = endpoint
            .connect(&self.peer.address, peer, Protocol::Link)
            .await
            .map_err(|error| error.to_string())?;
        let opened = connection.quic().open_bi().await;
        let (mut send, mut recv) = opened.map_err(|error| error.to_string())?;
        let hello = self.hello.encode();
        let sent = send.write_all(&hello).await;
        sent.map_err(|error| error.to_string())?;
        let mut answer = [0; ANSWER.len()];
        let read = recv.read_exact(&mut answer).await;
        read.map_err(|error| format!("its rank did not take the link: {error}"))?;
        if answer != ANSWER {
            return Err("its answer is not a Trireme link's".into());
        }
        Ok(QuicLink::new(
            send,
            recv,
            Some(connection),
            self.waits.clone(),
            Handle::current(),
        ))
    }

    async fn accept(self, incoming: IncomingLinks) -> Made {
        loop {
            let claim = incoming.claim(self.hello, self.peer.worker);
            let Ok((mut send, recv)) = timeout_at(self.deadline, claim).await else {
                return Err(self.missing("it did not dial"));
            };
            match timeout_at(self.deadline, send.write_all(&ANSWER)).await {
                Ok(Ok(())) => {
                    let link = QuicLink::new(send, recv, None, self.waits, Handle::current());
                    return Ok((self.link, Box::new(link)));
                }
                // The dialler gave this stream up and will dial again.
                Ok(Err(_)) => {}
                Err(_) => return Err(self.missing("it dialled and went away")),
            }
        }
    }
}

/// Puts the links of `index` where they belong. `links` holds each of `shape.links_of(index)`.
fn assemble(shape: Shape, index: u16, epoch: Epoch, mut links: Links) -> RankLinks {
    let mut peers: Vec<Option<FramedLink>> = Vec::new();
    peers.resize_with(usize::from(shape.tensor_parallel), || None);
    let mut rank = RankLinks {
        collective: Box::new(Solo),
        from_previous: None,
        to_next: None,
        plans: PlanLinks::Driver(Vec::new()),
        sampled: SampledLinks::None,
    };
    // In the map's order, which for one channel is the order of the peers' indices.
    while let Some((spec, link)) = links.pop_first() {
        let link = FramedLink::new(link, epoch);
        let lower = spec.lower == index;
        let peer = if lower { spec.higher } else { spec.lower };
        match (spec.channel, lower) {
            (Channel::Collective, _) => {
                peers[usize::from(shape.rank_of(peer))] = Some(link);
            }
            (Channel::Stage, true) => rank.to_next = Some(StageSender::new(link)),
            (Channel::Stage, false) => rank.from_previous = Some(StageReceiver::new(link)),
            (Channel::Plan, true) => match &mut rank.plans {
                PlanLinks::Driver(senders) => senders.push(PlanSender::new(link)),
                PlanLinks::Follower(_) => {}
            },
            (Channel::Plan, false) => rank.plans = PlanLinks::Follower(PlanReceiver::new(link)),
            (Channel::Sampled, true) => {
                rank.sampled = SampledLinks::Receiver(SampledReceiver::new(link));
            }
            (Channel::Sampled, false) => {
                rank.sampled = SampledLinks::Sender(SampledSender::new(link));
            }
        }
    }
    if peers.len() > 1 {
        rank.collective = mesh_of(shape.rank_of(index), peers);
    }
    rank
}

fn mesh_of(rank: u16, peers: Vec<Option<FramedLink>>) -> Box<dyn Collective> {
    Box::new(Mesh::new(usize::from(rank), peers))
}

/// All ranks of a replica inside one process, linked through memory: for benches and tests. The
/// links of rank `i` end when `aborts[i]` is raised; `aborts` has one entry for each rank.
pub fn in_process(
    shape: Shape,
    epoch: Epoch,
    wait: WaitPolicy,
    aborts: &[Abort],
) -> std::io::Result<Vec<RankLinks>> {
    assert_eq!(
        aborts.len(),
        usize::from(shape.ranks()),
        "one abort for each rank"
    );
    let mut links: Vec<Links> = Vec::new();
    links.resize_with(aborts.len(), Links::new);
    for spec in shape.links() {
        let (lower, higher) = (usize::from(spec.lower), usize::from(spec.higher));
        let waits = |own: usize, peer| Waits {
            peer,
            abort: aborts[own].clone(),
            policy: wait,
        };
        let (low, high) = ring::pair(
            spec.channel.ring_bytes(),
            waits(lower, higher),
            waits(higher, lower),
        )?;
        links[lower].insert(spec, Box::new(low));
        links[higher].insert(spec, Box::new(high));
    }
    let ranks = links.into_iter().zip(0u16..);
    Ok(ranks
        .map(|(links, index)| assemble(shape, index, epoch, links))
        .collect())
}
